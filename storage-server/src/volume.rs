//! One volume: its durable record, its device, the task that follows the device, and the commands
//! that change its state (`semantics.md` §3.1, §3.10).
//!
//! A command that changes the state runs to its end also when the client has gone: callers spawn
//! it (see [`crate::service`]).

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use server_kit::clock::unix_seconds;
use server_kit::error::{Reason, RoleError};
use server_kit::state_machine::{StateCell, StopFlag, Transition};
use server_kit::volume_name::VolumeName;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wdiff_format::gid::Gid;
use wlog_format::units::{Lb, Lsid, Pb};

use crate::book::{Book, Gap, History};
use crate::device::{Info, Seen, WalbDevice};
use crate::follower::{Ended, Follower, Work};
use crate::marks::Mark;
use crate::progress::Progress;
use crate::shared::Shared;
use crate::ship;
use crate::state::{Saved, State};

/// How long a snapshot waits for the device to make its log permanent.
const PERMANENT_TIMEOUT: Duration = Duration::from_secs(30);

/// One volume.
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// What all volumes share.
    pub shared: Arc<Shared>,
    /// Its state.
    pub cell: StateCell<State>,
    /// What it remembers.
    pub book: Book,
    /// Its device.
    pub device: Arc<dyn WalbDevice>,
    /// How it goes.
    pub progress: Progress,
    /// Wakes the follower, whatever it waits for.
    pub wake: Notify,
    follower: Mutex<Option<Follower>>,
    /// Aborts the full backup that runs.
    pub(crate) backup: Mutex<Option<CancellationToken>>,
}

impl Volume {
    /// The volume as its record says. Nothing runs yet.
    #[must_use]
    pub fn new(name: VolumeName, shared: Arc<Shared>, book: Book) -> Arc<Self> {
        let (state, address) = book.read(|r| (r.state, r.device.clone()));
        Arc::new(Self {
            name,
            cell: StateCell::new(state.into()),
            device: shared.devices.find(&address),
            shared,
            book,
            progress: Progress::default(),
            wake: Notify::new(),
            follower: Mutex::default(),
            backup: Mutex::default(),
        })
    }

    /// Goes on where a former process stopped.
    pub fn resume(self: &Arc<Self>) {
        match self.cell.state() {
            State::Target => self.follow(Work::Ship),
            State::Standby => self.follow(Work::Discard),
            _ => {}
        }
    }

    /// Starts to follow the device.
    pub(crate) fn follow(self: &Arc<Self>, work: Work) {
        let follower = Follower::start(Arc::clone(self), work);
        *self.follower.lock() = Some(follower);
    }

    pub(crate) fn follower(&self) -> Option<Follower> {
        self.follower.lock().clone()
    }

    /// Ends the task that follows the device, if one does.
    pub async fn unfollow(&self, force: bool) {
        let follower = self.follower();
        if let Some(follower) = follower {
            follower.request_stop(force);
            follower.ended().await;
        }
    }

    /// Everything about the device; an error when it has failed.
    pub(crate) async fn device_info(&self) -> Result<Info, RoleError> {
        let info = self.device.info().await?;
        match &info.failure {
            None => Ok(info),
            Some(why) => {
                let device = self.device.address();
                let message = format!("device {device} has failed: {why}");
                Err(RoleError::new(Reason::Io, message).with_volume(&self.name))
            }
        }
    }

    /// Stopped -> Target.
    ///
    /// # Errors
    /// Wrong state, lost logs, an unreachable device.
    pub async fn start_target(self: &Arc<Self>) -> Result<(), RoleError> {
        let transition = self.begin(&[State::Stopped], State::StartTarget, "start")?;
        self.refuse_gap()?;
        let info = self.device_info().await?;
        if let Some(why) = self.lost_logs(&info) {
            self.remember_gap(&why, Saved::Stopped).await?;
            return Err(self.gap_error(&why));
        }
        self.book.set_state(Saved::Target).await?;
        self.follow(Work::Ship);
        self.commit_target(transition).await;
        Ok(())
    }

    /// The state is Target from now on, unless the follower has found lost logs already.
    pub(crate) async fn commit_target(&self, transition: Transition<State>) {
        transition.commit(State::Target);
        self.settle().await;
    }

    /// Catches up with a follower that has found lost logs while a transaction was open.
    async fn settle(&self) {
        let ended = self.follower().and_then(|f| f.has_ended());
        if let Some(Ended::Lost(why)) = ended {
            self.lost(&why).await;
        }
    }

    /// SyncReady -> Standby. An overflowed log is emptied first.
    ///
    /// # Errors
    /// Wrong state, an unreachable device.
    pub async fn start_standby(self: &Arc<Self>) -> Result<(), RoleError> {
        let transition = self.begin(&[State::SyncReady], State::StartStandby, "start")?;
        if self.device_info().await?.status.overflow {
            self.device.reset_log().await?;
        }
        let update = self.book.update(|r| {
            // From now on the log is thrown away: a backup on top of it cannot be resumed.
            r.history = None;
            r.state = Saved::Standby;
            Ok(())
        });
        update.await?;
        self.follow(Work::Discard);
        transition.commit(State::Standby);
        Ok(())
    }

    /// Target -> Stopped, Standby -> SyncReady; with force also FullSync -> SyncReady. Answers when
    /// that is so. A forced stop may overtake a graceful one.
    ///
    /// # Errors
    /// Wrong state; another stop that is as urgent runs.
    pub async fn stop(self: &Arc<Self>, force: bool) -> Result<(), RoleError> {
        let flag = if force { StopFlag::ForceStopping } else { StopFlag::Stopping };
        let guard = self.cell.begin_stop(flag).map_err(|_| {
            RoleError::busy(&self.name, format!("volume {} is being stopped", self.name))
        })?;
        if self.end_backup(force).await? && self.cell.state() == State::SyncReady {
            return Ok(());
        }
        let (via, to, saved) = match self.cell.state() {
            State::Standby => (State::StopStandby, State::SyncReady, Saved::SyncReady),
            _ => (State::StopTarget, State::Stopped, Saved::Stopped),
        };
        let from = [State::Target, State::Standby];
        match guard.begin(&from, via) {
            Ok(transition) => {
                self.unfollow(force).await;
                if let Err(error) = self.book.set_state(saved).await {
                    // Not stopped, then: it must not stand there as a target that ships nothing.
                    drop(transition);
                    self.resume();
                    self.settle().await;
                    return Err(error);
                }
                transition.commit(to);
            }
            Err(_) if matches!(self.cell.state(), State::StopTarget | State::StopStandby) => {
                // Another stop is on its way: this one hurries it and waits with it.
                self.unfollow(force).await;
                self.cell.wait_until(|v| !v.changing).await;
            }
            Err(wrong) => return Err(wrong.into_error(&self.name, "stop")),
        }
        Ok(())
    }

    /// Ends the full backup that runs, when forced to; whether there was one.
    async fn end_backup(&self, force: bool) -> Result<bool, RoleError> {
        let Some(backup) = self.backup.lock().clone() else { return Ok(false) };
        if !force {
            return Err(self.backup_runs());
        }
        backup.cancel();
        self.cell.wait_until(|v| !v.changing).await;
        Ok(true)
    }

    fn backup_runs(&self) -> RoleError {
        let name = &self.name;
        let allowed = ["Target".to_owned(), "Standby".to_owned()];
        RoleError::wrong_state(name, "stop", State::FullSync, &allowed).with_next_step(format!(
            "cancel the backup, or walbc stop S {name} --mode force: it can be resumed"
        ))
    }

    /// Stopped -> SyncReady: the log is emptied and a new history begins with `gid`.
    ///
    /// # Errors
    /// Wrong state, an unreachable device.
    pub async fn reset(&self, gid: Gid) -> Result<(), RoleError> {
        let transition = self.begin(&[State::Stopped], State::Reset, "reset")?;
        let uuid = self.device.reset_log().await?.status.log_uuid;
        let now_s = unix_seconds();
        let update = self.book.update(|r| {
            let why = "the log was reset by command, what was not shipped is lost".to_owned();
            r.gap.get_or_insert(Gap { since_s: now_s, why });
            r.history = Some(History::after_reset(uuid, gid, now_s));
            r.state = Saved::SyncReady;
            Ok(())
        });
        update.await?;
        transition.commit(State::SyncReady);
        Ok(())
    }

    /// An interrupted full backup is never resumed after this: what it has shipped may be dropped.
    ///
    /// # Errors
    /// A backup runs; the record cannot be written.
    pub async fn forget_backup(&self) -> Result<(), RoleError> {
        let state = self.cell.state();
        if state.is_backup() {
            let error = RoleError::busy(&self.name, format!("{state} of {} runs", self.name));
            return Err(error.with_next_step("wait for the backup, or cancel it"));
        }
        let update = self.book.update(|record| {
            if let Some(history) = &mut record.history {
                history.backup = None;
            }
            Ok(())
        });
        update.await
    }

    /// Makes a larger size of the data device known; 0 asks for all that it has.
    ///
    /// # Errors
    /// Wrong state; a size that the device refuses; an unreachable device.
    pub async fn resize(&self, size: Lb) -> Result<(), RoleError> {
        let allowed = [State::SyncReady, State::Stopped, State::Target, State::Standby];
        self.require(&allowed, "resize")?;
        self.device.resize(size).await?;
        Ok(())
    }

    /// Refuses unless the volume is in one of these states and stays there for now.
    fn require(&self, allowed: &[State], attempt: &str) -> Result<(), RoleError> {
        let view = self.cell.view();
        if view.changing || view.stop != StopFlag::NotStopping || !allowed.contains(&view.state) {
            let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            return Err(RoleError::wrong_state(&self.name, attempt, view.state, &allowed));
        }
        Ok(())
    }

    /// Takes an explicit snapshot, which holds every write that the device had acknowledged before.
    ///
    /// # Errors
    /// Wrong state, lost logs, an unreachable device.
    pub async fn snapshot(&self) -> Result<Mark, RoleError> {
        self.require(&[State::Target, State::Stopped], "snapshot")?;
        self.refuse_gap()?;
        self.snapshot_now().await
    }

    /// [`Volume::snapshot`] in any state.
    pub(crate) async fn snapshot_now(&self) -> Result<Mark, RoleError> {
        let info = self.device_info().await?;
        if let Some(why) = self.lost_logs(&info) {
            return Err(self.gap_error(&why));
        }
        let lsid = info.status.positions.latest;
        if info.status.positions.permanent < lsid {
            self.make_permanent(lsid).await?;
        }
        let piece = self.shared.config.piece(info.block_size);
        let mark = self.record_snapshot(lsid, false, piece).await?;
        self.wake.notify_one();
        Ok(mark)
    }

    /// Waits until the log below `lsid` is permanent. A snapshot beyond that could be lost with
    /// the power, and its gid would then mean another content.
    async fn make_permanent(&self, lsid: Lsid) -> Result<(), RoleError> {
        if self.device.take_checkpoint().await?.permanent >= lsid {
            return Ok(());
        }
        let mut seen = self.device.watch();
        let reached = |seen: &Seen| matches!(seen, Seen::Up(s) if s.positions.permanent >= lsid);
        match tokio::time::timeout(PERMANENT_TIMEOUT, seen.wait_for(reached)).await {
            Ok(Ok(_)) => Ok(()),
            _ => {
                let device = self.device.address();
                let message = format!("device {device} does not make its log permanent");
                Err(RoleError::new(Reason::Io, message).with_volume(&self.name))
            }
        }
    }

    /// Records a snapshot of everything below `lsid`, durable (I6). Another one may have been taken
    /// further on meanwhile: then an implicit snapshot is not needed any more, and an explicit one
    /// is taken there, which holds what it has to hold.
    pub(crate) async fn record_snapshot(
        &self,
        lsid: Lsid,
        mergeable: bool,
        piece: Pb,
    ) -> Result<Mark, RoleError> {
        let update = self.book.update(|record| {
            let history = record.history.as_mut().ok_or_else(|| self.never_backed_up())?;
            let newest = *history.marks.newest();
            if mergeable && newest.lsid >= lsid {
                return Ok(newest);
            }
            let lsid = lsid.max(newest.lsid);
            history.marks.take(lsid, mergeable, unix_seconds(), piece).map_err(|e| {
                RoleError::new(Reason::Overflow, format!("no snapshot of volume {}", self.name))
                    .with_volume(&self.name)
                    .with_source(e)
            })
        });
        update.await
    }

    /// A proxy has acknowledged everything up to `done`: durable before logs are released (I4).
    pub(crate) async fn acknowledged(&self, done: Mark) -> Result<(), RoleError> {
        let update = self.book.update(|record| {
            let history = record.history.as_mut().ok_or_else(|| self.never_backed_up())?;
            history.marks.acknowledge(done);
            Ok(())
        });
        update.await
    }

    fn never_backed_up(&self) -> RoleError {
        let message = format!("volume {} was never backed up", self.name);
        RoleError::new(Reason::WrongState, message)
            .with_volume(&self.name)
            .with_next_step(format!("walbc full-backup S {}", self.name))
    }

    /// Why the device's log cannot be followed on, if so.
    fn lost_logs(&self, info: &Info) -> Option<String> {
        self.book.read(|r| r.history.as_ref().and_then(|h| ship::lost(&info.status, h)))
    }

    fn refuse_gap(&self) -> Result<(), RoleError> {
        match self.book.read(|r| r.gap.clone()) {
            Some(gap) => Err(self.gap_error(&gap.why)),
            None => Ok(()),
        }
    }

    fn gap_error(&self, why: &str) -> RoleError {
        let name = &self.name;
        RoleError::overflow(name, gap_text(name, why)).with_next_step(heal_step(name))
    }

    /// The follower has found that logs were lost: Target -> Stopped, for ever until a backup.
    pub(crate) async fn lost(&self, why: &str) {
        let transition = self.cell.begin(&[State::Target], State::StopTarget);
        let error = self.gap_error(why);
        tracing::error!(volume = %self.name, error = error.full_message(), "logs were lost");
        self.progress.failed(&error, None);
        let saved = if transition.is_ok() { Saved::Stopped } else { self.book.read(|r| r.state) };
        if let Err(error) = self.remember_gap(why, saved).await {
            // The next start finds the loss again.
            tracing::error!(volume = %self.name, error = error.full_message(), "cannot save that");
        }
        if let Ok(transition) = transition {
            transition.commit(State::Stopped);
        }
    }

    async fn remember_gap(&self, why: &str, state: Saved) -> Result<(), RoleError> {
        let update = self.book.update(|record| {
            let gap = Gap { since_s: unix_seconds(), why: why.to_owned() };
            record.gap.get_or_insert(gap);
            record.state = state;
            if let Some(history) = &mut record.history {
                history.backup = None;
            }
            Ok(())
        });
        update.await
    }

    /// Begins a transition, or says why not.
    pub(crate) fn begin(
        &self,
        from: &[State],
        via: State,
        attempt: &str,
    ) -> Result<Transition<State>, RoleError> {
        self.cell.begin(from, via).map_err(|wrong| wrong.into_error(&self.name, attempt))
    }

    /// Wakes the follower; whether there is one.
    pub fn kick(&self) -> bool {
        self.wake.notify_one();
        matches!(self.cell.state(), State::Target | State::Standby | State::FullSync)
    }
}

/// What a gap is, for people.
pub(crate) fn gap_text(name: impl AsRef<str>, why: &str) -> String {
    format!("volume {}: {why}; snapshots before that stay restorable", name.as_ref())
}

/// What heals a gap.
pub(crate) fn heal_step(name: impl AsRef<str>) -> String {
    format!("walbc full-backup S {} (later: hash-backup)", name.as_ref())
}
