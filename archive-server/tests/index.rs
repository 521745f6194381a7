//! The index of a volume: snapshots that many wdiffs lead to are read through it, and it follows
//! the wdiffs, mends itself, and survives kills.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use archive_server::{FileImages, Settings, World};
use common::{
    Archive, Client, Device, VOLUME, files, messages, meta, reason, same, start_of, until,
};
use proto::v1::merge_request::Until;
use proto::v1::mount_request::Point;
use proto::v1::{
    MergeRequest, MountRequest, Mounted, OperationStatus, ReadSnapshotRequest, SetExplicitRequest,
    UnmountRequest, WdiffResult,
};
use server_kit::durable::Fuse;
use server_kit::error::Reason;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

/// Few wdiffs to a run, so that a small history has many.
fn settings() -> Settings {
    Settings { index_batch: 3, max_open: 8, ..common::settings() }
}

fn started(dir: &TempDir) -> Archive {
    Archive::with(dir, settings(), Arc::new(FileImages))
}

fn device(steps: u64) -> Device {
    let mut device = Device::new(1024, 77);
    (0..steps).for_each(|_| device.write(12));
    device
}

async fn send(client: &mut Client, device: &Device, gid: u64) {
    let mut diff = meta(gid - 1, gid);
    diff.mergeable = true;
    let sent = messages(start_of(diff, device.size_lb()), &device.wdiff(gid), 1000);
    assert_eq!(client.send(sent).await.unwrap().result(), WdiffResult::Stored);
}

async fn filled(archive: &Archive, device: &Device) -> Client {
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    for gid in 1..=device.gid() {
        send(&mut client, device, gid).await;
    }
    client
}

fn index_dir(archive: &Archive) -> PathBuf {
    archive.volume_dir().join("index")
}

fn runs(archive: &Archive) -> Vec<String> {
    files(&index_dir(archive), ".run")
}

/// What the runs hold: a new one may have the name of one that is gone.
fn contents(archive: &Archive) -> Vec<Vec<u8>> {
    runs(archive).iter().map(|name| std::fs::read(index_dir(archive).join(name)).unwrap()).collect()
}

async fn mount(client: &mut Client, gid: u64) -> Mounted {
    let (volume, point) = (VOLUME.into(), Some(Point::Gid(gid)));
    let request = MountRequest { volume, point, ..MountRequest::default() };
    client.archive.mount(request).await.unwrap().into_inner()
}

async fn unmount(client: &mut Client, mounted: &Mounted) {
    let request = UnmountRequest { volume: VOLUME.into(), id: mounted.id.clone() };
    client.archive.unmount(request).await.unwrap();
}

/// The whole of a mount, in reads that end anywhere.
async fn read(mounted: &Mounted) -> Vec<u8> {
    let (_, socket) = mounted.uri.split_once("socket=").unwrap();
    let nbd = block_io::nbd::Client::unix(socket, VOLUME).await.unwrap();
    let (size, mut image) = (mounted.size_bytes as usize, Vec::new());
    while image.len() < size {
        let len = (37 * 512).min(size - image.len()) as u32;
        image.extend_from_slice(&nbd.read(image.len() as u64, len).await.unwrap());
    }
    image
}

/// Mounts these snapshots and compares them.
async fn check(client: &mut Client, device: &Device, gids: impl IntoIterator<Item = u64>) {
    for gid in gids {
        let mounted = mount(client, gid).await;
        same(&read(&mounted).await, &device.history[gid as usize], &format!("mount of gid {gid}"));
        unmount(client, &mounted).await;
    }
}

async fn merge(client: &mut Client, begin: u64, end: u64) {
    let until = Some(Until::GidEnd(end));
    let request =
        MergeRequest { volume: VOLUME.into(), gid_begin: begin, until, ..Default::default() };
    let merge = client.archive.merge(request).await.unwrap().into_inner();
    assert_eq!(client.finish(&merge.id).await.status(), OperationStatus::Done);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_follows_receive_merge_rename_apply_and_restart() {
    let (dir, mut device) = (tempfile::tempdir().unwrap(), device(70));
    let archive = started(&dir);
    let mut client = filled(&archive, &device).await;
    // By itself, without anybody who reads; eight of like size become one.
    until("the runs", || async { (!runs(&archive).is_empty()).then_some(()) }).await;
    check(&mut client, &device, (0..=70).step_by(5)).await;
    until("few runs", || async { (runs(&archive).len() <= 8).then_some(()) }).await;
    let open = mount(&mut client, 64).await;
    let kept = SetExplicitRequest { volume: VOLUME.into(), gids: vec![40, 64], is_explicit: true };
    client.archive.set_explicit(kept).await.unwrap();
    check(&mut client, &device, [39, 40, 41, 64, 70]).await;
    merge(&mut client, 0, 40).await;
    check(&mut client, &device, [40, 41, 69]).await;
    assert_eq!(client.apply(40).await.unwrap().status(), OperationStatus::Done);
    check(&mut client, &device, [40, 50, 64, 70]).await;
    same(&read(&open).await, &device.history[64], "a mount from before all that");
    unmount(&mut client, &open).await;
    archive.kill();
    let archive = started(&dir);
    let mut client = archive.client();
    let before = runs(&archive);
    check(&mut client, &device, [40, 55, 70]).await;
    assert_eq!(runs(&archive), before, "a restart has the index that was there");
    device.write(12);
    send(&mut client, &device, 71).await;
    check(&mut client, &device, [70, 71]).await;
    // What nobody can read any more is not kept.
    assert_eq!(client.apply(71).await.unwrap().status(), OperationStatus::Done);
    until("the index to be empty", || async { runs(&archive).is_empty().then_some(()) }).await;
    same(&client.restored(71).await, device.now(), "the applied image");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_index_is_made_again_under_its_readers() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(20));
    let archive = started(&dir);
    let mut client = filled(&archive, &device).await;
    until("the runs", || async { (!runs(&archive).is_empty()).then_some(()) }).await;
    check(&mut client, &device, [20]).await;
    archive.kill();
    let index = dir.path().join("a0").join(VOLUME).join("index");
    let damage = |names: &[String], at: fn(usize) -> usize| -> Vec<Vec<u8>> {
        let damage = |name: &String| {
            let mut bytes = std::fs::read(index.join(name)).unwrap();
            let at = at(bytes.len());
            bytes[at] ^= 0x10;
            std::fs::write(index.join(name), &bytes).unwrap();
            bytes
        };
        names.iter().map(damage).collect()
    };
    // At its end it is found when it is opened, in its first block when that is read.
    for at in [|len| len - 4000, |_| 100] {
        let archive = started(&dir);
        let mut client = archive.client();
        let (mounted, old) = (mount(&mut client, 20).await, runs(&archive));
        unmount(&mut client, &mounted).await;
        archive.kill();
        let damaged = damage(&old, at);
        let archive = started(&dir);
        let mut client = archive.client();
        check(&mut client, &device, [20, 13, 0]).await;
        let new = contents(&archive);
        assert!(!new.is_empty() && new.iter().all(|run| !damaged.contains(run)), "{old:?}");
    }
    // Files that are none, of a version to come, and half-made ones.
    std::fs::write(index.join("ffff.run"), [7; 8192]).unwrap();
    std::fs::write(index.join("x.tmp"), [7; 100]).unwrap();
    let archive = started(&dir);
    let mut client = archive.client();
    check(&mut client, &device, [20, 7]).await;
    assert!(!index.join("ffff.run").exists() && !index.join("x.tmp").exists());
    // All of it taken away under a mount that has it open, and under the next one.
    let mounted = mount(&mut client, 19).await;
    std::fs::remove_dir_all(&index).unwrap();
    same(&read(&mounted).await, &device.history[19], "without a name");
    check(&mut client, &device, [19, 20]).await;
    assert!(!runs(&archive).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wdiff_that_took_the_place_of_another_one_is_read_as_it_is() {
    let (dir, mut device) = (tempfile::tempdir().unwrap(), device(7));
    let archive = started(&dir);
    let mut client = filled(&archive, &device).await;
    check(&mut client, &device, [7]).await;
    until("the runs", || async { (!runs(&archive).is_empty()).then_some(()) }).await;
    archive.kill();
    // All of them in one new run.
    let volume = dir.path().join("a0").join(VOLUME);
    let path = volume.join(&files(&volume, ".wdiff")[6]);
    std::fs::remove_dir_all(volume.join("index")).unwrap();
    let archive = started(&dir);
    let mut client = archive.client();
    check(&mut client, &device, [7]).await;
    let covered = contents(&archive);
    archive.kill();
    // Of the same size and with other data, behind the back of the index: the wdiff is right.
    let before = std::fs::read(&path).unwrap();
    device.rewrite(false);
    std::fs::write(&path, device.wdiff(7)).unwrap();
    assert_eq!(std::fs::read(&path).unwrap().len(), before.len());
    let archive = started(&dir);
    let mut client = archive.client();
    check(&mut client, &device, [7, 6]).await;
    assert_ne!(contents(&archive), covered);
    archive.kill();
    // Of another size, as an archive that is repaired may get it from another one.
    device.rewrite(true);
    std::fs::write(&path, device.wdiff(7)).unwrap();
    assert_ne!(std::fs::read(&path).unwrap().len(), before.len());
    let archive = started(&dir);
    let mut client = archive.client();
    check(&mut client, &device, [7, 6]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_wdiff_harms_only_the_snapshots_that_need_it() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(9));
    let archive = started(&dir);
    filled(&archive, &device).await;
    archive.kill();
    let volume = dir.path().join("a0").join(VOLUME);
    std::fs::remove_dir_all(volume.join("index")).ok();
    let path = volume.join(&files(&volume, ".wdiff")[4]);
    let whole = std::fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    bytes[40] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let archive = started(&dir);
    let mut client = archive.client();
    check(&mut client, &device, 0..=4).await;
    let (volume, point) = (VOLUME.into(), Some(Point::Gid(5)));
    let request = MountRequest { volume, point, ..MountRequest::default() };
    let refused = client.archive.mount(request).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::Damaged);
    assert!(refused.message().contains("every snapshot after gid 4"), "{}", refused.message());
    std::fs::write(&path, &whole).unwrap();
    check(&mut client, &device, [5, 9]).await;
}

/// More wdiffs than may be open, and than a hash backup once could read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_behind_two_thousand_wdiffs_is_read_from_front_to_back() {
    const DIFFS: u64 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    client.init().await;
    let mut device = Device::new(64, 3);
    client.full_sync(&device.history[0], 0).await.unwrap();
    archive.kill();
    let volume = dir.path().join("a0").join(VOLUME);
    let base = device.history[0].clone();
    for gid in 1..=DIFFS {
        device.write(4);
        let name = format!("20260101000000-M--{}-{gid}.wdiff", gid - 1);
        std::fs::write(volume.join(name), device.wdiff(gid)).unwrap();
    }
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    for gid in [DIFFS, 1500] {
        let request = ReadSnapshotRequest { volume: VOLUME.into(), gid, scan_bytes_per_s: 0 };
        let mut stream = client.archive.read_snapshot(request).await.unwrap().into_inner();
        let mut image = Vec::new();
        while let Some(bulk) = stream.message().await.unwrap() {
            match bulk.chunk {
                Some(chunk) => image.extend(server_kit::chunks::decode(chunk).unwrap()),
                None => image.resize(image.len() + bulk.zeros_bytes as usize, 0),
            }
        }
        same(&image, &device.history[gid as usize], &format!("gid {gid}"));
        assert_ne!(image, base);
    }
    check(&mut client, &device, [DIFFS, DIFFS - 1, 77]).await;
    assert!(runs(&archive).len() < 16, "{:?}", runs(&archive));
}

/// Killed again and again while wdiffs come and runs are made and merged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_index_is_right_after_a_kill_at_any_step() {
    const LAST: u64 = 60;
    let (dir, device) = (tempfile::tempdir().unwrap(), device(LAST));
    let mut kills = 0;
    loop {
        let fuse = Fuse::whole();
        let world = World { open_dir: fuse.dirs(), ..World::real() };
        let archive = Archive::within(&dir, settings(), world);
        let mut client = archive.client();
        if kills == 0 {
            client.init().await;
            client.full_sync(&device.history[0], 0).await.unwrap();
        }
        let here = client.get().await.diffs;
        check(&mut client, &device, [here, here / 2]).await;
        if here == LAST {
            break;
        }
        fuse.set(9 + kills * 11 % 31);
        for gid in here + 1..=LAST {
            let sent =
                messages(start_of(meta(gid - 1, gid), device.size_lb()), &device.wdiff(gid), 1000);
            if client.send(sent).await.is_err() || fuse.is_blown() {
                break;
            }
        }
        archive.kill();
        kills += 1;
        assert!(kills < 100, "it does not get on: {here} wdiffs");
    }
    assert!(kills > 5, "{kills} kills");
}
