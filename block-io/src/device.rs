//! The block device as every role sees it: real ones come from [`crate::open`], simulated ones from
//! [`crate::sim`].
//!
//! Conventions that every implementation keeps:
//! - Offsets and lengths are bytes and multiples of [`BlockDevice::block_bytes`]; anything else, or
//!   anything past the end, is `InvalidInput` and touches nothing. Length zero succeeds and does
//!   nothing.
//! - A future does nothing before its first poll. Dropped after that, the operation may or may not
//!   happen, but no memory is freed under the kernel.
//! - Requests in flight together have no order. Who needs one awaits the earlier request first.
//! - A flush covers all writes, discards and zeroings that had *completed* before the flush was
//!   first polled.
//! - After a failed flush the device is poisoned: every later flush fails too, because the kernel
//!   may have dropped what it could not write. Reopen and recover.
//! - An error is an [`io::Error`] of the original kind around an [`IoContext`].

use std::fmt;
use std::io;

use bytes::Bytes;
use futures::future::BoxFuture;

/// The smallest block that any device has, in bytes.
pub const SECTOR_BYTES: u32 = 512;

/// The largest single read or write, in bytes: bounds what one request can allocate.
pub const MAX_REQUEST_BYTES: usize = 64 << 20;

/// The most extents that one [`BlockDevice::extents`] returns.
pub const MAX_EXTENTS: usize = 1024;

/// A block device or an image file. See the module docs for what all methods promise.
pub trait BlockDevice: Send + Sync + 'static {
    /// The size in bytes, a multiple of [`BlockDevice::block_bytes`].
    fn size_bytes(&self) -> u64;

    /// The unit of offsets and lengths, in bytes: a power of two from 512 to 4096.
    fn block_bytes(&self) -> u32;

    /// Reads `len` bytes at `offset` into fresh, page-aligned memory.
    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>>;

    /// Writes `bufs` one after the other at `offset`, as one request. Buffers that the device
    /// cannot take as they are (see [`crate::buffer::is_aligned`]) are copied: correct, but slower.
    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>>;

    /// Makes what had completed before permanent.
    fn flush(&self) -> BoxFuture<'_, io::Result<()>>;

    /// Tells that the range is not needed: files get a hole; a device or filesystem that cannot
    /// discard ignores it. What a later read returns is therefore unspecified (zeros on simulated
    /// disks and where holes are possible).
    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>>;

    /// Makes the range read as zeros.
    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>>;

    /// As [`BlockDevice::write_zeroes`], and keeps no space for the range where that can be.
    fn write_hole(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.write_zeroes(offset, len)
    }

    /// What is allocated in a range, in order, from its start on: at most [`MAX_EXTENTS`] extents,
    /// so that they may end before the range does (then ask for the rest). All data where unknown.
    fn extents(&self, _offset: u64, len: u64) -> BoxFuture<'_, io::Result<Vec<Extent>>> {
        let all = if len == 0 { Vec::new() } else { vec![Extent { len, hole: false }] };
        Box::pin(async { Ok(all) })
    }

    /// Looks at the size again, after somebody grew the device; returns the new size in bytes.
    fn refresh_size(&self) -> BoxFuture<'_, io::Result<u64>> {
        let size = self.size_bytes();
        Box::pin(async move { Ok(size) })
    }

    /// The path, or a name of the like, for messages.
    fn path_hint(&self) -> String;
}

impl fmt::Debug for dyn BlockDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockDevice({}, {} bytes)", self.path_hint(), self.size_bytes())
    }
}

/// A run of bytes that is a hole (reads as zeros) or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// Nothing is allocated: reads as zeros.
    pub hole: bool,
}

/// What was attempted when an I/O error occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Opening or probing.
    Open,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Flushing.
    Flush,
    /// Discarding.
    Discard,
    /// Writing zeros.
    WriteZeroes,
    /// Asking for the allocated extents.
    Extents,
    /// Growing, or asking for the size.
    Resize,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write zeroes",
            Self::Extents => "list extents",
            Self::Resize => "resize",
        })
    }
}

/// The context that every [`io::Error`] of a device carries; found by `error.get_ref()` and
/// downcast, or printed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of {path} failed{}: {cause}", self.place())]
pub struct IoContext {
    /// What was attempted.
    pub operation: Operation,
    /// On what.
    pub path: String,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes.
    pub len: u64,
    /// Why it failed. Part of the message and not a `source`, so that a bare `io::Error` says
    /// everything.
    pub cause: io::Error,
}

impl IoContext {
    /// Where it failed, for operations that have a place.
    fn place(&self) -> String {
        match self.operation {
            Operation::Open | Operation::Flush | Operation::Resize => String::new(),
            _ => format!(" at offset {}, {} bytes", self.offset, self.len),
        }
    }

    /// This context as an `io::Error` of the same kind.
    #[must_use]
    pub fn into_io(self) -> io::Error {
        io::Error::new(self.cause.kind(), self)
    }
}

/// What the system said: the error without its [`IoContext`], for who names the device himself.
#[must_use]
pub fn bare(error: io::Error) -> io::Error {
    match error.downcast::<IoContext>() {
        Ok(context) => context.cause,
        Err(error) => error,
    }
}

/// The errno behind an error of a device, also through its [`IoContext`].
#[must_use]
pub fn os_error(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| {
        let context = error.get_ref()?.downcast_ref::<IoContext>()?;
        os_error(&context.cause)
    })
}

/// Why a range was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Offset or length is no multiple of the block size.
    #[error("offset and length must be multiples of {block_bytes} bytes")]
    Unaligned {
        /// The block size of the device in bytes.
        block_bytes: u32,
    },
    /// The range reaches past the end.
    #[error("the range reaches past the end, the size is {size_bytes} bytes")]
    PastEnd {
        /// The size of the device in bytes.
        size_bytes: u64,
    },
    /// One read or write of more than [`MAX_REQUEST_BYTES`].
    #[error("one request is limited to {MAX_REQUEST_BYTES} bytes: split it")]
    TooLong,
}

impl From<RangeError> for io::Error {
    fn from(error: RangeError) -> Self {
        Self::new(io::ErrorKind::InvalidInput, error)
    }
}

/// Checks a range against the size and the block of a device, both in bytes.
pub fn check_range(
    offset: u64,
    len: u64,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<(), RangeError> {
    let block = u64::from(block_bytes);
    if !offset.is_multiple_of(block) || !len.is_multiple_of(block) {
        return Err(RangeError::Unaligned { block_bytes });
    }
    match offset.checked_add(len) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(RangeError::PastEnd { size_bytes }),
    }
}

/// [`check_range`] for a read or write of at most [`MAX_REQUEST_BYTES`].
pub fn check_transfer(
    offset: u64,
    len: usize,
    size_bytes: u64,
    block_bytes: u32,
) -> Result<(), RangeError> {
    if len > MAX_REQUEST_BYTES {
        return Err(RangeError::TooLong);
    }
    check_range(offset, len as u64, size_bytes, block_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_without_overflow() {
        assert_eq!(check_range(0, 0, 0, 512), Ok(()));
        assert_eq!(check_range(512, 512, 1024, 512), Ok(()));
        let past = Err(RangeError::PastEnd { size_bytes: 1024 });
        assert_eq!(check_range(512, 1024, 1024, 512), past);
        assert_eq!(check_range(u64::MAX - 511, 512, 1024, 512), past);
        let unaligned = Err(RangeError::Unaligned { block_bytes: 4096 });
        assert_eq!(check_range(512, 4096, 1 << 20, 4096), unaligned);
        assert_eq!(check_range(4096, 512, 1 << 20, 4096), unaligned);
        assert_eq!(
            check_transfer(0, MAX_REQUEST_BYTES + 512, 1 << 40, 512),
            Err(RangeError::TooLong)
        );
    }

    #[test]
    fn an_error_names_everything_and_keeps_errno_and_kind() {
        let cause = io::Error::from_raw_os_error(nix::libc::ENOSPC);
        let path = "/dev/x".to_owned();
        let error = IoContext { operation: Operation::Write, path, offset: 512, len: 1024, cause }
            .into_io();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(os_error(&error), Some(nix::libc::ENOSPC));
        let text = error.to_string();
        for part in ["write", "/dev/x", "offset 512", "1024 bytes", "No space left"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(bare(error).to_string(), "No space left on device (os error 28)");
        assert_eq!(bare(io::Error::other("x")).to_string(), "x");
    }

    #[test]
    fn what_has_no_place_tells_none() {
        let cause = io::Error::from_raw_os_error(nix::libc::ENOENT);
        let path = "/dev/x".to_owned();
        let error = IoContext { operation: Operation::Open, path, offset: 0, len: 0, cause };
        let text = "open of /dev/x failed: No such file or directory (os error 2)";
        assert_eq!(error.into_io().to_string(), text);
    }
}
