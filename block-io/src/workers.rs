//! A few threads for system calls that block: all I/O where io_uring is forbidden, and everywhere
//! the calls that io_uring does not have (discard of a block device, extents).
//!
//! Invariant: a job owns all that it touches, so that a dropped future frees nothing in use.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use crossbeam_channel::{Receiver, Sender, unbounded};
use tokio::sync::oneshot;

/// Threads of the pool: enough for reads and writes to overlap while a flush waits.
const THREADS: usize = 8;

type Job = Box<dyn FnOnce() + Send>;

static JOBS: OnceLock<Sender<Job>> = OnceLock::new();

/// Runs `work` on a thread of the pool. The queue is bounded by its callers' admission
/// (`admission`).
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (reply, result) = oneshot::channel();
    let job: Job = Box::new(move || {
        let _gone = reply.send(work());
    });
    if JOBS.get_or_init(start).send(job).is_err() {
        return Err(io::Error::other("no I/O thread could be started"));
    }
    result.await.unwrap_or_else(|_| Err(io::Error::other("an I/O thread panicked")))
}

fn start() -> Sender<Job> {
    let (jobs, queue) = unbounded::<Job>();
    for i in 0..THREADS {
        let queue: Receiver<Job> = queue.clone();
        let thread = std::thread::Builder::new().name(format!("walb-io-{i}"));
        let work = move || {
            for job in queue {
                // The caller learns of a panic by the dropped channel; the thread goes on.
                let _panicked = catch_unwind(AssertUnwindSafe(job));
            }
        };
        if let Err(error) = thread.spawn(work) {
            tracing::warn!(%error, "cannot start I/O thread {i} of {THREADS}");
        }
    }
    jobs
}
