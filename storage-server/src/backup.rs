//! The full backup of a volume (`semantics.md` §3.8): the archive agrees, the log is emptied, the
//! whole device is streamed to the archive while the log is shipped to the proxies, and a snapshot
//! at the end makes the image whole.
//!
//! Beyond the original: nothing is reset before the archive has checked state, size and space; an
//! answer that was lost is asked for; an interrupted backup can go on where the archive has its
//! last durable block. That needs every log since the interrupted one began, so the device's log
//! has to be the same and whole, and who asks has to know that what was shipped already is still
//! at the proxies. On disk the state is SyncReady until the archive has acknowledged, so a crash
//! falls back to that.

use std::sync::Arc;

use futures::TryStreamExt;
use proto::convert::uuid_bytes;
use proto::v1::full_sync_request::Step;
use proto::v1::{
    FullSyncEnd, FullSyncRequest, FullSyncStart, Operation, PrepareFullSyncReply,
    PrepareFullSyncRequest, Snapshot, VolumeRef,
};
use server_kit::clock::unix_seconds;
use server_kit::error::{Reason, RoleError};
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::scan;
use server_kit::state_machine::Transition;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use wdiff_format::gid::Gid;
use wlog_format::units::{LogUuid, Lsid};

use crate::book::{Backup, History};
use crate::device::Info;
use crate::follower::{Ended, Work};
use crate::marks::Mark;
use crate::peers::Primary;
use crate::ship;
use crate::state::{Saved, State};
use crate::volume::Volume;

/// Bulk size when none is asked for: the largest that one message holds.
const DEFAULT_BULK_BYTES: u64 = 1 << 20;

/// Sizes that a bulk may have.
const BULK_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 20;

/// Messages between the scan and the connection.
const QUEUE: usize = 2;

/// Memory of one scan: what is being read, compressed and sent.
const SCAN_BYTES: u64 = 2 * scan::DEPTH as u64 * (1 << 20);

/// Starts a full backup. `bulk_bytes` 0 means the default; `resume`: what an interrupted one has
/// shipped is still at the proxies, so that it can go on.
///
/// # Errors
/// Wrong state; a bulk size that makes no sense. Everything else fails the operation.
pub fn start(volume: &Arc<Volume>, bulk_bytes: u64, resume: bool) -> Result<Operation, RoleError> {
    let bulk_bytes = if bulk_bytes == 0 { DEFAULT_BULK_BYTES } else { bulk_bytes };
    if !BULK_BYTES.contains(&bulk_bytes) || !bulk_bytes.is_multiple_of(4096) {
        let (min, max) = (BULK_BYTES.start(), BULK_BYTES.end());
        return Err(RoleError::bad_request(format!(
            "a bulk of {bulk_bytes} bytes: use a multiple of 4096 from {min} to {max}"
        )));
    }
    let transition = volume.begin(&[State::SyncReady], State::FullSync, "back up")?;
    let volume = Arc::clone(volume);
    let operations = volume.shared.operations.clone();
    let name = volume.name.clone();
    Ok(operations.start("full-backup", name, |handle| {
        *volume.backup.lock() = Some(handle.token());
        let primary = Arc::clone(&volume.shared.peers.now().primary);
        FullBackup { volume, primary, handle, bulk_bytes, resume }.run(transition)
    }))
}

/// An interrupted backup whose log is still there, without loss, with its history.
#[must_use]
pub fn resumable(volume: &Volume, info: &Info) -> Option<(History, Backup)> {
    let history = volume.book.read(|r| r.history.clone())?;
    let backup = history.backup?;
    let whole = ship::lost(&info.status, &history).is_none();
    (whole && backup.size_lb == info.status.size.0).then_some((history, backup))
}

struct FullBackup {
    volume: Arc<Volume>,
    primary: Arc<Primary>,
    handle: OperationHandle,
    bulk_bytes: u64,
    resume: bool,
}

/// What was agreed with the archive and the device.
struct Agreed {
    info: Info,
    session: String,
    start_bytes: u64,
}

impl FullBackup {
    async fn run(self, transition: Transition<State>) -> Result<Outcome, RoleError> {
        let shared = &self.volume.shared;
        let shutdown = shared.shutdown.requested();
        let synced = tokio::select! {
            synced = self.sync() => synced,
            () = self.handle.cancelled() => Err(self.given_up("it was cancelled")),
            () = shared.peers.demoted(&self.primary) => {
                Err(self.given_up("another archive is the primary one now"))
            }
            () = shutdown.cancelled() => Err(self.given_up("the server stops")),
        };
        let ended = match synced {
            Ok(gid) => self.finish(transition, gid).await,
            Err(error) => {
                self.volume.unfollow(true).await;
                self.volume.progress.failed(&error, None);
                drop(transition);
                Err(error)
            }
        };
        *self.volume.backup.lock() = None;
        ended
    }

    fn given_up(&self, why: &str) -> RoleError {
        let name = &self.volume.name;
        RoleError::cancelled(format!("the full backup of volume {name} was given up: {why}"))
            .with_volume(name)
            .with_next_step(format!("repeat it: walbc full-backup S {name}"))
    }

    /// Everything until the archive has the whole image; the gid that it is whole at.
    async fn sync(&self) -> Result<Gid, RoleError> {
        let volume = &self.volume;
        let info = volume.device_info().await?;
        if let Some(gid) = self.ended_before(&info).await? {
            return Ok(gid);
        }
        if self.resumable(&info).is_none() {
            self.forget_interrupted().await?;
        }
        // Before the archive holds the volume for us: it does not wait for ever.
        let _memory = volume.shared.scans.take(SCAN_BYTES).await;
        let agreed = self.agree(info).await?;
        volume.follow(Work::Ship);
        let uuid = agreed.info.status.log_uuid;
        tokio::select! {
            streamed = self.stream(&agreed) => match streamed {
                Ok(mark) => Ok(mark.gid),
                // The answer may have been lost, not the image.
                Err(error) => self.acknowledged(uuid).await.ok().flatten().ok_or(error),
            },
            why = self.log_lost() => {
                let name = &volume.name;
                let message = format!("the full backup of volume {name} failed: {why}");
                Err(RoleError::overflow(name, message)
                    .with_next_step("use a larger log device, or the overflow policy stall"))
            }
        }
    }

    /// Returns when the follower has lost logs, with what happened.
    async fn log_lost(&self) -> String {
        match self.volume.follower() {
            Some(follower) => match follower.ended().await {
                Ended::Lost(why) => why,
                Ended::Stopped => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    /// The interrupted backup that this one goes on with.
    fn resumable(&self, info: &Info) -> Option<(LogUuid, Backup)> {
        let (history, backup) = resumable(&self.volume, info)?;
        let done = history.marks.done;
        let nothing_shipped = (done.lsid, done.gid) == (Lsid(0), Gid(0));
        (self.resume || nothing_shipped).then_some((history.log_uuid, backup))
    }

    /// An interrupted backup that this one does not go on with is never gone on with: who asked may
    /// have dropped what it has shipped.
    async fn forget_interrupted(&self) -> Result<(), RoleError> {
        let update = self.volume.book.update(|record| {
            if let Some(history) = &mut record.history {
                history.backup = None;
            }
            Ok(())
        });
        update.await
    }

    /// Whether a former attempt has succeeded and only the answer was lost.
    async fn ended_before(&self, info: &Info) -> Result<Option<Gid>, RoleError> {
        match self.resumable(info) {
            Some((uuid, Backup { end_gid: Some(_), .. })) => {
                let ended = self.acknowledged(uuid).await?;
                if ended.is_some() {
                    self.volume.follow(Work::Ship);
                }
                Ok(ended)
            }
            _ => Ok(None),
        }
    }

    /// Asks the archive whether it has the whole image of this log.
    async fn acknowledged(&self, uuid: LogUuid) -> Result<Option<Gid>, RoleError> {
        let history = self.volume.book.read(|r| r.history.clone());
        let Some(end_gid) = history.and_then(|h| h.backup).and_then(|b| b.end_gid) else {
            return Ok(None);
        };
        let request = VolumeRef { volume: self.volume.name.to_string() };
        let answer = self.primary.client().get(request).await;
        let archive = answer.map_err(|s| self.refused(&s))?.into_inner();
        let is_base = !matches!(archive.state.as_str(), "Clear" | "SyncReady" | "FullSync");
        let is_ours = archive.log_uuid == uuid_bytes(uuid);
        Ok((is_base && is_ours).then_some(Gid(end_gid)))
    }

    /// The archive agrees, then the log is emptied, unless an earlier attempt is resumed.
    async fn agree(&self, info: Info) -> Result<Agreed, RoleError> {
        let volume = &self.volume;
        let size = info.status.size;
        let resumable = self.resumable(&info);
        let started_s = resumable.map_or_else(unix_seconds, |(_, backup)| backup.started_s);
        let resume_uuid = resumable.map(|(uuid, _)| uuid_bytes(uuid)).unwrap_or_default();
        let PrepareFullSyncReply { session, start_bytes } = self
            .prepare(PrepareFullSyncRequest {
                volume: volume.name.to_string(),
                size_lb: size.0,
                started_s,
                resume_uuid,
            })
            .await?;
        if start_bytes > size.bytes() {
            return Err(RoleError::wrong_peer("the archive has more blocks than the volume"));
        }
        if resumable.is_some() && start_bytes > 0 {
            return Ok(Agreed { info, session, start_bytes });
        }
        let info = volume.device.reset_log().await?;
        let uuid = info.status.log_uuid;
        let backup = Backup { size_lb: size.0, started_s, end_gid: None };
        let update = volume.book.update(|record| {
            let history = History::after_reset(uuid, Gid(0), unix_seconds());
            record.history = Some(History { backup: Some(backup), ..history });
            Ok(())
        });
        update.await?;
        Ok(Agreed { info, session, start_bytes: 0 })
    }

    async fn prepare(
        &self,
        request: PrepareFullSyncRequest,
    ) -> Result<PrepareFullSyncReply, RoleError> {
        let answer = self.primary.client().prepare_full_sync(request).await;
        Ok(answer.map_err(|s| self.refused(&s))?.into_inner())
    }

    fn refused(&self, status: &Status) -> RoleError {
        RoleError::from_status(self.primary.name(), status)
    }

    /// Streams the device and the snapshot that makes it whole; returns with the archive's answer.
    async fn stream(&self, agreed: &Agreed) -> Result<Mark, RoleError> {
        let (messages, receiver) = mpsc::channel(QUEUE);
        let mut archive = self.primary.client();
        let call = archive.full_sync(ReceiverStream::new(receiver));
        let produce = self.produce(agreed, messages);
        tokio::pin!(call, produce);
        let early = || RoleError::wrong_peer("the archive acknowledged half an image");
        tokio::select! {
            produced = &mut produce => {
                // A queue that nobody reads any more: the answer says why.
                let mark = produced?;
                call.await.map_err(|s| self.refused(&s))?;
                mark.ok_or_else(early)
            }
            answer = &mut call => Err(answer.map_or_else(|s| self.refused(&s), |_| early())),
        }
    }

    /// Puts the whole device into the queue. `None` when nobody takes it out.
    async fn produce(
        &self,
        agreed: &Agreed,
        messages: mpsc::Sender<FullSyncRequest>,
    ) -> Result<Option<Mark>, RoleError> {
        let volume = &self.volume;
        let info = &agreed.info;
        let data = volume.device.open_data(info)?;
        let size = info.status.size.bytes();
        if data.size_bytes() < size {
            let path = &info.data_path;
            return Err(RoleError::wrong_size(format!("{path} is smaller than the volume")));
        }
        self.handle.set_total(size);
        self.handle.advance(agreed.start_bytes);
        let start = FullSyncStart {
            volume: volume.name.to_string(),
            session: agreed.session.clone(),
            log_uuid: uuid_bytes(info.status.log_uuid),
            archive_uuid: bytes::Bytes::new(),
        };
        if !put(&messages, Step::Start(start)).await {
            return Ok(None);
        }
        let bulks = scan::bulks(data, agreed.start_bytes, size, self.bulk_bytes);
        let mut packed = scan::packed(bulks);
        while let Some((len, bulk)) = packed.try_next().await? {
            if !put(&messages, Step::Bulk(bulk)).await {
                return Ok(None);
            }
            self.handle.advance(len);
        }
        let mark = self.end_snapshot().await?;
        let base = Some(Snapshot { gid_begin: 0, gid_end: mark.gid.0 });
        Ok(put(&messages, Step::End(FullSyncEnd { base, timestamp_s: 0 })).await.then_some(mark))
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
    async fn finish(&self, transition: Transition<State>, gid: Gid) -> Result<Outcome, RoleError> {
        let update = self.volume.book.update(|record| {
            let missing = || RoleError::new(Reason::Io, "the history is gone");
            record.history.as_mut().ok_or_else(missing)?.backup = None;
            record.gap = None;
            record.state = Saved::Target;
            Ok(())
        });
        if let Err(error) = update.await {
            self.volume.unfollow(true).await;
            return Err(error);
        }
        self.volume.commit_target(transition).await;
        self.volume.wake.notify_one();
        Ok(Outcome { gid: Some(gid.0), path: None })
    }
}

async fn put(messages: &mpsc::Sender<FullSyncRequest>, step: Step) -> bool {
    messages.send(FullSyncRequest { step: Some(step) }).await.is_ok()
}
