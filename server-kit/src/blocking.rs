//! Work that blocks (file system, codecs) called from async code, and how such work waits for async
//! code. In a [`Simulation`] it never runs beside anything else.
use crate::error::{Reason, RoleError};
use crate::simulation::Simulation;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::task::JoinHandle;

mod coroutine;
use coroutine::Coroutine;

/// The work panicked, or its runtime is shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread failed")]
pub struct WorkerFailed;

impl From<WorkerFailed> for RoleError {
    fn from(failed: WorkerFailed) -> Self {
        RoleError::new(Reason::Io, failed.to_string())
    }
}

/// Work under way; it goes on when this is dropped.
#[derive(Debug)]
pub struct Work<T>(Kind<T>);

#[derive(Debug)]
enum Kind<T> {
    Thread(JoinHandle<T>),
    Simulated(JoinHandle<Option<T>>),
}

impl<T> Future for Work<T> {
    type Output = Result<T, WorkerFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Kind::Thread(thread) => Pin::new(thread).poll(cx).map_err(|_| WorkerFailed),
            Kind::Simulated(task) => {
                Pin::new(task).poll(cx).map(|done| done.ok().flatten().ok_or(WorkerFailed))
            }
        }
    }
}

/// Starts `work` on a thread that may block; it may [`wait`] for async code.
pub fn spawn<T, F>(work: F) -> Work<T>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let Some(simulation) = Simulation::current() else {
        return Work(Kind::Thread(tokio::task::spawn_blocking(work)));
    };
    let coroutine = Coroutine::new(simulation, work);
    Work(Kind::Simulated(tokio::spawn(async { coroutine.ok()?.await.ok() })))
}

/// [`run`] for work that may [`wait`] for async code.
///
/// # Errors
/// What `work` answers.
pub async fn run_waiting<T, E, F>(work: F) -> Result<T, RoleError>
where
    F: FnOnce() -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Into<RoleError> + Send + 'static,
{
    spawn(work).await?.map_err(Into::into)
}

/// Runs `work` on a thread that may block, and waits for it. A panic in it is an error here, so
/// that one bad volume does not take the server down.
///
/// # Errors
/// What `work` answers.
pub async fn run<T, E, F>(work: F) -> Result<T, RoleError>
where
    F: FnOnce() -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Into<RoleError> + Send + 'static,
{
    let task = match Simulation::current() {
        None => tokio::task::spawn_blocking(work),
        // It waits for nobody, so it needs no thread; a task of its own, for it is not broken off.
        Some(_) => tokio::spawn(async { work() }),
    };
    task.await.map_err(|_| WorkerFailed)?.map_err(Into::into)
}

/// Waits for async code, inside of blocking work that was started by [`spawn`].
pub fn wait<F: Future>(future: F) -> F::Output {
    match coroutine::wait(future) {
        Ok(output) => output,
        Err(future) => {
            debug_assert!(Simulation::current().is_none(), "`run` is for work that never waits");
            futures::executor::block_on(future)
        }
    }
}

/// How many threads a piece of work may use for itself.
#[must_use]
pub fn parallelism() -> usize {
    if Simulation::current().is_some() {
        return 1;
    }
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn results_come_back_and_a_panic_is_an_error() {
        assert_eq!(run(|| Ok::<_, RoleError>(5)).await.unwrap(), 5);
        let refused = run(|| Err::<(), _>(RoleError::bad_request("no"))).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::BadRequest);
        let error = run(|| -> Result<(), RoleError> { panic!("boom") }).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Io);
    }

    /// Work that adds up what it is sent, until the end.
    fn adder() -> (mpsc::Sender<u32>, Work<u32>) {
        let (sender, mut receiver) = mpsc::channel(1);
        let work = move || {
            let mut sum = 0;
            while let Some(n) = wait(receiver.recv()) {
                sum += n;
            }
            sum
        };
        (sender, spawn(work))
    }

    #[tokio::test]
    async fn simulated_work_waits_for_tasks_of_its_own_thread_and_for_simulated_time() {
        let _simulated = Simulation::default().enter();
        assert_eq!(parallelism(), 1);
        tokio::time::pause();
        let (sender, sum) = adder();
        for n in 1..=10 {
            sender.send(n).await.unwrap();
        }
        drop(sender);
        assert_eq!(sum.await.unwrap(), 55);
        let hour = std::time::Duration::from_secs(3600);
        let slept = spawn(move || {
            let start = tokio::time::Instant::now();
            wait(tokio::time::sleep(hour));
            start.elapsed()
        });
        assert!(slept.await.unwrap() >= hour);
        let error = run(|| -> Result<(), RoleError> { panic!("boom") }).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Io);
    }

    #[test]
    fn a_killed_runtime_unwinds_simulated_work_where_it_waits() {
        let _simulated = Simulation::default().enter();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let held = std::sync::Arc::new(());
        let guard = held.clone();
        runtime.block_on(async {
            let (sender, mut receiver) = mpsc::channel::<()>(1);
            drop(spawn(move || {
                let _guard = guard;
                wait(receiver.recv());
            }));
            tokio::task::yield_now().await;
            std::mem::forget(sender);
        });
        assert_eq!(std::sync::Arc::strong_count(&held), 2);
        drop(runtime);
        assert_eq!(std::sync::Arc::strong_count(&held), 1);
    }
}
