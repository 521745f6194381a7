//! The hash backup of a volume (`semantics.md` §3.9): the archive agrees and says which snapshot it
//! has; the log is emptied; the device is compared with that snapshot, and what differs is sent,
//! while the log is shipped; a snapshot at the end makes it whole.
//!
//! It heals a gap, and needs to read only what was written since the archive's snapshot, when the
//! device knows that. Failing leaves the archive as it was, and this side SyncReady with an empty
//! log and a gap.
//!
//! Invariants: no gid that was told is given again, also where the archive never got it (I6). What
//! is not compared is known to be equal. The device is asked after the log was
//! reset, so whatever is written later is in the new log; who does not know has all compared.

use std::ops::Range;
use std::sync::Arc;

use proto::convert;
use proto::v1::hash_sync_end::Result as End;
use proto::v1::{
    ByteRange, HashSyncStart, Operation, PrepareHashSyncReply, PrepareHashSyncRequest, Snapshot,
};
use server_kit::clock::unix_seconds;
use server_kit::error::RoleError;
use server_kit::hash_sync::{self, Sending};
use server_kit::scan;
use wdiff_format::compression::{Compression, CompressionKind};
use wdiff_format::gid::Gid;
use wlog_format::units::LogUuid;

use super::{Job, interrupted};
use crate::book::{Backup, Gap, Kind};
use crate::device::{Info, Regions};
use crate::follower::Work;
use crate::loss::{Cause, Loss};
use crate::state::State;
use crate::volume::Volume;

/// How a hash backup is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Read no faster; 0: as fast as it goes.
    pub scan_bytes_per_s: u64,
    /// Compare everything, whatever the device says was written.
    pub everything: bool,
}

/// Starts a hash backup.
///
/// # Errors
/// Wrong state. Everything else fails the operation.
pub fn start(volume: &Arc<Volume>, options: Options) -> Result<Operation, RoleError> {
    let from = [State::SyncReady, State::Stopped];
    Job::start(volume, Kind::Hash, &from, move |job| async move {
        HashBackup { job, options }.sync().await
    })
}

/// Which parts of the volume were written since the snapshot `gid` of a log; `None`: unknown.
pub(crate) async fn suspects(volume: &Volume, log: LogUuid, gid: Gid) -> Option<Vec<Range<u64>>> {
    let since = volume.book.read(|r| r.ledger.find(log, gid))?;
    match volume.device.regions(log, since).await {
        Ok(Regions::Known(ranges)) => Some(ranges),
        Ok(Regions::Unknown(why)) => {
            tracing::info!(volume = %volume.name, why, "the device does not know what was written");
            None
        }
        Err(error) => {
            let error = error.full_message();
            tracing::info!(volume = %volume.name, error, "cannot ask what was written");
            None
        }
    }
}

struct HashBackup {
    job: Job,
    options: Options,
}

/// What was agreed with the archive and the device.
struct Agreed {
    info: Info,
    session: String,
    /// Where the new history begins.
    first: Gid,
    /// What is compared; `None`: everything.
    ranges: Option<Vec<Range<u64>>>,
}

impl HashBackup {
    /// Everything until the archive has the image; the gid that it is whole at.
    async fn sync(&self) -> Result<Gid, RoleError> {
        let volume = &self.job.volume;
        let info = volume.device_info().await?;
        if let Some(gid) = self.ended_before(&info).await? {
            return Ok(gid);
        }
        self.job.open_data(&info)?;
        // Before the archive holds the volume for us: it does not wait for ever.
        let _memory = volume.shared.scans.take(hash_sync::MEMORY_BYTES).await;
        let agreed = self.agree(&info).await?;
        let log = agreed.info.status.log_uuid;
        self.job.while_shipping(log, self.compare(&agreed)).await
    }

    /// Whether a former attempt has succeeded and only the answer was lost.
    async fn ended_before(&self, info: &Info) -> Result<Option<Gid>, RoleError> {
        let Some((history, _)) = interrupted(&self.job.volume, info, Kind::Hash) else {
            return Ok(None);
        };
        let ended = self.job.acknowledged(history.log_uuid).await?;
        if ended.is_some() {
            self.job.volume.follow(Work::Ship);
        }
        Ok(ended)
    }

    /// The archive agrees, then the log is emptied. That it will be is durable before.
    async fn agree(&self, info: &Info) -> Result<Agreed, RoleError> {
        let volume = &self.job.volume;
        let (size_lb, started_s) = (info.status.size.0, unix_seconds());
        let request =
            PrepareHashSyncRequest { volume: volume.name.to_string(), size_lb, started_s };
        let prepared = self.job.primary.client().prepare_hash_sync(request).await;
        let prepared = prepared.map_err(|s| self.job.refused(&s))?.into_inner();
        let PrepareHashSyncReply { session, latest, log_uuid } = prepared;
        let nonsense = || RoleError::wrong_peer("the archive does not say which snapshot it has");
        let latest = latest.ok_or_else(nonsense)?;
        let first = volume.book.read(|r| r.following_gid(latest.gid_end)).ok_or_else(nonsense)?;
        let log = convert::uuid(&log_uuid).map_err(|_| nonsense())?;
        self.announce_reset().await?;
        let backup = Backup { kind: Kind::Hash, size_lb, started_s, end_gid: None };
        let info = self.job.reset_log(first, backup).await?;
        let ranges = match self.options.everything {
            true => None,
            false => suspects(volume, log, Gid(latest.gid_begin)).await,
        };
        Ok(Agreed { info, session, first, ranges })
    }

    /// From the reset on the history has a gap, until the backup has ended.
    async fn announce_reset(&self) -> Result<(), RoleError> {
        let why = "the log was reset for a hash backup, which has not ended";
        let loss = Loss::new(Cause::LogReset, why);
        let update = self.job.volume.book.update(|record| {
            record.gap.get_or_insert(Gap::now(&loss));
            Ok(())
        });
        update.await
    }

    /// Compares the device with the archive's snapshot and sends what differs, then the snapshot
    /// that makes it whole.
    async fn compare(&self, agreed: &Agreed) -> Result<Gid, RoleError> {
        let volume = &self.job.volume;
        let info = &agreed.info;
        let data = self.job.open_data(info)?;
        let range = |r: &Range<u64>| ByteRange { begin: r.start, end: r.end };
        let start = HashSyncStart {
            volume: volume.name.to_string(),
            session: agreed.session.clone(),
            log_uuid: convert::uuid_bytes(info.status.log_uuid),
            size_lb: info.status.size.0,
            scan_bytes_per_s: self.options.scan_bytes_per_s,
            only_ranges: agreed.ranges.is_some(),
            ranges: agreed.ranges.iter().flatten().map(range).collect(),
            ..HashSyncStart::default()
        };
        let spans = hash_sync::spans(&start)?;
        let sending = Sending {
            peer: &self.job.primary.name(),
            start,
            cells: scan::cells(data, spans, self.options.scan_bytes_per_s),
            compression: Compression::with_level(CompressionKind::Zstd, 1)
                .unwrap_or(Compression::SNAPPY),
            progress: &self.job.handle,
        };
        let gid = std::sync::OnceLock::new();
        let end = async {
            let mark = self.job.end_snapshot().await?;
            let _ = gid.set(mark.gid);
            Ok(End::Backup(Snapshot { gid_begin: agreed.first.0, gid_end: mark.gid.0 }))
        };
        let sent = hash_sync::send(self.job.primary.client(), sending, end).await?;
        let bytes = sent.differing_bytes;
        tracing::info!(volume = %volume.name, bytes, "what differed is at the archive");
        let missing = || RoleError::wrong_peer("the archive acknowledged half a hash backup");
        gid.get().copied().ok_or_else(missing)
    }
}
