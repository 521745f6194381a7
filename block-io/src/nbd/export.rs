//! What an NBD server serves: the [`Export`] trait, and the answers that it gives.
//!
//! Invariants between the server and an export:
//! - The server calls with ranges that were checked: not empty, inside `size_bytes`, and multiples
//!   of `block_bytes`. Write payloads are whole, in page-aligned memory, and never touched again.
//! - Operations run concurrently and may finish in any order; the server does not order them.
//! - `flush` covers every write, trim and write-zeroes that had *finished* before it was called,
//!   whichever connection it came from (this is what `CAN_MULTI_CONN` promises to clients).
//! - With `fua`, an operation finishes only when its own effect is on stable storage.

use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::runtime::Handle;

use super::protocol::Errno;

/// A volume that is served to NBD clients. See the module for who promises what.
pub trait Export: Send + Sync + 'static {
    /// Size in bytes, a multiple of [`block_bytes`](Self::block_bytes) (a shorter last block is not
    /// served). It may grow while clients are connected; clients see the new size when they
    /// reconnect.
    fn size_bytes(&self) -> u64;

    /// Smallest unit of offset and length in bytes: a power of two from 1 to 65536.
    fn block_bytes(&self) -> u32 {
        512
    }

    /// True refuses everything that modifies with `EPERM`.
    fn read_only(&self) -> bool {
        false
    }

    /// True if `write_zeroes` is faster than writing zeroes. If false the server answers a client
    /// that wants zeroes only when they are cheap with `ENOTSUP`, without asking the export.
    fn zeroes_are_fast(&self) -> bool {
        false
    }

    /// The runtime that does the export's work. Its connections are served there, so that no
    /// request has to change threads; `None` is the server's own.
    fn home(&self) -> Option<Handle> {
        None
    }

    /// Reads `len` bytes at `offset` (bytes): pieces in order, `len` bytes in all.
    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<Chunk>, ExportError>>;

    /// Writes `data` at `offset` (bytes). Keeping the payload longer than the future runs is
    /// allowed; the server no longer counts its memory then.
    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Makes all that has finished before the call stable.
    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Says that the contents of a range are no longer needed; what it then reads as is undefined.
    fn trim(&self, offset: u64, len: u32, fua: bool) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Makes a range read as zeroes.
    fn write_zeroes(
        &self,
        offset: u64,
        len: u32,
        how: WriteZeroes,
    ) -> BoxFuture<'_, Result<(), ExportError>>;

    /// Tells which parts of a range (at most 64 MiB) are holes or zeroes: extents from `offset`
    /// on, in order. They may cover less than `len` (at least one block) or more; the server cuts,
    /// joins, and sends at most [`MAX_EXTENTS`](super::protocol::MAX_EXTENTS): more are wasted.
    fn block_status(
        &self,
        _offset: u64,
        len: u32,
    ) -> BoxFuture<'_, Result<Vec<Extent>, ExportError>> {
        let all_data = Extent { len: u64::from(len), hole: false, zero: false };
        Box::pin(async move { Ok(vec![all_data]) })
    }
}

/// How a range is to be zeroed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteZeroes {
    /// Finish only when the zeroes are on stable storage.
    pub fua: bool,
    /// Keep the space allocated: no hole may be punched.
    pub no_hole: bool,
}

/// A piece of what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Bytes, sent to the client from this very memory.
    Data(Bytes),
    /// So many zero bytes, which travel as a hole where the client understands that.
    Zeroes(u32),
}

impl From<Bytes> for Chunk {
    fn from(data: Bytes) -> Self {
        Self::Data(data)
    }
}

/// A run of blocks of one allocation status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// Not allocated: a write here can still fail for want of space.
    pub hole: bool,
    /// Reads as zeroes.
    pub zero: bool,
}

/// Why an export could not do what it was asked to. The client gets the errno of
/// [`ExportError::errno`], and the text if it negotiated structured replies.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The device below failed; its errno decides what the client sees.
    #[error("device: {0}")]
    Io(#[from] io::Error),
    /// No space for the write: client sees `ENOSPC`.
    #[error("no space left: {0}")]
    NoSpace(String),
    /// Not allowed now or ever: client sees `EPERM`.
    #[error("not permitted: {0}")]
    NotPermitted(String),
    /// The export cannot do this with these arguments: client sees `EINVAL`.
    #[error("invalid: {0}")]
    Invalid(String),
    /// The export is being stopped: client sees `ESHUTDOWN`.
    #[error("shutting down")]
    ShuttingDown,
}

impl ExportError {
    /// The error number that goes over the wire.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Io(error) => errno_of_io(error),
            Self::NoSpace(_) => Errno::NoSpace,
            Self::NotPermitted(_) => Errno::NotPermitted,
            Self::Invalid(_) => Errno::Invalid,
            Self::ShuttingDown => Errno::Shutdown,
        }
    }
}

/// NBD has eight error numbers; whatever has no counterpart is an I/O error.
fn errno_of_io(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Errno::NoSpace
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Errno::NotPermitted,
        io::ErrorKind::InvalidInput => Errno::Invalid,
        io::ErrorKind::OutOfMemory => Errno::NoMemory,
        _ => Errno::Io,
    }
}
