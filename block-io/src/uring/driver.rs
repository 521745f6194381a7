//! The loop of the engine thread.
//!
//! Invariant: each admitted request is in the queue, in the table, or answered.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::Receiver;
use io_uring::IoUring;
use nix::errno::Errno;

use super::Doorbell;
use super::sqe::push_doorbell;
use super::table::Table;
use crate::admission::QUEUE_DEPTH;
use crate::request::Request;

/// Entries of the submission queue: every request in flight and the doorbell fit.
const RING_ENTRIES: u32 = 1024;
const _: () = assert!(QUEUE_DEPTH < RING_ENTRIES as usize);

const DOORBELL_KEY: u64 = u64::MAX;

pub(super) struct Driver {
    table: Table,
    queue: Receiver<Request>,
    doorbell: Arc<Doorbell>,
    doorbell_count: Box<u64>,
}

impl Driver {
    pub(super) fn new(queue: Receiver<Request>, doorbell: Arc<Doorbell>) -> io::Result<Self> {
        let table = Table::new(build_ring()?, QUEUE_DEPTH)?;
        let mut driver = Self { table, queue, doorbell, doorbell_count: Box::new(0) };
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
        while self.table.has_room()
            && let Ok(request) = self.queue.try_recv()
        {
            self.table.take_in(request)?;
        }
        self.doorbell.fall_asleep();
        let want = if self.queue.is_empty() { 1 } else { 0 };
        let submitted = self.table.ring.submit_and_wait(want);
        self.doorbell.wake_up();
        match submitted {
            Ok(_) => {}
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // Interrupted, or short of memory: completions below make room, then try again.
                Some(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => std::thread::yield_now(),
                _ => return Err(error),
            },
        }
        if self.table.reap(DOORBELL_KEY)? {
            self.arm_doorbell()?;
        }
        Ok(())
    }

    fn arm_doorbell(&mut self) -> io::Result<()> {
        let (event, count) = (&self.doorbell.event, &mut self.doorbell_count);
        push_doorbell(&mut self.table.ring, event, count, DOORBELL_KEY)
    }

    /// Answers everyone with an error. The kernel may still use the doorbell: leak it.
    fn abandon(self) {
        self.table.abandon();
        std::mem::forget((self.doorbell, self.doorbell_count));
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
