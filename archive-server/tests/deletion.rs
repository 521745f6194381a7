//! What becomes needless is marked, and deleted by one task when its grace is over and nobody reads
//! it (I12): over restarts, and wherever the process is killed.
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
use common::{Archive, Client, Device, VOLUME, filled, messages, meta, same, start_of, until};
use proto::v1::merge_request::Until;
use proto::v1::{MountRequest, OperationStatus, UnmountRequest, VerifyRequest, mount_request};
use server_kit::clock::unix_seconds;
use server_kit::durable::Fuse;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// More steps than all of it takes.
const STEPS_MAX: i64 = 120;

fn device(steps: u64) -> Device {
    let mut device = Device::new(512, 5);
    (0..steps).for_each(|_| device.write(20));
    device
}

fn with_grace(dir: &TempDir, grace_s: u64) -> Archive {
    let settings = Settings { grace: Duration::from_secs(grace_s), ..common::settings() };
    Archive::with(dir, settings, Arc::new(FileImages))
}

async fn applied(client: &mut Client, gid: u64) {
    let applied = client.apply(gid).await.unwrap();
    assert_eq!(applied.status(), OperationStatus::Done, "{applied:?}");
}

/// Files and bytes that wait, as the status says.
async fn waiting(client: &mut Client) -> (u64, u64) {
    let status = client.get().await;
    assert_eq!(status.error, "");
    (status.doomed_files, status.doomed_bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_needless_waits_for_its_grace_also_over_a_restart() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(4));
    let archive = with_grace(&dir, 3600);
    let mut client = filled(&archive, &device).await;
    let files = archive.files(".wdiff");
    let bytes = (1..=2).map(|gid| device.wdiff(gid).len() as u64).sum();
    assert_eq!(waiting(&mut client).await, (0, 0));
    let before = unix_seconds();
    applied(&mut client, 2).await;
    let times = before..=unix_seconds();
    assert_eq!(archive.files(".wdiff"), files[2..]);
    let marked = archive.marked();
    for (marked, file) in marked.iter().zip(&files[..2]) {
        let (name, since) = marked.split_once(".doomed-").unwrap();
        assert_eq!(name, file);
        assert!(times.contains(&since.parse().unwrap()), "{marked}");
    }
    assert_eq!(waiting(&mut client).await, (2, bytes));
    let verify = VerifyRequest { volume: VOLUME.into(), ..VerifyRequest::default() };
    let verified = client.archive.verify(verify).await.unwrap().into_inner();
    assert_eq!(client.finish(&verified.id).await.status(), OperationStatus::Done);
    assert!(client.get().await.damages.is_empty(), "what waits is no damage");
    archive.kill();
    let archive = with_grace(&dir, 3600);
    let mut client = archive.client();
    assert_eq!(waiting(&mut client).await, (2, bytes));
    assert_eq!(archive.marked(), marked);
    same(&client.restored(3).await, &device.history[3], "while they wait");
    archive.kill();
    let archive = with_grace(&dir, 0);
    archive.all_deleted().await;
    let mut client = archive.client();
    until("the status", || {
        let mut client = client.clone();
        async move { (waiting(&mut client).await == (0, 0)).then_some(()) }
    })
    .await;
    assert_eq!(archive.files(".wdiff"), files[2..]);
    same(&client.restored(4).await, &device.history[4], "when they are gone");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grace_of_a_second_ends_by_itself_and_a_reader_outlasts_it() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(6));
    let archive = with_grace(&dir, 1);
    let mut client = filled(&archive, &device).await;
    let point = Some(mount_request::Point::Gid(3));
    let request = MountRequest { volume: VOLUME.into(), point, ..MountRequest::default() };
    let mounted = client.archive.mount(request).await.unwrap().into_inner();
    let files = archive.files(".wdiff");
    applied(&mut client, 5).await;
    // Those that the mount has not.
    until("the deletion", || async { (archive.marked().len() <= 3).then_some(()) }).await;
    let kept: Vec<String> = archive.marked();
    let kept = kept.iter().map(|name| name.split_once(".doomed-").unwrap().0);
    assert_eq!(kept.collect::<Vec<_>>(), files[..3]);
    let (_, socket) = mounted.uri.split_once("socket=").unwrap();
    let nbd = block_io::nbd::Client::unix(socket, VOLUME).await.unwrap();
    let expected = &device.history[3];
    same(&nbd.read(0, expected.len() as u32).await.unwrap(), expected, "the mount");
    drop(nbd);
    let unmount = UnmountRequest { volume: VOLUME.into(), id: mounted.id };
    client.archive.unmount(unmount).await.unwrap();
    archive.all_deleted().await;
    assert_eq!(waiting(&mut client).await, (0, 0));
}

/// A volume of which diffs merge.
async fn mergeable(archive: &Archive, device: &Device) -> Client {
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    for gid in 1..=device.gid() {
        let diff = proto::v1::DiffMeta { mergeable: true, ..meta(gid - 1, gid) };
        let sent = messages(start_of(diff, device.size_lb()), &device.wdiff(gid), 5000);
        client.send(sent).await.unwrap();
    }
    client
}

/// An archive that reaches the disk for so many steps.
fn fused(dir: &TempDir, steps: i64) -> (Archive, Fuse) {
    let fuse = Fuse::new(steps);
    let world = World { open_dir: fuse.dirs(), ..World::real() };
    (Archive::within(dir, common::settings(), world), fuse)
}

/// Everything is there that shall be, and nothing else.
async fn check(archive: &Archive, device: &Device, what: &str) {
    let mut client = archive.client();
    let status = until("the apply to be finished", || {
        let mut client = client.clone();
        async move { Some(client.get().await).filter(|s| s.base.unwrap().end.is_none()) }
    })
    .await;
    assert_eq!((status.state.as_str(), status.error.as_str()), ("Archived", ""), "{what}");
    archive.all_deleted().await;
    assert_eq!(archive.files(".wdiff").len() as u64, client.get().await.diffs, "{what}");
    for gid in [2, 5, 6] {
        same(&client.restored(gid).await, &device.history[gid as usize], what);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_every_step_of_marking_and_deleting_loses_nothing_and_leaves_nothing() {
    let device = device(6);
    for steps in 0..STEPS_MAX {
        let dir = tempfile::tempdir().unwrap();
        let (archive, fuse) = fused(&dir, i64::MAX / 2);
        let mut client = mergeable(&archive, &device).await;
        fuse.set(steps);
        let merge = common::merge_of(2, Some(Until::GidEnd(5)));
        if let Ok(merge) = client.archive.merge(merge).await {
            client.finish(&merge.into_inner().id).await;
        }
        let _ = client.apply(2).await;
        until("the end", || async {
            (fuse.is_blown() || archive.marked().is_empty()).then_some(())
        })
        .await;
        let blown = fuse.is_blown();
        archive.kill();
        // The next one is killed as well, while it looks at what it finds.
        let (archive, _) = fused(&dir, steps % 7);
        until("the start", || {
            let mut client = archive.client();
            async move { client.archive.get(common::volume()).await.ok() }
        })
        .await;
        archive.kill();
        let archive = Archive::start(&dir);
        check(&archive, &device, &format!("step {steps}")).await;
        if !blown {
            return;
        }
    }
    panic!("it takes more than {STEPS_MAX} steps");
}
