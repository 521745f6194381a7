//! A volume as the message that clients see.
//!
//! Invariant: a gap is shown whatever else is wrong (I11).

use std::sync::atomic::Ordering;
use std::time::Duration;

use proto::convert::uuid_bytes;
use proto::v1::{GapCause, StorageVolume};
use server_kit::error::{Reason, RoleError};
use server_kit::volume_name::VolumeName;
use tokio::time::Instant;

use crate::backup::{self, hash};
use crate::book::{Gap, Record};
use crate::device::Info;
use crate::gap::{gap_text, heal_step};
use crate::registry::{Entry, damaged};
use crate::state::State;
use crate::volume::Volume;

/// How long a listing waits for a device.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(3);

/// The volume as a message. A device that does not answer is an error in it.
pub async fn describe(name: VolumeName, entry: Entry) -> StorageVolume {
    let volume = match entry {
        Entry::Volume(volume) => volume,
        Entry::Damaged(why) => {
            return StorageVolume {
                error: damaged(&name, &why).full_message(),
                error_reason: Reason::Damaged.into(),
                state: State::Damaged.to_string(),
                volume: name.to_string(),
                ..StorageVolume::default()
            };
        }
    };
    let info = match tokio::time::timeout(DEVICE_TIMEOUT, volume.device_info()).await {
        Ok(info) => info,
        Err(_) => Err(RoleError::unreachable(volume.device.address(), "no answer in time")),
    };
    let record = volume.book.read(Clone::clone);
    let mut message = StorageVolume {
        volume: name.to_string(),
        state: volume.cell.state().to_string(),
        device: record.device.to_string(),
        ..StorageVolume::default()
    };
    add_progress(&mut message, &volume);
    match &info {
        Ok(info) => {
            add_device(&mut message, info);
            let is_ready = volume.cell.state() == State::SyncReady;
            message.backup_resumable = is_ready && backup::is_resumable(&volume, info);
        }
        Err(error) => {
            message.error = error.full_message();
            message.error_reason = error.reason().into();
            // Without its device nothing is offered to a proxy.
            message.refusals.clear();
        }
    }
    add_record(&mut message, &record);
    if let Some(gap) = &record.gap {
        add_gap(&mut message, gap);
        message.suspect_bytes = suspect_bytes(&volume).await;
    }
    message
}

fn add_progress(message: &mut StorageVolume, volume: &Volume) {
    let view = volume.progress.view();
    message.error = view.error.unwrap_or_default();
    message.error_reason = view.reason.unwrap_or_default().into();
    message.refusals = view.refusals;
    message.last_sent_s = view.last_sent_s;
    message.last_proxy = view.last_proxy;
    message.auto_resync = volume.heals_itself();
    message.bringing = volume.bringing.load(Ordering::SeqCst);
    let backup = volume.backup.lock();
    message.operation = backup.as_ref().map(|backup| backup.id()).unwrap_or_default();
    if let Some(known) = volume.archive.known() {
        (message.archive_gid, message.archive_asked_s) = (known.gid.0, known.asked_s);
    }
    let left = view.retry_at.map(|at| at.saturating_duration_since(Instant::now()).as_millis());
    message.retry_in_ms = left.and_then(|ms| u64::try_from(ms).ok()).unwrap_or_default();
}

fn add_device(message: &mut StorageVolume, info: &Info) {
    let positions = &info.status.positions;
    message.size_lb = info.status.size.0;
    message.overflow = info.status.overflow;
    message.log_usage_pb = positions.latest.distance_from(positions.oldest).0;
    message.log_capacity_pb = info.ring_size.0;
    message.physical_block_bytes = info.block_size.bytes();
    message.permanent_lsid = positions.permanent.0;
    message.latest_lsid = positions.latest.0;
    message.log_uuid = uuid_bytes(info.status.log_uuid);
}

/// The record has the last word: a gap must be seen, whatever else is wrong (I11).
fn add_record(message: &mut StorageVolume, record: &Record) {
    if let Some(history) = &record.history {
        let marks = &history.marks;
        message.log_uuid = uuid_bytes(history.log_uuid);
        message.done_lsid = marks.done.lsid.0;
        message.done_gid = marks.done.gid.0;
        message.latest_gid = marks.newest().gid.0;
        message.queued_snapshots = marks.queue().len() as u64;
    }
}

/// The gap comes first in what is said, then why it is not healed yet.
fn add_gap(message: &mut StorageVolume, gap: &Gap) {
    message.gap_since_s = gap.since_s;
    message.set_gap_cause(GapCause::from(gap.cause));
    message.error_reason = Reason::Overflow.into();
    let (name, text) = (&message.volume, gap_text(&message.volume, &gap.why));
    let last = match message.error.as_str() {
        "" => String::new(),
        // That the logs were lost is said already.
        said if said.starts_with(text.as_str()) => String::new(),
        other => format!("; last attempt: {other}"),
    };
    message.error = match (message.operation.is_empty(), message.auto_resync) {
        (false, _) => format!("{text}; a backup heals it now"),
        (true, true) => format!("{text}; a hash backup heals it, starting by itself{last}"),
        (true, false) => format!("{text}; heal it: {}{last}", heal_step(name)),
    };
}

/// What a hash backup would compare, as far as the archive and the device are known; 0: everything.
async fn suspect_bytes(volume: &Volume) -> u64 {
    let Some(known) = volume.archive.known() else { return 0 };
    let asked = hash::suspects(volume, known.log_uuid, known.gid);
    match tokio::time::timeout(DEVICE_TIMEOUT, asked).await {
        Ok(Some(ranges)) => ranges.iter().map(|r| r.end - r.start).sum(),
        _ => 0,
    }
}
