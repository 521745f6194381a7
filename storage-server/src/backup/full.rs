//! The full backup of a volume (`semantics.md` §3.8): the archive agrees, the log is emptied, the
//! whole device is streamed to the archive while the log is shipped to the proxies, and a snapshot
//! at the end makes the image whole.
//!
//! Beyond the original: nothing is reset before the archive has checked state, size and space; an
//! interrupted backup can go on where the archive has its last durable block. That needs every log
//! since the interrupted one began, so the device's log has to be the same and whole, and who asks
//! has to know that what was shipped already is still at the proxies.

use std::sync::Arc;

use futures::TryStreamExt;
use proto::convert::uuid_bytes;
use proto::v1::full_sync_request::Step;
use proto::v1::{
    FullSyncEnd, FullSyncRequest, FullSyncStart, Operation, PrepareFullSyncReply,
    PrepareFullSyncRequest, Snapshot,
};
use server_kit::clock::unix_seconds;
use server_kit::error::RoleError;
use server_kit::scan;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wdiff_format::gid::Gid;
use wlog_format::units::{LogUuid, Lsid};

use super::{Job, interrupted};
use crate::book::{Backup, Kind};
use crate::device::Info;
use crate::follower::Work;
use crate::marks::Mark;
use crate::state::State;
use crate::volume::Volume;

/// Bulk size when none is asked for: the largest that one message holds.
const DEFAULT_BULK_BYTES: u64 = 1 << 20;

/// Sizes that a bulk may have.
const BULK_BYTES: std::ops::RangeInclusive<u64> = 4096..=1 << 20;

/// Messages between the scan and the connection.
const QUEUE: usize = 2;

/// Memory of one scan: what is being read, compressed and sent.
const SCAN_BYTES: u64 = 2 * scan::DEPTH as u64 * (1 << 20);

/// How a full backup is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// How much is read at once; 0: the default.
    pub bulk_bytes: u64,
    /// What an interrupted one has shipped is still at the proxies, so that it can go on.
    pub resume: bool,
    /// Read no faster; 0: as fast as it goes.
    pub scan_bytes_per_s: u64,
}

/// Starts a full backup.
///
/// # Errors
/// Wrong state; a bulk size that makes no sense. Everything else fails the operation.
pub fn start(volume: &Arc<Volume>, mut options: Options) -> Result<Operation, RoleError> {
    if options.bulk_bytes == 0 {
        options.bulk_bytes = DEFAULT_BULK_BYTES;
    }
    let bulk_bytes = options.bulk_bytes;
    if !BULK_BYTES.contains(&bulk_bytes) || !bulk_bytes.is_multiple_of(4096) {
        let (min, max) = (BULK_BYTES.start(), BULK_BYTES.end());
        return Err(RoleError::bad_request(format!(
            "a bulk of {bulk_bytes} bytes: use a multiple of 4096 from {min} to {max}"
        )));
    }
    Job::start(volume, Kind::Full, &[State::SyncReady], move |job| async move {
        FullBackup { job, options }.sync().await
    })
}

struct FullBackup {
    job: Job,
    options: Options,
}

/// What was agreed with the archive and the device.
struct Agreed {
    info: Info,
    session: String,
    start_bytes: u64,
}

impl FullBackup {
    /// Everything until the archive has the whole image; the gid that it is whole at.
    async fn sync(&self) -> Result<Gid, RoleError> {
        let volume = &self.job.volume;
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
        let log = agreed.info.status.log_uuid;
        self.job.while_shipping(log, async { Ok(self.stream(&agreed).await?.gid) }).await
    }

    /// The interrupted backup that this one goes on with.
    fn resumable(&self, info: &Info) -> Option<(LogUuid, Backup)> {
        let (history, backup) = interrupted(&self.job.volume, info, Kind::Full)?;
        let done = history.marks.done;
        let nothing_shipped = (done.lsid, done.gid) == (Lsid(0), Gid(0));
        (self.options.resume || nothing_shipped).then_some((history.log_uuid, backup))
    }

    /// An interrupted backup that this one does not go on with is never gone on with: who asked may
    /// have dropped what it has shipped.
    async fn forget_interrupted(&self) -> Result<(), RoleError> {
        let update = self.job.volume.book.update(|record| {
            record.forget_backup();
            Ok(())
        });
        update.await
    }

    /// Whether a former attempt has succeeded and only the answer was lost.
    async fn ended_before(&self, info: &Info) -> Result<Option<Gid>, RoleError> {
        match self.resumable(info) {
            Some((uuid, Backup { end_gid: Some(_), .. })) => {
                let ended = self.job.acknowledged(uuid).await?;
                if ended.is_some() {
                    self.job.volume.follow(Work::Ship);
                }
                Ok(ended)
            }
            _ => Ok(None),
        }
    }

    /// The archive agrees, then the log is emptied, unless an earlier attempt is resumed.
    async fn agree(&self, info: Info) -> Result<Agreed, RoleError> {
        let volume = &self.job.volume;
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
        let backup = Backup { kind: Kind::Full, size_lb: size.0, started_s, end_gid: None };
        let info = self.job.reset_log(Gid(0), backup).await?;
        Ok(Agreed { info, session, start_bytes: 0 })
    }

    async fn prepare(
        &self,
        request: PrepareFullSyncRequest,
    ) -> Result<PrepareFullSyncReply, RoleError> {
        let answer = self.job.primary.client().prepare_full_sync(request).await;
        Ok(answer.map_err(|s| self.job.refused(&s))?.into_inner())
    }

    /// Streams the device and the snapshot that makes it whole; returns with the archive's answer.
    async fn stream(&self, agreed: &Agreed) -> Result<Mark, RoleError> {
        let (messages, receiver) = mpsc::channel(QUEUE);
        let mut archive = self.job.primary.client();
        let call = archive.full_sync(ReceiverStream::new(receiver));
        let produce = self.produce(agreed, messages);
        tokio::pin!(call, produce);
        let early = || RoleError::wrong_peer("the archive acknowledged half an image");
        tokio::select! {
            produced = &mut produce => {
                // A queue that nobody reads any more: the answer says why.
                let mark = produced?;
                call.await.map_err(|s| self.job.refused(&s))?;
                mark.ok_or_else(early)
            }
            answer = &mut call => Err(answer.map_or_else(|s| self.job.refused(&s), |_| early())),
        }
    }

    /// Puts the whole device into the queue. `None` when nobody takes it out.
    async fn produce(
        &self,
        agreed: &Agreed,
        messages: mpsc::Sender<FullSyncRequest>,
    ) -> Result<Option<Mark>, RoleError> {
        let volume = &self.job.volume;
        let info = &agreed.info;
        let data = self.job.open_data(info)?;
        let size = info.status.size.bytes();
        self.job.handle.set_total(size);
        self.job.handle.advance(agreed.start_bytes);
        let start = FullSyncStart {
            volume: volume.name.to_string(),
            session: agreed.session.clone(),
            log_uuid: uuid_bytes(info.status.log_uuid),
            archive_uuid: bytes::Bytes::new(),
        };
        if !put(&messages, Step::Start(start)).await {
            return Ok(None);
        }
        let bulks = scan::bulks(data, agreed.start_bytes, size, self.options.bulk_bytes);
        let bulks = scan::paced(bulks, self.options.scan_bytes_per_s);
        let mut packed = scan::packed(bulks, self.job.primary.way());
        while let Some((len, bulk)) = packed.try_next().await? {
            if !put(&messages, Step::Bulk(bulk)).await {
                return Ok(None);
            }
            self.job.handle.advance(len);
        }
        let mark = self.job.end_snapshot().await?;
        let base = Some(Snapshot { gid_begin: 0, gid_end: mark.gid.0 });
        Ok(put(&messages, Step::End(FullSyncEnd { base, timestamp_s: 0 })).await.then_some(mark))
    }
}

async fn put(messages: &mpsc::Sender<FullSyncRequest>, step: Step) -> bool {
    messages.send(FullSyncRequest { step: Some(step) }).await.is_ok()
}
