//! Gid allocation and the choice of what is sent: the worked examples of semantics.md §3.4-§3.5,
//! and the rule that a retry never changes what a pair of gids means.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::collections::HashMap;

use proptest::prelude::*;
use storage_server::marks::{Mark, MarkError, Marks};
use storage_server::plan::{Plan, PlanError, plan};
use wdiff_format::gid::Gid;
use wlog_format::units::{Lsid, Pb};

const MAX: Pb = Pb(32768);

fn marks(lsid: u64, gid: u64, mergeable: bool) -> Marks {
    let mut marks = Marks::after_reset(Gid(gid), 100);
    marks.done = Mark { lsid: Lsid(lsid), mergeable, ..marks.done };
    marks
}

/// Where the last pack ends that does not cross `limit`, when each pack is 100 blocks long.
fn read_packs_of_100(plan: &Plan) -> Lsid {
    if plan.limit == plan.end.lsid { plan.limit } else { Lsid(plan.limit.0 / 100 * 100) }
}

/// Ships all that waits: (begin gid, end gid, begin lsid, end lsid, mergeable, timestamp).
fn ship_all(marks: &mut Marks) -> Vec<(u64, u64, u64, u64, bool, u64)> {
    let mut sent = Vec::new();
    while let Some(plan) = plan(marks, Lsid::MAX, MAX) {
        let reached = read_packs_of_100(&plan);
        let (diff, done) = plan.finish(reached).unwrap();
        let (begin, end) = (diff.begin().begin().0, diff.end().begin().0);
        let (from, to) = (plan.begin.lsid.0, reached.0);
        sent.push((begin, end, from, to, diff.mergeable, diff.timestamp));
        marks.acknowledge(done);
        marks.validate().unwrap();
    }
    sent
}

#[test]
fn a_long_log_is_shipped_in_pieces_with_a_gid_each() {
    let mut marks = marks(0, 0, false);
    let snapshot = marks.take(Lsid(70000), false, 200, MAX).unwrap();
    assert_eq!(snapshot.gid, Gid(3));
    let expected = [
        (0, 1, 0, 32700, false, 200),
        (1, 2, 32700, 65400, true, 200),
        (2, 3, 65400, 70000, true, 200),
    ];
    assert_eq!(ship_all(&mut marks), expected);
    assert!(!marks.done.mergeable, "the explicit snapshot is where the next diff starts");
}

#[test]
fn implicit_snapshots_are_coalesced_up_to_the_first_explicit_one() {
    let mut marks = marks(1000, 7, false);
    for (lsid, mergeable, gid) in [(2000, true, 8), (3000, true, 9), (4000, false, 10)] {
        assert_eq!(marks.take(Lsid(lsid), mergeable, 200, MAX).unwrap().gid, Gid(gid));
    }
    assert_eq!(marks.take(Lsid(5000), true, 201, MAX).unwrap().gid, Gid(11));
    let expected = [(7, 10, 1000, 4000, false, 200), (10, 11, 4000, 5000, false, 201)];
    assert_eq!(ship_all(&mut marks), expected);
}

#[test]
fn a_snapshot_without_writes_is_an_empty_diff() {
    let mut marks = marks(4000, 9, true);
    assert_eq!(marks.take(Lsid(4000), false, 200, MAX).unwrap().gid, Gid(10));
    assert_eq!(ship_all(&mut marks), [(9, 10, 4000, 4000, true, 200)]);
}

#[test]
fn nothing_is_sent_beyond_what_is_permanent() {
    let mut marks = marks(0, 0, true);
    marks.take(Lsid(100), true, 1, MAX).unwrap();
    marks.take(Lsid(200), true, 2, MAX).unwrap();
    assert_eq!(plan(&marks, Lsid(99), MAX), None);
    assert_eq!(plan(&marks, Lsid(150), MAX).unwrap().limit, Lsid(100));
    assert_eq!(plan(&marks, Lsid(200), MAX).unwrap().limit, Lsid(200));
}

#[test]
fn a_pair_that_cannot_be_split_exceeds_the_maximum() {
    let mut marks = marks(0, 0, true);
    // Reserved by a larger piece size, that is by an older configuration.
    assert_eq!(marks.take(Lsid(300), false, 1, Pb(1000)).unwrap().gid, Gid(1));
    assert_eq!(plan(&marks, Lsid(300), Pb(100)).unwrap().limit, Lsid(300));
}

#[test]
fn a_snapshot_behind_the_newest_one_is_refused() {
    let mut marks = marks(100, 5, true);
    let error = marks.take(Lsid(99), false, 1, MAX).unwrap_err();
    assert_eq!(error, MarkError::Backwards { lsid: Lsid(99), newest: Lsid(100) });
    assert_eq!(marks.queue().len(), 0);
}

#[test]
fn a_clock_that_is_set_back_makes_no_snapshot_older_than_its_predecessor() {
    let mut marks = marks(0, 0, true);
    marks.take(Lsid(10), true, 500, MAX).unwrap();
    assert_eq!(marks.take(Lsid(20), true, 400, MAX).unwrap().timestamp_s, 500);
}

#[test]
fn a_log_that_contradicts_its_snapshots_gives_an_error() {
    let mut marks = marks(0, 0, true);
    marks.take(Lsid(1000), false, 1, MAX).unwrap();
    let crossing = plan(&marks, Lsid(1000), MAX).unwrap().finish(Lsid(990)).unwrap_err();
    assert!(matches!(crossing, PlanError::NotABoundary { .. }), "{crossing}");

    let mut marks = self::marks(0, 0, true);
    marks.take(Lsid(1000), false, 1, Pb(100)).unwrap();
    let large = plan(&marks, Lsid(1000), Pb(100)).unwrap().finish(Lsid(0)).unwrap_err();
    assert_eq!(large, PlanError::PackTooLarge { at: Lsid(0), max: Pb(100) });
}

#[test]
fn records_out_of_order_are_noticed() {
    let mut marks = marks(100, 5, true);
    marks.take(Lsid(200), true, 1, MAX).unwrap();
    marks.done.gid = Gid(6);
    assert_eq!(marks.validate(), Err(MarkError::OutOfOrder(6)));
}

/// What happens between two attempts to ship.
#[derive(Clone, Debug)]
enum Step {
    Write(u64),
    Snapshot {
        explicit: bool,
    },
    /// An attempt whose acknowledgement arrives, or is lost.
    Ship {
        acknowledged: bool,
    },
    Configure(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..3000_u64).prop_map(Step::Write),
        any::<bool>().prop_map(|explicit| Step::Snapshot { explicit }),
        any::<bool>().prop_map(|acknowledged| Step::Ship { acknowledged }),
        (50..2000_u64).prop_map(Step::Configure),
    ]
}

proptest! {
    /// Whatever is lost and configured meanwhile: one pair of gids, one range, one time;
    /// and what is acknowledged leaves no gap and no overlap.
    #[test]
    fn a_pair_of_gids_means_one_range_and_time_for_ever(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let (mut marks, mut latest, mut max, mut now) = (marks(0, 0, false), 0, 1000, 0);
        let mut told = HashMap::new();
        for step in steps {
            now += 1;
            match step {
                Step::Write(blocks) => latest += blocks / 10 * 10,
                Step::Configure(blocks) => max = blocks / 10 * 10,
                Step::Snapshot { explicit } => {
                    marks.take(Lsid(latest), !explicit, now, Pb(max)).unwrap();
                }
                Step::Ship { acknowledged } => {
                    let Some(plan) = plan(&marks, Lsid(latest), Pb(max)) else { continue };
                    let (diff, done) = plan.finish(Lsid(plan.limit.0 / 10 * 10)).unwrap();
                    let meaning = (plan.begin.lsid, done.lsid, diff.timestamp, diff.mergeable);
                    let pair = (diff.begin().begin(), diff.end().begin());
                    prop_assert_eq!(*told.entry(pair).or_insert(meaning), meaning);
                    if acknowledged {
                        marks.acknowledge(done);
                        marks.validate().unwrap();
                    }
                }
            }
        }
    }
}
