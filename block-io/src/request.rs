//! One request to a file: what the engines execute.
//!
//! Invariant: a [`Request`] owns its buffers and its file until it is answered, whoever still waits
//! for it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::off_t;
use nix::sys::uio::pwritev;
use nix::unistd::fdatasync;
use tokio::sync::oneshot;

use crate::admission::Permit;
use crate::buffer::AlignedBuf;

/// The most buffers in one vectored system call (IOV_MAX); longer requests are continued.
pub(crate) const MAX_VECTORS: usize = 1024;

/// What to do. Reads and writes remember how far they have come, so that short transfers are
/// continued.
#[derive(Debug)]
pub(crate) enum Op {
    /// Fill `buf` from `offset` on; `filled` bytes are there already.
    Read { offset: u64, buf: AlignedBuf, filled: usize },
    /// Write what is left in `bufs` at `offset`. None of them is empty.
    Write { offset: u64, bufs: VecDeque<Bytes> },
    /// fdatasync.
    Sync,
    /// fallocate.
    Allocate { mode: FallocateFlags, offset: off_t, len: off_t },
}

/// An admitted request: answered exactly once, through `reply`.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) file: Arc<File>,
    pub(crate) op: Op,
    pub(crate) reply: oneshot::Sender<io::Result<Op>>,
    pub(crate) permit: Permit,
}

impl Request {
    /// Gives the answer; nobody may be left to hear it.
    pub(crate) fn answer(self, result: io::Result<()>) {
        drop(self.permit);
        let _gone = self.reply.send(result.map(|()| self.op));
    }
}

impl Op {
    /// A write of `bufs` at `offset`.
    pub(crate) fn write(offset: u64, bufs: Vec<Bytes>) -> Self {
        Self::Write { offset, bufs: bufs.into_iter().filter(|b| !b.is_empty()).collect() }
    }

    /// Accounts for `n` more bytes transferred; `Ok(true)` when the operation is complete.
    pub(crate) fn advance(&mut self, n: usize) -> io::Result<bool> {
        match self {
            Self::Read { buf, filled, .. } => {
                if n == 0 {
                    let text = format!("the file ends after {filled} bytes: was it truncated?");
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                *filled += n;
                Ok(*filled >= buf.len())
            }
            Self::Write { offset, bufs } => {
                if n == 0 {
                    return Err(io::Error::new(io::ErrorKind::WriteZero, "nothing was written"));
                }
                *offset += n as u64;
                skip(bufs, n);
                Ok(bufs.is_empty())
            }
            Self::Sync | Self::Allocate { .. } => Ok(true),
        }
    }

    /// Does it all on this thread.
    pub(crate) fn run_blocking(&mut self, file: &File) -> io::Result<()> {
        match self {
            Self::Read { offset, buf, filled } => {
                file.read_exact_at(buf, *offset)?;
                *filled = buf.len();
            }
            Self::Write { .. } => while !self.write_some(file)? {},
            Self::Sync => fdatasync(file)?,
            Self::Allocate { mode, offset, len } => fallocate(file, *mode, *offset, *len)?,
        }
        Ok(())
    }

    fn write_some(&mut self, file: &File) -> io::Result<bool> {
        let Self::Write { offset, bufs } = self else { return Ok(true) };
        if bufs.is_empty() {
            return Ok(true);
        }
        let slices: Vec<_> = bufs.iter().take(MAX_VECTORS).map(|b| IoSlice::new(b)).collect();
        let at = off_t::try_from(*offset).map_err(io::Error::other)?;
        match pwritev(file, &slices, at) {
            Ok(n) => self.advance(n),
            Err(nix::Error::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Drops the first `n` bytes of `bufs`.
fn skip(bufs: &mut VecDeque<Bytes>, mut n: usize) {
    while let Some(first) = bufs.front_mut() {
        if n < first.len() {
            first.advance(n);
            return;
        }
        n -= first.len();
        bufs.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_writes_continue_where_they_ended() {
        let parts = [&b"abc"[..], b"", b"defg", b"h"].map(Bytes::from_static);
        let mut op = Op::write(100, parts.to_vec());
        let left = |op: &Op| match op {
            Op::Write { offset, bufs } => (*offset, bufs.iter().flatten().copied().collect()),
            _ => (0, Vec::new()),
        };
        assert!(!op.advance(2).unwrap());
        assert_eq!(left(&op), (102, b"cdefgh".to_vec()));
        assert!(!op.advance(1).unwrap());
        assert_eq!(left(&op), (103, b"defgh".to_vec()));
        assert!(op.advance(0).is_err());
        assert!(op.advance(5).unwrap());
        assert_eq!(left(&op), (108, Vec::new()));
    }
}
