//! Heals gaps by itself: a hash backup, again and again with back-off, until one has ended, or a
//! person has stopped it.
//!
//! Before it begins, what was shipped before the gap may still be on its way to the archive, which
//! refuses it once the backup has ended: as long as that arrives, the backup waits for a while.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use proto::v1::{ArchiveVolume, Operation, OperationStatus, VolumeRef};
use server_kit::error::{Reason, RoleError};
use server_kit::retry::Backoff;
use tokio::time::Instant;
use wdiff_format::gid::Gid;

use crate::backup::hash;
use crate::book::Gap;
use crate::loss::Cause;
use crate::state::State;
use crate::volume::Volume;

/// How long a backup waits, at most, for what was shipped before the gap.
const DRAIN_LIMIT: Duration = Duration::from_secs(600);
/// How long it waits while nothing of that arrives.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// Starts to heal the volume, if it has a gap and nobody holds it back.
pub(crate) fn wake(volume: &Arc<Volume>) {
    if !is_wanted(volume) || volume.healing.swap(true, Ordering::SeqCst) {
        return;
    }
    let volume = Arc::clone(volume);
    tokio::spawn(async move {
        let shutdown = volume.shared.shutdown.requested();
        tokio::select! {
            () = heal(&volume) => {}
            () = shutdown.cancelled() => return,
        }
        volume.healing.store(false, Ordering::SeqCst);
        // It may have become wanted again before that could be seen.
        wake(&volume);
    });
}

/// Whether the volume stands there with a gap, and nobody holds it back.
fn is_wanted(volume: &Volume) -> bool {
    let state = volume.cell.view();
    !volume.shared.shutdown.requested().is_cancelled()
        && !state.changing
        && matches!(state.state, State::Stopped | State::SyncReady)
        && volume.book.read(|r| r.gap.is_some())
        && volume.heals_itself()
}

async fn heal(volume: &Arc<Volume>) {
    let config = &volume.shared.config;
    let mut backoff = Backoff::new(config.retry_min, config.retry_max);
    let now = Instant::now();
    let mut draining = Draining { since: now, moved: now, seen: None };
    while is_wanted(volume) {
        let Err(error) = attempt(volume, &mut draining).await else { continue };
        if !is_wanted(volume) {
            return;
        }
        let delay = backoff.next_delay();
        let name = &volume.name;
        tracing::warn!(volume = %name, error = error.full_message(), ?delay, "no resync yet");
        volume.progress.failed(&error, Some(delay));
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = volume.wake.notified() => backoff.reset(),
        }
    }
}

/// One hash backup to its end.
async fn attempt(volume: &Arc<Volume>, draining: &mut Draining) -> Result<(), RoleError> {
    // A look first: an attempt that is hopeless shall not be an operation that fails.
    let archive = at_archive(volume).await?;
    if !matches!(archive.state.as_str(), "Archived" | "WdiffRecv") {
        let allowed = ["Archived".to_owned()];
        return Err(RoleError::wrong_state(&volume.name, "compare", &archive.state, &allowed)
            .with_next_step("look at the archive: walbc status"));
    }
    draining.check(volume, &archive)?;
    // A person may have stopped it meanwhile.
    if !is_wanted(volume) {
        return Ok(());
    }
    let started = hash::start(volume, hash::Options::default())?;
    let operations = volume.shared.operations.clone();
    let mut changes = Box::pin(operations.watch(&started.id)?);
    let mut last = started;
    while let Some(operation) = changes.next().await {
        last = operation;
    }
    outcome(last)
}

pub(crate) async fn at_archive(volume: &Volume) -> Result<ArchiveVolume, RoleError> {
    let primary = Arc::clone(&volume.shared.peers.now().primary);
    let request = VolumeRef { volume: volume.name.to_string() };
    let answer = primary.client().get(request).await;
    Ok(answer.map_err(|s| RoleError::from_status(primary.name(), &s))?.into_inner())
}

/// The end of an operation.
pub(crate) fn outcome(operation: Operation) -> Result<(), RoleError> {
    if operation.status() == OperationStatus::Done {
        return Ok(());
    }
    let detail = operation.detail.unwrap_or_default();
    let reason = Reason::try_from(detail.reason).unwrap_or_default();
    Err(RoleError::new(reason, operation.error).with_next_step(detail.next_step))
}

/// What was shipped before the gap, on its way to the archive.
struct Draining {
    since: Instant,
    /// When something arrived last.
    moved: Instant,
    /// What the archive had at the last look.
    seen: Option<Gid>,
}

impl Draining {
    /// Refuses while something arrives.
    fn check(&mut self, volume: &Volume, archive: &ArchiveVolume) -> Result<(), RoleError> {
        let (gap, shipped) = volume.book.read(|r| {
            let done = r.history.as_ref().map(|h| (h.log_uuid, h.marks.done.gid));
            (r.gap.clone(), done)
        });
        let Some((uuid, shipped)) = shipped else { return Ok(()) };
        let lost = gap.is_some_and(|gap: Gap| gap.cause == Cause::ProxyDataLost);
        let is_ours = archive.log_uuid == proto::convert::uuid_bytes(uuid);
        if lost || !is_ours || self.since.elapsed() >= DRAIN_LIMIT {
            return Ok(());
        }
        let arrived = Gid(archive.latest.map_or(0, |latest| latest.gid_begin));
        if self.seen.replace(arrived) != Some(arrived) {
            self.moved = Instant::now();
        }
        if arrived >= shipped || self.moved.elapsed() >= DRAIN_PATIENCE {
            return Ok(());
        }
        let name = &volume.name;
        let message = format!(
            "volume {name} waits until what was shipped before the gap is at the archive, \
             it has gid {arrived} of {shipped}"
        );
        Err(RoleError::busy(name, message))
    }
}
