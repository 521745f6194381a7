//! The offline file tools: `walb ldev`, `walb wlog`, `walb wdiff`.
//!
//! They stream: memory is bounded by one log pack, whatever the size of the file. `-` is stdin or
//! stdout. Every error names the file it is about.

mod image;
pub(crate) mod ldev;
mod output;
mod packs;
pub(crate) mod wdiff;
pub(crate) mod wlog;

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

/// Bytes of the buffers in front of outputs: so small that they stay in the processor's cache.
const BUFFER_BYTES: usize = 128 << 10;

fn is_std_stream(path: &Path) -> bool {
    path == Path::new("-")
}

/// A file to read from its start to its end, `-` is stdin. Its readers read much at once.
pub(crate) fn open_input(path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    if is_std_stream(path) {
        return Ok(Box::new(io::stdin()));
    }
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Box::new(file))
}

/// Buffered standard output, for text and JSON.
pub(crate) fn stdout() -> BufWriter<io::StdoutLock<'static>> {
    BufWriter::new(io::stdout().lock())
}

/// Prints a result as one JSON document, or as the text that `text` writes.
pub(crate) fn print_result<T: Serialize>(
    json: bool,
    result: &T,
    text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut out = stdout();
    if json {
        serde_json::to_writer_pretty(&mut out, result)?;
        writeln!(out)?;
    } else {
        text(&mut out)?;
    }
    out.flush()?;
    Ok(())
}

/// Has the reader of our output gone away? Then there is nothing left to do, and nobody to tell.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io_error = cause.downcast_ref::<io::Error>();
        io_error.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    })
}
