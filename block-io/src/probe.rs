//! What a path is, and how it can be opened: size, sector, direct I/O.

use std::fs::{File, OpenOptions as StdOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::libc::{O_DIRECT, O_EXCL};

use crate::backend::{Backend, Engine};
use crate::buffer::ALIGN_BYTES;
use crate::device::{BlockDevice, IoContext, Operation, SECTOR_BYTES};
use crate::file::FileDevice;
use crate::sys;

/// Alignment for direct I/O where the kernel does not tell it: the page satisfies every device.
const UNKNOWN_ALIGN: sys::DirectAlign = sys::DirectAlign { memory: 4096, offset: 4096 };

/// What is behind a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A block special file.
    BlockDevice,
}

/// How to open a device. The default: read-write, direct, the best engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Bypass the page cache where that is possible; where it is not, that is said once in the log.
    pub direct: bool,
    /// Fail when another process has opened it exclusively too (files), or uses it in any exclusive
    /// way such as a mount (block devices).
    pub exclusive: bool,
    /// Who executes the requests.
    pub engine: Engine,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self { read_only: false, direct: true, exclusive: false, engine: Engine::Auto }
    }
}

impl OpenOptions {
    /// The default, but read-only.
    #[must_use]
    pub fn read_only() -> Self {
        Self { read_only: true, ..Self::default() }
    }
}

/// The facts about a file or block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What it is.
    pub kind: Kind,
    /// Size in bytes. That of a file may be no multiple of the block.
    pub size_bytes: u64,
    /// What [`open`] with direct I/O would use as [`BlockDevice::block_bytes`].
    pub block_bytes: u32,
    /// The unit that the hardware writes atomically and cheaply, in bytes; the filesystem's block
    /// for files.
    pub physical_block_bytes: u32,
    /// Discards have an effect: always tried on files (holes), by the queue's limits on block
    /// devices.
    pub can_discard: bool,
}

/// Looks at a file or block device without changing it.
pub fn probe(path: impl AsRef<Path>) -> io::Result<Probe> {
    let path = path.as_ref();
    probe_inner(path).map_err(|cause| open_error(path, cause))
}

/// Opens a file or block device.
///
/// Errors: what the system says, with the path; `InvalidInput` for other kinds of files, and for
/// files whose size is no multiple of 512 bytes; `WouldBlock` when `exclusive` and in use.
pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> io::Result<Arc<dyn BlockDevice>> {
    let path = path.as_ref();
    let opened = open_inner(path, options).map_err(|cause| open_error(path, cause))?;
    Ok(Arc::new(FileDevice::new(opened, Backend::new(options.engine))))
}

/// Grows a regular file to `size_bytes` (sparse), permanently. Open devices see it after
/// [`BlockDevice::refresh_size`].
///
/// Errors: `InvalidInput` when that would shrink it or it is no regular file.
pub fn grow(path: impl AsRef<Path>, size_bytes: u64) -> io::Result<()> {
    let path = path.as_ref();
    grow_inner(path, size_bytes).map_err(|cause| {
        let path = path.display().to_string();
        IoContext { operation: Operation::Resize, path, offset: 0, len: size_bytes, cause }
            .into_io()
    })
}

/// A file that is open, with all that a device needs to know.
pub(crate) struct Opened {
    pub(crate) file: File,
    pub(crate) path: String,
    pub(crate) kind: Kind,
    pub(crate) size_bytes: u64,
    pub(crate) block_bytes: u32,
    pub(crate) memory_align: usize,
}

/// The size now, in bytes.
pub(crate) fn size_bytes(file: &File, kind: Kind) -> io::Result<u64> {
    match kind {
        Kind::File => Ok(file.metadata()?.len()),
        Kind::BlockDevice => sys::block_device_bytes(file),
    }
}

fn open_error(path: &Path, cause: io::Error) -> io::Error {
    let path = path.display().to_string();
    IoContext { operation: Operation::Open, path, offset: 0, len: 0, cause }.into_io()
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text.into())
}

/// Refuses pipes, sockets and terminals before they are opened: opening some of them blocks.
fn kind_of(path: &Path) -> io::Result<Kind> {
    let file_type = std::fs::metadata(path)?.file_type();
    if file_type.is_file() {
        Ok(Kind::File)
    } else if file_type.is_block_device() {
        Ok(Kind::BlockDevice)
    } else {
        Err(invalid("neither a regular file nor a block device"))
    }
}

fn open_inner(path: &Path, options: OpenOptions) -> io::Result<Opened> {
    let kind = kind_of(path)?;
    let exclusive = if options.exclusive && kind == Kind::BlockDevice { O_EXCL } else { 0 };
    let open = |flags| {
        let mut std_options = StdOptions::new();
        std_options.read(true).write(!options.read_only).custom_flags(flags | exclusive).open(path)
    };
    let direct = if options.direct { try_direct(open(O_DIRECT), kind)? } else { None };
    let (file, align) = match direct {
        Some((file, align)) => (file, Some(align)),
        None => (open(0)?, None),
    };
    if options.direct && align.is_none() {
        say_buffered(path);
    }
    if options.exclusive && kind == Kind::File {
        file.try_lock().map_err(io::Error::from)?;
    }
    let size_bytes = size_bytes(&file, kind)?;
    let block_bytes = align.map_or(SECTOR_BYTES, |align| align.offset);
    if !size_bytes.is_multiple_of(u64::from(SECTOR_BYTES)) {
        return Err(invalid(format!("its size of {size_bytes} bytes is no multiple of 512")));
    }
    let memory_align = align.map_or(1, |align| align.memory as usize);
    let path = path.display().to_string();
    Ok(Opened { file, path, kind, size_bytes, block_bytes, memory_align })
}

/// The file opened with O_DIRECT and its alignment; `None` when it has to be buffered.
fn try_direct(
    opened: io::Result<File>,
    kind: Kind,
) -> io::Result<Option<(File, sys::DirectAlign)>> {
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(align) = direct_align(&file, kind)? else { return Ok(None) };
    let size = size_bytes(&file, kind)?;
    Ok(size.is_multiple_of(u64::from(align.offset)).then_some((file, align)))
}

/// What direct I/O on `file` needs, at least a sector; `None` when more than a page or not
/// possible.
fn direct_align(file: &File, kind: Kind) -> io::Result<Option<sys::DirectAlign>> {
    let told = sys::direct_align(file);
    let align = match kind {
        Kind::File => told.unwrap_or(UNKNOWN_ALIGN),
        Kind::BlockDevice => {
            let offset = sys::logical_block_bytes(file)?;
            sys::DirectAlign { memory: told.map_or(offset, |align| align.memory), offset }
        }
    };
    let possible = |n: u32| n.is_power_of_two() && n as usize <= ALIGN_BYTES;
    Ok((possible(align.memory) && possible(align.offset))
        .then(|| sys::DirectAlign { memory: align.memory, offset: align.offset.max(SECTOR_BYTES) }))
}

fn say_buffered(path: &Path) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Ordering::Relaxed) {
        let path = path.display();
        tracing::warn!(%path, "direct I/O is not possible here: going through the page cache");
    }
}

fn probe_inner(path: &Path) -> io::Result<Probe> {
    let kind = kind_of(path)?;
    let file = File::open(path)?;
    let size_bytes = size_bytes(&file, kind)?;
    let align = direct_align(&file, kind)?;
    let block_bytes = align.map_or(SECTOR_BYTES, |align| align.offset);
    let metadata = file.metadata()?;
    let (physical_block_bytes, can_discard) = match kind {
        Kind::File => (u32::try_from(metadata.blksize()).unwrap_or(4096), true),
        Kind::BlockDevice => (sys::physical_block_bytes(&file)?, queue_discards(metadata.rdev())),
    };
    Ok(Probe { kind, size_bytes, block_bytes, physical_block_bytes, can_discard })
}

/// Whether the queue of a block device takes discards; a partition's queue is its disk's.
fn queue_discards(rdev: u64) -> bool {
    let (major, minor) = (nix::sys::stat::major(rdev), nix::sys::stat::minor(rdev));
    let device = format!("/sys/dev/block/{major}:{minor}");
    ["queue", "../queue"].iter().any(|queue| {
        let limit = std::fs::read_to_string(format!("{device}/{queue}/discard_max_bytes"));
        limit.is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|bytes| bytes > 0))
    })
}

fn grow_inner(path: &Path, size_bytes: u64) -> io::Result<()> {
    if kind_of(path)? != Kind::File {
        return Err(invalid("only regular files can be grown"));
    }
    let file = StdOptions::new().write(true).open(path)?;
    let old = file.metadata()?.len();
    if size_bytes < old {
        return Err(invalid(format!("that would shrink it: it has {old} bytes")));
    }
    file.set_len(size_bytes)?;
    file.sync_all()
}
