//! What an archive lost of its own, and what it promised and does not keep.

use super::*;

#[test]
fn n9_a_lost_state_is_rebuilt_and_nothing_is_thrown_away() {
    for name in ["a0", "a1"] {
        let look = well().archive(name, |v| {
            (v.state, v.latest, v.rebuildable) = ("Broken".to_owned(), None, true);
            v.error = "state is missing; walbc rebuild ARCHIVE vol0 makes it anew".to_owned();
            v.set_error_reason(Reason::Damaged);
        });
        let (found, steps) = only(&look, Row::N9);
        assert_eq!(
            steps,
            [format!("walbc rebuild {name} vol0"), format!("walbc verify {name} vol0")]
        );
        assert!(found.is_safe() && found.evidence[0].contains(&format!("rebuild {name} vol0")));
    }
}

#[test]
fn n10_a_point_that_is_too_old_is_named_where_nothing_else_is() {
    let stale = |v: &mut v1::ArchiveVolume| {
        (v.complete_s, v.age_limit_s, v.stale_since_s) = (1_700_000_000, 300, 1_700_000_301);
    };
    let (found, steps) = only(&well().archive("a0", stale), Row::N10);
    assert_eq!(steps, ["walbc kick-all"]);
    let fact = "a0: everything up to 2023-11-14T22:13:20Z can be restored, its limit is 5m";
    assert_eq!(found.evidence[0], fact);
    only(&well().archive("a0", stale).silence("s0"), Row::F1);
    let stopped = well().archive("a0", stale).storage("s0", |v| v.state = "Stopped".to_owned());
    only(&stopped, Row::N3);
    let unlisted = || {
        let single = |v: &mut v1::ProxyVolume| v.queues.truncate(1);
        well().proxy("p0", single).proxy("p1", single).archive("a1", stale)
    };
    let behind = |v: &mut v1::ArchiveVolume| {
        v.latest = Some(v1::Snapshot { gid_begin: 5, gid_end: 5 });
    };
    let (_, steps) = only(&unlisted().archive("a1", behind), Row::N10);
    assert_eq!(steps, ["walbc replicate a0 vol0 a1"]);
    let (_, steps) = only(&unlisted(), Row::N10);
    assert!(steps[0].contains("walbc freshness a1 vol0 off"), "{steps:?}");
}

#[test]
fn n11_what_an_archive_does_by_itself_and_cannot() {
    let status = |error: &str, next_step: &str| v1::TaskStatus {
        error: error.to_owned(),
        next_step: next_step.to_owned(),
        failures: 3,
        ..Default::default()
    };
    let thins = |v: &mut v1::ArchiveVolume| {
        let thinning = Some(status("it broke", "walbc gc ARCHIVE vol0"));
        v.upkeep = Some(v1::Upkeep { thinning, ..Default::default() });
    };
    let (found, steps) = only(&well().archive("a0", thins), Row::N11);
    assert_eq!(steps, ["(walbc gc a0 vol0)"]);
    assert!(found.evidence[0].contains("a0: the retention fails: it broke"), "{found:?}");
    let sends = |v: &mut v1::ArchiveVolume| {
        let to = Some(v1::Peer { id: "a1".to_owned(), ..Default::default() });
        let schedule = Some(v1::ReplicationSchedule { to, ..Default::default() });
        let status = Some(status("no way", ""));
        let replication = v1::ScheduledReplication { schedule, status, ..Default::default() };
        v.upkeep = Some(v1::Upkeep { replications: vec![replication], ..Default::default() });
    };
    let (found, _) = only(&well().archive("a0", sends), Row::N11);
    assert!(matches!(found.way, Way::Itself(_)), "{found:?}");
    only(&well().archive("a0", sends).silence("a1"), Row::F5);
}
