//! The worked examples of `semantics.md` §2.3-§2.13 and of `formats.md` §7, row by row.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use wdiff_format::diff_set::{DiffSet, DiffSetError, RestoreSummary};
use wdiff_format::gid::{BaseState, Diff, Gid, Relation, Snapshot};
use wdiff_format::name::{NameFault, parse, to_file_name};

/// `"5"` or `"11,15"`.
fn snap(text: &str) -> Snapshot {
    let gid = |t: &str| Gid(t.parse().unwrap());
    match text.split_once(',') {
        Some((b, e)) => Snapshot::new(gid(b), gid(e)).unwrap(),
        None => Snapshot::clean(gid(text)),
    }
}

/// `"10>11,15 M"`: flags follow a blank.
fn diff(text: &str) -> Diff {
    let (ends, flags) = text.split_once(' ').unwrap_or((text, ""));
    let (b, e) = ends.split_once('>').unwrap();
    let mut d = Diff::new(snap(b), snap(e)).unwrap();
    d.mergeable = flags.contains('M');
    d.comparison = flags.contains('C');
    d.timestamp = d.end().end().0 * 100;
    d
}

fn set(texts: &[&str]) -> DiffSet {
    let mut set = DiffSet::new();
    texts.iter().for_each(|t| set.insert(diff(t)).unwrap());
    set
}

fn ends(diffs: &[Diff]) -> Vec<String> {
    diffs.iter().map(|d| d.to_string().replace('|', "").replace("-->", ">")).collect()
}

fn base(text: &str) -> BaseState {
    match text.split_once('>') {
        Some((b, e)) => BaseState::applying(snap(b), snap(e), 0).unwrap(),
        None => BaseState::at(snap(text), 0),
    }
}

fn gids(set: &DiffSet, state: &BaseState, all: bool) -> Vec<u64> {
    set.restorable(state, all).iter().map(|p| p.gid.0).collect()
}

#[test]
fn a_diff_makes_progress_at_both_ends() {
    assert!(Diff::new(snap("10"), snap("10,15")).is_err());
    assert!(Diff::new(snap("10,20"), snap("15")).is_err());
    assert!(Diff::new(snap("10"), snap("11,15")).is_ok());
    assert!(Snapshot::new(Gid(6), Gid(5)).is_err());
    assert!(BaseState::applying(snap("10"), snap("10,12"), 0).is_err());
}

#[test]
fn relation_looks_at_the_start_of_the_snapshot() {
    let at = snap("5");
    assert_eq!(at.relation(&diff("5>7")), Relation::Applicable);
    assert_eq!(at.relation(&diff("3>7")), Relation::Applicable);
    assert_eq!(at.relation(&diff("6>7")), Relation::TooNew);
    assert_eq!(at.relation(&diff("3>5")), Relation::TooOld);
    assert_eq!(at.relation(&diff("5>7 C")), Relation::Applicable);
    assert_eq!(at.relation(&diff("3>7 C")), Relation::OtherStart);
    assert_eq!(at.relation(&diff("6>7 C")), Relation::OtherStart);
}

#[test]
fn apply_gives_the_table() {
    let rows = [
        ("0,4", "0>2", "2,4"),
        ("0,4", "0>4", "4"),
        ("0,4", "0>6", "6"),
        ("10", "10>11,15", "11,15"),
        ("11,15", "11>13", "13,15"),
        ("13,15", "13>15", "15"),
        ("11,15", "11,15>16,20", "16,20"),
        ("13,15", "11,15>16,20", "16,20"),
    ];
    for (at, d, expected) in rows {
        assert_eq!(snap(at).apply(&diff(d)).unwrap(), snap(expected), "{at} with {d}");
    }
    assert!(snap("5").apply(&diff("6>7")).is_err());
}

#[test]
fn merge_gives_the_table() {
    let rows = [
        ("0>1", "1>2 M", Some("0>2")),
        ("0>1 M", "1>2", None),
        ("0>2 M", "1>3 M", Some("0>3 M")),
        ("0>5", "1>3 M", None),
        ("0>2", "3>5 M", None),
        ("10>11,15", "11>13 M", Some("10>13,15")),
        ("10>11,15", "11>20 M", Some("10>20")),
        ("0>5", "5>7,9 M", Some("0>7,9")),
        ("0>5 C", "5>7 M", None),
        ("0>5", "5>7 MC", None),
    ];
    for (a, b, expected) in rows {
        let (a, b) = (diff(a), diff(b));
        let merged = a.merge(&b).ok();
        assert_eq!(merged, expected.map(diff), "{a} with {b}");
        if let (Some(m), Some(e)) = (merged, expected.map(diff)) {
            assert_eq!((m.mergeable, m.comparison, m.timestamp), (e.mergeable, false, b.timestamp));
        }
    }
}

#[test]
fn contains_looks_at_the_starts() {
    assert!(diff("0>5").contains(&diff("1>3")));
    assert!(diff("0>5").contains(&diff("0>5")));
    assert!(diff("10>13,15").contains(&diff("10>11,15")));
    assert!(!diff("1>5").contains(&diff("0>3")));
    assert!(!diff("0>5").contains(&diff("3>6")));
}

const EXAMPLE: [&str; 7] = ["0>1", "1>2", "2>3 M", "3>5 M", "5>6 M", "6>7", "7>8 M"];

#[test]
fn worked_example_of_a_resting_base() {
    let (s, b) = (set(&EXAMPLE), base("0"));
    assert_eq!(gids(&s, &b, false), [0, 1, 6, 8]);
    assert_eq!(gids(&s, &b, true), [0, 1, 2, 3, 5, 6, 7, 8]);
    assert_eq!(ends(&s.mergeable_from(Gid(0))), ["0>1"]);
    assert_eq!(ends(&s.mergeable_from(Gid(1))), ["1>2", "2>3", "3>5", "5>6"]);
    assert_eq!(ends(&s.mergeable_from(Gid(4))), ["5>6"]);
    assert_eq!(ends(&s.mergeable_from(Gid(6))), ["6>7", "7>8"]);
    assert!(s.mergeable_from(Gid(8)).is_empty());
    assert!(s.restore_list(&b, Gid(4)).is_err());
    assert_eq!(ends(&s.restore_list(&b, Gid(5)).unwrap()), ["0>1", "1>2", "2>3", "3>5"]);
    assert_eq!(ends(&s.apply_list(&b, Gid(4), 0)), ["0>1", "1>2", "2>3"]);
    assert_eq!(ends(&s.apply_list(&b, Gid(5), 2)), ["0>1", "1>2"]);
    assert_eq!(s.latest(&b), (snap("8"), 800));
    assert!(s.restore_list(&b, Gid(0)).unwrap().is_empty());
}

#[test]
fn worked_example_of_an_applying_base() {
    let (s, b) = (set(&EXAMPLE), base("0>5"));
    let minimum = ["0>1", "1>2", "2>3", "3>5"];
    assert_eq!(ends(&s.minimum(&b)), minimum);
    assert_eq!(ends(&s.apply_list(&b, Gid(2), 0)), minimum);
    assert_eq!(ends(&s.apply_list(&b, Gid(2), 1)), minimum);
    assert_eq!(s.apply_list(&b, Gid(6), 0).len(), 5);
    assert_eq!(ends(&s.apply_list(&b, Gid(6), 2)), minimum);
    assert!(s.restore_list(&b, Gid(2)).is_err());
    assert!(s.restore_list(&b, Gid(5)).is_ok());
    assert!(s.restore_list(&b, Gid(7)).is_ok());
    assert_eq!(gids(&s, &b, true), [5, 6, 7, 8]);
    assert_eq!(b.begin_apply(&s.apply_list(&b, Gid(6), 0)).unwrap(), {
        let mut to = base("0>6");
        to.timestamp = 600;
        to
    });
    assert_eq!(b.end_apply(&s.minimum(&b)).unwrap(), BaseState::at(snap("5"), 500));
}

#[test]
fn worked_example_of_a_merge() {
    let (mut s, b) = (set(&EXAMPLE), base("0"));
    let merged = s.mergeable_from(Gid(1)).into_iter().reduce(|a, b| a.merge(&b).unwrap()).unwrap();
    assert_eq!((merged, merged.mergeable), (diff("1>6"), false));
    s.insert(merged).unwrap();
    let chain: Vec<Diff> = s.chain(b.snapshot()).map(|(d, _)| d).collect();
    assert_eq!(ends(&chain), ["0>1", "1>6", "6>7", "7>8"]);
    assert_eq!(ends(&s.garbage(b.snapshot())), ["1>2", "2>3", "3>5", "5>6"]);
    assert_eq!(ends(&s.superseded(b.snapshot())), ["1>2", "2>3", "3>5", "5>6"]);
    assert_eq!(ends(&s.garbage_in(Gid(1), Gid(6))), ["1>2", "2>3", "3>5", "5>6"]);
    assert_eq!(gids(&s, &b, true), [0, 1, 6, 7, 8]);
}

#[test]
fn worked_example_of_a_hash_backup() {
    let diffs = ["0>1", "1>2", "2>10 M", "10>11,15", "11>13", "13>15 M", "15>16"];
    let (s, b) = (set(&diffs), base("0,1"));
    assert_eq!(gids(&s, &b, false), [1, 10, 15, 16]);
    assert_eq!(gids(&s, &b, true), [1, 2, 10, 15, 16]);
    assert!(matches!(s.restore_list(&b, Gid(13)), Err(DiffSetError::Dirty(_))));
    assert_eq!(s.scan_list(&b, Gid(13)).unwrap().len(), 5);
    assert_eq!(s.oldest_clean(&b), Some((snap("1"), 100)));
    assert_eq!(s.latest(&b).0, snap("16"));
}

#[test]
fn a_snapshot_inside_a_merged_diff_is_unreachable() {
    let s = set(&["0>1", "0>5"]);
    assert!(s.up_to(snap("0"), Gid(1)).is_empty());
    assert_eq!(s.up_to(snap("0"), Gid(5)).len(), 1);
}

#[test]
fn a_removed_diff_uncovers_what_it_hid() {
    let mut s = set(&["0>1", "1>2", "0>9", "2>3", "5>9", "5>7"]);
    assert_eq!(s.pick(snap("5")).unwrap(), diff("5>9"));
    s.remove(&diff("0>9")).unwrap();
    assert_eq!(s.pick(snap("0")).unwrap(), diff("0>1"));
    assert_eq!(s.pick(snap("2")).unwrap(), diff("2>3"));
    assert_eq!(s.pick(snap("5")).unwrap(), diff("5>9"));
    s.remove(&diff("5>9")).unwrap();
    assert_eq!(s.pick(snap("5")).unwrap(), diff("5>7"));
}

#[test]
fn a_comparison_diff_is_picked_at_its_own_start_only() {
    let s = set(&["0>5 C", "0>1", "3>4"]);
    assert_eq!(s.pick(snap("0")).unwrap(), diff("0>5 C"));
    assert_eq!(s.pick(snap("3")).unwrap(), diff("3>4"));
    assert_eq!(s.pick(snap("1")), None);
}

#[test]
fn equal_diffs_do_not_live_side_by_side() {
    let mut s = set(&["0>1"]);
    let mut again = diff("0>1 M");
    again.timestamp = 77;
    assert_eq!(s.insert(again), Err(DiffSetError::Exists(again)));
    assert_eq!(s.len(), 1);
    assert!(!s.iter().next().unwrap().mergeable);
}

#[test]
fn keeping_a_snapshot_changes_the_diffs_that_start_there() {
    let mut s = set(&EXAMPLE);
    assert_eq!(s.keep_changes(Gid(8), true), Err(DiffSetError::NoStart(Gid(8))));
    assert!(s.keep_changes(Gid(2), false).unwrap().is_empty());
    let changes = s.keep_changes(Gid(2), true).unwrap();
    assert_eq!(ends(&[changes[0].0]), ["2>3"]);
    assert!(changes[0].0.mergeable && !changes[0].1.mergeable);
    s.replace(changes[0].1).unwrap();
    assert_eq!(gids(&s, &base("0"), false), [0, 1, 2, 6, 8]);
}

#[test]
fn diffs_behind_a_gap_are_garbage_but_not_superseded() {
    let s = set(&["0>1", "1>2", "5>6"]);
    assert_eq!(ends(&s.garbage(snap("1"))), ["0>1", "5>6"]);
    assert_eq!(ends(&s.superseded(snap("1"))), ["0>1"]);
    assert_eq!(ends(&s.done_at(Gid(2))), ["0>1", "1>2"]);
}

#[test]
fn merge_lists_are_cut_by_size_and_by_gid() {
    let mut s = DiffSet::new();
    for g in 0..5 {
        let mut d = Diff::clean(Gid(g), Gid(g + 1)).unwrap();
        (d.mergeable, d.size) = (true, 10);
        s.insert(d).unwrap();
    }
    assert_eq!(s.mergeable_up_to_size(Gid(0), 30).len(), 3);
    assert_eq!(s.mergeable_up_to_size(Gid(0), 5).len(), 1);
    assert_eq!(s.mergeable_up_to(Gid(1), Gid(3)).len(), 2);
    assert_eq!(s.applicable_and_mergeable(snap("2")).len(), 3);
    assert_eq!((s.len(), s.total_bytes()), (5, 50));
    assert_eq!(s.by_time(snap("0"), u64::MAX).len(), 5);
}

#[test]
fn a_time_finds_the_last_clean_snapshot_before_it() {
    let (s, b) = (set(&EXAMPLE), base("0"));
    assert_eq!(s.restorable_at(&b, 599).unwrap().gid, Gid(5));
    assert_eq!(s.restorable_at(&b, 600).unwrap().gid, Gid(6));
    assert!(s.restorable_at(&BaseState::at(snap("0"), 50), 49).is_none());
}

#[test]
fn names_of_the_format_page_both_ways() {
    let time = 1_704_112_496; // 2024-01-01 12:34:56 UTC
    let rows = [
        ("20240101123456-M--5-10.wdiff", "5>10 M"),
        ("20240101123456----255-256.wdiff", "255>256"),
        ("20240101123456-MC-5-8-16-20.wdiff", "5,8>16,20 MC"),
        ("20240101123456-M--5-5-16-20.wdiff", "5>16,20 M"),
        ("20240101123456--C-0-18446744073709551615.wdiff", "0>18446744073709551615 C"),
    ];
    for (name, text) in rows {
        let (b, e) = text.split_once(' ').unwrap_or((text, "")).0.split_once('>').unwrap();
        let mut expected = Diff::new(snap(b), snap(e)).unwrap();
        (expected.mergeable, expected.comparison) = (text.contains('M'), text.contains('C'));
        expected.timestamp = time;
        let parsed = parse(name).unwrap();
        assert_eq!(parsed, expected, "{name}");
        let flags = |d: &Diff| (d.mergeable, d.comparison, d.timestamp, d.size);
        assert_eq!(flags(&parsed), flags(&expected), "{name}");
        assert_eq!(to_file_name(&expected).unwrap(), name);
    }
}

#[test]
fn garbage_names_are_rejected_with_the_reason() {
    let rows = [
        ("20240101123456-M--5-10.wdif", NameFault::Suffix),
        ("20240101123456-M--5-10", NameFault::Suffix),
        (".wdiff", NameFault::Shape),
        ("2024010112345-M--5-10.wdiff", NameFault::Shape),
        ("20240101123456xM--5-10.wdiff", NameFault::Shape),
        ("20240101123456-é-5-10.wdiff", NameFault::Flags),
        ("20241301123456-M--5-10.wdiff", NameFault::Time),
        ("20240230123456-M--5-10.wdiff", NameFault::Time),
        ("20240101240000-M--5-10.wdiff", NameFault::Time),
        ("19691231235959-M--5-10.wdiff", NameFault::Time),
        ("+0240101123456-M--5-10.wdiff", NameFault::Time),
        ("20240101123456-X--5-10.wdiff", NameFault::Flags),
        ("20240101123456-CM-5-10.wdiff", NameFault::Flags),
        ("20240101123456-M--5.wdiff", NameFault::GidCount(1)),
        ("20240101123456-M--5-6-7.wdiff", NameFault::GidCount(3)),
        ("20240101123456-M--5-6-7-8-9-10-11.wdiff", NameFault::GidCount(5)),
        ("20240101123456-M--5-0x10.wdiff", NameFault::Gid("0x10".into())),
        ("20240101123456-M--05-10.wdiff", NameFault::Gid("05".into())),
        ("20240101123456-M--5-+10.wdiff", NameFault::Gid("+10".into())),
        ("20240101123456-M--5-.wdiff", NameFault::Gid(String::new())),
        ("20240101123456-M--5-18446744073709551616.wdiff", {
            NameFault::Gid("18446744073709551616".into())
        }),
        ("20240101123456-M--5-5-10-10.wdiff", NameFault::LongForm),
    ];
    for (name, why) in rows {
        let err = parse(name).unwrap_err();
        assert_eq!((err.why, err.name.as_str()), (why, name));
    }
    for name in ["10-5", "5-5", "8-5-16-20", "10-20-12-15"] {
        let name = format!("20240101123456-M--{name}.wdiff");
        assert!(matches!(parse(&name).unwrap_err().why, NameFault::Algebra(_)), "{name}");
    }
}

#[test]
fn a_time_after_the_year_9999_has_no_name() {
    let mut d = diff("0>1");
    d.timestamp = 253_402_300_800;
    assert_eq!(to_file_name(&d).unwrap_err().why, NameFault::Time);
    d.timestamp = u64::MAX;
    assert_eq!(to_file_name(&d).unwrap_err().why, NameFault::Time);
    d.timestamp = 253_402_300_799;
    assert!(to_file_name(&d).is_err() || parse(&to_file_name(&d).unwrap()).is_ok());
}

#[test]
fn a_summary_says_of_a_restore_what_its_list_has() {
    let (mut s, b) = (DiffSet::new(), BaseState::at(snap("0"), 7));
    for (digit, text) in (0..).zip(EXAMPLE) {
        let mut diff = diff(text);
        diff.size = 10_u64.pow(digit);
        s.insert(diff).unwrap();
    }
    let summary = s.restore_summary(&b, Gid(5), 2).unwrap();
    assert_eq!((summary.count, summary.bytes, summary.timestamp), (4, 1111, 500));
    assert_eq!(ends(&summary.first), ["0>1", "1>2"]);
    let nothing = RestoreSummary { count: 0, bytes: 0, timestamp: 7, first: vec![] };
    assert_eq!(s.restore_summary(&b, Gid(0), 2), Ok(nothing));
    let missing = |base, gid| matches!(base, Err(DiffSetError::NoSnapshot(at, _)) if at == gid);
    assert!(missing(s.restore_summary(&b, Gid(4), 2), Gid(4)));
    assert!(missing(s.restore_summary(&base("0>5"), Gid(2), 2), Gid(2)));
    let dirty = set(&["0>1", "1>2,5"]).restore_summary(&b, Gid(2), 2);
    assert_eq!(dirty, Err(DiffSetError::Dirty(snap("2,5"))));
}
