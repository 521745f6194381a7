//! Thinning out a volume's history at an archive by a policy: one run, by hand or by a timer.

use std::collections::BTreeSet;

use proto::v1;
use wdiff_format::gid::Gid;
use wdiff_format::retention::{Plan, Point, Policy};

use super::{Event, Watch, archive, look};
use crate::client::Controller;
use crate::error::ControlError;

/// What a run of a policy does, or would do.
#[derive(Clone, Debug)]
pub struct Retention {
    /// The snapshots that there were.
    pub points: Vec<Point>,
    /// What became of them.
    pub plan: Plan,
}

/// Plans by `policy` what an archive keeps of a volume, and unless it is a dry run does it: first
/// the merges, then the apply. Broken off, it may be called again.
///
/// # Errors
/// Another operation runs there, a mount needs the base image; unknown archive or volume.
pub async fn retention(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    policy: &Policy,
    dry_run: bool,
    watch: Watch<'_>,
) -> Result<Retention, ControlError> {
    let snapshots = archive::restorable(ctl, archive, volume, true).await?;
    let diffs = archive::diffs(ctl, archive, volume).await?;
    let points = points(&snapshots, diffs.into_iter().filter_map(|entry| entry.diff));
    let plan = policy.plan(&points, look::now_s());
    if let Some(gid) = plan.held_by {
        watch(Event::Note(&format!(
            "explicit snapshot {gid} is older than the policy and keeps all that follows it; give \
             it up: walbc disable-snapshot {archive} {volume} {gid}"
        )));
    }
    if !dry_run {
        for (begin, end) in &plan.merges {
            archive::merge(ctl, archive, volume, (begin.0, end.0), 0, &mut *watch).await?;
        }
        if let Some(gid) = plan.apply {
            let point = archive::RestorePoint::Gid(gid.0);
            archive::apply(ctl, archive, volume, point, 0, &mut *watch).await?;
        }
    }
    Ok(Retention { points, plan })
}

/// The snapshots as a policy sees them. Where a diff does not merge, the snapshots on both sides
/// are pinned: between them lies a state that cannot be restored, but is no less in the way.
fn points(snapshots: &[v1::Restorable], diffs: impl Iterator<Item = v1::DiffMeta>) -> Vec<Point> {
    let gid = |s: Option<v1::Snapshot>| s.unwrap_or_default().gid_begin;
    let ends = |d: v1::DiffMeta| {
        let start = (d.comparison || !d.mergeable).then(|| gid(d.begin));
        [start, d.comparison.then(|| gid(d.end))].into_iter().flatten()
    };
    let walls: BTreeSet<u64> = diffs.flat_map(ends).collect();
    let at = |n: usize| snapshots.get(n).map(|s| s.gid);
    let point = |(n, s): (usize, &v1::Restorable)| {
        let from = n.checked_sub(1).and_then(at).map_or(s.gid, |before| before + 1);
        let to = at(n + 1).map_or(s.gid, |next| next.saturating_sub(1)).max(s.gid);
        Point {
            gid: Gid(s.gid),
            timestamp: s.timestamp_s,
            explicit: s.explicit_snapshot,
            pinned: walls.range(from.min(s.gid)..=to).next().is_some(),
        }
    };
    snapshots.iter().enumerate().map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn diff(begin: (u64, u64), end: (u64, u64), mergeable: bool, comparison: bool) -> v1::DiffMeta {
        let snapshot = |(gid_begin, gid_end)| Some(v1::Snapshot { gid_begin, gid_end });
        let (begin, end) = (snapshot(begin), snapshot(end));
        v1::DiffMeta { begin, end, mergeable, comparison, ..v1::DiffMeta::default() }
    }

    #[test]
    fn what_merges_cannot_cross_is_pinned() {
        let snapshot = |gid| v1::Restorable { gid, ..v1::Restorable::default() };
        let snapshots = [1, 2, 5, 10, 15, 16, 20, 21].map(snapshot);
        let diffs = [
            diff((1, 1), (2, 2), true, false),
            diff((2, 2), (5, 5), false, false),
            diff((5, 5), (10, 10), true, false),
            // A hash backup: what follows starts at a state that cannot be restored.
            diff((10, 10), (11, 15), true, false),
            diff((11, 11), (15, 15), false, false),
            diff((15, 15), (16, 16), true, false),
            diff((16, 16), (20, 20), true, true),
            diff((20, 20), (21, 21), true, false),
        ];
        let points = points(&snapshots, diffs.into_iter());
        let pinned = points.iter().filter(|p| p.pinned).map(|p| p.gid.0);
        assert_eq!(pinned.collect::<Vec<_>>(), [2, 10, 15, 16, 20]);
    }
}
