//! The threads on which volumes live.
//!
//! Everything that a write waits for happens on one thread: its NBD connection, the committer, the
//! ring of the log device. Handing it from one to the other is then a function call; between the
//! threads of a pool it would be a wake-up, which takes longer than the disk. Volumes share as many
//! threads as there are processors.
//!
//! Invariant: a volume is opened on the thread on which it lives, and not used after the threads
//! have ended.

use std::future::Future;
use std::num::NonZeroUsize;

use anyhow::Context;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Threads that end when this is dropped; what still runs on them is dropped with it.
pub(crate) struct IoThreads {
    threads: Vec<IoThread>,
    volumes: usize,
    next: usize,
}

struct IoThread {
    runtime: Handle,
    _alive: oneshot::Sender<()>,
}

impl IoThreads {
    /// Threads for so many volumes.
    pub(crate) fn start(volumes: usize) -> anyhow::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = (0..volumes.clamp(1, processors)).map(IoThread::start);
        let threads = threads.collect::<std::io::Result<_>>().context("no thread for I/O")?;
        Ok(Self { threads, volumes, next: 0 })
    }

    /// Whether each volume has a thread to itself.
    pub(crate) fn are_enough(&self) -> bool {
        self.volumes <= self.threads.len()
    }

    /// Runs this on one of the threads, in turn.
    pub(crate) async fn run<T: Send + 'static>(
        &mut self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let thread =
            self.threads.get(self.next % self.threads.len()).context("no thread for I/O")?;
        self.next += 1;
        thread.runtime.spawn(work).await.context("an I/O thread has failed")
    }
}

impl IoThread {
    fn start(number: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (alive, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name(format!("walb-vol-{number}")).spawn(move || {
            // Nothing is ever sent: it ends when the other side is dropped.
            let _dropped = runtime.block_on(ended);
            // A thread that still blocks (a read from a dead disk) must not keep this one.
            runtime.shutdown_background();
        })?;
        Ok(Self { runtime: handle, _alive: alive })
    }
}
