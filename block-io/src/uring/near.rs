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
//! On a runtime of one thread the kernel is told that no other thread uses the ring. A completion
//! then waits until the ring's task asks for it: otherwise the kernel interrupts the thread, which
//! may sleep, once to finish the request and once to say so.
//!
//! A flush goes to a thread of the kernel and comes back through it, which takes longer than a
//! quick disk takes to flush. Where the runtime works for this device alone and nothing else is in
//! flight the ring's task flushes by itself ([`Spot`]).
//!
//! Invariant: as in the engine thread, what a request refers to is owned by the ring's task from
//! submission to completion. A device that is closed before leaves it to that task, which ends
//! when nothing is in flight. A runtime that ends before waits a while; what is in flight even
//! then, and a ring that fails, are leaked rather than freed.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::IoUring;
use io_uring::types::{SubmitArgs, Timespec};
use nix::errno::Errno;
use nix::sys::eventfd::EventFd;
use parking_lot::Mutex;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;

use super::sqe::completions;
use super::table::Table;
use crate::admission::DEVICE_DEPTH;
use crate::request::{Op, Request};

/// Entries of the submission queue: the requests of one device fit.
const RING_ENTRIES: u32 = 128;
const _: () = assert!(DEVICE_DEPTH <= RING_ENTRIES as usize);
/// No completion has this key.
const NO_KEY: u64 = u64::MAX;
/// How long the end of a runtime waits for what is in flight.
const END: Duration = Duration::from_secs(5);
/// What a flush may take, on average, while its thread can do nothing else.
const QUICK: Duration = Duration::from_micros(250);
/// How many flushes that is the average of, about: one that takes a few milliseconds among quick
/// ones is no matter.
const AVERAGED: u32 = 16;
/// On a slower disk one is tried after so many times as long as the last one took: slow ones have a
/// hundredth of the thread's time at most.
const PAUSES: u32 = 100;
/// The kernel is asked so many times for completions that it says to have, and one call gives some.
const FRUITLESS: u32 = 8;

/// The ring of one device.
pub(crate) struct Near {
    queue: Arc<Queue>,
}

/// The way of the requests to the ring's task.
struct Queue {
    waiting: Mutex<Waiting>,
    /// Something has changed there.
    bell: Notify,
}

#[derive(Default)]
struct Waiting {
    /// Those that are not in the ring yet.
    requests: Vec<Request>,
    /// The device has been closed: no more will come.
    closed: bool,
    /// The ring's task has ended: none is taken any more.
    ended: bool,
}

impl Near {
    /// A ring whose completions the current runtime takes, which works for this device `alone` or
    /// for others too.
    pub(crate) fn start(alone: bool) -> io::Result<Self> {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let one_thread = runtime.runtime_flavor() == RuntimeFlavor::CurrentThread;
        let (ring, disabled) = if one_thread { ring_of_one_thread()? } else { shared_ring()? };
        let ready = completions(&ring)?;
        let table = Some(Table::new(ring, DEVICE_DEPTH)?);
        let queue = Arc::new(Queue { waiting: Mutex::default(), bell: Notify::new() });
        let spot = (alone && one_thread).then(Spot::default);
        let driver = Driver { table, queue: Arc::clone(&queue), taken: Vec::new(), spot };
        runtime.spawn(driver.run(ready, disabled));
        Ok(Self { queue })
    }

    /// Hands a request over; its answer comes through its channel.
    pub(crate) fn submit(&self, request: Request) {
        let mut waiting = self.queue.waiting.lock();
        if !waiting.ended {
            waiting.requests.push(request);
        }
        drop(waiting);
        self.queue.bell.notify_one();
    }
}

impl Drop for Near {
    fn drop(&mut self) {
        self.queue.waiting.lock().closed = true;
        self.queue.bell.notify_one();
    }
}

/// A ring that only the thread that enables it may use; a plain one where the kernel is older than
/// 6.1. True: it has to be enabled.
fn ring_of_one_thread() -> io::Result<(IoUring, bool)> {
    let mut newest = IoUring::builder();
    newest.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_r_disabled();
    match newest.build(RING_ENTRIES) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => shared_ring(),
        ring => Ok((ring?, true)),
    }
}

fn shared_ring() -> io::Result<(IoUring, bool)> {
    Ok((IoUring::new(RING_ENTRIES)?, false))
}

/// Whether flushes are worth waiting for on the spot.
#[derive(Debug, Default)]
struct Spot {
    /// What they took of late.
    average: Duration,
    /// When the next one is tried if that is too long.
    not_before: Option<Instant>,
}

impl Spot {
    fn is_open(&self, now: Instant) -> bool {
        self.average <= QUICK || self.not_before.is_none_or(|then| then <= now)
    }

    /// A flush has ended.
    fn took(&mut self, time: Duration, now: Instant) {
        self.average = (self.average * (AVERAGED - 1) + time) / AVERAGED;
        self.not_before = Some(now + time * PAUSES);
    }
}

/// The ring's task.
struct Driver {
    /// `None` once it has died.
    table: Option<Table>,
    queue: Arc<Queue>,
    /// Requests on their way from the queue to the ring, reused from turn to turn.
    taken: Vec<Request>,
    /// `None`: others work on this thread, too.
    spot: Option<Spot>,
}

impl Driver {
    /// Submits what is new and answers what is complete, until the device has been closed and
    /// nothing is in flight.
    async fn run(mut self, ready: AsyncFd<EventFd>, disabled: bool) {
        if disabled && !self.with(|table| table.ring.submitter().register_enable_rings()) {
            return;
        }
        loop {
            tokio::select! {
                biased;
                readable = ready.readable() => match readable {
                    Ok(mut guard) => guard.clear_ready(),
                    Err(_no_runtime) => return,
                },
                () = self.queue.bell.notified() => {}
            }
            let closed = self.take();
            self.flush_on_the_spot();
            let mut taken = std::mem::take(&mut self.taken);
            let sound = self.with(|table| {
                taken.drain(..).try_for_each(|request| table.take_in(request))?;
                enter(table)?;
                table.reap(NO_KEY)?;
                // What came short.
                enter(table)
            });
            self.taken = taken;
            if !sound || closed && self.table.as_ref().is_none_or(Table::is_idle) {
                return;
            }
        }
    }

    /// Flushes here and now if that is all there is to do.
    fn flush_on_the_spot(&mut self) {
        let idle = self.table.as_ref().is_some_and(Table::is_idle);
        let only_a_flush = matches!(&*self.taken, [Request { op: Op::Sync, .. }]);
        let Some(spot) = self.spot.as_mut().filter(|_| idle && only_a_flush) else { return };
        let begun = Instant::now();
        if !spot.is_open(begun) {
            return;
        }
        if let Some(mut request) = self.taken.pop() {
            let flushed = request.op.run_blocking(&request.file);
            let now = Instant::now();
            spot.took(now - begun, now);
            request.answer(flushed);
        }
    }

    /// Takes the requests out of the queue; true when no more will come.
    fn take(&mut self) -> bool {
        let mut waiting = self.queue.waiting.lock();
        std::mem::swap(&mut waiting.requests, &mut self.taken);
        waiting.closed
    }

    /// Does something to the table; an error is the end of the ring (false).
    fn with(&mut self, act: impl FnOnce(&mut Table) -> io::Result<()>) -> bool {
        let Some(table) = &mut self.table else { return false };
        let Err(error) = act(table) else { return true };
        tracing::error!(%error, "an io_uring engine has died");
        self.table.take().into_iter().for_each(Table::abandon);
        false
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Whoever still waits for a turn is told.
        *self.queue.waiting.lock() = Waiting { ended: true, ..Waiting::default() };
        // The runtime ends. The thread is the one that used the ring.
        if let Some(table) = self.table.take() {
            finish(table);
        }
    }
}

/// What there is to do in the kernel.
struct Due {
    to_submit: bool,
    /// The kernel says that completions wait until somebody asks for them.
    work_waits: bool,
    /// Completions that can be taken.
    completions: usize,
}

/// The kernel's side of a ring.
trait Kernel {
    fn due(&mut self) -> Due;
    /// Enters it once; false when it has to be tried again.
    fn enter(&mut self) -> io::Result<bool>;
}

impl Kernel for Table {
    fn due(&mut self) -> Due {
        let completions = self.ring.completion().len();
        let queue = self.ring.submission();
        Due { to_submit: !queue.is_empty(), work_waits: queue.taskrun(), completions }
    }

    fn enter(&mut self) -> io::Result<bool> {
        match self.ring.submit() {
            Ok(_) => Ok(true),
            Err(error) => retry(error).map(|()| false),
        }
    }
}

/// Submits what is in the submission queue, and lets the kernel finish what is complete.
///
/// That work waits is not to be believed for ever: the kernel hands the work over first and says so
/// then, and when this thread has taken the work in between, the flag stays until the next one.
fn enter(kernel: &mut impl Kernel) -> io::Result<()> {
    let mut fruitless = 0;
    loop {
        let due = kernel.due();
        if !due.to_submit && (!due.work_waits || fruitless == FRUITLESS) {
            return Ok(());
        }
        if kernel.enter()? {
            let more = kernel.due().completions > due.completions;
            fruitless = if more { 0 } else { fruitless + 1 };
        }
    }
}

/// Is it worth another attempt?
fn retry(error: io::Error) -> io::Result<()> {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINTR | Errno::EAGAIN | Errno::EBUSY) => std::thread::yield_now(),
        _ => return Err(error),
    }
    Ok(())
}

/// Waits for all that is in flight, so that ring, memory and file can be given back.
fn finish(mut table: Table) {
    let deadline = Instant::now() + END;
    while !table.is_idle() {
        let left = Timespec::from(deadline.saturating_duration_since(Instant::now()));
        let args = SubmitArgs::new().timespec(&left);
        let waited = table.ring.submitter().submit_with_args(1, &args).map(drop).or_else(retry);
        if waited.and_then(|()| table.reap(NO_KEY)).is_err() {
            return table.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives up to 20 completions a call, as Linux does; its flag may stay for ever.
    struct Pretended {
        waiting: usize,
        stale: bool,
        completions: usize,
        calls: usize,
    }

    impl Kernel for Pretended {
        fn due(&mut self) -> Due {
            let Self { waiting, stale, completions, .. } = *self;
            Due { to_submit: self.calls == 0, work_waits: waiting > 0 || stale, completions }
        }

        fn enter(&mut self) -> io::Result<bool> {
            let given = self.waiting.min(20);
            self.waiting -= given;
            self.completions += given;
            self.calls += 1;
            assert!(self.calls < 100, "the thread turns in a circle");
            Ok(self.calls != 1)
        }
    }

    #[test]
    fn all_completions_are_asked_for_and_a_flag_that_stays_is_not_believed() {
        for (waiting, stale) in [(0, false), (1, false), (128, false), (0, true), (128, true)] {
            let mut kernel = Pretended { waiting, stale, completions: 0, calls: 0 };
            enter(&mut kernel).unwrap();
            assert_eq!((kernel.waiting, kernel.completions), (0, waiting), "{stale}");
        }
    }

    #[test]
    fn flushes_are_waited_for_where_they_are_quick() {
        let (quick, slow) = (Duration::from_micros(60), Duration::from_millis(10));
        let (mut spot, now) = (Spot::default(), Instant::now());
        assert!(spot.is_open(now));
        for _ in 0..100 {
            spot.took(quick, now);
        }
        spot.took(Duration::from_millis(3), now);
        assert!(spot.is_open(now), "the next one is quick, probably");
        spot.took(slow, now);
        assert!(!spot.is_open(now + slow * 99));
        assert!(spot.is_open(now + slow * 100), "one is tried");
        for _ in 0..100 {
            spot.took(quick, now);
        }
        assert!(spot.is_open(now), "the disk is quick again");
    }
}
