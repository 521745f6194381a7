//! Files that appear complete or not at all.
//!
//! The data goes to `NAME.XXXXXX.tmp` beside the file; only a complete and durable file gets the
//! name. What cannot be replaced (a pipe, a device, stdout) is written directly.

use std::fs::File;
use std::io::{self, BufWriter, IoSlice, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::{NamedTempFile, TempPath};

use super::{BUFFER_BYTES, is_std_stream};

/// An output that is being written.
pub(crate) struct Output {
    path: PathBuf,
    writer: BufWriter<Box<dyn Write + Send>>,
    bytes: u64,
    /// The file under its temporary name, which is removed unless the output is committed.
    temporary: Option<(File, TempPath)>,
}

impl Output {
    /// Begins the file that will be `path`; `-` is stdout.
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let (writer, temporary) =
            begin(path).with_context(|| format!("cannot create {}", path.display()))?;
        let writer = BufWriter::with_capacity(BUFFER_BYTES, writer);
        Ok(Self { path: path.to_path_buf(), writer, bytes: 0, temporary })
    }

    /// Makes the file durable and gives it its name; says how many bytes it has.
    pub(crate) fn commit(mut self) -> anyhow::Result<u64> {
        let what = || format!("cannot complete {}", self.path.display());
        self.writer.flush().with_context(what)?;
        let Some((file, temporary)) = self.temporary.take() else { return Ok(self.bytes) };
        file.sync_all().with_context(what)?;
        temporary.persist(&self.path).with_context(what)?;
        File::open(directory(&self.path)).and_then(|dir| dir.sync_all()).with_context(what)?;
        Ok(self.bytes)
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(buf)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = self.writer.write_vectored(bufs)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

type Begun = (Box<dyn Write + Send>, Option<(File, TempPath)>);

fn begin(path: &Path) -> io::Result<Begun> {
    if is_std_stream(path) {
        return Ok((Box::new(io::stdout()), None));
    }
    if path.metadata().is_ok_and(|old| !old.is_file()) {
        return Ok((Box::new(File::options().write(true).open(path)?), None));
    }
    let name = path.file_name().ok_or_else(|| io::Error::other("it has no file name"))?;
    let mut prefix = name.to_os_string();
    prefix.push(".");
    let file: NamedTempFile = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".tmp")
        .permissions(std::fs::Permissions::from_mode(0o666))
        .tempfile_in(directory(path))?;
    let (file, temporary) = file.into_parts();
    Ok((Box::new(file.try_clone()?), Some((file, temporary))))
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
