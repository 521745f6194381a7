//! A ring and what the kernel works on in it.
//!
//! Invariants: each request that was taken in is in `slots` until it is answered; the ring has room
//! for all of `slots` and a doorbell, so that neither of its queues can overflow.

use std::io;

use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;

use super::sqe::{InFlight, Slabs, push};
use crate::request::Request;

pub(super) struct Table {
    pub(super) ring: IoUring,
    slabs: Slabs,
    /// What the kernel works on; the index is the key of its completion.
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// Completions taken out of the ring, reused from batch to batch.
    reaped: Vec<(u64, i32)>,
}

impl Table {
    /// For so many requests at a time.
    pub(super) fn new(ring: IoUring, depth: usize) -> io::Result<Self> {
        check_opcodes(&ring)?;
        let slabs = Slabs::new(&ring);
        Ok(Self {
            ring,
            slabs,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            reaped: Vec::with_capacity(depth),
        })
    }

    pub(super) const fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Puts a request into the submission queue.
    pub(super) fn take_in(&mut self, request: Request) -> io::Result<()> {
        let Some(key) = self.free.pop() else {
            return Err(io::Error::other("more requests in flight than were admitted"));
        };
        if let Some(slot) = self.slots.get_mut(key) {
            let in_flight = slot.insert(InFlight::new(request));
            push(&mut self.ring, &mut self.slabs, in_flight, key as u64)?;
        }
        Ok(())
    }

    /// Takes all completions out of the ring; true if one of them has the key `other`, which is no
    /// request. What came short is in the submission queue again.
    pub(super) fn reap(&mut self, other: u64) -> io::Result<bool> {
        let mut reaped = std::mem::take(&mut self.reaped);
        let mut seen = false;
        reaped.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (key, result) in reaped.drain(..) {
            if key == other {
                seen = true;
            } else if let Ok(key) = usize::try_from(key) {
                self.complete(key, result)?;
            }
        }
        self.reaped = reaped;
        Ok(seen)
    }

    /// Answers the request of `key`, or submits what is left of it.
    fn complete(&mut self, key: usize, result: i32) -> io::Result<()> {
        let Some(slot) = self.slots.get_mut(key) else { return Ok(()) };
        let Some(in_flight) = slot.as_mut() else { return Ok(()) };
        let done = match usize::try_from(result) {
            Ok(transferred) => in_flight.request.op.advance(transferred),
            Err(_negative) => match Errno::from_raw(-result) {
                Errno::EINTR | Errno::EAGAIN => Ok(false),
                errno => Err(errno.into()),
            },
        };
        if let Ok(false) = done {
            return push(&mut self.ring, &mut self.slabs, in_flight, key as u64);
        }
        if let Some(in_flight) = slot.take() {
            self.free.push(key);
            in_flight.request.answer(done.map(drop));
        }
        Ok(())
    }

    /// Answers everyone with an error. The kernel may still use what was in flight: leak it.
    pub(super) fn abandon(mut self) {
        for in_flight in self.slots.drain(..).flatten() {
            in_flight.abandon();
        }
        std::mem::forget(self.ring);
    }
}

/// Kernels before 5.6 lack some of what we use.
fn check_opcodes(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let needed = [
        opcode::Read::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
    ];
    if needed.iter().all(|code| probe.is_supported(*code)) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's io_uring lacks operations"))
}
