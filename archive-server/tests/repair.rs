//! What is damaged or missing is fetched from a sibling of the same lineage, however it has merged;
//! what is whole stays whole; a lost state is rebuilt.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::pair::Pair;
use common::{Archive, Client, Device, UUID, VOLUME, filled, same, volume};
use proto::v1::restore_request::Point;
use proto::v1::{
    MergeRequest, Operation, OperationStatus, Peer, RebuildRequest, RepairRequest,
    ReplicateRequest, VerifyRequest, merge_request::Until,
};
use server_kit::error::Reason;
use std::path::Path;
use wlog_format::units::LogUuid;

/// Another log.
const NEW: LogUuid = LogUuid([9; 16]);

fn device(steps: u64) -> Device {
    let mut device = Device::new(4096, 17);
    (0..steps).for_each(|_| device.write(40));
    device
}

async fn repair(client: &mut Client, from: &Archive) -> Operation {
    let address = format!("unix:{}", from.socket.display());
    let from = Some(Peer { id: "a1".into(), address });
    let request = RepairRequest { volume: VOLUME.into(), from };
    let started = client.archive.repair(request).await.unwrap().into_inner();
    tokio::time::timeout(common::LIMIT, client.finish(&started.id)).await.unwrap()
}

async fn verify(client: &mut Client) -> Vec<proto::v1::Damage> {
    let request = VerifyRequest { volume: VOLUME.into(), ..VerifyRequest::default() };
    let started = client.archive.verify(request).await.unwrap().into_inner();
    client.finish(&started.id).await;
    client.archive.list_damage(volume()).await.unwrap().into_inner().damages
}

async fn merge(client: &mut Client, begin: u64, end: u64) {
    let until = Some(Until::GidEnd(end));
    let volume = VOLUME.into();
    let request = MergeRequest { volume, gid_begin: begin, until, ..MergeRequest::default() };
    let started = client.archive.merge(request).await.unwrap().into_inner();
    assert_eq!(client.finish(&started.id).await.status(), OperationStatus::Done);
}

async fn gids(client: &mut Client) -> Vec<u64> {
    client.restorable(true).await.into_iter().map(|s| s.gid).collect()
}

/// Every snapshot that can be restored is what the device was.
async fn all_equal(client: &mut Client, device: &Device, what: &str) {
    for gid in gids(client).await {
        let what = format!("{what}: gid {gid}");
        same(&client.restored(gid).await, &device.history[gid as usize], &what);
    }
}

fn flip(path: &Path) {
    let mut data = std::fs::read(path).unwrap();
    let at = data.len() - 4200;
    data[at] ^= 0x10;
    std::fs::write(path, data).unwrap();
}

async fn siblings(device: &Device) -> Pair {
    Pair::siblings(&self::device(0), device).await
}

type Gids = &'static [(u64, u64)];
/// A name, what the sibling merges, what is merged here, and what can be restored afterwards.
type Case = (&'static str, Gids, Gids, &'static [u64]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_wdiff_is_replaced_whatever_the_sibling_made_of_its_own() {
    let cases: [Case; 4] = [
        ("the same", &[], &[], &[0, 1, 2, 3, 4, 5, 6]),
        ("finer", &[], &[(2, 5)], &[0, 1, 2, 5, 6]),
        ("coarser", &[(1, 5)], &[], &[0, 1, 2, 5, 6]),
        ("overlapping", &[(1, 4), (4, 6)], &[(2, 5)], &[0, 1, 2, 6]),
    ];
    for (what, there, here, expected) in cases {
        let device = device(6);
        let mut pair = siblings(&device).await;
        for (begin, end) in there {
            merge(&mut pair.to, *begin, *end).await;
        }
        for (begin, end) in here {
            merge(&mut pair.from, *begin, *end).await;
        }
        let own: Vec<_> = pair.source.files(".wdiff");
        let name = own.iter().find(|n| n.contains("--2-") || n.contains("M--2-")).unwrap().clone();
        flip(&pair.source.volume_dir().join(&name));
        let damages = verify(&mut pair.from).await;
        assert_eq!(damages.len(), 1, "{what}: {damages:?}");
        let done = repair(&mut pair.from, &pair.target).await;
        assert_eq!(done.status(), OperationStatus::Done, "{what}: {done:?}");
        assert_eq!(verify(&mut pair.from).await, [], "{what}");
        assert_eq!(pair.from.get().await.error, "", "{what}");
        assert_eq!(gids(&mut pair.from).await, expected, "{what}");
        all_equal(&mut pair.from, &device, what).await;
        assert_eq!(pair.source.files(".damaged"), Vec::<String>::new(), "{what}");
        // It goes on, and is the same after a restart.
        let Pair { dirs, source, .. } = pair;
        source.kill();
        let archive = Archive::start(&dirs[0]);
        let mut client = archive.client();
        assert_eq!(client.get().await.error, "", "{what}");
        assert_eq!(gids(&mut client).await, expected, "{what}: after a restart");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_wdiff_is_fetched_before_and_after_a_restart() {
    for restarted in [false, true] {
        let what = format!("restarted: {restarted}");
        let device = device(5);
        let mut pair = siblings(&device).await;
        for gid in [2, 3] {
            let name = pair.source.files(&format!("-{}-{gid}.wdiff", gid - 1)).remove(0);
            std::fs::remove_file(pair.source.volume_dir().join(name)).unwrap();
        }
        if restarted {
            let Pair { dirs, source, target, wire, to, .. } = pair;
            source.kill();
            let source = Archive::start(&dirs[0]);
            let from = source.client();
            pair = Pair { dirs, source, target, wire, from, to };
            let known = pair.from.get().await.damages;
            assert_eq!(known.len(), 1, "the gap is known without reading: {known:?}");
            assert_eq!((known[0].first_gid, known[0].last_gid), (3, 5));
        } else {
            assert_eq!(verify(&mut pair.from).await.len(), 2);
        }
        let done = repair(&mut pair.from, &pair.target).await;
        assert_eq!(done.status(), OperationStatus::Done, "{what}: {done:?}");
        assert_eq!(pair.from.get().await.error, "", "{what}");
        assert_eq!(gids(&mut pair.from).await, [0, 1, 2, 3, 4, 5], "{what}");
        all_equal(&mut pair.from, &device, &what).await;
        let step = pair.from.send_step(&device, 5).await.unwrap();
        assert_eq!(step.result(), proto::v1::WdiffResult::TooOld, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_sibling_has_applied_is_bridged_by_a_comparison() {
    let device = device(6);
    let mut pair = siblings(&device).await;
    pair.to.apply(4).await.unwrap();
    flip(&pair.source.volume_dir().join(pair.source.files("-2-3.wdiff").remove(0)));
    assert_eq!(verify(&mut pair.from).await.len(), 1);
    let done = repair(&mut pair.from, &pair.target).await;
    assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
    // What is whole is whole, and what was harmed waits for a replication.
    assert_eq!(gids(&mut pair.from).await, [0, 1, 2]);
    all_equal(&mut pair.from, &device, "with a gap").await;
    let left = pair.from.get().await.damages;
    assert!(left.len() == 1 && left[0].file.is_empty(), "{left:?}");
    let address = format!("unix:{}", pair.source.socket.display());
    let to = Some(Peer { id: "a0".into(), address });
    let request = ReplicateRequest { volume: VOLUME.into(), to, ..ReplicateRequest::default() };
    let started = pair.to.archive.replicate(request).await.unwrap().into_inner();
    let done = pair.to.finish(&started.id).await;
    assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
    let status = pair.from.get().await;
    assert!(status.error.is_empty() && status.damages.is_empty(), "{status:?}");
    assert_eq!(status.latest, pair.to.get().await.latest);
    assert!(gids(&mut pair.from).await.starts_with(&[0, 1, 2, 4]));
    all_equal(&mut pair.from, &device, "bridged").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_history_is_refused_and_nothing_changes() {
    let device = device(4);
    let mut pair = siblings(&device).await;
    let name = pair.source.files("-2-3.wdiff").remove(0);
    flip(&pair.source.volume_dir().join(&name));
    assert_eq!(verify(&mut pair.from).await.len(), 1);
    let before = std::fs::read(pair.source.volume_dir().join(&name)).unwrap();
    // Another lineage, with the same gids and the same log.
    let (dir, other) = (tempfile::tempdir().unwrap(), self::device(4));
    let stranger = Archive::start(&dir);
    filled(&stranger, &other).await;
    let refused = repair(&mut pair.from, &stranger).await;
    assert_eq!(refused.detail.unwrap().reason(), Reason::NeedsResync);
    // The same lineage, and another log in the place of the damaged wdiff.
    let there = pair.target.volume_dir().join(pair.target.files("-2-3.wdiff").remove(0));
    std::fs::write(&there, common::wdiff(&[], NEW)).unwrap();
    let Pair { dirs, source, target, wire, mut from, .. } = pair;
    target.kill();
    let target = Archive::start(&dirs[1]);
    let refused = repair(&mut from, &target).await;
    let detail = refused.detail.unwrap();
    assert_eq!(detail.reason(), Reason::NeedsResync, "{}", refused.error);
    assert!(refused.error.contains("is of log"), "{}", refused.error);
    // The right log, and another content before it.
    target.kill();
    let base = dirs[1].path().join("a0").join(VOLUME).join("base.img");
    let image = vec![0x55; std::fs::metadata(&base).unwrap().len() as usize];
    std::fs::write(&base, image).unwrap();
    std::fs::write(&there, common::wdiff(&[], UUID)).unwrap();
    let target = Archive::start(&dirs[1]);
    let refused = repair(&mut from, &target).await;
    assert!(refused.error.contains("differs at the two"), "{}", refused.error);
    assert!(std::fs::read(source.volume_dir().join(&name)).unwrap() == before);
    assert_eq!(gids(&mut from).await.len(), 5);
    let restored = from.restore_to(Point::Gid(2), "").await.unwrap();
    assert_eq!(restored.status(), OperationStatus::Done);
    drop((wire, source));
}

fn rebuild_request(base_gid: Option<u64>) -> RebuildRequest {
    RebuildRequest { volume: VOLUME.into(), base_gid, ..RebuildRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_state_comes_back_from_its_copy_and_an_apply_goes_on() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(5));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    client.apply(2).await.unwrap();
    let before = client.get().await;
    let state = archive.volume_dir().join("state");
    let whole = client.archive.rebuild(rebuild_request(None)).await.unwrap_err();
    assert_eq!(common::reason(&whole), Reason::WrongState);
    archive.kill();
    for damaged in [false, true] {
        let text = std::fs::read_to_string(&state).unwrap();
        if damaged {
            std::fs::write(&state, text.replace("Archived", "Stopped")).unwrap();
        } else {
            std::fs::remove_file(&state).unwrap();
        }
        let archive = Archive::start(&dir);
        let mut client = archive.client();
        let broken = client.get().await;
        assert_eq!(broken.state, "Broken");
        assert!(broken.error.contains("state"), "{}", broken.error);
        let wrong = client.archive.rebuild(rebuild_request(Some(3))).await.unwrap_err();
        assert_eq!(common::reason(&wrong), Reason::BadRequest, "the copy knows better");
        client.archive.rebuild(rebuild_request(None)).await.unwrap();
        let now = client.get().await;
        assert_eq!((&now.base, &now.latest), (&before.base, &before.latest));
        assert_eq!((&now.log_uuid, &now.archive_uuid), (&before.log_uuid, &before.archive_uuid));
        assert!(!now.rebuilt.is_empty());
        all_equal(&mut client, &device, "rebuilt").await;
        assert_eq!(verify(&mut client).await, []);
        assert_eq!(client.get().await.rebuilt, "", "it is proved");
        archive.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_copy_what_no_file_tells_is_asked_for_and_told_until_it_is_proved() {
    let device = device(4);
    let mut pair = siblings(&device).await;
    pair.from.apply(1).await.unwrap();
    let before = pair.from.get().await;
    let Pair { dirs, source, target, .. } = pair;
    let base = source.volume_dir();
    source.kill();
    for name in ["state", "state-copy"] {
        std::fs::remove_file(base.join(name)).unwrap();
    }
    let source = Archive::start(&dirs[0]);
    let mut client = source.client();
    let asked = client.archive.rebuild(rebuild_request(None)).await.unwrap_err();
    assert_eq!(common::reason(&asked), Reason::BadRequest);
    assert!(asked.message().contains("the oldest wdiff begins at gid 1"), "{asked:?}");
    let nowhere = client.archive.rebuild(rebuild_request(Some(9))).await.unwrap_err();
    assert_eq!(common::reason(&nowhere), Reason::BadRequest);
    assert_eq!(client.get().await.state, "Broken", "nothing was made of a guess");
    let request =
        RebuildRequest { archive_uuid: before.archive_uuid.clone(), ..rebuild_request(Some(1)) };
    let made = client.archive.rebuild(request).await.unwrap().into_inner();
    assert_eq!((made.wdiffs, &made.latest), (3, &before.latest));
    assert_eq!(client.get().await.log_uuid, before.log_uuid);
    all_equal(&mut client, &device, "rebuilt").await;
    assert_eq!(verify(&mut client).await, []);
    assert!(client.get().await.rebuilt.contains("gid 1 is not proved"), "files prove no position");
    let done = repair(&mut client, &target).await;
    assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
    assert_eq!(client.get().await.rebuilt, "", "the content of a snapshot does");
}
