//! A gap in the history of a volume (I11): how it is noticed, remembered, shown and healed.
//!
//! Invariant: a gap is durable with its cause and time before the volume does anything else; only
//! a backup that has ended takes it away.

use std::sync::Arc;

use server_kit::error::RoleError;
use server_kit::retry::Backoff;
use wlog_format::units::LogUuid;

use crate::book::{Gap, Record};
use crate::device::Info;
use crate::loss::{self, Loss};
use crate::resync;
use crate::state::{Saved, State};
use crate::volume::Volume;

impl Volume {
    /// Why the device's log cannot be followed on, if so.
    pub(crate) fn lost_logs(&self, info: &Info) -> Option<Loss> {
        self.book.read(|r| r.history.as_ref().and_then(|h| loss::lost(&info.status, h)))
    }

    pub(crate) fn refuse_gap(&self) -> Result<(), RoleError> {
        match self.book.read(|r| r.gap.clone()) {
            Some(gap) => Err(self.gap_error(&gap.why)),
            None => Ok(()),
        }
    }

    pub(crate) fn gap_error(&self, why: &str) -> RoleError {
        let name = &self.name;
        RoleError::overflow(name, gap_text(name, why)).with_next_step(heal_step(name))
    }

    /// The follower has found that logs were lost: Target -> Stopped, until a backup heals it.
    pub(crate) async fn lost(self: &Arc<Self>, loss: &Loss) {
        let transition = self.cell.begin(&[State::Target], State::StopTarget);
        let error = self.gap_error(&loss.why);
        tracing::error!(volume = %self.name, error = error.full_message(), "logs were lost");
        self.progress.failed(&error, None);
        let saved = if transition.is_ok() { Saved::Stopped } else { self.book.read(|r| r.state) };
        if !self.surely_remember(loss, saved).await {
            return;
        }
        if let Ok(transition) = transition {
            transition.commit(State::Stopped);
        }
        resync::wake(self);
    }

    /// What was shipped of this log is lost beyond the proxies: as [`Volume::lost`], if the log is
    /// the present one.
    pub(crate) async fn lost_downstream(self: &Arc<Self>, log: LogUuid, loss: &Loss) {
        let from = [State::Target, State::Stopped];
        let Ok(transition) = self.cell.begin(&from, State::StopTarget) else { return };
        let present = |r: &Record| r.history.as_ref().is_some_and(|h| h.log_uuid == log);
        if !self.book.read(present) {
            return;
        }
        self.unfollow(true).await;
        let error = self.gap_error(&loss.why);
        tracing::error!(volume = %self.name, error = error.full_message(), "wdiffs were lost");
        self.progress.failed(&error, None);
        match self.remember_gap(loss, Saved::Stopped).await {
            Ok(()) => transition.commit(State::Stopped),
            Err(error) => {
                // The next poll finds the loss again.
                let error = error.full_message();
                tracing::error!(volume = %self.name, error, "cannot save that");
                drop(transition);
                self.resume();
            }
        }
        resync::wake(self);
    }

    /// Tries until the gap is durable, for a full disk has room again one day; `false` when the
    /// process ends before that: the next one finds the loss again.
    async fn surely_remember(&self, loss: &Loss, saved: Saved) -> bool {
        let config = &self.shared.config;
        let mut backoff = Backoff::new(config.retry_min, config.retry_max);
        let shutdown = self.shared.shutdown.requested();
        while let Err(error) = self.remember_gap(loss, saved).await {
            let (error, delay) = (error.full_message(), backoff.next_delay());
            tracing::error!(volume = %self.name, error, ?delay, "cannot save that");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = shutdown.cancelled() => return false,
            }
        }
        true
    }

    pub(crate) async fn remember_gap(&self, loss: &Loss, state: Saved) -> Result<(), RoleError> {
        let update = self.book.update(|record| {
            record.gap.get_or_insert(Gap::now(loss));
            record.state = state;
            record.forget_backup();
            Ok(())
        });
        update.await
    }

    /// Whether a gap is healed by a hash backup that starts by itself.
    pub(crate) fn heals_itself(&self) -> bool {
        self.shared.config.auto_resync && !self.book.read(|r| r.held)
    }

    /// A person decides whether anything starts by itself.
    pub(crate) async fn hold(&self, held: bool) -> Result<(), RoleError> {
        let update = self.book.update(|record| {
            record.held = held;
            Ok(())
        });
        update.await
    }
}

/// What a gap is, for people.
pub(crate) fn gap_text(name: impl AsRef<str>, why: &str) -> String {
    format!("volume {}: {why}; snapshots before that stay restorable", name.as_ref())
}

/// What heals a gap.
pub(crate) fn heal_step(name: impl AsRef<str>) -> String {
    format!("walbc hash-backup S {}", name.as_ref())
}
