//! A connected stream socket, Unix or TCP, with vectored I/O and as few system calls as possible.
//!
//! Invariant: readiness is given up after a short transfer (the socket is then drained, or full),
//! which saves the call that would only say so.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, sendmsg};
use nix::sys::uio::readv;
use tokio::io::unix::AsyncFd;

/// A socket in non-blocking mode.
pub(super) struct Socket {
    fd: AsyncFd<OwnedFd>,
}

impl Socket {
    /// Takes over a socket that is in non-blocking mode; needs a tokio runtime.
    #[expect(unsafe_code, reason = "tokio cannot check that a descriptor stays open")]
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the `AsyncFd` alone, which nobody gets out of here: it
        // stays open and the same until the `AsyncFd` is dropped.
        let fd = unsafe { AsyncFd::register(fd) }?;
        Ok(Self { fd })
    }

    /// Reads into `buffers`, which hold `total` bytes; 0 is the end of the stream.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        total: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            match readv(guard.get_inner(), buffers) {
                Ok(count) => {
                    if count < total {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }

    /// Sends from `buffers`, which hold `total` bytes.
    pub(super) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
        total: usize,
    ) -> Poll<io::Result<usize>> {
        use std::os::fd::AsRawFd;
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            let fd = guard.get_inner().as_raw_fd();
            match sendmsg::<()>(fd, buffers, &[], MsgFlags::MSG_NOSIGNAL, None) {
                Ok(count) => {
                    if count < total {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(count));
                }
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::EINTR) => {}
                Err(errno) => return Poll::Ready(Err(errno.into())),
            }
        }
    }
}
