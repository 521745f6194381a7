//! Apply: the base image moves on to a later snapshot, and the diffs that it then has go
//! (`semantics.md` §5.9).
//!
//! The wdiffs are read back and checked as a whole before the image changes: damage leaves it, and
//! all older snapshots, as they were. Invariant I7, in this order: files open -> "applying" durable
//! -> blocks -> flush -> "done" durable -> files marked for deletion (I12). A crash in between is
//! found at start, and the same diffs are applied again.

use crate::archive::{Archive, turn};
use crate::backend::Image;
use crate::faults;
use crate::image;
use crate::jobs::{APPLY, HASH_SYNC, Job, KEEP, MERGE, READ, REPLICATE, RESYNC, check};
use crate::restore::restorable_at;
use crate::verify;
use crate::volume::Volume;
use parking_lot::Mutex;
use proto::v1::{ApplyRequest, apply_request::Point};
use server_kit::blocking::{self, WorkerFailed};
use server_kit::error::{Reason, RoleError};
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::pace::Pace;
use server_kit::retry::Backoff;
use server_kit::state_machine::StopFlag;
use std::sync::Arc;
use std::time::Duration;
use wdiff_format::gid::{BaseState, Diff, Gid, walk};

/// What must not run beside it (`semantics.md` §5.2).
const EXCLUDED: [&str; 7] = [APPLY, MERGE, KEEP, HASH_SYNC, REPLICATE, READ, RESYNC];
/// Pauses between the attempts to finish an interrupted apply.
const MEND_MIN: Duration = Duration::from_secs(1);
const MEND_MAX: Duration = Duration::from_secs(300);

/// How far to apply, and how fast.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) gid: Gid,
    /// 0: as fast as it goes.
    pub(crate) bytes_per_s: u64,
}

/// Starts to apply everything up to the snapshot that the request names.
pub(crate) fn start(
    archive: &Arc<Archive>,
    request: &ApplyRequest,
) -> Result<proto::v1::Operation, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active(APPLY)?;
    let gid = match request.point {
        Some(Point::Gid(gid)) => Gid(gid),
        Some(Point::AtS(time)) => restorable_at(&volume, time)?,
        None => {
            let why = "apply up to what: a gid or a time is needed";
            return Err(RoleError::bad_request(why).with_volume(&volume.name));
        }
    };
    let target = Target { gid, bytes_per_s: request.bytes_per_s };
    let job = begin(&volume, target)?;
    let archive = archive.clone();
    let name = volume.name.clone();
    Ok(archive.operations.clone().start(APPLY, name, |handle| async move {
        to_its_end(&archive, &volume, job, &handle, target).await
    }))
}

/// Takes the right to apply, if the base image can come to there.
pub(crate) fn begin(volume: &Volume, target: Target) -> Result<Job, RoleError> {
    volume.require_active(APPLY)?;
    let job = volume.jobs.begin(volume.name.as_str(), APPLY, &EXCLUDED)?;
    check_target(volume, target.gid)?;
    Ok(job)
}

/// Applies; what is left unfinished goes on in the background.
pub(crate) async fn to_its_end(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    job: Job,
    handle: &OperationHandle,
    target: Target,
) -> Result<Outcome, RoleError> {
    let done = run(archive, volume, &job, handle, target).await;
    if let Err(error) = &done {
        failed(volume, error);
    }
    drop(job);
    if done.as_ref().is_err_and(passes_by_itself) {
        mend(archive, volume);
    }
    done
}

/// The gid must be one that the base image can come to, exactly: what an apply drops does not come
/// back, so a slip of the finger must not apply everything. An unfinished apply may be finished by
/// any gid.
fn check_target(volume: &Volume, gid: Gid) -> Result<(), RoleError> {
    let list = next_round(volume, gid, 0)?;
    let base = volume.with(|c| c.base);
    let reached = walk(base.snapshot(), &list);
    if base.applying_to().is_some() || reached.is_ok_and(|end| end.begin() == gid) {
        return Ok(());
    }
    let message = format!("volume {}: no diff leads from {base} to gid {gid}", volume.name);
    let step = faults::see_restorable(volume.name.as_str());
    Err(RoleError::unknown_snapshot(&volume.name, message).with_next_step(step))
}

/// Finishes an interrupted apply in the background, for as long as it takes. Does nothing when
/// there is none, or when somebody else applies.
pub(crate) fn mend(archive: &Arc<Archive>, volume: &Arc<Volume>) {
    let usable = volume.require_active(APPLY).is_ok();
    let Some(to) = volume.with(|c| c.base.applying_to()) else { return };
    let bytes_per_s = volume.upkeep.bytes_per_s();
    let target = Target { gid: to.begin(), bytes_per_s };
    let Ok(job) = volume.jobs.begin(volume.name.as_str(), APPLY, &EXCLUDED) else { return };
    if !usable {
        return;
    }
    let (archive, volume) = (archive.clone(), volume.clone());
    let name = volume.name.clone();
    archive.operations.clone().start(APPLY, name, |handle| async move {
        let mut backoff = Backoff::new(MEND_MIN, MEND_MAX);
        loop {
            let error = match run(&archive, &volume, &job, &handle, target).await {
                Ok(outcome) => return Ok(outcome),
                Err(error) => error,
            };
            failed(&volume, &error);
            if !passes_by_itself(&error) {
                return Err(error);
            }
            tokio::select! {
                () = tokio::time::sleep(backoff.next_delay()) => {}
                () = handle.cancelled() => return Err(error),
                () = archive.ending.cancelled() => return Err(error),
                // Whoever stops the volume need not wait for space; a start goes on with it.
                () = volume.cell.wait_until(|v| v.stop != StopFlag::NotStopping) => {
                    return Err(error);
                }
                () = job.token.cancelled() => return Err(error),
            }
        }
    });
}

/// Damage is known from now on. Only a base image that is half-way is the volume's fault, and not
/// the operation's alone.
fn failed(volume: &Volume, error: &RoleError) {
    verify::check::met(volume, error);
    if volume.with(|c| c.base.applying_to().is_some()) {
        volume.set_fault(APPLY, error);
    }
}

/// Whether it is worth to try again without anybody doing anything here.
fn passes_by_itself(error: &RoleError) -> bool {
    matches!(error.reason(), Reason::NoSpace | Reason::Io)
}

async fn run(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    job: &Job,
    handle: &OperationHandle,
    target: Target,
) -> Result<Outcome, RoleError> {
    let rounds = rounds(archive, volume, job, handle, target);
    tokio::pin!(rounds);
    tokio::select! {
        done = &mut rounds => return done,
        () = handle.cancelled() => job.token.cancel(),
    }
    rounds.await
}

async fn rounds(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    job: &Job,
    handle: &OperationHandle,
    target: Target,
) -> Result<Outcome, RoleError> {
    let mut pace = Pace::new(target.bytes_per_s);
    let mut total = 0;
    loop {
        job.check()?;
        let _turn = turn(&archive.writers, job).await?;
        let round = next_round(volume, target.gid, archive.settings.max_open)?;
        if round.is_empty() {
            volume.clear_fault(APPLY);
            archive.indexer.tend(volume);
            let gid = Some(volume.with(|c| c.base.snapshot().begin().0));
            return Ok(Outcome { gid, path: None });
        }
        total += volume.size().bytes();
        handle.set_total(total);
        volume.images.room(archive.settings.reserve_bytes)?;
        // An unfinished apply has changed the image already.
        if volume.with(|c| c.base.applying_to().is_none()) {
            read(volume, job, round.clone()).await?;
        }
        apply_round(volume, (job, handle, &mut pace), round).await?;
    }
}

/// The diffs to apply next; empty when the base image is there. An unfinished apply comes first.
fn next_round(volume: &Volume, gid: Gid, max_open: usize) -> Result<Vec<Diff>, RoleError> {
    volume.with(|c| {
        let list = c.diffs.apply_list(&c.base, gid, max_open);
        if c.base.can_apply(&list) {
            return Ok(list);
        }
        // Only a diff that overshoots leads out of the unfinished apply.
        let mut list = Vec::new();
        for (diff, _) in c.diffs.chain(c.base.snapshot()) {
            list.push(diff);
            if c.base.can_apply(&list) {
                return Ok(list);
            }
        }
        let message = format!("volume {}: diffs that {} needs are missing", volume.name, c.base);
        Err(RoleError::damaged(message).with_volume(&volume.name))
    })
}

/// Reads wdiffs to their ends, by all cores: damage is found while nothing has changed.
async fn read(volume: &Arc<Volume>, job: &Job, round: Vec<Diff>) -> Result<(), RoleError> {
    let (volume, token) = (volume.clone(), job.token.clone());
    let read = move || -> Result<(), RoleError> {
        let (name, names) = (volume.name.as_str(), volume.diff_names(&round)?);
        let wdiffs = image::open_wdiffs(name, &*volume.dir, &names)?;
        let readers = blocking::parallelism().min(wdiffs.len());
        let threads = blocking::parallelism() / readers.max(1);
        let rest = Mutex::new(wdiffs.into_iter());
        let read = || -> Result<(), RoleError> {
            loop {
                let next = rest.lock().next();
                let Some(wdiff) = next else { return Ok(()) };
                for record in wdiff_format::check::check(wdiff, threads) {
                    check(&token)?;
                    record.map_err(|e| faults::wdiff(name, e))?;
                }
            }
        };
        std::thread::scope(|scope| {
            let builder = || std::thread::Builder::new().name("wdiff-check".into());
            let spawn = |_| builder().spawn_scoped(scope, read).ok();
            let spawned: Vec<_> = (0..readers).filter(|_| readers > 1).filter_map(spawn).collect();
            let ended = spawned.into_iter().map(|t| t.join().unwrap_or(Err(WorkerFailed.into())));
            // What no thread has taken is left to this one.
            ended.fold(Ok(()), Result::and).and_then(|()| read())
        })
    };
    blocking::run(read).await
}

async fn apply_round(
    volume: &Arc<Volume>,
    (job, handle, pace): (&Job, &OperationHandle, &mut Pace),
    round: Vec<Diff>,
) -> Result<(), RoleError> {
    let name = volume.name.as_str();
    let (names, owner) = (volume.diff_names(&round)?, volume.clone());
    let open = move || image::open_wdiffs(owner.name.as_str(), &*owner.dir, &names);
    let wdiffs = blocking::run(open).await?;
    let device = volume.open_image(Image::Base, volume.size()).await?;
    let device = {
        // Waits for restores that copy the image as it was; later ones see that it changes.
        let _gate = volume.image_gate.write().await;
        store_base(volume, &round, BaseState::begin_apply).await?;
        let end = round.last().map_or(Gid(0), |d| d.end().begin());
        volume.mounts.keeping(device, end)
    };
    let advance = |bytes| handle.advance(bytes);
    image::write_merged(device, name, wdiffs, &job.token, pace, advance).await?;
    store_base(volume, &round, BaseState::end_apply).await?;
    let dropped = volume.clone();
    blocking::run(move || {
        let at = dropped.with(|c| c.base.snapshot().begin());
        dropped.drop_applied(at)
    })
    .await
}

/// Makes durable where the base image is, from what it was and the diffs.
async fn store_base(
    volume: &Arc<Volume>,
    round: &[Diff],
    step: fn(&BaseState, &[Diff]) -> Result<BaseState, wdiff_format::gid::GidError>,
) -> Result<(), RoleError> {
    let base = volume.with(|c| c.base);
    let next = step(&base, round).map_err(|e| faults::snapshot(volume.name.as_str(), &e.into()))?;
    debug_assert!(walk(base.snapshot(), round).is_ok(), "a round leads somewhere");
    let volume = volume.clone();
    blocking::run(move || volume.store(|record| record.set_base(&next))).await
}
