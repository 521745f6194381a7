//! `walb wdiff virtual-cat`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use wdiff_format::io_at::ReadAt;
use wdiff_format::merge::Pieces;
use wdiff_format::redo::BeyondEnd;
use wdiff_format::split::MaxIo;
use wdiff_format::virtual_image::VirtualImage;

use super::{ThreadsArgs, open_merged};
use crate::files::output::Output;

/// Read a base image and wdiffs as the image that they make together. Discarded blocks are zeros.
#[derive(Debug, Args)]
pub(crate) struct VirtualCatArgs {
    /// The base image, a file or block device
    #[arg(long, value_name = "IMAGE")]
    base: PathBuf,
    /// The wdiffs of either kind, oldest first; `-` is a sorted one on stdin
    #[arg(value_name = "WDIFF")]
    inputs: Vec<PathBuf>,
    /// Where the image goes; `-` is stdout
    #[arg(short, long, value_name = "IMAGE", default_value = "-")]
    output: PathBuf,
    #[command(flatten)]
    threads: ThreadsArgs,
}

/// Bytes that are copied at once: they are still in the cache when they are written.
const STEP_BYTES: usize = 256 << 10;
/// Steps that are under way.
const STEPS: usize = 4;

pub(super) fn run(args: &VirtualCatArgs) -> anyhow::Result<()> {
    let open_base = || {
        let base = File::open(&args.base)?;
        let size = base.size_bytes()?;
        Ok::<_, std::io::Error>((base, size))
    };
    let (base, size) =
        open_base().with_context(|| format!("cannot open base image {}", args.base.display()))?;
    let merged = open_merged(&args.inputs, MaxIo::NONE, Pieces::Joined)?;
    let mut image = VirtualImage::new(base, size, merged, BeyondEnd::Fail, args.threads.get());
    let mut output = Output::create(&args.output)?;
    copy(&mut image, &mut output, args)?;
    output.commit().map(|_| ())
}

/// Reads the image and writes it at the same time, over a few buffers that go round.
fn copy(
    image: &mut (impl Read + Send),
    output: &mut Output,
    args: &VirtualCatArgs,
) -> anyhow::Result<()> {
    let (full, to_write) = std::sync::mpsc::sync_channel::<(Vec<u8>, usize)>(STEPS);
    let (empty, to_fill) = std::sync::mpsc::sync_channel(STEPS);
    for _ in 0..STEPS {
        empty.send(vec![0; STEP_BYTES])?;
    }
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || -> std::io::Result<()> {
            // Either end stops when the other one has gone.
            for mut step in to_fill {
                let read = image.read(&mut step)?;
                if read == 0 || full.send((step, read)).is_err() {
                    return Ok(());
                }
            }
            Ok(())
        });
        // Both go away with an error, which ends the reader wherever it waits.
        let (empty, to_write) = (empty, to_write);
        for (step, read) in to_write {
            let (data, _) = step.split_at(read);
            let cannot_write = || format!("cannot write {}", args.output.display());
            output.write_all(data).with_context(cannot_write)?;
            // The reader has gone at the end of the image.
            let _ = empty.send(step);
        }
        let cannot_read =
            || format!("cannot read the image of {} and its wdiffs", args.base.display());
        match reader.join() {
            Ok(read) => read.with_context(cannot_read),
            Err(_) => Err(anyhow::anyhow!("a thread died")).with_context(cannot_read),
        }
    })
}
