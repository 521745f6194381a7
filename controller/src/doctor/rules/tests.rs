//! Every rule on hand-made looks: a group that is well, idle, busy or silent gives nothing, and
//! each failure gives its row, with steps.

use clap::Parser;
use proto::v1;
use proto::v1::{GapCause, Reason, WdiffResult};

use super::super::diagnosis::{Diagnosis, Row, Way};
use super::super::view::{Look, Seen, ServerLook};
use super::diagnose;
use crate::group::{Leg, ServerRole};

mod promises;

const UUID: [u8; 16] = [7; 16];

fn server(name: &str, role: ServerRole, wire: v1::Role, seen: Seen) -> ServerLook {
    let info = v1::HostInfo { role: wire.into(), id: name.to_owned(), ..Default::default() };
    let address = format!("unix:/{name}.sock");
    ServerLook { name: name.to_owned(), role, address, seen: Ok(Seen { info, ..seen }) }
}

fn target() -> v1::StorageVolume {
    v1::StorageVolume {
        volume: "vol0".to_owned(),
        state: "Target".to_owned(),
        device: "/c.sock#vol0".to_owned(),
        size_lb: 32768,
        log_uuid: UUID.to_vec().into(),
        log_capacity_pb: 4096,
        physical_block_bytes: 4096,
        done_gid: 9,
        ..Default::default()
    }
}

fn queue(archive: &str) -> v1::ProxyQueue {
    let info = v1::ArchiveInfo { name: archive.to_owned(), ..Default::default() };
    v1::ProxyQueue { archive: Some(info), ..Default::default() }
}

fn staged() -> v1::ProxyVolume {
    v1::ProxyVolume {
        volume: "vol0".to_owned(),
        state: "Started".to_owned(),
        queues: vec![queue("a0"), queue("a1")],
        ..Default::default()
    }
}

fn kept() -> v1::ArchiveVolume {
    let clean = |gid| Some(v1::Snapshot { gid_begin: gid, gid_end: gid });
    v1::ArchiveVolume {
        volume: "vol0".to_owned(),
        state: "Archived".to_owned(),
        size_lb: 32768,
        log_uuid: UUID.to_vec().into(),
        archive_uuid: UUID.to_vec().into(),
        base: Some(v1::BaseState { begin: clean(1), ..Default::default() }),
        latest: clean(9),
        newest_restorable_gid: 9,
        newest_restorable_s: 1_700_000_000,
        ..Default::default()
    }
}

/// s0 ships vol0, s1 holds a standby leg, both proxies send to both archives.
fn well() -> Look {
    let standby = v1::StorageVolume { state: "Standby".to_owned(), ..target() };
    let storages = |v| Seen { storages: vec![v], ..Seen::default() };
    let proxies = |v| Seen { proxies: vec![v], ..Seen::default() };
    let archives = |v| Seen { archives: vec![v], ..Seen::default() };
    let storage = |name, v| server(name, ServerRole::Storage, v1::Role::Storage, storages(v));
    let proxy = |name| server(name, ServerRole::Proxy, v1::Role::Proxy, proxies(staged()));
    let archive = |name| server(name, ServerRole::Archive, v1::Role::Archive, archives(kept()));
    let servers = vec![
        storage("s0", target()),
        storage("s1", standby),
        proxy("p0"),
        proxy("p1"),
        archive("a0"),
        archive("a1"),
    ];
    let leg = |storage: &str| Leg {
        volume: "vol0".to_owned(),
        storage: storage.to_owned(),
        device: format!("/{storage}.sock#vol0"),
    };
    Look { servers, legs: vec![leg("s0"), leg("s1")], only: None }
}

impl Look {
    fn server(&mut self, name: &str) -> &mut ServerLook {
        self.servers.iter_mut().find(|s| s.name == name).unwrap()
    }
    fn seen(&mut self, name: &str) -> &mut Seen {
        self.server(name).seen.as_mut().unwrap()
    }
    fn silence(mut self, name: &str) -> Self {
        self.server(name).seen = Err("connection refused".to_owned());
        self
    }
    fn storage(mut self, name: &str, change: impl FnOnce(&mut v1::StorageVolume)) -> Self {
        change(&mut self.seen(name).storages[0]);
        self
    }
    fn proxy(mut self, name: &str, change: impl FnOnce(&mut v1::ProxyVolume)) -> Self {
        change(&mut self.seen(name).proxies[0]);
        self
    }
    fn archive(mut self, name: &str, change: impl FnOnce(&mut v1::ArchiveVolume)) -> Self {
        change(&mut self.seen(name).archives[0]);
        self
    }
    fn forgets(mut self, name: &str) -> Self {
        let seen = self.seen(name);
        (seen.storages, seen.proxies, seen.archives) = Default::default();
        self
    }
    /// The only proxy is p0, the only archive a0, the only storage server s0.
    fn small(mut self) -> Self {
        self.servers.retain(|s| s.name.ends_with('0'));
        self.legs.clear();
        self.proxy("p0", |v| v.queues.truncate(1))
    }
    fn operation(mut self, name: &str, op: v1::Operation) -> Self {
        self.seen(name).operations.push(op);
        self
    }
}

fn failed(kind: &str, reason: Reason) -> v1::Operation {
    v1::Operation {
        kind: kind.to_owned(),
        volume: "vol0".to_owned(),
        status: v1::OperationStatus::Failed.into(),
        error: "broken off".to_owned(),
        detail: Some(v1::ErrorDetail { reason: reason.into(), ..Default::default() }),
        ..Default::default()
    }
}

fn running(kind: &str, peer: &str) -> v1::Operation {
    let status = v1::OperationStatus::Running.into();
    v1::Operation { status, peer: peer.to_owned(), ..failed(kind, Reason::Unspecified) }
}

/// The one finding of this row, with its steps as a person types them.
#[track_caller]
fn only(look: &Look, row: Row) -> (Diagnosis, Vec<String>) {
    let found = diagnose(look);
    let rows: Vec<_> = found.iter().map(|d| d.row).collect();
    assert_eq!(rows, [row], "{found:#?}");
    let found = found.into_iter().next().unwrap();
    assert!(!found.evidence.is_empty() && found.evidence.iter().all(|fact| !fact.is_empty()));
    let steps = found.steps().iter().map(|step| match step {
        super::Step::Run(command) => {
            let words = std::iter::once("walbc").chain(command.args.iter().map(String::as_str));
            let parsed = crate::cli::args::Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{command}: {}", parsed.unwrap_err());
            command.to_string()
        }
        super::Step::Person(what) => format!("({what})"),
    });
    let steps = steps.collect();
    (found, steps)
}

#[track_caller]
fn nothing(look: &Look) {
    let found = diagnose(look);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_group_that_is_well_idle_or_busy_gives_nothing() {
    nothing(&well());
    nothing(&well().small());
    let waits = |gid| {
        move |v: &mut v1::ProxyVolume| {
            for queue in &mut v.queues {
                (queue.wdiffs, queue.bytes, queue.sending) = (1, 4096, true);
                (queue.first_gid, queue.last_gid) = (Some(gid), Some(gid + 1));
            }
        }
    };
    let behind = |v: &mut v1::ArchiveVolume| {
        v.latest = Some(v1::Snapshot { gid_begin: 7, gid_end: 7 });
    };
    // The wdiffs 7-8 and 8-9 wait, each at another proxy.
    let busy = well().archive("a0", behind).archive("a1", behind);
    nothing(&busy.proxy("p0", waits(8)).proxy("p1", waits(7)));
    // During a full backup the archive has no image, and answers so to the proxies.
    let backup = well().small().storage("s0", |v| v.state = "FullSync".to_owned());
    nothing(&backup.archive("a0", |v| {
        v.state = "FullSync".to_owned();
        v.latest = None;
    }));
}

#[test]
fn a_volume_that_was_never_backed_up_or_is_retired_is_no_failure() {
    let fresh = well().small().storage("s0", |v| v.state = "Standby".to_owned());
    nothing(&fresh.forgets("p0").forgets("a0"));
    // Cleared at storage and proxies, its history kept at the archive.
    nothing(&well().small().forgets("s0").forgets("p0"));
}

#[test]
fn f1_f3_f4_f5_servers_that_do_not_answer() {
    let (found, steps) = only(&well().silence("s0"), Row::F1);
    assert!(found.evidence[0].contains("unix:/s0.sock"), "{found:?}");
    assert!(steps[0].contains("walb-storage serve") && found.is_silence());
    let (_, steps) = only(&well().silence("p1"), Row::F3);
    assert_eq!(steps[1], "walbc kick-all");
    let (found, _) = only(&well().silence("p0").silence("p1"), Row::F4);
    assert!(found.evidence.iter().any(|fact| fact.contains("s0: the log of vol0")), "{found:?}");
    only(&well().silence("a1"), Row::F5);
    only(&well().small().silence("p0"), Row::F4);
}

#[test]
fn f2_an_overflow_heals_itself_or_by_a_hash_backup() {
    let lost = |v: &mut v1::StorageVolume| {
        (v.state, v.gap_since_s, v.overflow) = ("Stopped".to_owned(), 5, true);
        v.error = "the log overflowed".to_owned();
        v.set_gap_cause(GapCause::Overflow);
    };
    let (found, steps) = only(&well().small().storage("s0", lost), Row::F2);
    assert_eq!(steps, ["walbc hash-backup s0 vol0"]);
    assert!(found.is_safe());
    let auto = well().small().storage("s0", lost).storage("s0", |v| v.auto_resync = true);
    let (found, _) = only(&auto, Row::F2);
    assert!(matches!(found.way, Way::Itself(_)));
    // Still a target: it must be stopped first; a secondary must be sent the new history.
    let target = well().storage("s0", |v| v.overflow = true);
    let (_, steps) = only(&target, Row::F2);
    assert_eq!(
        steps,
        [
            "walbc stop s0 vol0",
            "walbc hash-backup s0 vol0",
            "walbc replicate a0 vol0 a1 --synchronizing"
        ]
    );
    let (_, steps) = only(&well().storage("s1", |v| v.overflow = true), Row::F2);
    assert_eq!(steps, ["walbc stop s1 vol0", "walbc go-standby s1 vol0"]);
}

#[test]
fn f6_proxies_that_are_full_while_the_archive_is_down() {
    let refusal = |address: &str, reason: Reason| v1::ProxyRefusal {
        address: address.to_owned(),
        reason: reason.into(),
        message: "it says so".to_owned(),
    };
    let refused = |reason: Reason| {
        well().storage("s0", move |v| {
            v.refusals = vec![refusal("unix:/p0.sock", reason), refusal("unix:/p1.sock", reason)];
        })
    };
    let (_, steps) = only(&refused(Reason::NoSpace).silence("a0"), Row::F6);
    assert!(steps[0].contains("start a0 again"), "{steps:?}");
    let (_, steps) = only(&refused(Reason::NoSpace), Row::F6);
    assert!(steps[0].contains("free space") && steps[1] == "walbc kick-all", "{steps:?}");
    let (_, steps) = only(&refused(Reason::Unreachable), Row::G1);
    assert!(steps[0].contains("between s0 and p0, p1"), "{steps:?}");
    nothing(&refused(Reason::Busy));
}

#[test]
fn f7_a_device_that_lost_its_data_and_a_device_role_that_is_down() {
    let dead = |reason: Reason| {
        well().storage("s0", move |v| {
            (v.log_capacity_pb, v.size_lb) = (0, 0);
            v.error = "device has failed".to_owned();
            v.set_error_reason(reason);
        })
    };
    let (found, steps) = only(&dead(Reason::Io), Row::F7);
    assert_eq!(steps[0], "walbc stop s0 vol0");
    assert_eq!(
        steps[2..],
        ["walbc restore-to-device a0 vol0 9 s0 vol0", "walbc hash-backup s0 vol0"]
    );
    assert!(!found.is_safe());
    let (_, steps) = only(&dead(Reason::Unreachable), Row::N1);
    assert!(steps[0].contains("walb-device serve"), "{steps:?}");
}

#[test]
fn f8_a_storage_server_that_lost_its_state() {
    let (_, steps) = only(&well().small().forgets("s0"), Row::F8a);
    assert!(steps[0].starts_with("(walbc init-storage s0 vol0 --device CONTROL#vol0"), "{steps:?}");
    let mut named = well().small().forgets("s0");
    named.legs = well().legs;
    named.legs.truncate(1);
    let (_, steps) = only(&named, Row::F8a);
    assert_eq!(
        steps,
        ["walbc init-storage s0 vol0 --device /s0.sock#vol0", "walbc hash-backup s0 vol0"]
    );
    let (_, steps) = only(&well().forgets("s1"), Row::F8b);
    assert_eq!(steps, ["walbc init-storage s1 vol0 --device /s1.sock#vol0"]);
    // The silent server may hold the target.
    only(&well().forgets("s1").silence("s0"), Row::F1);
}

#[test]
fn f9_a_proxy_that_lost_what_it_had() {
    let (_, steps) = only(&well().forgets("p1"), Row::F9b);
    assert_eq!(steps, ["walbc start-synchronizing a0 vol0", "walbc start-synchronizing a1 vol0"]);
    let behind = |v: &mut v1::ArchiveVolume| {
        v.latest = Some(v1::Snapshot { gid_begin: 5, gid_end: 5 });
    };
    let lost = well().small().archive("a0", behind);
    let (found, steps) = only(&lost.clone().forgets("p0"), Row::F9a);
    assert_eq!(
        steps,
        ["walbc start-synchronizing a0 vol0", "walbc stop s0 vol0", "walbc hash-backup s0 vol0"]
    );
    assert_eq!(found.key, "5 5", "a key that moves when the archive does");
    // The wdiff 5-6 is gone, a later one waits.
    let (found, steps) = only(
        &lost.clone().proxy("p0", |v| {
            (v.queues[0].wdiffs, v.queues[0].first_gid, v.queues[0].last_gid) =
                (1, Some(6), Some(9));
        }),
        Row::F9a,
    );
    assert_eq!(steps[0], "walbc stop s0 vol0");
    assert!(found.evidence.iter().any(|fact| fact.contains("gid 5")), "{found:?}");
    let auto = lost.storage("s0", |v| v.auto_resync = true);
    assert!(matches!(only(&auto, Row::F9a).0.way, Way::Itself(_)));
    // What is missing may be at the silent one.
    only(&well().archive("a0", behind).archive("a1", behind).silence("p1"), Row::F3);
}

#[test]
fn f10_an_archive_that_lost_its_data() {
    let (_, steps) = only(&well().forgets("a1"), Row::F10x1);
    assert_eq!(steps, ["walbc replicate a0 vol0 a1 --synchronizing"]);
    let (_, steps) = only(&well().forgets("a0"), Row::F10x2);
    assert_eq!(
        steps,
        [
            "walbc promote a1",
            "walbc stop-synchronizing a0 vol0",
            "walbc replicate a1 vol0 a0 --synchronizing"
        ]
    );
    let (found, steps) = only(&well().small().forgets("a0"), Row::F10x3);
    assert_eq!(steps, ["walbc stop s0 vol0", "walbc full-backup s0 vol0"]);
    assert!(!found.is_safe(), "it drops queues");
    let broken = well().small().archive("a0", |v| {
        (v.state, v.latest) = ("Broken".to_owned(), None);
    });
    assert_eq!(only(&broken, Row::F10x3).1[0], "walbc clear a0 vol0");
}

#[test]
fn g2_n6_f5_a_proxy_that_cannot_send() {
    let with = |change: fn(&mut v1::ProxyQueue)| {
        well().proxy("p0", move |v| {
            let queue = &mut v.queues[0];
            (queue.wdiffs, queue.error) = (1, "no".to_owned());
            (queue.first_gid, queue.last_gid) = (Some(5), Some(9));
            change(queue);
        })
    };
    let cut = with(|q| q.set_error_reason(Reason::Unreachable));
    assert!(only(&cut, Row::G2).1[0].contains("between p0 and a0"));
    only(&cut.silence("a0"), Row::F5);
    only(&with(|q| q.set_error_reason(Reason::NoSpace)), Row::N6);
    let (_, steps) = only(&with(|q| q.send_error = true), Row::F5);
    assert_eq!(steps, ["walbc kick p0 vol0 a0"]);
    let damaged = with(|q| {
        q.send_error = true;
        q.set_error_reason(Reason::Damaged);
    });
    assert!(!only(&damaged, Row::F9a).0.is_safe());
    nothing(&with(|q| q.set_last_result(WdiffResult::TooNew)));
}

#[test]
fn g3_g4_g12_backups_that_broke_off() {
    let stopped = |v: &mut v1::StorageVolume| v.state = "SyncReady".to_owned();
    let empty = |v: &mut v1::ArchiveVolume| {
        (v.state, v.latest) = ("SyncReady".to_owned(), None);
    };
    let full = well().small().storage("s0", stopped).archive("a0", empty);
    let (_, steps) = only(&full, Row::G3);
    assert_eq!(steps, ["walbc full-backup s0 vol0"]);
    let resumable = full.storage("s0", |v| v.backup_resumable = true);
    let evidence = only(&resumable, Row::G3).0.evidence;
    assert!(evidence.iter().any(|fact| fact.contains("goes on where it was")), "{evidence:?}");

    let hash = well().small().storage("s0", stopped);
    let cut = failed("hash-backup", Reason::Unreachable);
    let looked = hash.clone().operation("s0", cut.clone());
    assert_eq!(only(&looked, Row::G4).1, ["walbc hash-backup s0 vol0"]);
    only(&hash.clone().operation("s0", failed("hash-backup", Reason::Io)), Row::G12);
    // Of two backups in one second the later one counts, whatever it was.
    let done = || {
        let status = v1::OperationStatus::Done.into();
        v1::Operation { status, detail: None, ..failed("full-backup", Reason::Unspecified) }
    };
    only(&hash.clone().operation("s0", done()).operation("s0", cut.clone()), Row::G4);
    only(&hash.clone().operation("s0", cut.clone()).operation("s0", done()), Row::G12);
    let reset = hash.storage("s0", |v| v.gap_since_s = 5);
    only(&reset, Row::G12);
    // A leg beside the target that somebody stopped.
    nothing(&well().storage("s1", stopped));
}

#[test]
fn g5_g6_g7_replications_that_broke_off() {
    let empty = |v: &mut v1::ArchiveVolume| {
        (v.state, v.latest) = ("SyncReady".to_owned(), None);
    };
    let unlisted = || {
        let single = |v: &mut v1::ProxyVolume| v.queues.truncate(1);
        well().proxy("p0", single).proxy("p1", single)
    };
    let full = unlisted().archive("a1", empty);
    assert_eq!(only(&full, Row::G5).1, ["walbc replicate a0 vol0 a1"]);
    nothing(&full.clone().operation("a0", running("replicate", "a1")));
    let (found, steps) = only(&full.archive("a1", |v| v.needs_resync = true), Row::G7);
    assert_eq!(steps, ["walbc replicate a0 vol0 a1 --resync"]);
    assert!(!found.is_safe());
    let behind = |v: &mut v1::ArchiveVolume| {
        v.latest = Some(v1::Snapshot { gid_begin: 5, gid_end: 5 });
    };
    let late = unlisted().archive("a1", behind);
    nothing(&late);
    let failed =
        v1::Operation { peer: "a1".to_owned(), ..failed("replicate", Reason::Unreachable) };
    assert_eq!(only(&late.operation("a0", failed), Row::G6).1, ["walbc replicate a0 vol0 a1"]);
    // It is on every list, and its log is not the one that is shipped.
    let other = well().archive("a1", |v| v.log_uuid = vec![1; 16].into());
    assert_eq!(only(&other, Row::G6).1, ["walbc replicate a0 vol0 a1 --synchronizing"]);
    // The storage server brings it along: nothing is to be typed.
    let brought = other.storage("s0", |v| v.bringing = true);
    let (found, _) = only(&brought, Row::G6);
    assert!(matches!(found.way, Way::Itself(_)), "{found:?}");
    let forked = brought.archive("a1", |v| v.archive_uuid = vec![1; 16].into());
    assert!(matches!(only(&forked, Row::G7).0.way, Way::Steps(_)), "nobody decides that by itself");
}

#[test]
fn g8_a_device_that_grew() {
    let (_, steps) = only(&well().storage("s0", |v| v.size_lb = 65536), Row::G8);
    assert_eq!(steps, ["walbc resize vol0 33554432", "walbc kick-all"]);
}

#[test]
fn g9_an_interrupted_apply_goes_on_by_itself_or_is_asked_for_again() {
    let half = |v: &mut v1::ArchiveVolume| {
        let end = Some(v1::Snapshot { gid_begin: 4, gid_end: 4 });
        v.base.as_mut().unwrap().end = end;
    };
    let look = well().archive("a0", half);
    assert_eq!(only(&look, Row::G9).1, ["walbc apply a0 vol0 4"]);
    let goes_on = look.clone().archive("a0", |v| v.running = vec!["apply".to_owned()]);
    assert!(matches!(only(&goes_on, Row::G9).0.way, Way::Itself(_)));
    nothing(&look.operation("a0", running("apply", "")));
}

#[test]
fn g10_what_the_start_of_an_archive_mended_is_told_and_no_failure() {
    let look = well().archive("a0", |v| v.mended = vec!["9.img.tmp was removed".to_owned()]);
    let found = diagnose(&look);
    assert_eq!(only(&look, Row::G10).1, Vec::<String>::new());
    assert_eq!(super::super::exit(&found), crate::Exit::Done);
    let down = diagnose(&look.silence("a1"));
    assert_eq!(super::super::exit(&down), crate::Exit::Unreachable);
}

#[test]
fn g11_a_stop_that_waits_for_queues_that_do_not_empty() {
    let waits = |v: &mut v1::ProxyVolume| {
        v.state = "WaitForEmpty".to_owned();
        v.queues[0].wdiffs = 1;
        (v.queues[0].first_gid, v.queues[0].last_gid) = (Some(5), Some(9));
    };
    nothing(&well().proxy("p0", waits));
    let stuck = well().proxy("p0", waits).proxy("p0", |v| v.queues[0].error = "no".to_owned());
    assert_eq!(
        only(&stuck, Row::G11).1,
        ["walbc stop p0 vol0 --mode force", "walbc start p0 vol0"]
    );
}

#[test]
fn neighbours_of_the_manual() {
    let stopped = well().storage("s0", |v| v.state = "Stopped".to_owned());
    assert_eq!(only(&stopped, Row::N3).1, ["walbc start s0 vol0"]);
    let stopped = well().proxy("p1", |v| v.state = "Stopped".to_owned());
    assert_eq!(only(&stopped, Row::N3).1, ["walbc start p1 vol0"]);
    let standby = |v: &mut v1::StorageVolume| v.state = "Standby".to_owned();
    assert!(only(&well().storage("s0", standby), Row::N7).1[0].starts_with("walbc hash-backup s0"));
    let differs = well().proxy("p1", |v| v.queues.truncate(1));
    assert_eq!(only(&differs, Row::N4).1, ["walbc start-synchronizing a1 vol0"]);
    let mut other = well();
    other.seen("p0").info.id = "p9".to_owned();
    only(&other, Row::N5);
    let fails = |reason: Reason| {
        well().small().archive("a0", move |v| {
            v.error = "it says so".to_owned();
            v.set_error_reason(reason);
        })
    };
    only(&fails(Reason::Damaged), Row::N2);
    only(&fails(Reason::NoSpace), Row::N6);
    let (found, steps) = only(&fails(Reason::Io), Row::N12);
    assert!(
        steps[0].starts_with('(') && !found.is_safe() && steps[1] == "walbc kick-all",
        "{steps:?}"
    );
    let other_log = well().small().archive("a0", |v| v.log_uuid = vec![1; 16].into());
    assert_eq!(only(&other_log, Row::G12).1, ["walbc stop s0 vol0", "walbc hash-backup s0 vol0"]);
}

#[test]
fn what_a_sibling_can_repair() {
    let harm = |harmed| {
        move |v: &mut v1::ArchiveVolume| {
            let (kind, file) = (v1::DamageKind::Wdiff.into(), "x.wdiff".to_owned());
            let message = "x.wdiff is damaged".to_owned();
            let (first_gid, last_gid) = (5, 9);
            let damage = v1::Damage {
                kind,
                file,
                message,
                harmed,
                first_gid,
                last_gid,
                ..Default::default()
            };
            v.damages.push(damage);
            if harmed > 0 {
                v.error = "x.wdiff is damaged".to_owned();
                v.set_error_reason(Reason::Damaged);
            }
        }
    };
    for (name, other) in [("a0", "a1"), ("a1", "a0")] {
        let steps = only(&well().archive(name, harm(3)), Row::N8).1;
        assert_eq!(steps, [format!("walbc repair {name} vol0 --from {other}")]);
    }
    // It harms nothing; nobody else has it; who has it is damaged, too.
    assert!(diagnose(&well().archive("a0", harm(0))).is_empty());
    only(&well().small().archive("a0", harm(3)), Row::N2);
    let both = diagnose(&well().archive("a0", harm(3)).archive("a1", harm(1)));
    assert!(both.iter().all(|d| d.row == Row::N2) && both.len() == 2, "{both:#?}");
}
