//! Verification: everything that a volume has is read back, and what is wrong is remembered with
//! the snapshots that it harms.
//!
//! ```text
//!  verify (asked for)  --+                        +--> faults, status, doctor
//!  scrub (in background) +--> check --> ledger ---+--> restorable: when, and how
//!  drill (a snapshot, through a mount's view) ----+--> hash of each snapshot, compared for ever
//! ```
//! Invariants: nothing here changes what a volume has, but for the ledger; damage is over when the
//! file was read back well, or is not wanted any more, and not before.

pub(crate) mod check;
pub(crate) mod damage;
pub(crate) mod drill;
pub(crate) mod ledger;
pub(crate) mod scrub;

use crate::archive::Archive;
use crate::background::idle;
use crate::jobs::{DRILL, FULL_SYNC, Job, RESYNC, VERIFY};
use crate::state::State;
use crate::volume::Volume;
use check::Reading;
use ledger::{Found, ImageCheck, Kind};
use proto::v1::{DamageList, Operation, Restorable, VerifyRequest};
use server_kit::error::RoleError;
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::pace::Pace;
use server_kit::{blocking, clock};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wdiff_format::diff_set::RestorePoint;
use wdiff_format::gid::{Diff, Gid, Snapshot};
use wdiff_format::name;

/// What was read is written down so often.
const STORE_EVERY: Duration = Duration::from_secs(60);

/// States in which there is something to verify.
const VERIFIABLE: [State; 5] =
    [State::Archived, State::WdiffRecv, State::HashSync, State::ReplSync, State::Stopped];

/// Starts to read back all of a volume.
pub(crate) fn start(
    archive: &Arc<Archive>,
    request: &VerifyRequest,
) -> Result<Operation, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require(&VERIFIABLE, VERIFY)?;
    let name = volume.name.clone();
    let job = volume.jobs.begin(name.as_str(), VERIFY, &[VERIFY, RESYNC, FULL_SYNC])?;
    let (archive, pace) = (archive.clone(), Pace::new(request.scan_bytes_per_s));
    Ok(archive.operations.clone().start(VERIFY, name, |handle| async move {
        let work = run(&archive, &volume, &job, &handle, pace);
        tokio::pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = handle.cancelled() => job.token.cancel(),
        }
        work.await
    }))
}

/// Reads back one wdiff, when it has just come.
pub(crate) async fn read_back(
    volume: &Arc<Volume>,
    diff: Diff,
    token: &CancellationToken,
) -> Result<(), RoleError> {
    let mut reading = Reading {
        token: token.clone(),
        pace: Pace::new(0),
        threads: blocking::parallelism(),
        advance: Arc::new(|_| ()),
    };
    check::wdiff(volume, diff, &mut reading).await.map(drop)
}

async fn run(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    job: &Job,
    handle: &OperationHandle,
    pace: Pace,
) -> Result<Outcome, RoleError> {
    let told = handle.clone();
    let mut reading = Reading {
        token: job.token.clone(),
        pace,
        threads: blocking::parallelism(),
        advance: Arc::new(move |bytes| told.advance(bytes)),
    };
    let here = volume.clone();
    blocking::run(move || foreign(&here)).await?;
    let diffs: Vec<Diff> = volume.with(|c| c.diffs.iter().copied().collect());
    let bytes: u64 = diffs.iter().map(|d| d.size).sum();
    handle.set_total(bytes.saturating_add(volume.size().bytes()));
    for diff in diffs {
        check::wdiff(volume, diff, &mut reading).await?;
    }
    let checked_s = volume.ledger.image().checked_s;
    volume.ledger.set_image(ImageCheck { done_bytes: 0, checked_s });
    image(archive, volume, &mut reading, false).await?;
    volume.ledger.set_through(clock::unix_seconds());
    store(volume).await?;
    if damage::list(volume).iter().all(|d| d.harmed == 0) {
        let here = volume.clone();
        blocking::run(move || here.proved(false)).await?;
    }
    Ok(Outcome::default())
}

/// Goes on with the base image where it was left, to its end; `gently` lets others go first.
async fn image(
    archive: &Archive,
    volume: &Arc<Volume>,
    reading: &mut Reading,
    gently: bool,
) -> Result<(), RoleError> {
    let whole = volume.ledger.image().done_bytes == 0;
    let Some(device) = check::open_image(volume).await? else { return Ok(()) };
    let (mut damaged, mut stored) = (false, Instant::now());
    loop {
        let piece = check::image_piece(volume, &device, reading).await?;
        damaged |= piece.damaged;
        if piece.last {
            break;
        }
        if stored.elapsed() >= STORE_EVERY {
            store(volume).await?;
            stored = Instant::now();
        }
        if gently {
            idle(archive, &[VERIFY, DRILL]).await;
        }
    }
    if whole && !damaged {
        volume.ledger.settle(&[Kind::Image], None);
    }
    Ok(())
}

/// Looks for wdiffs that the catalogue does not know. Blocks.
fn foreign(volume: &Volume) -> Result<(), RoleError> {
    volume.ledger.settle(&[Kind::Foreign], None);
    for file in volume.dir.list()?.into_iter().filter(|n| n.ends_with(name::SUFFIX)) {
        if volume.is_foreign(&file)? {
            let why = "is a wdiff that the catalogue does not know".to_owned();
            let found_s = clock::unix_seconds();
            check::tell(volume, Found { kind: Kind::Foreign, file, why, found_s });
        }
    }
    Ok(())
}

/// Makes the ledger durable, without what is about files and snapshots that are gone.
pub(crate) async fn store(volume: &Arc<Volume>) -> Result<(), RoleError> {
    let (diffs, gids) = volume.with(|c| {
        let points = c.diffs.restorable(&c.base, true);
        let gids: BTreeSet<Gid> = points.iter().map(|p| p.gid).collect();
        (c.diffs.iter().copied().collect::<Vec<_>>(), gids)
    });
    let here = volume.clone();
    let store = move || {
        here.ledger.prune(&diffs, &gids);
        here.ledger.store().map_err(|e| RoleError::from(e).with_volume(&here.name))
    };
    blocking::run(store).await
}

/// What is known to be wrong, and how much was read back.
pub(crate) fn damages(volume: &Volume) -> DamageList {
    let diffs: Vec<Diff> = volume.with(|c| c.diffs.iter().copied().collect());
    let checked: Vec<u64> = diffs.iter().filter_map(|d| volume.ledger.read_back_s(d)).collect();
    DamageList {
        damages: damage::list(volume),
        wdiffs: diffs.len() as u64,
        wdiff_bytes: diffs.iter().map(|d| d.size).sum(),
        checked_wdiffs: checked.len() as u64,
        oldest_check_s: checked.iter().copied().min().unwrap_or_default(),
        verified_s: volume.ledger.through_s(),
    }
}

/// When each snapshot was last proved restorable, and how: the latest of the three ways.
struct Proved(Vec<(Gid, u64)>);

/// The snapshots that can be restored. One is "checked" since all that it is made of was read back.
pub(crate) fn restorable(volume: &Volume, all: bool) -> Vec<Restorable> {
    let (points, chain) = volume.with(|c| {
        let chain: Vec<(Diff, Snapshot)> = c.diffs.chain(c.base.snapshot()).collect();
        (c.diffs.restorable(&c.base, all), chain)
    });
    let checked = Proved::by_checks(volume, &chain);
    let proofs = volume.ledger.proofs();
    let entry = |p: RestorePoint| {
        let proof = proofs.get(&p.gid).cloned().unwrap_or_default();
        let ways = [
            (checked.of(p.gid), "checked"),
            (proof.drilled_s, "drilled"),
            (proof.restored_s, "restored"),
        ];
        let (verified_s, how) = ways.into_iter().max_by_key(|(at, _)| *at).unwrap_or_default();
        Restorable {
            gid: p.gid.0,
            timestamp_s: p.timestamp,
            explicit_snapshot: p.explicit,
            change_bytes: p.change_bytes,
            verified_s,
            verified_how: if verified_s > 0 { how.to_owned() } else { String::new() },
        }
    };
    points.into_iter().map(entry).collect()
}

impl Proved {
    /// The snapshots of the walk, each with the oldest check of what leads there; 0: something was
    /// never read back.
    fn by_checks(volume: &Volume, chain: &[(Diff, Snapshot)]) -> Self {
        let harmed = volume.ledger.damages().iter().any(|d| d.kind == Kind::Image);
        let mut oldest = if harmed { 0 } else { volume.ledger.image().checked_s };
        let base = volume.with(|c| c.base.snapshot().begin());
        let mut known = vec![(base, oldest)];
        for (diff, after) in chain {
            let read_back = volume.ledger.read_back_s(diff).unwrap_or_default();
            oldest = oldest.min(read_back);
            known.push((after.begin(), oldest));
        }
        Self(known)
    }

    fn of(&self, gid: Gid) -> u64 {
        let found = self.0.binary_search_by_key(&gid, |(at, _)| *at);
        found.ok().and_then(|n| self.0.get(n)).map_or(0, |(_, s)| *s)
    }
}
