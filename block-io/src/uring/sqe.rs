//! From a request to a submission entry, and into the ring: the unsafe part of the engine.
//!
//! Invariant: an entry refers only to memory and to a descriptor that the [`InFlight`] beside it
//! owns, and none of them moves or goes away before the completion is reaped.
#![expect(unsafe_code, reason = "io_uring takes raw pointers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use nix::libc;

use crate::buffer::arena::{self, SLABS};
use crate::request::{MAX_VECTORS, Op, Request};

/// A request that the kernel may be working on.
pub(super) struct InFlight {
    pub(super) request: Request,
    /// The vector of a vectored write. On the heap: it stays where it is when this value moves.
    vectors: Vec<libc::iovec>,
}

// SAFETY: the pointers are to buffers that `request` owns, which can be sent; nobody but the kernel
// follows them.
unsafe impl Send for InFlight {}

impl InFlight {
    pub(super) fn new(request: Request) -> Self {
        Self { request, vectors: Vec::new() }
    }

    /// Answers with an error and leaks what the kernel may still use.
    pub(super) fn abandon(self) {
        let Request { file, op, reply, permit } = self.request;
        std::mem::forget((file, op, self.vectors));
        drop(permit);
        let _gone = reply.send(Err(io::Error::other("the io_uring engine has died")));
    }

    /// The entry for what is left to do.
    fn entry(&mut self, slabs: &mut Slabs, ring: &IoUring) -> squeue::Entry {
        let fd = Fd(self.request.file.as_raw_fd());
        match &mut self.request.op {
            Op::Read { offset, buf, filled } => {
                let at = *offset + *filled as u64;
                let rest = buf.get_mut(*filled..).unwrap_or_default();
                let (into, len) = (rest.as_mut_ptr(), length(rest.len()));
                match slabs.index_of(ring, into, rest.len()) {
                    Some(slab) => opcode::ReadFixed::new(fd, into, len, slab).offset(at).build(),
                    None => opcode::Read::new(fd, into, len).offset(at).build(),
                }
            }
            Op::Write { offset, bufs } => match bufs.front() {
                Some(one) if bufs.len() == 1 => {
                    let (from, len, at) = (one.as_ptr(), length(one.len()), *offset);
                    match slabs.index_of(ring, from, one.len()) {
                        Some(slab) => {
                            opcode::WriteFixed::new(fd, from, len, slab).offset(at).build()
                        }
                        None => opcode::Write::new(fd, from, len).offset(at).build(),
                    }
                }
                _ => {
                    self.vectors.clear();
                    self.vectors.extend(bufs.iter().take(MAX_VECTORS).map(|buf| libc::iovec {
                        iov_base: buf.as_ptr().cast_mut().cast(),
                        iov_len: buf.len(),
                    }));
                    let count = length(self.vectors.len());
                    opcode::Writev::new(fd, self.vectors.as_ptr(), count).offset(*offset).build()
                }
            },
            Op::Sync => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Op::Allocate { mode, offset, len } => opcode::Fallocate::new(fd, len.unsigned_abs())
                .offset(offset.unsigned_abs())
                .mode(mode.bits())
                .build(),
        }
    }
}

/// The slabs of the buffer arena that are registered with the ring, each at its first use.
pub(super) struct Slabs {
    registered: [bool; SLABS],
    /// Registration is not possible: an old kernel, or RLIMIT_MEMLOCK is used up.
    off: bool,
}

impl Slabs {
    pub(super) fn new(ring: &IoUring) -> Self {
        let table = u32::try_from(SLABS).map_err(io::Error::other);
        let made = table.and_then(|n| ring.submitter().register_buffers_sparse(n));
        Self { registered: [false; SLABS], off: made.is_err() }
    }

    /// The index under which the memory is registered; `None` for other memory.
    fn index_of(&mut self, ring: &IoUring, start: *const u8, len: usize) -> Option<u16> {
        let slab = arena::slab_of(start, len)?;
        let index = u16::try_from(slab).ok()?;
        let registered = self.registered.get_mut(slab)?;
        if !*registered {
            if self.off {
                return None;
            }
            let vector = [arena::slab_vector(slab)?];
            let submitter = ring.submitter();
            // SAFETY: the arena is mapped for ever.
            let made =
                unsafe { submitter.register_buffers_update(u32::from(index), &vector, None) };
            if let Err(error) = made {
                tracing::debug!(%error, "buffers cannot be registered with io_uring");
                self.off = true;
                return None;
            }
            *registered = true;
        }
        Some(index)
    }
}

/// Requests are far below 4 GiB (`MAX_REQUEST_BYTES`); were one longer, it would come short and be
/// continued.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(!4095)
}

/// An eventfd that the present runtime polls: readable anew whenever there are completions, or some
/// to ask the kernel for. The ring's own descriptor does not tell of the latter.
pub(super) fn completions(ring: &IoUring) -> io::Result<AsyncFd<EventFd>> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let event = EventFd::from_value_and_flags(0, flags)?;
    ring.submitter().register_eventfd(event.as_fd().as_raw_fd())?;
    // SAFETY: the eventfd is owned by the `AsyncFd` alone, which nobody gets it out of: it stays
    // open and the same until the `AsyncFd` is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(event, Interest::READABLE) }?)
}

/// Puts the rest of `in_flight` into the submission queue, under `key`.
///
/// Errors: the queue is full, which admission makes impossible.
pub(super) fn push(
    ring: &mut IoUring,
    slabs: &mut Slabs,
    in_flight: &mut InFlight,
    key: u64,
) -> io::Result<()> {
    let entry = in_flight.entry(slabs, ring).user_data(key);
    // SAFETY: the caller keeps `in_flight` until the completion of `key` is reaped (or for ever):
    // it owns the file, the buffers and the vector, all on the heap; nothing touches the buffers
    // meanwhile, because nothing but the driver can reach them (a `Bytes` is shared, but only
    // read).
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)
}

/// Asks for a completion, under `key`, when the eventfd is rung; `count` receives its counter.
pub(super) fn push_doorbell(
    ring: &mut IoUring,
    event: &impl AsRawFd,
    count: &mut Box<u64>,
    key: u64,
) -> io::Result<()> {
    let into: *mut u64 = &raw mut **count;
    let entry = opcode::Read::new(Fd(event.as_raw_fd()), into.cast(), 8).build().user_data(key);
    // SAFETY: the driver owns `count` and the eventfd for as long as the ring, reads them never,
    // and leaks both if it dies; 8 bytes fit.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)
}
