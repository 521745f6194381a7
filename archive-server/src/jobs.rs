//! What runs on a volume: who excludes whom, who is asked to give up, and how a stop waits for all
//! of them without polling (`semantics.md` §5.2).
//!
//! Invariant: a job is listed from before it does anything until its guard is dropped.

use parking_lot::Mutex;
use server_kit::error::RoleError;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Kinds of jobs.
pub(crate) const APPLY: &str = "apply";
pub(crate) const RESTORE: &str = "restore";
pub(crate) const FULL_SYNC: &str = "full-sync";
pub(crate) const HASH_SYNC: &str = "hash-sync";
pub(crate) const REPLICATE: &str = "replicate";
pub(crate) const RESYNC: &str = "resync";
pub(crate) const RESIZE: &str = "resize";
pub(crate) const READ: &str = "read-snapshot";
pub(crate) const RECEIVE: &str = "wdiff-receive";
pub(crate) const MERGE: &str = "merge";
/// Snapshots become explicit, or are given up.
pub(crate) const KEEP: &str = "set-explicit";
pub(crate) const GC: &str = "gc";
pub(crate) const VERIFY: &str = "verify";
pub(crate) const DRILL: &str = "drill";
pub(crate) const REPAIR: &str = "repair";

#[derive(Default)]
struct Inner {
    running: Mutex<Running>,
    ended: Notify,
}

#[derive(Default)]
struct Running {
    started: u64,
    list: Vec<(u64, &'static str, CancellationToken)>,
}

/// The jobs of one volume. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Jobs(Arc<Inner>);

/// A job that runs.
pub(crate) struct Job {
    jobs: Jobs,
    id: u64,
    /// Cancelled when the job shall give up.
    pub(crate) token: CancellationToken,
}

impl Jobs {
    /// Lists a job, unless one of the `excluded` kinds runs.
    pub(crate) fn begin(
        &self,
        volume: &str,
        kind: &'static str,
        excluded: &[&str],
    ) -> Result<Job, RoleError> {
        self.begin_unless(volume, kind, |other| excluded.contains(&other))
    }

    /// Lists a job, unless anything runs but receiving, which is never excluded.
    pub(crate) fn begin_alone(&self, volume: &str, kind: &'static str) -> Result<Job, RoleError> {
        self.begin_unless(volume, kind, |other| other != RECEIVE)
    }

    fn begin_unless(
        &self,
        volume: &str,
        kind: &'static str,
        excluded: impl Fn(&str) -> bool,
    ) -> Result<Job, RoleError> {
        let mut running = self.0.running.lock();
        if let Some((_, other, _)) = running.list.iter().find(|(_, k, _)| excluded(k)) {
            let message = format!("cannot {kind} volume {volume}: its {other} has not ended");
            let step = "wait for it, or cancel it: walbc operations";
            return Err(RoleError::busy(volume, message).with_next_step(step));
        }
        running.started += 1;
        let (id, token) = (running.started, CancellationToken::new());
        running.list.push((id, kind, token.clone()));
        Ok(Job { jobs: self.clone(), id, token })
    }

    /// Fails when anything runs.
    pub(crate) fn none(&self, volume: &str, attempt: &str) -> Result<(), RoleError> {
        match self.kinds().first() {
            None => Ok(()),
            Some(kind) => {
                let message = format!("cannot {attempt} volume {volume}: its {kind} has not ended");
                Err(RoleError::busy(volume, message).with_next_step("wait for it, or cancel it"))
            }
        }
    }

    /// What runs now.
    pub(crate) fn kinds(&self) -> Vec<&'static str> {
        self.0.running.lock().list.iter().map(|(_, kind, _)| *kind).collect()
    }

    /// Asks all to give up.
    pub(crate) fn cancel(&self) {
        self.0.running.lock().list.iter().for_each(|(_, _, token)| token.cancel());
    }

    /// Waits until nothing runs.
    pub(crate) async fn idle(&self) {
        loop {
            let ended = self.0.ended.notified();
            tokio::pin!(ended);
            // Listens before it looks, so that no end is missed.
            ended.as_mut().enable();
            if self.0.running.lock().list.is_empty() {
                return;
            }
            ended.await;
        }
    }
}

impl Job {
    /// Fails when the job shall give up.
    pub(crate) fn check(&self) -> Result<(), RoleError> {
        check(&self.token)
    }
}

/// Fails when the token is cancelled.
pub(crate) fn check(token: &CancellationToken) -> Result<(), RoleError> {
    if token.is_cancelled() { Err(RoleError::cancelled("given up as asked")) } else { Ok(()) }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.jobs.0.running.lock().list.retain(|(id, _, _)| *id != self.id);
        self.jobs.0.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server_kit::error::Reason;

    #[tokio::test]
    async fn excluded_kinds_are_refused_and_idle_waits_for_all() {
        let jobs = Jobs::default();
        let first = jobs.begin("v", APPLY, &[APPLY]).unwrap();
        let second = jobs.begin("v", RESTORE, &[RESTORE]).unwrap();
        let refused = jobs.begin("v", APPLY, &[APPLY]).err().unwrap();
        assert_eq!(refused.reason(), Reason::Busy);
        assert_eq!(jobs.kinds(), [APPLY, RESTORE]);
        assert!(jobs.none("v", "clear").is_err());
        let idle = tokio::spawn({
            let jobs = jobs.clone();
            async move { jobs.idle().await }
        });
        jobs.cancel();
        assert!(first.check().is_err());
        drop(first);
        tokio::task::yield_now().await;
        assert!(!idle.is_finished());
        drop(second);
        idle.await.unwrap();
        assert!(jobs.none("v", "clear").is_ok());
    }
}
