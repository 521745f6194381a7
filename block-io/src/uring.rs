//! The io_uring engine: one thread per process that owns the ring, used from any async task.
//!
//! ```text
//!  task: admit -> queue -> (engine asleep? ring the doorbell) -> await the answer
//!  engine thread: drain the queue -> one io_uring_enter submits the batch and waits
//!                 -> reap all completions -> answer, or continue what came short
//! ```
//!
//! The thread is alone with the ring (no lock on the data path), submits whatever has gathered
//! while it slept with one system call, and is woken through an eventfd only when it sleeps: under
//! load there is no system call per request. Idle, it waits in the kernel.
//!
//! Invariant: what a request refers to (memory, file) is owned by the engine from submission to
//! completion. A caller that goes away changes nothing; if the thread itself dies, memory in flight
//! is leaked rather than freed.

mod driver;
mod near;
mod sqe;
mod table;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_channel::{Sender, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::admission::QUEUE_DEPTH;
use crate::request::Request;
use driver::Driver;
pub(crate) use near::Near;

/// A handle to the engine thread, which lives as long as the process.
#[derive(Debug)]
pub(crate) struct Uring {
    queue: Sender<Request>,
    doorbell: Arc<Doorbell>,
}

impl Uring {
    /// Starts the thread. Errors: io_uring is forbidden or too old, or no thread can be had.
    pub(crate) fn start() -> io::Result<Self> {
        let doorbell = Arc::new(Doorbell::new()?);
        let (queue, requests) = bounded(QUEUE_DEPTH);
        let (ready, started) = bounded(1);
        let bell = Arc::clone(&doorbell);
        std::thread::Builder::new().name("walb-uring".into()).spawn(move || {
            // The ring is made here because the kernel ties it to the thread that made it.
            match Driver::new(requests, bell) {
                Ok(driver) => {
                    let _waiting = ready.send(Ok(()));
                    driver.run();
                }
                Err(error) => {
                    let _waiting = ready.send(Err(error));
                }
            }
        })?;
        started.recv().map_err(io::Error::other)??;
        Ok(Self { queue, doorbell })
    }

    /// Hands a request over; its answer comes through its channel. Admission bounds the queue, so
    /// that this neither blocks nor overflows; a dead engine drops the request, which answers it.
    pub(crate) fn submit(&self, request: Request) {
        if self.queue.try_send(request).is_ok() {
            self.doorbell.ring();
        }
    }
}

/// Wakes the engine thread, with a system call only when it sleeps.
#[derive(Debug)]
struct Doorbell {
    event: EventFd,
    asleep: AtomicBool,
}

impl Doorbell {
    fn new() -> io::Result<Self> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { event, asleep: AtomicBool::new(false) })
    }

    /// Called after queueing. The fence pairs with the one in `fall_asleep`: either we see the
    /// engine asleep, or it sees what we queued.
    fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            let _never_full = self.event.write(1);
        }
    }

    /// Announces sleep; the caller must look at the queue once more before it sleeps.
    fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }
}
