//! Killed before any step to the disk of a hash backup, a replication, a resize, a verification, a
//! repair or a rebuild, an archive has either what it had or what it was given, and the next
//! attempt goes on from there.
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

use archive_server::World;
use common::pair::{Pair, Wire};
use common::sync::snapshot;
use common::{
    Archive, Client, Device, UUID, VOLUME, filled, messages, meta, same, start_of, volume,
};
use proto::v1::{
    OperationStatus, Peer, RebuildRequest, RepairRequest, ReplicateRequest, ResizeRequest,
    VerifyRequest, WdiffResult,
};
use server_kit::durable::Fuse;
use std::path::Path;
use tempfile::TempDir;
use wlog_format::units::LogUuid;

const NEW: LogUuid = LogUuid([9; 16]);
const BLOCKS: usize = 2048;
/// More steps than any of them takes.
const STEPS_MAX: i64 = 60;

fn device(steps: u64) -> Device {
    let mut device = Device::new(BLOCKS, 3);
    (0..steps).for_each(|_| device.write(20));
    device
}

/// An archive behind a fuse.
fn fused(dir: &TempDir) -> (Archive, Fuse) {
    let fuse = Fuse::whole();
    let world = World { open_dir: fuse.dirs(), ..World::real() };
    (Archive::within(dir, common::settings(), world), fuse)
}

async fn empty_diff(client: &mut Client, begin: u64, end: u64, uuid: LogUuid) -> WdiffResult {
    let mut start = start_of(meta(begin, end), BLOCKS as u64);
    start.log_uuid = bytes::Bytes::copy_from_slice(&uuid.0);
    let reply = client.send(messages(start, &common::wdiff(&[], uuid), 5000)).await.unwrap();
    reply.result()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_backup_counts_as_a_whole() {
    let mut device = device(2);
    let old = device.now().to_vec();
    device.write(20);
    let mut whole = false;
    for steps in 0..STEPS_MAX {
        let dir = tempfile::tempdir().unwrap();
        let (archive, fuse) = fused(&dir);
        let mut client = filled(&archive, &self::device(2)).await;
        let session = client.prepare_hash(BLOCKS as u64).await.unwrap().session;
        fuse.set(steps);
        let change = proto::v1::HashSyncStart::default();
        let done = client.hash_rest(session, device.now(), NEW, (3, 5), change).await;
        let blown = fuse.is_blown();
        assert!(done.is_ok() || blown, "step {steps}: {done:?}");
        archive.kill();
        let archive = Archive::start(&dir);
        let mut client = archive.client();
        let status = client.get().await;
        let after = (status.log_uuid.to_vec(), status.latest.unwrap());
        let (before, given) = ((UUID.0.to_vec(), snapshot(2, 2)), (NEW.0.to_vec(), snapshot(3, 5)));
        assert!(after == given || (after == before && done.is_err()), "step {steps}: {status:?}");
        assert_eq!(status.error, "", "step {steps}");
        same(&client.restored(2).await, &old, "what was there");
        if after == before {
            client.hash_backup(device.now(), NEW, 5).await.unwrap();
        }
        assert_eq!(empty_diff(&mut client, 3, 5, NEW).await, WdiffResult::Stored);
        same(&client.restored(5).await, device.now(), "what was given");
        if !blown {
            whole = true;
            break;
        }
    }
    assert!(whole, "it takes more than {STEPS_MAX} steps");
}

async fn replicate(from: &mut Client, wire: &Wire, resync: bool) -> OperationStatus {
    let address = format!("unix:{}", wire.path.display());
    let to = Some(Peer { id: "a1".into(), address });
    let request = ReplicateRequest { volume: VOLUME.into(), to, resync, ..Default::default() };
    let started = from.archive.replicate(request).await.unwrap().into_inner();
    tokio::time::timeout(common::LIMIT, from.finish(&started.id)).await.unwrap().status()
}

/// The source has a hash backup, so that the log changes half-way.
async fn source(dir: &TempDir, device: &Device) -> (Archive, Client) {
    let archive = Archive::start(dir);
    let mut client = filled(&archive, &self::device(2)).await;
    client.hash_backup(device.now(), NEW, 5).await.unwrap();
    assert_eq!(empty_diff(&mut client, 3, 5, NEW).await, WdiffResult::Stored);
    (archive, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_goes_on_from_every_step() {
    let mut device = device(2);
    device.write(20);
    let from_dir = tempfile::tempdir().unwrap();
    let (_source, mut from) = source(&from_dir, &device).await;
    for resync in [false, true] {
        let mut whole = false;
        for steps in 0..STEPS_MAX {
            let what = format!("resync {resync}, step {steps}");
            let dir = tempfile::tempdir().unwrap();
            let (archive, fuse) = fused(&dir);
            let mut to = archive.client();
            to.init().await;
            if resync {
                to.full_sync(&vec![7; BLOCKS * 512], 0).await.unwrap();
                assert_eq!(empty_diff(&mut to, 0, 1, UUID).await, WdiffResult::Stored);
            }
            let wire = Wire::to(&archive, &dir);
            fuse.set(steps);
            let done = replicate(&mut from, &wire, resync).await;
            let blown = fuse.is_blown();
            assert!(done == OperationStatus::Done || blown, "{what}");
            archive.kill();
            let dir_again = tempfile::tempdir().unwrap();
            let archive = Archive::start(&dir);
            let mut to = archive.client();
            let status = to.get().await;
            assert!(["Archived", "SyncReady"].contains(&&*status.state), "{what}: {status:?}");
            let wire = Wire::to(&archive, &dir_again);
            let done = replicate(&mut from, &wire, resync && blown).await;
            assert_eq!(done, OperationStatus::Done, "{what}");
            assert_eq!(to.get().await.log_uuid, NEW.0.as_slice(), "{what}");
            same(&to.restored(5).await, device.now(), &what);
            same(&to.restored(1).await, &device.history[1], &what);
            if !blown {
                whole = true;
                break;
            }
        }
        assert!(whole, "it takes more than {STEPS_MAX} steps");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resize_is_done_or_not() {
    for steps in 0..STEPS_MAX {
        let dir = tempfile::tempdir().unwrap();
        let (archive, fuse) = fused(&dir);
        let mut client = filled(&archive, &device(1)).await;
        fuse.set(steps);
        let size_lb = BLOCKS as u64 + 2048;
        let request = ResizeRequest { volume: VOLUME.into(), size_lb };
        let done = client.archive.resize(request.clone()).await;
        let blown = fuse.is_blown();
        archive.kill();
        let archive = Archive::start(&dir);
        let mut client = archive.client();
        let status = client.get().await;
        assert_eq!(status.state, "Archived", "step {steps}: {status:?}");
        assert!(status.size_lb == size_lb || done.is_err(), "step {steps}");
        client.archive.resize(request).await.unwrap();
        let mut grown = device(1).now().to_vec();
        grown.resize(size_lb as usize * 512, 0);
        same(&client.restored(1).await, &grown, "grown");
        if !blown {
            return;
        }
    }
    panic!("it takes more than {STEPS_MAX} steps");
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (kind, to) = (entry.file_type().unwrap(), to.join(entry.file_name()));
        if kind.is_dir() {
            copy_dir(&entry.path(), &to);
        } else if kind.is_file() {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Does something at an archive that begins as `template` is and is killed before step after step,
/// until it has all the steps that it needs; `after` looks at the archive that is started then.
async fn at_every_step(
    template: &Path,
    act: impl AsyncFn(Client) -> bool,
    after: impl AsyncFn(&Archive, &str),
) {
    for steps in 0..STEPS_MAX {
        let (what, dir) = (format!("step {steps}"), tempfile::tempdir().unwrap());
        copy_dir(template, &dir.path().join("a0"));
        let (archive, fuse) = fused(&dir);
        // What it does at its start is done.
        archive.client().get().await;
        fuse.set(steps);
        let well = act(archive.client()).await;
        let blown = fuse.is_blown();
        assert!(well || blown, "{what}");
        archive.kill();
        after(&Archive::start(&dir), &what).await;
        if !blown {
            return;
        }
    }
    panic!("it takes more than {STEPS_MAX} steps");
}

async fn verify(client: &mut Client) -> bool {
    let request = VerifyRequest { volume: VOLUME.into(), ..VerifyRequest::default() };
    let started = client.archive.verify(request).await.unwrap().into_inner();
    client.finish(&started.id).await.status() == OperationStatus::Done
}

async fn damages(client: &mut Client) -> Vec<String> {
    let found = client.archive.list_damage(volume()).await.unwrap().into_inner().damages;
    found.into_iter().map(|d| d.file).collect()
}

async fn repair(client: &mut Client, from: &Archive) -> bool {
    let address = format!("unix:{}", from.socket.display());
    let from = Some(Peer { id: "a1".into(), address });
    let request = RepairRequest { volume: VOLUME.into(), from };
    let started = client.archive.repair(request).await.unwrap().into_inner();
    let done = tokio::time::timeout(common::LIMIT, client.finish(&started.id)).await.unwrap();
    done.status() == OperationStatus::Done
}

/// Two archives of one lineage, one of which has lost a wdiff, and has another one damaged.
async fn harmed(device: &Device) -> (Pair, Vec<String>) {
    let pair = Pair::siblings(&self::device(0), device).await;
    let dir = pair.source.volume_dir();
    let names = ["-2-3.wdiff", "-3-4.wdiff"].map(|n| pair.source.files(n).remove(0));
    let (flipped, gone) = (dir.join(&names[0]), dir.join(&names[1]));
    let mut data = std::fs::read(&flipped).unwrap();
    let at = data.len() - 4200;
    data[at] ^= 0x10;
    std::fs::write(&flipped, data).unwrap();
    std::fs::remove_file(gone).unwrap();
    (pair, names.to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verification_that_is_killed_changes_nothing_and_the_next_one_finds_all() {
    let device = device(5);
    let (pair, names) = harmed(&device).await;
    let Pair { dirs, source, .. } = pair;
    source.kill();
    // Not known to the catalogue: the start reads names.
    let missing = vec![String::new()];
    let act = async |mut client: Client| verify(&mut client).await;
    at_every_step(&dirs[0].path().join("a0"), act, async |archive, what| {
        let mut client = archive.client();
        let known = damages(&mut client).await;
        let expected = [missing.clone(), vec![names[0].clone(), String::new()]];
        assert!(expected.contains(&known), "{what}: {known:?}");
        for gid in 0..=2 {
            same(&client.restored(gid).await, &device.history[gid as usize], what);
        }
        assert!(verify(&mut client).await, "{what}");
        assert_eq!(damages(&mut client).await, expected[1], "{what}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repair_that_is_killed_keeps_what_is_whole_and_the_next_one_goes_on() {
    let device = device(5);
    let (mut pair, names) = harmed(&device).await;
    assert!(verify(&mut pair.from).await);
    assert_eq!(damages(&mut pair.from).await, names);
    let Pair { dirs, source, target, .. } = pair;
    source.kill();
    let act = async |mut client: Client| repair(&mut client, &target).await;
    at_every_step(&dirs[0].path().join("a0"), act, async |archive, what| {
        let mut client = archive.client();
        assert_eq!(client.get().await.state, "Archived", "{what}");
        for gid in 0..=2 {
            same(&client.restored(gid).await, &device.history[gid as usize], what);
        }
        assert!(repair(&mut client, &target).await, "{what}");
        assert!(verify(&mut client).await, "{what}");
        assert_eq!(damages(&mut client).await, Vec::<String>::new(), "{what}");
        let gids: Vec<u64> = client.restorable(true).await.iter().map(|s| s.gid).collect();
        assert_eq!(gids, [0, 1, 2, 3, 4, 5], "{what}");
        for gid in gids {
            same(&client.restored(gid).await, &device.history[gid as usize], what);
        }
        common::until("what was put aside to go", || async {
            archive.files(".damaged").is_empty().then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_is_done_or_not() {
    let device = device(4);
    for with_copy in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let archive = Archive::start(&dir);
        let mut client = filled(&archive, &device).await;
        client.apply(1).await.unwrap();
        let before = client.get().await;
        let volume_dir = archive.volume_dir();
        archive.kill();
        std::fs::remove_file(volume_dir.join("state")).unwrap();
        if !with_copy {
            std::fs::remove_file(volume_dir.join("state-copy")).unwrap();
        }
        let request = RebuildRequest {
            volume: VOLUME.into(),
            base_gid: (!with_copy).then_some(1),
            archive_uuid: if with_copy { Vec::new().into() } else { before.archive_uuid.clone() },
            ..RebuildRequest::default()
        };
        let act = async |mut client: Client| client.archive.rebuild(request.clone()).await.is_ok();
        at_every_step(&dir.path().join("a0"), act, async |archive, what| {
            let mut client = archive.client();
            let status = client.get().await;
            if status.state == "Broken" {
                // The copy is written first, and knows better than whoever says it again.
                let without = RebuildRequest { volume: VOLUME.into(), ..Default::default() };
                let again = if status.rebuildable { without } else { request.clone() };
                client.archive.rebuild(again).await.unwrap();
            }
            let now = client.get().await;
            let base = |v: &proto::v1::ArchiveVolume| v.base.map(|base| base.begin);
            assert_eq!((base(&now), now.latest), (base(&before), before.latest), "{what}");
            assert_eq!(now.archive_uuid, before.archive_uuid, "{what}");
            assert!(!now.rebuilt.is_empty(), "{what}: it is not proved");
            for gid in 1..=4 {
                same(&client.restored(gid).await, &device.history[gid as usize], what);
            }
        })
        .await;
    }
}
