//! Thinning out a history: the plan of its policy, followed by merges and an apply.
//!
//! Invariants: the plan is made of the catalogue as it is now, and each merge and apply takes its
//! own right to run, so others come in between; a merge that fails keeps neither the others nor the
//! apply from being made; wdiffs are read back as a whole before an apply of its own accord begins,
//! since one that meets damage half-way would take the older snapshots with it.

use super::{Ended, THINNING, retold};
use crate::apply;
use crate::archive::Archive;
use crate::merge;
use crate::volume::{Catalogue, Volume};
use proto::v1;
use proto::v1::merge_request::Until;
use server_kit::blocking;
use server_kit::error::{Reason, RoleError};
use server_kit::operations::{OperationHandle, Outcome};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use wdiff_format::gid::{Diff, Gid};
use wdiff_format::retention::{Plan, Point, Policy};

/// The kind of its operations.
const RETENTION: &str = "retention";

/// The snapshots as a policy sees them. Where a diff does not merge, the snapshots on both sides
/// are pinned: between them lies a state that cannot be restored, but is no less in the way. So are
/// those where other archives are, which a merge across would make send more than is missing.
fn points(c: &Catalogue, others: impl Iterator<Item = Gid>) -> Vec<Point> {
    let ends = |d: &Diff| {
        let start = (d.comparison || !d.mergeable).then(|| d.begin().begin());
        [start, d.comparison.then(|| d.end().begin())].into_iter().flatten()
    };
    let walls: BTreeSet<Gid> = c.diffs.iter().flat_map(ends).chain(others).collect();
    let snapshots = c.diffs.restorable(&c.base, true);
    let at = |n: usize| snapshots.get(n).map(|s| s.gid);
    let point = |n: usize| {
        let s = snapshots.get(n)?;
        let from = n.checked_sub(1).and_then(at).map_or(s.gid, |before| Gid(before.0 + 1));
        let to = at(n + 1).map_or(s.gid, |next| Gid(next.0.saturating_sub(1))).max(s.gid);
        let pinned = walls.range(from.min(s.gid)..=to).next().is_some();
        Some(Point { gid: s.gid, timestamp: s.timestamp, explicit: s.explicit, pinned })
    };
    (0..snapshots.len()).filter_map(point).collect()
}

/// The snapshots, and what becomes of them.
fn plan(volume: &Volume, policy: &Policy, now_s: u64) -> (Vec<Point>, Plan) {
    let replications = volume.upkeep.kept().replications;
    let others = replications.values().map(|r| Gid(r.gid)).filter(|gid| gid.0 > 0);
    let points = volume.with(|c| points(c, others));
    let plan = policy.in_steps().plan(&points, now_s);
    (points, plan)
}

/// What a policy would do now, and why. Without a text: the one that is kept.
pub(crate) fn plan_message(
    archive: &Archive,
    request: &v1::PlanRetentionRequest,
) -> Result<v1::RetentionPlan, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active("plan the retention of")?;
    let policy = if request.policy.is_empty() {
        policy_of(&volume)?
    } else {
        super::policy(&request.policy).map_err(|e| e.with_volume(&volume.name))?
    };
    let (points, plan) = plan(&volume, &policy, (archive.world.now)());
    let why = |gid: Gid| {
        let merged = plan.merges.iter().find(|(begin, end)| *begin < gid && gid < *end);
        let old = || format!("older than {policy}");
        merged.map_or_else(old, |(b, e)| format!("one wdiff is made of {b} to {e}"))
    };
    let dropped = points.iter().filter(|p| plan.dropped.contains(&p.gid));
    let dropped = dropped.map(|p| v1::DroppedSnapshot {
        gid: p.gid.0,
        timestamp_s: p.timestamp,
        why: why(p.gid),
    });
    Ok(v1::RetentionPlan {
        policy: policy.to_string(),
        apply: plan.apply.map(|g| g.0),
        held_by: plan.held_by.map(|g| g.0),
        merges: plan.merges.iter().map(|(b, e)| v1::GidRange { begin: b.0, end: e.0 }).collect(),
        dropped: dropped.collect(),
    })
}

fn policy_of(volume: &Volume) -> Result<Policy, RoleError> {
    volume.upkeep.kept().retention.map(|r| r.policy).ok_or_else(|| {
        let name = &volume.name;
        RoleError::bad_request(format!("volume {name} has no policy"))
            .with_volume(name)
            .with_next_step(format!("give it one: walbc retention ARCHIVE {name} POLICY"))
    })
}

/// Starts what is due, of the volumes with most diffs first.
pub(super) fn look(archive: &Arc<Archive>) {
    let pause = archive.settings.upkeep_pause;
    let mut due = archive.volumes();
    due.retain(|v| {
        let kept = v.upkeep.kept().retention.is_some();
        kept && v.upkeep.is_due(THINNING, pause) && v.require_active(RETENTION).is_ok()
    });
    due.sort_by_key(|v| std::cmp::Reverse(v.with(|c| c.diffs.len())));
    for volume in due {
        let Ok(turn) = archive.turns.thinning.clone().try_acquire_owned() else { return };
        if !volume.upkeep.take(THINNING, pause) {
            continue;
        }
        match Run::prepare(archive, &volume) {
            Some(run) if !run.is_empty() || failed(&volume) => {
                let operation = begin(archive, &volume, run, Some(turn));
                volume.upkeep.began(THINNING, &operation);
            }
            _ => volume.upkeep.rest(THINNING, pause, Ended::Well),
        }
    }
}

/// Whether the last run failed: one that finds nothing to do says that this is over.
fn failed(volume: &Volume) -> bool {
    volume.upkeep.kept().runs.last.failures > 0
}

/// Runs the policy of a volume now, whether or not there is something to do.
pub(crate) fn start(archive: &Arc<Archive>, name: &str) -> Result<v1::Operation, RoleError> {
    let volume = archive.volume(name)?;
    volume.require_active("thin out")?;
    policy_of(&volume)?;
    let pause = archive.settings.upkeep_pause;
    // Whoever asks by hand does not wait for a pause.
    let busy = || RoleError::busy(&volume.name, format!("volume {name} is being thinned out"));
    if volume.upkeep.task(THINNING, pause, |next| std::mem::replace(&mut next.running, true)) {
        return Err(busy().with_next_step("wait for it: walbc operations"));
    }
    let run = Run::prepare(archive, &volume).ok_or_else(busy);
    let run = run.inspect_err(|_| volume.upkeep.rest(THINNING, pause, Ended::Well))?;
    Ok(begin(archive, &volume, run, None))
}

fn begin(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    run: Run,
    turn: Option<OwnedSemaphorePermit>,
) -> v1::Operation {
    let (archive, volume) = (archive.clone(), volume.clone());
    let name = volume.name.clone();
    archive.operations.clone().start(RETENTION, name, move |handle| async move {
        let _turn = turn;
        let started_s = (archive.world.now)();
        let done = run.follow(&archive, &volume, &handle).await;
        finish(&archive, &volume, started_s, done).await
    })
}

/// What a run has done.
#[derive(Default)]
struct Done {
    merges: usize,
    inputs: usize,
    applied: Option<Gid>,
}

impl Done {
    fn text(&self) -> String {
        let merged =
            (self.merges > 0).then(|| format!("made {} wdiffs of {}", self.merges, self.inputs));
        let applied = self.applied.map(|gid| format!("applied up to gid {gid}"));
        let parts: Vec<String> = merged.into_iter().chain(applied).collect();
        if parts.is_empty() { "nothing was due".to_owned() } else { parts.join(", ") }
    }
}

/// What became of a run is kept, and when the next one comes.
async fn finish(
    archive: &Archive,
    volume: &Arc<Volume>,
    started_s: u64,
    (done, result): (Done, Result<(), RoleError>),
) -> Result<Outcome, RoleError> {
    let pause = archive.settings.upkeep_pause;
    let ended = match &result {
        Ok(()) => Ended::Well,
        Err(error) if passes(error) => Ended::Waits(error.full_message()),
        Err(error) if error.reason() == Reason::NoSpace => Ended::Full,
        Err(_) => Ended::Failed,
    };
    let waits = matches!(ended, Ended::Waits(_));
    let times = (started_s, (archive.world.now)());
    let (kept, text) = (volume.clone(), done.text());
    let failure = result.as_ref().err().filter(|_| !waits).map(retold);
    let Done { merges, applied, .. } = done;
    let store = move || {
        kept.upkeep.store(|kept| {
            if merges > 0 {
                kept.runs.merged_s = times.0;
            }
            if applied.is_some() {
                kept.runs.applied_s = times.0;
            }
            let ended = failure.as_ref().map_or(Ok(text.as_str()), Err);
            kept.runs.last.end(times, ended);
        })
    };
    let nothing = merges == 0 && applied.is_none();
    if !(waits && nothing)
        && let Err(error) = blocking::run(store).await
    {
        let error = error.full_message();
        tracing::warn!(volume = %volume.name, error, "cannot keep how the retention went");
    }
    volume.upkeep.rest(THINNING, pause, ended);
    result.map(|()| Outcome { gid: applied.map(|g| g.0), path: None })
}

/// Somebody else works on the volume, has changed what the plan was made of, or reads what an apply
/// would write over: that ends.
fn passes(error: &RoleError) -> bool {
    matches!(
        error.reason(),
        Reason::Busy
            | Reason::Cancelled
            | Reason::Stopping
            | Reason::WrongState
            | Reason::UnknownSnapshot
    )
}

/// One run.
struct Run {
    merges: Vec<(Gid, Gid)>,
    apply: Option<Gid>,
    bytes_per_s: u64,
}

impl Run {
    /// What is due of the plan; nothing without a policy.
    fn prepare(archive: &Archive, volume: &Volume) -> Option<Self> {
        let kept = volume.upkeep.kept();
        let (retention, now_s) = (kept.retention?, (archive.world.now)());
        let (_, plan) = plan(volume, &retention.policy, now_s);
        let is_due = |last_s: u64, every_s: u64| now_s >= last_s.saturating_add(every_s);
        let (applied, merged) = (kept.runs.applied_s, kept.runs.merged_s);
        let apply = plan.apply.filter(|_| is_due(applied, retention.apply_every_s));
        let mut merges = plan.merges;
        merges.retain(|(begin, end)| {
            let most = retention.merge_max_bytes;
            let size = || volume.with(|c| c.diffs.range(*begin, *end).map(|d| d.size).sum::<u64>());
            most == 0 || size() <= most
        });
        if !is_due(merged, retention.merge_every_s) {
            merges.clear();
        }
        Some(Self { merges, apply, bytes_per_s: retention.bytes_per_s })
    }

    fn is_empty(&self) -> bool {
        self.merges.is_empty() && self.apply.is_none()
    }

    /// Does it; the first failure is told when all is done that could be.
    async fn follow(
        &self,
        archive: &Arc<Archive>,
        volume: &Arc<Volume>,
        handle: &OperationHandle,
    ) -> (Done, Result<(), RoleError>) {
        let (mut done, mut failed) = (Done::default(), None);
        for (begin, end) in &self.merges {
            match self.merge(archive, volume, handle, (*begin, *end)).await {
                Ok(inputs) => {
                    done.merges += 1;
                    done.inputs += inputs;
                }
                Err(error) => {
                    // No space: an apply makes some. Busy: it would be so for all of them.
                    let reason = error.reason();
                    failed = failed.or(Some(error));
                    if passes_all(reason) {
                        break;
                    }
                }
            }
        }
        if let Some(gid) = self.apply
            && !handle.is_cancelled()
        {
            match self.apply(archive, volume, handle, gid).await {
                Ok(()) => done.applied = Some(gid),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        (done, failed.map_or(Ok(()), Err))
    }

    async fn merge(
        &self,
        archive: &Arc<Archive>,
        volume: &Arc<Volume>,
        handle: &OperationHandle,
        (begin, end): (Gid, Gid),
    ) -> Result<usize, RoleError> {
        let task = merge::begin(volume, begin, Until::GidEnd(end.0))?;
        let inputs = task.inputs();
        merge::to_its_end(archive, volume, task, handle, self.bytes_per_s).await?;
        Ok(inputs)
    }

    async fn apply(
        &self,
        archive: &Arc<Archive>,
        volume: &Arc<Volume>,
        handle: &OperationHandle,
        gid: Gid,
    ) -> Result<(), RoleError> {
        let target = apply::Target { gid, bytes_per_s: self.bytes_per_s };
        let job = apply::begin(volume, target)?;
        apply::to_its_end(archive, volume, job, handle, target).await.map(drop)
    }
}

fn passes_all(reason: Reason) -> bool {
    matches!(reason, Reason::Busy | Reason::Cancelled | Reason::Stopping | Reason::NoSpace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;
    use wdiff_format::gid::{BaseState, Snapshot};

    #[test]
    fn what_merges_cannot_cross_is_pinned() {
        let base = BaseState::at(Snapshot::clean(Gid(1)), 5);
        let mut c = Catalogue::new(Record::new(), base);
        let diff = |b: (u64, u64), e: (u64, u64), mergeable: bool, comparison: bool| {
            let snapshot = |(b, e)| Snapshot::new(Gid(b), Gid(e)).unwrap();
            let mut diff = Diff::new(snapshot(b), snapshot(e)).unwrap().with_mergeable(mergeable);
            (diff.comparison, diff.timestamp) = (comparison, e.0);
            diff
        };
        for diff in [
            diff((1, 1), (2, 2), true, false),
            diff((2, 2), (5, 5), false, false),
            diff((5, 5), (10, 10), true, false),
            // A hash backup: what follows starts at a state that cannot be restored.
            diff((10, 10), (11, 15), true, false),
            diff((11, 11), (15, 15), false, false),
            diff((15, 15), (16, 16), true, false),
            diff((16, 16), (20, 20), true, true),
            diff((20, 20), (21, 21), true, false),
            diff((21, 21), (22, 22), true, false),
            diff((22, 22), (23, 23), true, false),
        ] {
            c.diffs.insert(diff).unwrap();
        }
        let points = points(&c, [Gid(22)].into_iter());
        let pinned = points.iter().filter(|p| p.pinned).map(|p| p.gid.0);
        assert_eq!(pinned.collect::<Vec<_>>(), [2, 10, 15, 16, 20, 22]);
    }
}
