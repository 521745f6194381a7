//! Replications on schedule: each volume to the archives that it shall go to, one after the other.
//!
//! Invariants: the pause counts from start to start; a replication that failed comes again after a
//! pause that grows, and goes on where the other archive is; where that was is kept, so that merges
//! do not cross it.

use super::{Ended, kept, retold};
use crate::archive::Archive;
use crate::replicate;
use crate::volume::Volume;
use proto::v1;
use proto::v1::replicate_request::Until;
use server_kit::blocking;
use server_kit::error::{Reason, RoleError};
use server_kit::operations::Outcome;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Something that is due.
struct Due {
    volume: Arc<Volume>,
    to: String,
    schedule: kept::Replication,
}

impl Due {
    /// Pause after an attempt that could not start, or failed once.
    fn pause(&self, archive: &Archive) -> Duration {
        archive.settings.upkeep_pause.min(Duration::from_secs(self.schedule.every_s))
    }
}

/// Starts what is due: what has waited longest first.
pub(super) fn look(archive: &Arc<Archive>) {
    let now_s = (archive.world.now)();
    let mut due = Vec::new();
    for volume in archive.volumes() {
        if volume.require_active("replicate").is_err() {
            continue;
        }
        for (to, schedule) in volume.upkeep.kept().replications {
            let last = &schedule.last;
            // After a restart too: when the last one began is kept.
            let elapsed = now_s >= last.started_s.saturating_add(schedule.every_s);
            if !schedule.paused && (elapsed || last.failures > 0) {
                due.push(Due { volume: volume.clone(), to, schedule });
            }
        }
    }
    due.sort_by_key(|d| d.schedule.last.started_s);
    for due in due {
        let pause = due.pause(archive);
        if !due.volume.upkeep.is_due(&due.to, pause) {
            continue;
        }
        let Ok(turn) = archive.turns.replications.clone().try_acquire_owned() else { return };
        if !due.volume.upkeep.take(&due.to, pause) {
            continue;
        }
        match start(archive, &due, turn) {
            Ok(operation) => due.volume.upkeep.began(&due.to, &operation),
            Err(error) => {
                due.volume.upkeep.rest(&due.to, pause, Ended::Waits(error.full_message()));
            }
        }
    }
}

fn start(
    archive: &Arc<Archive>,
    due: &Due,
    turn: tokio::sync::OwnedSemaphorePermit,
) -> Result<v1::Operation, RoleError> {
    let Due { volume, to, schedule } = due;
    let request = v1::ReplicateRequest {
        volume: volume.name.to_string(),
        to: Some(schedule.peer(to)),
        until: Some(Until::MaxBytes(0)),
        dont_merge: schedule.dont_merge,
        compression: schedule.compression.clone(),
        max_merge_bytes: schedule.max_merge_bytes,
        scan_bytes_per_s: schedule.scan_bytes_per_s,
        max_send_bytes: schedule.max_send_bytes,
        ..v1::ReplicateRequest::default()
    };
    let started = ((archive.world.now)(), Instant::now());
    let (ended, volume, to) = (archive.clone(), volume.clone(), to.clone());
    let every = Duration::from_secs(schedule.every_s);
    replicate::start(archive, request, move |result| async move {
        let _turn = turn;
        finish(&ended, &volume, &to, (started, every), &result).await;
        result
    })
}

async fn finish(
    archive: &Archive,
    volume: &Arc<Volume>,
    to: &str,
    ((started_s, started), every): ((u64, Instant), Duration),
    result: &Result<Outcome, RoleError>,
) {
    let times = (started_s, (archive.world.now)());
    let ended = match result {
        Ok(_) => Ended::Well,
        Err(e) if matches!(e.reason(), Reason::Cancelled | Reason::Stopping) => {
            Ended::Waits(e.full_message())
        }
        Err(_) => Ended::Failed,
    };
    let (kept, id) = (volume.clone(), to.to_owned());
    let gid = result.as_ref().ok().and_then(|outcome| outcome.gid);
    let failure = result.as_ref().err().map(retold);
    let store = move || {
        kept.upkeep.store(|kept| {
            let Some(schedule) = kept.replications.get_mut(&id) else { return };
            schedule.gid = gid.unwrap_or(schedule.gid);
            let done = format!("{id} has everything up to gid {}", schedule.gid);
            schedule.last.end(times, failure.as_ref().map_or(Ok(done.as_str()), Err));
        })
    };
    if let Err(error) = blocking::run(store).await {
        let error = error.full_message();
        tracing::warn!(volume = %volume.name, error, "cannot keep how the replication went");
    }
    let pause = match &ended {
        Ended::Failed | Ended::Full => archive.settings.upkeep_pause.min(every),
        Ended::Well | Ended::Waits(_) => every.saturating_sub(started.elapsed()),
    };
    volume.upkeep.rest(to, pause, ended);
}
