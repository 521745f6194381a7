//! The sequences of semantics.md §6.2 to §6.6, against servers that only pretend: what is asked of
//! whom in which order, what is refused with which way out, and what lost answers do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

mod common;

use common::Doubles;
use controller::ops::backup::{FullBackupOptions, full_backup};
use controller::ops::hash::{HashBackupOptions, hash_backup};
use controller::ops::replicate::{ReplicateOptions, replicate};
use controller::ops::{Event, device, look, peers, recover, resize, setup, sync};
use controller::{ControlError, Exit};
use proto::v1::{Operation, OperationStatus, Peer, Peers, StopMode};

const ALL: &[&str] = &["s0", "s1", "p0", "p1", "a0", "a1"];

/// A target at s0 that a0 holds, with nothing on the way.
async fn target(state: &str) -> Doubles {
    let doubles = Doubles::start(ALL).await;
    doubles.leg("s0", state);
    doubles.image("a0", "Archived", 5);
    doubles.list(&["p0", "p1"], &["a0"]);
    doubles
}

async fn hash(doubles: &Doubles) -> (Result<u64, ControlError>, Vec<String>) {
    let mut notes = Vec::new();
    let watch = &mut |event: Event<'_>| {
        if let Event::Note(text) = event {
            notes.push(text.to_owned());
        }
    };
    let options = HashBackupOptions { everything: true, scan_bytes_per_s: 77 };
    let done = hash_backup(&doubles.ctl, "s0", "v", options, watch).await;
    (done, notes)
}

async fn full(doubles: &Doubles) -> Result<u64, ControlError> {
    full_backup(&doubles.ctl, "s0", "v", FullBackupOptions::default(), &mut |_| {}).await
}

#[tokio::test]
async fn a_hash_backup_starts_from_every_state_that_allows_it() {
    for (state, first) in
        [("SyncReady", None), ("Standby", Some("s0 stop Graceful")), ("Stopped", None)]
    {
        let doubles = target(state).await;
        let (gid, notes) = hash(&doubles).await;
        assert_eq!(gid.unwrap(), 9, "{state}");
        let backup = "s0 hash-backup everything=true rate=77";
        let expected: Vec<_> = first.into_iter().chain([backup]).collect();
        assert_eq!(doubles.calls(), expected, "{state}: the lists are as they should be");
        assert!(notes.is_empty(), "{notes:?}");
    }
}

#[tokio::test]
async fn what_keeps_a_hash_backup_from_starting_is_said_and_nothing_is_changed() {
    for (leg, other, image, way_out) in [
        ("Target", "Clear", "Archived", "walbc stop s0 v"),
        ("Clear", "Clear", "Archived", "walbc init-storage s0 v"),
        ("Damaged", "Clear", "Archived", "walbc status v"),
        ("Stopped", "Target", "Archived", "walbc go-standby s1 v"),
        ("Stopped", "Standby", "Stopped", "walbc start a0 v"),
        ("Stopped", "Standby", "SyncReady", "walbc full-backup s0 v"),
        ("Stopped", "Standby", "Clear", "walbc full-backup s0 v"),
    ] {
        let doubles = target(leg).await;
        doubles.leg("s1", other);
        doubles.image("a0", image, 5);
        let error = hash(&doubles).await.0.unwrap_err();
        assert!(error.to_string().contains(way_out), "{error}");
        assert_eq!(error.exit(), Exit::Failed);
        assert_eq!(doubles.calls(), [""; 0], "{leg} {other} {image}");
    }
    let doubles = target("Stopped").await;
    doubles.world.lock().legs.get_mut("s0").unwrap().size_lb = 4096;
    let error = hash(&doubles).await.0.unwrap_err().to_string();
    assert!(error.contains("walbc resize v 2097152"), "{error}");
    assert_eq!(doubles.calls(), [""; 0]);
}

#[tokio::test]
async fn a_hash_backup_keeps_all_queues_and_who_follows_at_one_proxy_follows_at_all() {
    let doubles = target("Stopped").await;
    doubles.list(&["p0"], &["a0"]);
    doubles.list(&["p1"], &["a0", "a1"]);
    let (gid, notes) = hash(&doubles).await;
    gid.unwrap();
    assert_eq!(doubles.calls_of("delete"), [""; 0]);
    assert_eq!(doubles.calls_of("add"), ["p0 a1"]);
    let calls = doubles.calls();
    let at = |what: &str| calls.iter().position(|call| call.starts_with(what)).unwrap();
    assert!(at("p0 add") < at("s0 hash-backup"), "before the new log begins: {calls:?}");
    assert!(notes[0].contains("a1 comes along by itself"), "{notes:?}");
    for archive in ["a0", "a1"] {
        assert!(sync::is_synchronizing(&doubles.ctl, archive, "v").await.unwrap());
    }
    for proxy in ["p0", "p1"] {
        assert_eq!(doubles.world.lock().proxies[proxy].state, "Started");
    }
}

#[tokio::test]
async fn what_the_primary_can_still_get_is_sent_before_the_log_is_reset() {
    let doubles = target("Stopped").await;
    doubles.world.lock().proxies.get_mut("p1").unwrap().queues[0].wdiffs = 3;
    doubles.refuse("s0 hash-backup");
    hash(&doubles).await.0.unwrap_err();
    let left = doubles.world.lock().proxies["p1"].queues[0].wdiffs;
    assert_eq!(left, 0, "sent although the backup then failed: it came before it");
}

#[tokio::test]
async fn a_proxy_that_is_down_does_not_keep_a_volume_unprotected() {
    // p9 is in the group and nobody serves it.
    let doubles = Doubles::start(&["s0", "p0", "a0"]).await;
    doubles.leg("s0", "Stopped");
    doubles.image("a0", "Archived", 5);
    let file = format!(
        "[[server]]\nname='s0'\nrole='storage'\naddress='{}'\n[[server]]\nname='p9'\nrole='proxy'\n\
         address='unix:/nonexistent/p9'\n[[server]]\nname='p0'\nrole='proxy'\naddress='{}'\n\
         [[server]]\nname='a0'\nrole='archive'\naddress='{}'\n",
        doubles.address("s0"),
        doubles.address("p0"),
        doubles.address("a0"),
    );
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("walb.toml"), file).unwrap();
    let group = controller::Group::load(&dir.path().join("walb.toml")).unwrap();
    let ctl = controller::Controller::new(group);
    let mut notes = Vec::new();
    let watch = &mut |event: Event<'_>| {
        if let Event::Note(text) = event {
            notes.push(text.to_owned());
        }
    };
    let gid = hash_backup(&ctl, "s0", "v", HashBackupOptions::default(), watch).await.unwrap();
    assert_eq!(gid, 9);
    assert!(notes.iter().any(|note| note.contains("walbc start-synchronizing a0 v")), "{notes:?}");
}

#[tokio::test]
async fn lost_answers_are_looked_after_and_nothing_is_done_twice() {
    let doubles = target("Standby").await;
    doubles.list(&["p0"], &["a0"]);
    doubles.list(&["p1"], &[]);
    for lost in ["s0 stop", "p1 stop", "p1 add", "p1 start", "s0 hash-backup"] {
        doubles.lose(lost);
    }
    assert_eq!(hash(&doubles).await.0.unwrap(), 9);
    doubles.list(&["p0"], &["a0", "a1"]);
    for lost in ["p0 stop", "p0 delete"] {
        doubles.lose(lost);
    }
    sync::stop_synchronizing(&doubles.ctl, "a1", "v").await.unwrap();
    assert!(doubles.world.lock().lose.is_empty(), "each was lost once");
    for method in ["delete", "add", "hash-backup"] {
        assert_eq!(doubles.calls_of(method).len(), 1, "{method}: {:?}", doubles.calls());
    }
}

fn operation(status: OperationStatus, gid: u64) -> Operation {
    let mut operation = Operation {
        id: "hash-backup-x".into(),
        kind: "hash-backup".into(),
        volume: "v".into(),
        gid: Some(gid),
        ..Default::default()
    };
    operation.set_status(status);
    operation
}

#[tokio::test]
async fn a_backup_that_was_begun_before_is_waited_for() {
    let running = target("HashSync").await;
    let op = operation(OperationStatus::Running, 7);
    running.world.lock().operations.insert("s0".into(), vec![op]);
    running.image("a0", "Archived", 7);
    assert_eq!(hash(&running).await.0.unwrap(), 7);
    assert_eq!(running.calls(), [""; 0]);

    // It has ended; whoever asked was killed before its snapshot could be restored.
    let ended = target("Target").await;
    let op = operation(OperationStatus::Done, 7);
    ended.world.lock().operations.insert("s0".into(), vec![op]);
    let arrives = async {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        ended.image("a0", "Archived", 8);
    };
    let (done, ()) = futures::join!(hash(&ended), arrives);
    assert_eq!(done.0.unwrap(), 7);
    assert_eq!(ended.calls(), [""; 0]);
    // Typed again: done, with the same gid, once all that was shipped since has arrived.
    ended.world.lock().legs.get_mut("s0").unwrap().done_gid = 10;
    let arrives = async {
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
        ended.image("a0", "Archived", 10);
    };
    let (done, ()) = futures::join!(hash(&ended), arrives);
    assert_eq!(done.0.unwrap(), 7);
    assert_eq!(ended.world.lock().images["a0"].newest_restorable_gid, 10, "it was waited for");
    assert_eq!(ended.calls(), [""; 0]);
}

#[tokio::test]
async fn a_hash_backup_typed_again_is_refused_when_something_was_lost_since() {
    type Loss = fn(&Doubles);
    let losses: [(&str, Loss); 5] = [
        ("the archive has lost its data", |d| d.image("a0", "Clear", 0)),
        ("another log", |d| {
            d.world.lock().legs.get_mut("s0").unwrap().log_uuid = vec![9; 16].into();
        }),
        ("a gap", |d| d.world.lock().legs.get_mut("s0").unwrap().gap_since_s = 5),
        ("a proxy does not feed the archive", |d| d.list(&["p1"], &[])),
        ("no proxy feeds it", |d| d.list(&["p0", "p1"], &[])),
    ];
    for (why, lose) in losses {
        let doubles = target("Target").await;
        let op = operation(OperationStatus::Done, 5);
        doubles.world.lock().operations.insert("s0".into(), vec![op]);
        assert_eq!(hash(&doubles).await.0.unwrap(), 5, "nothing was lost");
        lose(&doubles);
        let error = hash(&doubles).await.0.unwrap_err().to_string();
        assert!(error.contains("walbc stop s0 v"), "{why}: {error}");
        assert_eq!(doubles.calls(), [""; 0], "{why}");
    }
}

#[tokio::test]
async fn the_storage_server_says_which_archive_is_the_primary() {
    let doubles = target("Stopped").await;
    doubles.image("a1", "Archived", 6);
    let archive = Some(Peer { id: String::new(), address: doubles.address("a1") });
    let named = Peers { archive, proxies: Vec::new() };
    doubles.world.lock().peers.insert("s0".into(), named);
    let (gid, notes) = hash(&doubles).await;
    gid.unwrap();
    assert_eq!(doubles.calls_of("add"), ["p0 a1", "p1 a1"]);
    assert!(notes[0].contains("a0 comes along by itself: a1 replicates"), "{notes:?}");
    let unknown = Some(Peer { id: "a7".into(), address: "127.0.0.1:7".into() });
    let named = Peers { archive: unknown, proxies: Vec::new() };
    doubles.world.lock().peers.insert("s0".into(), named);
    let error = hash(&doubles).await.0.unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:7") && error.contains("walbc set-peers s0"), "{error}");
}

#[tokio::test]
async fn an_interrupted_full_backup_is_forgotten_before_what_it_shipped_is_dropped() {
    let doubles = target("SyncReady").await;
    doubles.image("a0", "SyncReady", 0);
    doubles.list(&["p0"], &["a0"]);
    doubles.list(&["p1"], &[]);
    doubles.world.lock().legs.get_mut("s0").unwrap().backup_resumable = true;
    // The lists differ, so it starts anew; it is killed after p0 has dropped its queue and has the
    // archive again, as p1 has: everything looks as if nothing had been dropped.
    doubles.refuse("s0 full-backup");
    full(&doubles).await.unwrap_err();
    let calls = doubles.calls();
    let at = |what: &str| calls.iter().position(|call| call == what).unwrap();
    assert!(at("s0 forget-backup") < at("p0 delete a0"), "{calls:?}");
    assert!(sync::is_synchronizing(&doubles.ctl, "a0", "v").await.unwrap());
    full(&doubles).await.unwrap();
    assert_eq!(doubles.calls_of("full-backup"), ["s0 resume=false"]);
}

#[tokio::test]
async fn a_full_backup_is_resumed_when_nothing_was_dropped() {
    let doubles = target("SyncReady").await;
    doubles.image("a0", "SyncReady", 0);
    doubles.world.lock().legs.get_mut("s0").unwrap().backup_resumable = true;
    assert_eq!(full(&doubles).await.unwrap(), 1);
    assert_eq!(doubles.calls(), ["s0 full-backup resume=true"]);
}

#[tokio::test]
async fn a_full_backup_does_not_throw_history_away() {
    let doubles = target("SyncReady").await;
    let error = full(&doubles).await.unwrap_err().to_string();
    assert!(error.contains("walbc hash-backup") && error.contains("walbc reset a0 v"), "{error}");
    assert_eq!(doubles.calls(), [""; 0]);
}

#[tokio::test]
async fn a_leg_goes_standby_from_where_it_is() {
    for (state, expected) in [
        ("Standby", &[][..]),
        ("SyncReady", &["s0 start Standby"]),
        ("Stopped", &["s0 reset", "s0 start Standby"]),
        ("Target", &["s0 stop Force", "s0 reset", "s0 start Standby"]),
    ] {
        let doubles = target(state).await;
        setup::go_standby(&doubles.ctl, "s0", "v").await.unwrap();
        assert_eq!(doubles.calls(), expected, "{state}: the proxies keep what they have");
    }
    for (state, way_out) in [("Clear", "walbc init-storage"), ("HashSync", "walbc operations")] {
        let error = setup::go_standby(&target(state).await.ctl, "s0", "v").await.unwrap_err();
        assert!(error.to_string().contains(way_out), "{error}");
    }
}

#[tokio::test]
async fn clearing_stops_and_resets_what_has_to_be() {
    let doubles = target("Target").await;
    for server in ["s0", "p0", "a0", "a1"] {
        setup::clear(&doubles.ctl, server, "v").await.unwrap();
    }
    let expected = [
        "s0 stop Force",
        "s0 reset",
        "s0 clear",
        "p0 stop Force",
        "p0 clear",
        "a0 stop Force",
        "a0 clear",
    ];
    assert_eq!(doubles.calls(), expected);
}

#[tokio::test]
async fn starting_what_runs_and_stopping_what_is_stopped_is_done_at_once() {
    let doubles = target("Target").await;
    doubles.leg("s1", "Stopped");
    doubles.image("a1", "Stopped", 5);
    for server in ["s0", "p0", "a0"] {
        setup::start(&doubles.ctl, server, "v").await.unwrap();
    }
    for server in ["s1", "a1"] {
        setup::stop(&doubles.ctl, server, "v", StopMode::Graceful).await.unwrap();
    }
    assert_eq!(doubles.calls(), [""; 0]);
}

#[tokio::test]
async fn storage_servers_are_kicked_with_all_proxies_and_proxies_alone() {
    let doubles = target("Target").await;
    let kicked = async |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let kicked = recover::kick_all(&doubles.ctl, &names).await.unwrap();
        kicked.into_iter().map(|k| k.server).collect::<Vec<_>>()
    };
    assert_eq!(kicked(&[]).await, ["s0", "s1", "p0", "p1"]);
    assert_eq!(kicked(&["s1"]).await, ["s1", "p0", "p1"]);
    assert_eq!(kicked(&["p1"]).await, ["p1"]);
    assert_eq!(kicked(&["s0", "p1"]).await, ["s0", "p1"]);
}

#[tokio::test]
async fn a_server_that_hangs_does_not_hide_the_others() {
    let doubles = target("Target").await;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("a9");
    // It takes connections and never says a word.
    let _hangs = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let entry = |name: &str, role: &str, address: &str| {
        format!("[[server]]\nname = {name:?}\nrole = {role:?}\naddress = {address:?}\n")
    };
    let file = entry("a9", "archive", &format!("unix:{}", socket.display()))
        + &entry("s0", "storage", &doubles.address("s0"));
    std::fs::write(dir.path().join("walb.toml"), file).unwrap();
    let group = controller::Group::load(&dir.path().join("walb.toml")).unwrap();
    let ctl = controller::Controller::new(group);
    let limit = std::time::Duration::from_secs(10);
    let status = tokio::time::timeout(limit, look::status(&ctl, None)).await.unwrap();
    assert_eq!(status.volumes[0].views[0].0, "s0");
    assert_eq!(status.exit(), Exit::Unreachable);
    assert!(status.unreachable[0].to_string().contains("a9"), "{:?}", status.unreachable);
}

#[tokio::test]
async fn init_storage_goes_on_where_it_was_killed() {
    let doubles = Doubles::start(ALL).await;
    doubles.refuse("s0 start");
    let init = async || setup::init_storage(&doubles.ctl, "s0", "v", "/run/c").await;
    init().await.unwrap_err();
    init().await.unwrap();
    init().await.unwrap();
    assert_eq!(doubles.calls(), ["s0 init /run/c#v", "s0 start Standby"]);
}

#[tokio::test]
async fn a_new_follower_gets_what_the_proxies_took_in_before_it_was_listed() {
    let doubles = target("Target").await;
    doubles.world.lock().proxies.get_mut("p1").unwrap().queues[0].last_gid = Some(8);
    let arrives = async {
        while doubles.calls_of("add").len() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        doubles.image("a0", "Archived", 8);
    };
    let options = ReplicateOptions { synchronizing: true, ..Default::default() };
    let watch = &mut |_: Event<'_>| {};
    let replicated = replicate(&doubles.ctl, "a0", "v", "a1", options, watch);
    let (gid, ()) = futures::join!(replicated, arrives);
    assert_eq!(gid.unwrap(), 8);
    let changes = |call: &String| {
        call.contains("replicate") || call.contains("add") || call.starts_with("a1")
    };
    let calls: Vec<_> = doubles.calls().into_iter().filter(changes).collect();
    let expected = [
        "a1 init",
        "a0 replicate a1 gid=5 resync=false",
        "p0 add a1",
        "p1 add a1",
        "a0 replicate a1 gid=8 resync=false",
    ];
    assert_eq!(calls, expected);
}

#[tokio::test]
async fn an_archive_that_nobody_feeds_cannot_lead_another() {
    let doubles = target("Target").await;
    doubles.list(&["p0", "p1"], &[]);
    let options = ReplicateOptions { synchronizing: true, ..Default::default() };
    let error = replicate(&doubles.ctl, "a0", "v", "a1", options, &mut |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("walbc start-synchronizing a0 v"), "{error}");
    assert_eq!(doubles.calls(), [""; 0]);
}

#[tokio::test]
async fn a_volume_grows_at_the_archives_first_and_never_shrinks() {
    let doubles = target("Target").await;
    doubles.leg("s1", "Standby");
    doubles.image("a1", "SyncReady", 0);
    doubles.lose("a0 resize");
    let done = resize::resize(&doubles.ctl, "v", 2 << 20).await.unwrap();
    let servers: Vec<_> = done.iter().map(|r| (r.server.as_str(), r.old_bytes)).collect();
    assert_eq!(servers, [("a0", 1 << 20), ("s0", 1 << 20), ("s1", 1 << 20)]);
    let expected = ["a0 resize 4096", "a0 resize 4096", "s0 resize 4096", "s1 resize 4096"];
    assert_eq!(doubles.calls(), expected, "once more after the lost answer");
    let error = resize::resize(&doubles.ctl, "v", 1 << 20).await.unwrap_err();
    assert!(error.to_string().contains("only grow"), "{error}");
    assert_eq!(doubles.calls().len(), 4, "nothing was changed");
}

#[tokio::test]
async fn promoting_tells_every_storage_server_and_keeps_its_proxies() {
    let doubles = target("Target").await;
    doubles.leg("s1", "Standby");
    let p1 = Peer { id: "p1".into(), address: doubles.address("p1") };
    let a0 = Peer { id: "a0".into(), address: doubles.address("a0") };
    let named = Peers { archive: Some(a0), proxies: vec![p1] };
    doubles.world.lock().peers.insert("s0".into(), named);
    doubles.lose("s1 set-peers");
    let mut notes = Vec::new();
    let watch = &mut |event: Event<'_>| {
        if let Event::Note(text) = event {
            notes.push(text.to_owned());
        }
    };
    let told = peers::promote(&doubles.ctl, "a1", watch).await.unwrap();
    assert_eq!(doubles.calls_of("set-peers"), ["s0 a1 p1", "s1 a1 p0,p1", "s1 a1 p0,p1"]);
    assert_eq!(told.len(), 2);
    assert!(told[0].differs.as_ref().unwrap().contains("a0"), "{told:?}");
    assert!(notes.iter().any(|note| note.contains("before the other archives")), "{notes:?}");
}

#[tokio::test]
async fn peers_come_from_the_group_file_where_they_are_not_given() {
    let doubles = target("Target").await;
    let set = async |storages: &[String], archive, proxies: &[String]| {
        peers::set_peers(&doubles.ctl, storages, archive, proxies).await
    };
    let told = set(&[], None, &[]).await.unwrap();
    assert_eq!(told[0].differs, None);
    set(&["s1".into()], Some("a1"), &["p1".into(), "p0".into()]).await.unwrap();
    let calls = doubles.calls_of("set-peers");
    assert_eq!(calls, ["s0 a0 p0,p1", "s1 a0 p0,p1", "s1 a1 p1,p0"]);
    let error = set(&[], Some("p0"), &[]).await.unwrap_err();
    assert_eq!(error.exit(), Exit::Usage);
}

#[tokio::test]
async fn a_device_is_named_by_its_volume_or_its_address() {
    let doubles = target("Stopped").await;
    let restore = async |name: &str| {
        let snapshot = ("a0", "v", 5);
        device::restore_to_device(&doubles.ctl, snapshot, "s0", name, &mut |_| {}).await
    };
    restore("v").await.unwrap();
    restore("/run/other#w").await.unwrap();
    let calls = doubles.calls_of("restore-to-device");
    assert_eq!(calls, ["s0 /run/c#v a0 v 5", "s0 /run/other#w a0 v 5"]);
}
