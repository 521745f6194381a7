//! Long jobs of a server: started, they answer with an id at once; they can be watched, listed and
//! cancelled, and are waited for at shutdown.
//!
//! Invariants: every operation ends as done, failed or cancelled, also when its code panics;
//! cancelling asks, and the work decides where it can stop; the list is bounded.
use crate::clock::unix_seconds;
use crate::error::{Reason, RoleError};
use crate::shutdown::Shutdown;
use futures::stream::{self, Stream};
use parking_lot::Mutex;
use proto::v1::{Operation, OperationStatus};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Finished operations that are remembered, the newest ones.
pub const FINISHED_MAX: usize = 100;
/// How long a forced shutdown waits for operations that it cancelled.
pub const FORCED_GRACE: Duration = Duration::from_secs(5);
/// Shortest time between two messages of a watch.
const WATCH_PAUSE: Duration = Duration::from_millis(200);

/// What an operation made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The snapshot.
    pub gid: Option<u64>,
    /// The file.
    pub path: Option<String>,
}

/// All operations of one server. Clones share them.
#[derive(Clone, Default)]
pub struct Operations(Arc<Inner>);

#[derive(Default)]
struct Inner {
    entries: Mutex<Entries>,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Entries {
    started: u64,
    list: VecDeque<Arc<Entry>>,
}

struct Entry {
    operation: watch::Sender<Operation>,
    cancel: CancellationToken,
}

impl Entry {
    fn is_finished(&self) -> bool {
        self.operation.borrow().status() != OperationStatus::Running
    }
}

/// What the work of an operation holds: its progress, and whether it shall give up.
#[derive(Clone)]
pub struct OperationHandle(Arc<Entry>);

impl OperationHandle {
    /// The operation's id.
    #[must_use]
    pub fn id(&self) -> String {
        self.0.operation.borrow().id.clone()
    }

    /// Tells how much there is to do.
    pub fn set_total(&self, bytes: u64) {
        self.0.operation.send_modify(|o| o.total_bytes = bytes);
    }

    /// Tells that this much more is done.
    pub fn advance(&self, bytes: u64) {
        self.0.operation.send_modify(|o| o.done_bytes = o.done_bytes.saturating_add(bytes));
    }

    /// Tells which other server it works with.
    pub fn set_peer(&self, id: &str) {
        self.0.operation.send_modify(|o| id.clone_into(&mut o.peer));
    }

    /// Whether somebody asked to give up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancel.is_cancelled()
    }

    /// Waits until somebody asks to give up.
    pub async fn cancelled(&self) {
        self.0.cancel.cancelled().await;
    }

    /// The same as a token.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.0.cancel.clone()
    }
}

/// Ends the operation as failed when the work goes away without a result.
struct Finisher(Option<Arc<Entry>>);

impl Finisher {
    fn finish(&mut self, result: Result<Outcome, RoleError>) {
        let Some(entry) = self.0.take() else { return };
        let cancelled = entry.cancel.is_cancelled();
        entry.operation.send_modify(|o| {
            o.finished_s = unix_seconds();
            match result {
                Ok(outcome) => {
                    o.set_status(OperationStatus::Done);
                    (o.gid, o.path) = (outcome.gid, outcome.path.unwrap_or_default());
                }
                Err(error) => {
                    let end = if cancelled || error.reason() == Reason::Cancelled {
                        OperationStatus::Cancelled
                    } else {
                        tracing::error!(
                            operation = o.id,
                            volume = o.volume,
                            error = error.full_message(),
                            "the operation failed"
                        );
                        OperationStatus::Failed
                    };
                    o.set_status(end);
                    (o.error, o.detail) = (error.full_message(), Some(error.detail().clone()));
                }
            }
        });
    }
}

impl Drop for Finisher {
    fn drop(&mut self) {
        self.finish(Err(RoleError::new(Reason::Io, "the operation broke off (see the log)")));
    }
}

impl Operations {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts `work` and answers how it stands now. `kind` is the verb: `full-backup`, `restore`.
    pub fn start<F, Fut>(&self, kind: &str, volume: impl AsRef<str>, work: F) -> Operation
    where
        F: FnOnce(OperationHandle) -> Fut,
        Fut: Future<Output = Result<Outcome, RoleError>> + Send + 'static,
    {
        let entry = self.add(kind, volume.as_ref());
        let mut finisher = Finisher(Some(Arc::clone(&entry)));
        let running = work(OperationHandle(Arc::clone(&entry)));
        self.0.tasks.spawn(async move { finisher.finish(running.await) });
        let operation = entry.operation.borrow();
        tracing::info!(operation = operation.id, volume = operation.volume, "started");
        operation.clone()
    }

    fn add(&self, kind: &str, volume: &str) -> Arc<Entry> {
        let mut entries = self.0.entries.lock();
        entries.started += 1;
        let started_s = unix_seconds();
        let operation = Operation {
            // The time keeps ids apart over restarts, the number within one run.
            id: format!("{kind}-{started_s:x}-{}", entries.started),
            kind: kind.to_owned(),
            volume: volume.to_owned(),
            status: OperationStatus::Running.into(),
            started_s,
            ..Operation::default()
        };
        let cancel = CancellationToken::new();
        let entry = Arc::new(Entry { operation: watch::Sender::new(operation), cancel });
        entries.list.push_back(Arc::clone(&entry));
        let finished = entries.list.iter().filter(|e| e.is_finished()).count();
        if finished > FINISHED_MAX
            && let Some(oldest) = entries.list.iter().position(|e| e.is_finished())
        {
            entries.list.remove(oldest);
        }
        entry
    }

    /// All that run and the newest of those that ended, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Operation> {
        self.0.entries.lock().list.iter().map(|e| e.operation.borrow().clone()).collect()
    }

    /// Kinds of the operations of a volume that run now.
    #[must_use]
    pub fn running(&self, volume: &str) -> Vec<String> {
        let here = |o: &Operation| o.volume == volume && o.status() == OperationStatus::Running;
        self.list().into_iter().filter(here).map(|o| o.kind).collect()
    }

    /// How an operation stands.
    ///
    /// # Errors
    /// `BadRequest` when there is none of that id (it may have ended long ago).
    pub fn get(&self, id: &str) -> Result<Operation, RoleError> {
        self.find(id).map(|e| e.operation.borrow().clone())
    }

    /// Asks an operation to give up and answers how it stands.
    ///
    /// # Errors
    /// As [`Operations::get`].
    pub fn cancel(&self, id: &str) -> Result<Operation, RoleError> {
        let entry = self.find(id)?;
        entry.cancel.cancel();
        Ok(entry.operation.borrow().clone())
    }

    /// The operation now and whenever it changed, a few times a second at most; ends when it ends.
    ///
    /// # Errors
    /// As [`Operations::get`].
    pub fn watch(
        &self,
        id: &str,
    ) -> Result<impl Stream<Item = Operation> + Send + 'static, RoleError> {
        let mut receiver = self.find(id)?.operation.subscribe();
        receiver.mark_changed();
        Ok(stream::unfold(Some((receiver, None)), |state| async move {
            let (mut receiver, told): (watch::Receiver<Operation>, Option<Instant>) = state?;
            receiver.changed().await.ok()?;
            let is_over = |o: &Operation| o.status() != OperationStatus::Running;
            if let Some(told) = told {
                // The end is told at once.
                let over = async { receiver.wait_for(is_over).await.map(drop) };
                let _ = tokio::time::timeout_at(told + WATCH_PAUSE, over).await;
            }
            let operation = receiver.borrow_and_update().clone();
            let next = (!is_over(&operation)).then(|| (receiver, Some(Instant::now())));
            Some((operation, next))
        }))
    }

    fn find(&self, id: &str) -> Result<Arc<Entry>, RoleError> {
        let entries = self.0.entries.lock();
        let found = entries.list.iter().find(|e| e.operation.borrow().id == id);
        found.cloned().ok_or_else(|| {
            RoleError::bad_request(format!("no operation {id:?} is known here"))
                .with_next_step("list them: walbc operations")
        })
    }

    /// Waits for all operations to end; a forced shutdown cancels them and waits no longer than
    /// [`FORCED_GRACE`] for those that do not listen.
    pub async fn finish(&self, shutdown: &Shutdown) {
        self.0.tasks.close();
        tokio::select! {
            () = self.0.tasks.wait() => return,
            () = shutdown.forced().cancelled_owned() => {}
        }
        self.0.entries.lock().list.iter().for_each(|e| e.cancel.cancel());
        if tokio::time::timeout(FORCED_GRACE, self.0.tasks.wait()).await.is_err() {
            tracing::warn!("operations go on although they were cancelled; leaving them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test(start_paused = true)]
    async fn the_end_of_an_operation_is_told_at_once_and_progress_now_and_then() {
        let (operations, begun) = (Operations::new(), Instant::now());
        let started = operations.start("test", "v", |handle: OperationHandle| async move {
            for _ in 0..45 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                handle.advance(1);
            }
            Ok(Outcome::default())
        });
        let reports = operations.watch(&started.id).unwrap();
        let told = reports.map(|o| (begun.elapsed().as_millis(), o.done_bytes, o.status()));
        let told: Vec<_> = told.collect().await;
        let ends: Vec<_> = told.iter().map(|(at, _, _)| *at).collect();
        assert_eq!(ends, [0, 200, 400, 450], "{told:?}");
        let last = told.last().unwrap();
        assert_eq!((last.1, last.2), (45, OperationStatus::Done));
    }
}
