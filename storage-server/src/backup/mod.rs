//! Backups of a volume: what full and hash backups have in common.
//!
//! A backup is agreed with the archive, which checks everything that could fail, before the log is
//! reset; then the log is shipped while the device is read; a snapshot at the end makes the
//! archive's image whole. On disk the state is SyncReady until the archive has acknowledged, so a
//! crash falls back to that; an acknowledgement that was lost is asked for.

pub mod full;
pub mod hash;

use std::sync::Arc;

use block_io::device::BlockDevice;
use proto::convert::uuid_bytes;
use proto::v1::{ArchiveVolume, Operation, VolumeRef};
use server_kit::error::{Reason, RoleError};
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::state_machine::Transition;
use tokio::sync::Mutex;
use tonic::Status;
use wdiff_format::gid::Gid;
use wlog_format::units::LogUuid;

use crate::book::{Backup, History, Kind};
use crate::device::Info;
use crate::follower::{self, Ended};
use crate::loss;
use crate::marks::Mark;
use crate::peers::Primary;
use crate::resync;
use crate::state::{Saved, State};
use crate::volume::Volume;

impl Kind {
    /// The verb of the command line.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Full => "full-backup",
            Self::Hash => "hash-backup",
        }
    }

    fn state(self) -> State {
        match self {
            Self::Full => State::FullSync,
            Self::Hash => State::HashSync,
        }
    }
}

/// An interrupted backup whose log is still there, without loss, with its history.
fn interrupted(volume: &Volume, info: &Info, kind: Kind) -> Option<(History, Backup)> {
    let history = volume.book.read(|r| r.history.clone())?;
    let backup = history.backup.filter(|backup| backup.kind == kind)?;
    let whole = loss::lost(&info.status, &history).is_none();
    (whole && backup.size_lb == info.status.size.0).then_some((history, backup))
}

/// Whether an interrupted full backup can go on.
#[must_use]
pub fn is_resumable(volume: &Volume, info: &Info) -> bool {
    interrupted(volume, info, Kind::Full).is_some()
}

/// A backup that runs. Clones share it.
#[derive(Clone)]
struct Job {
    volume: Arc<Volume>,
    kind: Kind,
    primary: Arc<Primary>,
    handle: OperationHandle,
    /// Held by what must not be broken off in the middle.
    whole: Arc<Mutex<()>>,
}

impl Job {
    /// Starts a backup as an operation. `sync` does everything until the archive has the whole
    /// image, and answers the gid that it is whole at.
    fn start<Work, Synced>(
        volume: &Arc<Volume>,
        kind: Kind,
        from: &[State],
        sync: Work,
    ) -> Result<Operation, RoleError>
    where
        Work: FnOnce(Self) -> Synced,
        Synced: Future<Output = Result<Gid, RoleError>> + Send + 'static,
    {
        let transition = volume.begin(from, kind.state(), "back up")?;
        let volume = Arc::clone(volume);
        let operations = volume.shared.operations.clone();
        let name = volume.name.clone();
        Ok(operations.start(kind.verb(), name, |handle| {
            *volume.backup.lock() = Some(handle.clone());
            let primary = Arc::clone(&volume.shared.peers.now().primary);
            let job = Self { volume, kind, primary, handle, whole: Arc::default() };
            job.clone().run(transition, sync(job))
        }))
    }

    async fn run(
        self,
        transition: Transition<State>,
        sync: impl Future<Output = Result<Gid, RoleError>>,
    ) -> Result<Outcome, RoleError> {
        let shared = &self.volume.shared;
        let shutdown = shared.shutdown.requested();
        let synced = tokio::select! {
            synced = sync => synced,
            () = self.handle.cancelled() => Err(self.given_up("it was cancelled")),
            () = shared.peers.demoted(&self.primary) => {
                Err(self.given_up("another archive is the primary one now"))
            }
            () = shutdown.cancelled() => Err(self.given_up("the server stops")),
        };
        let _settled = self.whole.lock().await;
        let ended = match synced {
            Ok(gid) => self.finish(gid).await,
            Err(error) => Err(self.with_next_step(error)),
        };
        if let Err(error) = &ended {
            self.volume.unfollow(true).await;
            self.volume.progress.failed(error, None);
            if self.handle.is_cancelled() && !shutdown.is_cancelled() {
                self.hold().await;
            }
        }
        self.volume.backup.lock().take_if(|running| running.id() == self.handle.id());
        match &ended {
            Ok(_) => {
                self.volume.commit_target(transition).await;
                self.volume.wake.notify_one();
            }
            // The log may have been reset, or not yet.
            Err(_) => transition.commit(self.volume.book.read(|r| r.state).into()),
        }
        if ended.is_err() {
            resync::wake(&self.volume);
        }
        ended
    }

    /// A person has cancelled it: it does not start again by itself.
    async fn hold(&self) {
        if let Err(error) = self.volume.hold(true).await {
            let error = error.full_message();
            tracing::error!(volume = %self.volume.name, error, "cannot save the cancellation");
        }
    }

    fn given_up(&self, why: &str) -> RoleError {
        let (name, verb) = (&self.volume.name, self.kind.verb());
        RoleError::cancelled(format!("the {verb} of volume {name} was given up: {why}"))
            .with_volume(name)
    }

    fn with_next_step(&self, error: RoleError) -> RoleError {
        if !error.detail().next_step.is_empty() {
            return error;
        }
        let (name, verb) = (&self.volume.name, self.kind.verb());
        error.with_volume(name).with_next_step(format!("repeat it: walbc {verb} S {name}"))
    }

    fn refused(&self, status: &Status) -> RoleError {
        RoleError::from_status(self.primary.name(), status)
    }

    /// The data device, which must hold the whole volume.
    fn open_data(&self, info: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        let data = self.volume.device.open_data(info)?;
        if data.size_bytes() < info.status.size.bytes() {
            let path = &info.data_path;
            return Err(RoleError::wrong_size(format!("{path} is smaller than the volume")));
        }
        Ok(data)
    }

    /// Empties the log and begins a new history with `first`. Whoever cancels waits for the end of
    /// it, so that device and record agree.
    async fn reset_log(&self, first: Gid, backup: Backup) -> Result<Info, RoleError> {
        let (whole, job) = (Arc::clone(&self.whole).lock_owned().await, self.clone());
        let reset = tokio::spawn(async move {
            let _whole = whole;
            let info = job.volume.device.reset_log().await?;
            let update = job.volume.book.update(|record| {
                record.begin_history(info.status.log_uuid, first, Some(backup));
                record.state = Saved::SyncReady;
                // A full backup begins where the archive has nothing: no hash backup could heal
                // anything now.
                record.held |= job.kind == Kind::Full;
                Ok(())
            });
            update.await?;
            Ok(info)
        });
        let broke = |e| RoleError::new(Reason::Io, "the reset broke off").with_source(e);
        reset.await.map_err(broke)?
    }

    /// Ships the log while `streamed` runs. When its answer was lost, the archive is asked whether
    /// it has the image of this log all the same.
    async fn while_shipping(
        &self,
        log: LogUuid,
        streamed: impl Future<Output = Result<Gid, RoleError>>,
    ) -> Result<Gid, RoleError> {
        let volume = &self.volume;
        volume.follow(follower::Work::Ship);
        tokio::select! {
            streamed = streamed => match streamed {
                Ok(gid) => Ok(gid),
                Err(error) => self.acknowledged(log).await.ok().flatten().ok_or(error),
            },
            why = self.log_lost() => {
                let (name, verb) = (&volume.name, self.kind.verb());
                let message = format!("the {verb} of volume {name} failed: {why}");
                Err(RoleError::overflow(name, message)
                    .with_next_step("use a larger log device, or the overflow policy stall"))
            }
        }
    }

    /// Returns when the follower has lost logs, with what happened.
    async fn log_lost(&self) -> String {
        match self.volume.follower() {
            Some(follower) => match follower.ended().await {
                Ended::Lost(loss) => loss.why,
                Ended::Stopped => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// How the volume stands at the archive.
    async fn at_archive(&self) -> Result<ArchiveVolume, RoleError> {
        let request = VolumeRef { volume: self.volume.name.to_string() };
        let answer = self.primary.client().get(request).await;
        Ok(answer.map_err(|s| self.refused(&s))?.into_inner())
    }

    /// Asks the archive whether it has the whole image of this log.
    async fn acknowledged(&self, uuid: LogUuid) -> Result<Option<Gid>, RoleError> {
        let history = self.volume.book.read(|r| r.history.clone());
        let Some(end_gid) = history.and_then(|h| h.backup).and_then(|b| b.end_gid) else {
            return Ok(None);
        };
        let archive = self.at_archive().await?;
        let is_base = !matches!(archive.state.as_str(), "Clear" | "SyncReady" | "FullSync");
        let is_ours = archive.log_uuid == uuid_bytes(uuid);
        Ok((is_base && is_ours).then_some(Gid(end_gid)))
    }

    /// The snapshot that makes the image whole, remembered as such before the archive hears of it.
    async fn end_snapshot(&self) -> Result<Mark, RoleError> {
        let mark = self.volume.snapshot_now().await?;
        let update = self.volume.book.update(|record| {
            if let Some(backup) = record.history.as_mut().and_then(|h| h.backup.as_mut()) {
                backup.end_gid = Some(mark.gid.0);
            }
            Ok(())
        });
        update.await?;
        Ok(mark)
    }

    /// The archive has the image: the volume is a target, and whatever gap there was is healed.
    async fn finish(&self, gid: Gid) -> Result<Outcome, RoleError> {
        let update = self.volume.book.update(|record| {
            let missing = || RoleError::new(Reason::Io, "the history is gone");
            record.history.as_mut().ok_or_else(missing)?.backup = None;
            record.gap = None;
            record.leads = self.kind == Kind::Hash;
            (record.state, record.held) = (Saved::Target, false);
            Ok(())
        });
        update.await?;
        Ok(Outcome { gid: Some(gid.0), path: None })
    }
}
