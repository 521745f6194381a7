//! The near engine: a ring that the tasks of one runtime use directly, for the device on which an
//! acknowledgement waits.
//!
//! ```text
//!  tasks: admit -> put it into the ring -> await the answer
//!  runtime: the ring's task, next in its queue, submits what the tasks before it have put there
//!  disk -> the ring is readable -> the runtime's own poll -> the ring's task reaps and answers
//! ```
//!
//! So the requests that one turn of the tasks brings go to the kernel with one system call.
//!
//! Compared with the engine thread that saves the way to another thread and back for each request.
//! A ring per device is no matter for the few devices of a device role; who follows thousands uses
//! the engine thread.
//!
//! Invariant: as in the engine thread, what a request refers to is owned by the ring from
//! submission to completion. A device that is closed before leaves its ring to a thread that waits
//! for what is in flight; a ring that fails is leaked rather than freed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use io_uring::IoUring;
use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::sqe::pollable;
use super::table::Table;
use crate::admission::DEVICE_DEPTH;
use crate::request::Request;

/// Entries of the submission queue: the requests of one device fit.
const RING_ENTRIES: u32 = 128;
const _: () = assert!(DEVICE_DEPTH <= RING_ENTRIES as usize);
/// No completion has this key.
const NO_KEY: u64 = u64::MAX;

/// The ring of one device.
pub(crate) struct Near {
    /// `None` once it has died.
    table: Mutex<Option<Table>>,
    /// Something is to be submitted.
    bell: Arc<Notify>,
    driver: AbortHandle,
}

impl Near {
    /// A ring whose completions the current runtime takes.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let runtime = tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let ring = IoUring::new(RING_ENTRIES)?;
        let ready = pollable(&ring)?;
        let table = Mutex::new(Some(Table::new(ring, DEVICE_DEPTH)?));
        let bell = Arc::new(Notify::new());
        Ok(Arc::new_cyclic(|near: &Weak<Self>| {
            let driver = runtime.spawn(drive(near.clone(), ready, Arc::clone(&bell)));
            Self { table, bell, driver: driver.abort_handle() }
        }))
    }

    /// Hands a request over; its answer comes through its channel.
    pub(crate) fn submit(&self, request: Request) {
        self.with(|table| table.take_in(request));
        self.bell.notify_one();
    }

    /// Does something to the table; an error is the end of the ring.
    fn with(&self, act: impl FnOnce(&mut Table) -> io::Result<()>) {
        let mut table = self.table.lock();
        let Some(ring) = table.as_mut() else { return };
        if let Err(error) = act(ring) {
            tracing::error!(%error, "an io_uring engine has died");
            table.take().into_iter().for_each(Table::abandon);
        }
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.driver.abort();
        // Somebody gave up waiting, and the kernel still works on it.
        let Some(table) = self.table.lock().take().filter(|table| !table.is_idle()) else { return };
        let left = Arc::new(Mutex::new(Some(table)));
        let taken = Arc::clone(&left);
        let name = std::thread::Builder::new().name("walb-uring-end".into());
        let waits = name.spawn(move || taken.lock().take().into_iter().for_each(finish));
        if waits.is_err() {
            left.lock().take().into_iter().for_each(Table::abandon);
        }
    }
}

/// Waits for all that is in flight; then the ring, memory and file are given back.
fn finish(mut table: Table) {
    while !table.is_idle() {
        let waited = match table.ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            other => other.map(drop),
        };
        if waited.and_then(|()| table.reap(NO_KEY)).is_err() {
            return table.abandon();
        }
    }
}

/// Submits what is in the submission queue.
fn submit(table: &mut Table) -> io::Result<()> {
    while !table.ring.submission().is_empty() {
        match table.ring.submit() {
            Ok(_) => {}
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => std::thread::yield_now(),
                _ => return Err(error),
            },
        }
    }
    Ok(())
}

/// Submits what is new and answers what is complete, until the engine is gone.
async fn drive(near: Weak<Near>, ready: AsyncFd<OwnedFd>, bell: Arc<Notify>) {
    loop {
        let complete = tokio::select! {
            biased;
            readable = ready.readable() => match readable {
                Ok(mut guard) => {
                    guard.clear_ready();
                    true
                }
                Err(_no_runtime) => return,
            },
            () = bell.notified() => false,
        };
        let Some(near) = near.upgrade() else { return };
        near.with(|table| {
            if complete {
                table.reap(NO_KEY)?;
            }
            submit(table)
        });
    }
}
