//! The loop of the engine thread.
//!
//! Invariants: each admitted request is in the queue, in `slots`, or answered; the ring has room
//! for all of `slots` and the doorbell, so that neither of its queues can overflow.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::Receiver;
use io_uring::{IoUring, Probe, opcode};
use nix::errno::Errno;

use super::Doorbell;
use super::sqe::{InFlight, Slabs, push, push_doorbell};
use crate::admission::QUEUE_DEPTH;
use crate::request::Request;

/// Entries of the submission queue: every request in flight and the doorbell fit.
const RING_ENTRIES: u32 = 1024;
const _: () = assert!(QUEUE_DEPTH < RING_ENTRIES as usize);

const DOORBELL_KEY: u64 = u64::MAX;

pub(super) struct Driver {
    ring: IoUring,
    slabs: Slabs,
    queue: Receiver<Request>,
    doorbell: Arc<Doorbell>,
    doorbell_count: Box<u64>,
    /// What the kernel works on; the index is the key of its completion.
    slots: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// Completions taken out of the ring, reused from batch to batch.
    reaped: Vec<(u64, i32)>,
}

impl Driver {
    pub(super) fn new(queue: Receiver<Request>, doorbell: Arc<Doorbell>) -> io::Result<Self> {
        let ring = build_ring()?;
        check_opcodes(&ring)?;
        let slabs = Slabs::new(&ring);
        let mut driver = Self {
            ring,
            slabs,
            queue,
            doorbell,
            doorbell_count: Box::new(0),
            slots: (0..QUEUE_DEPTH).map(|_| None).collect(),
            free: (0..QUEUE_DEPTH).rev().collect(),
            reaped: Vec::with_capacity(QUEUE_DEPTH),
        };
        driver.arm_doorbell()?;
        Ok(driver)
    }

    /// Runs for ever; comes back only when the ring is unusable.
    pub(super) fn run(mut self) {
        let ended = catch_unwind(AssertUnwindSafe(|| self.work()));
        match ended {
            Ok(error) => tracing::error!(%error, "the io_uring engine has died"),
            Err(_panic) => tracing::error!("the io_uring engine has died of a panic"),
        }
        self.abandon();
    }

    fn work(&mut self) -> io::Error {
        loop {
            if let Err(error) = self.turn() {
                return error;
            }
        }
    }

    /// One turn: take in what has queued, submit it, wait, answer what is complete.
    fn turn(&mut self) -> io::Result<()> {
        while !self.free.is_empty()
            && let Ok(request) = self.queue.try_recv()
        {
            self.take_in(request)?;
        }
        self.doorbell.fall_asleep();
        let want = if self.queue.is_empty() { 1 } else { 0 };
        let submitted = self.ring.submit_and_wait(want);
        self.doorbell.wake_up();
        match submitted {
            Ok(_) => {}
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // Interrupted, or short of memory: completions below make room, then try again.
                Some(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => std::thread::yield_now(),
                _ => return Err(error),
            },
        }
        self.reap()
    }

    fn take_in(&mut self, request: Request) -> io::Result<()> {
        let Some(key) = self.free.pop() else {
            return Err(io::Error::other("more requests in flight than were admitted"));
        };
        if let Some(slot) = self.slots.get_mut(key) {
            let in_flight = slot.insert(InFlight::new(request));
            push(&mut self.ring, &mut self.slabs, in_flight, key as u64)?;
        }
        Ok(())
    }

    fn reap(&mut self) -> io::Result<()> {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (key, result) in reaped.drain(..) {
            if key == DOORBELL_KEY {
                self.arm_doorbell()?;
            } else if let Ok(key) = usize::try_from(key) {
                self.complete(key, result)?;
            }
        }
        self.reaped = reaped;
        Ok(())
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

    fn arm_doorbell(&mut self) -> io::Result<()> {
        let (event, count) = (&self.doorbell.event, &mut self.doorbell_count);
        push_doorbell(&mut self.ring, event, count, DOORBELL_KEY)
    }

    /// Answers everyone with an error. The kernel may still use what was in flight: leak it.
    fn abandon(mut self) {
        for in_flight in self.slots.drain(..).flatten() {
            in_flight.abandon();
        }
        std::mem::forget((self.ring, self.doorbell, self.doorbell_count));
    }
}

/// A ring with the newest modes that the kernel has; each avoids interrupts of the engine thread.
fn build_ring() -> io::Result<IoUring> {
    let mut newest = IoUring::builder();
    newest.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
    match newest.build(RING_ENTRIES) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => IoUring::new(RING_ENTRIES),
        other => other,
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
