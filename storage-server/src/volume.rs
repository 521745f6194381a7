//! One volume: its durable record, its device, the task that follows the device, and the commands
//! that change its state (`semantics.md` §3.1, §3.10).
//!
//! A command that changes the state runs to its end also when the client has gone: callers spawn
//! it (see [`crate::service`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use server_kit::error::{Reason, RoleError};
use server_kit::operations::OperationHandle;
use server_kit::state_machine::{StateCell, StopFlag, Transition};
use server_kit::volume_name::VolumeName;
use tokio::sync::Notify;
use wdiff_format::gid::Gid;
use wlog_format::units::Lb;

use crate::archive_view::ArchiveView;
use crate::book::{Book, Gap};
use crate::device::{Info, WalbDevice};
use crate::follower::{Ended, Follower, Work};
use crate::followers;
use crate::loss::{Cause, Loss};
use crate::progress::Progress;
use crate::resync;
use crate::shared::Shared;
use crate::state::{Saved, State};

/// How long a stop waits for an attempt to heal that may be on its way to be refused.
const ATTEMPT_PATIENCE: Duration = Duration::from_secs(3);

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
    /// The backup that runs.
    pub(crate) backup: Mutex<Option<OperationHandle>>,
    /// What is known of the primary archive.
    pub archive: ArchiveView,
    /// A task heals the gap.
    pub(crate) healing: AtomicBool,
    /// A task brings archives along.
    pub(crate) bringing: AtomicBool,
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
            archive: ArchiveView::default(),
            healing: AtomicBool::new(false),
            bringing: AtomicBool::new(false),
        })
    }

    /// Goes on where a former process stopped.
    pub fn resume(self: &Arc<Self>) {
        match self.cell.state() {
            State::Target => {
                self.follow(Work::Ship);
                followers::wake(self);
            }
            State::Standby => self.follow(Work::Discard),
            _ => resync::wake(self),
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
        let device = self.device.address();
        if info.overwriting {
            let message = format!("the content of device {device} is half replaced");
            return Err(RoleError::new(Reason::WrongState, message)
                .with_volume(&self.name)
                .with_next_step("repeat the restore: walbc restore-to-device A VOL GID S DEVICE"));
        }
        match &info.failure {
            None => Ok(info),
            Some(why) => {
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
        // Whoever starts it wants it to work: a gap is healed from now on.
        self.hold(false).await?;
        if let Err(error) = self.check_continuity().await {
            drop(transition);
            resync::wake(self);
            return Err(error);
        }
        self.book.set_state(Saved::Target).await?;
        self.follow(Work::Ship);
        self.commit_target(transition).await;
        Ok(())
    }

    /// Refuses a log that is not the continuation of what was shipped.
    async fn check_continuity(&self) -> Result<(), RoleError> {
        self.refuse_gap()?;
        let info = self.device_info().await?;
        let Some(loss) = self.lost_logs(&info) else { return Ok(()) };
        self.remember_gap(&loss, Saved::Stopped).await?;
        Err(self.gap_error(&loss.why))
    }

    /// The state is Target from now on, unless the follower has found lost logs already.
    pub(crate) async fn commit_target(self: &Arc<Self>, transition: Transition<State>) {
        transition.commit(State::Target);
        self.settle().await;
        followers::wake(self);
    }

    /// Catches up with a follower that has found lost logs while a transaction was open.
    async fn settle(self: &Arc<Self>) {
        let ended = self.follower().and_then(|f| f.has_ended());
        if let Some(Ended::Lost(loss)) = ended {
            self.lost(&loss).await;
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
            r.end_history();
            // There is no history here that could have a gap; the next backup compares.
            r.gap = None;
            r.state = Saved::Standby;
            Ok(())
        });
        update.await?;
        self.follow(Work::Discard);
        transition.commit(State::Standby);
        Ok(())
    }

    /// Target -> Stopped, Standby -> SyncReady; with force also a backup -> SyncReady. Answers when
    /// that is so. A forced stop may overtake a graceful one. A gap does not heal by itself any
    /// more, until a person starts something.
    ///
    /// # Errors
    /// Wrong state; another stop that is as urgent runs.
    pub async fn stop(self: &Arc<Self>, force: bool) -> Result<(), RoleError> {
        let flag = if force { StopFlag::ForceStopping } else { StopFlag::Stopping };
        let guard = self.cell.begin_stop(flag).map_err(|_| {
            RoleError::busy(&self.name, format!("volume {} is being stopped", self.name))
        })?;
        let heals = self.heals_itself() && self.book.read(|r| r.gap.is_some());
        if heals {
            self.hold_healing(force).await?;
        }
        if self.end_backup(force).await? || heals {
            // What is stopped is the healing.
            self.hold(true).await?;
            self.wake.notify_one();
            if matches!(self.cell.state(), State::SyncReady | State::Stopped) {
                return Ok(());
            }
        }
        let (via, to, saved) = match self.cell.state() {
            State::Standby => (State::StopStandby, State::SyncReady, Saved::SyncReady),
            _ => (State::StopTarget, State::Stopped, Saved::Stopped),
        };
        let from = [State::Target, State::Standby];
        match guard.begin(&from, via) {
            Ok(transition) => {
                self.unfollow(force).await;
                let update = self.book.update(|record| {
                    (record.state, record.held) = (saved, true);
                    Ok(())
                });
                if let Err(error) = update.await {
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

    /// No new attempt to heal begins. One that has begun is given a moment: most are refused at
    /// once, and somebody who stops the volume in between cannot know of them.
    async fn hold_healing(&self, force: bool) -> Result<(), RoleError> {
        self.hold(true).await?;
        let attempt = self.cell.wait_until(|v| !v.changing);
        if !force && tokio::time::timeout(ATTEMPT_PATIENCE, attempt).await.is_err() {
            self.hold(false).await?;
            return Err(self.backup_runs());
        }
        Ok(())
    }

    /// Ends the backup that runs, when forced to; whether there was one.
    async fn end_backup(&self, force: bool) -> Result<bool, RoleError> {
        let Some(backup) = self.backup.lock().clone() else { return Ok(false) };
        if !force {
            return Err(self.backup_runs());
        }
        backup.token().cancel();
        self.cell.wait_until(|v| !v.changing).await;
        Ok(true)
    }

    fn backup_runs(&self) -> RoleError {
        let name = &self.name;
        let allowed = ["Target".to_owned(), "Standby".to_owned()];
        RoleError::wrong_state(name, "stop", self.cell.state(), &allowed).with_next_step(format!(
            "cancel the backup, or walbc stop S {name} --mode force: it can be repeated"
        ))
    }

    /// Stopped -> SyncReady: the log is emptied and a new history begins with `gid`.
    ///
    /// # Errors
    /// Wrong state, an unreachable device.
    pub async fn reset(&self, gid: Gid) -> Result<(), RoleError> {
        let transition = self.begin(&[State::Stopped], State::Reset, "reset")?;
        let uuid = self.device.reset_log().await?.status.log_uuid;
        let why = "the log was reset by command, what was not shipped is lost";
        let loss = Loss::new(Cause::LogReset, why);
        let update = self.book.update(|r| {
            r.gap.get_or_insert(Gap::now(&loss));
            r.begin_history(uuid, gid, None);
            (r.state, r.held) = (Saved::SyncReady, true);
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
            record.forget_backup();
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
    pub(crate) fn require(&self, allowed: &[State], attempt: &str) -> Result<(), RoleError> {
        let view = self.cell.view();
        if view.changing || view.stop != StopFlag::NotStopping || !allowed.contains(&view.state) {
            let allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
            return Err(RoleError::wrong_state(&self.name, attempt, view.state, &allowed));
        }
        Ok(())
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
        let state = self.cell.state();
        let follows = matches!(state, State::Target | State::Standby) || state.is_backup();
        follows || self.healing.load(Ordering::Relaxed)
    }
}
