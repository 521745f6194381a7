//! What was backed up is what is restored, at every gid, before and after apply.
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

use common::{Archive, Device, VOLUME, filled, reason, same, volume};
use proto::v1::restore_request::Point;
use proto::v1::{OperationStatus, RestoreRequest, SnapshotRef};
use server_kit::error::Reason;
use std::os::unix::fs::MetadataExt;

fn device(steps: u64) -> Device {
    let mut device = Device::new(4096, 42);
    (0..steps).for_each(|_| device.write(40));
    device
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_snapshot_is_restored_as_the_device_was() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(6));
    let mut client = filled(&archive, &device).await;
    for gid in 0..=6 {
        same(&client.restored(gid).await, &device.history[gid as usize], &format!("gid {gid}"));
    }
    let applied = client.apply(3).await.unwrap();
    assert_eq!((applied.status(), applied.gid), (OperationStatus::Done, Some(3)));
    assert_eq!(archive.files(".wdiff").len(), 3);
    for gid in 3..=6 {
        same(&client.restored(gid).await, &device.history[gid as usize], &format!("gid {gid}"));
    }
    let before = client.restore_to(Point::Gid(2), "").await.unwrap_err();
    assert_eq!(reason(&before), Reason::UnknownSnapshot);
    // A restart reads the same from the names and the state file.
    let status = client.get().await;
    archive.kill();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    let mut again = client.get().await;
    again.last_received_s = status.last_received_s;
    assert_eq!(again, status);
    same(&client.restored(6).await, &device.history[6], "after a restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dirty_base_becomes_restorable_with_the_log_of_its_scan() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(3));
    let mut client = archive.client();
    client.init().await;
    // Blocks of the scan are of gids 0 to 2.
    let mixed: Vec<u8> = (0..device.now().len()).map(|i| device.history[i / 512 % 3][i]).collect();
    client.full_sync(&mixed, 2).await.unwrap();
    assert_eq!(client.get().await.newest_restorable_gid, 0);
    client.send_step(&device, 1).await.unwrap();
    let dirty = client.restore_to(Point::Gid(1), "").await.unwrap_err();
    assert_eq!(reason(&dirty), Reason::UnknownSnapshot);
    client.send_step(&device, 2).await.unwrap();
    client.send_step(&device, 3).await.unwrap();
    same(&client.restored(2).await, &device.history[2], "the end of the scan");
    same(&client.restored(3).await, &device.history[3], "after the scan");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_lists_tell_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(4));
    let mut client = filled(&archive, &device).await;
    let status = client.get().await;
    assert_eq!((status.state.as_str(), status.size_lb, status.diffs), ("Archived", 4096, 4));
    assert_eq!(status.log_uuid, common::UUID.0.as_slice());
    assert_eq!(status.archive_uuid.len(), 16);
    assert_ne!(status.archive_uuid, vec![0; 16]);
    assert_eq!((status.newest_restorable_gid, status.newest_restorable_s), (4, 1_700_000_040));
    let sizes: u64 = (1..=4).map(|gid| device.wdiff(gid).len() as u64).sum();
    assert_eq!(status.diff_bytes, sizes);
    assert_eq!(status.error, "");
    assert!(status.last_received_s > 1_700_000_000);
    let list = client.restorable(true).await;
    let seen: Vec<_> = list.iter().map(|r| (r.gid, r.timestamp_s - 1_700_000_000)).collect();
    assert_eq!(seen, [(0, 0), (1, 10), (2, 20), (3, 30), (4, 40)]);
    let diffs = client.diffs().await;
    let names: Vec<_> = diffs.iter().map(|d| d.file.clone()).collect();
    assert_eq!(names, archive.files(".wdiff"));
    assert_eq!(names[0], "20231114221330----0-1.wdiff");
    let volumes = client.archive.list(proto::v1::Empty {}).await.unwrap().into_inner().volumes;
    assert_eq!(volumes, [client.get().await]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_picks_the_last_snapshot_before_it_and_a_dry_run_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(4));
    let mut client = filled(&archive, &device).await;
    let request = |at_s| RestoreRequest {
        volume: VOLUME.into(),
        point: Some(Point::AtS(at_s)),
        to_path: String::new(),
        dry_run: true,
    };
    let dry = client.archive.restore(request(1_700_000_039)).await.unwrap().into_inner();
    assert_eq!(dry.operation, None);
    let plan = dry.plan.unwrap();
    assert_eq!((plan.gid, plan.timestamp_s, plan.wdiffs.len()), (3, 1_700_000_030, 3));
    assert_eq!(
        (plan.image_bytes, plan.wdiffs),
        (4096 * 512, archive.files(".wdiff")[..3].to_vec())
    );
    assert!(plan.path.ends_with("vol0/restored/3.img"), "{}", plan.path);
    assert!(!archive.volume_dir().join("restored").exists());
    let early = client.archive.restore(request(1_699_999_999)).await.unwrap_err();
    assert_eq!(reason(&early), Reason::UnknownSnapshot);
    let path = dir.path().join("image");
    let point = Point::AtS(1_700_000_029);
    let done = client.restore_to(point, path.to_str().unwrap()).await.unwrap();
    assert_eq!((done.status(), done.gid), (OperationStatus::Done, Some(2)));
    same(&std::fs::read(&path).unwrap(), &device.history[2], "the image at that time");
    assert!(!dir.path().join("image.tmp").exists());
    assert_eq!(done.done_bytes, done.total_bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_images_are_listed_kept_over_restarts_and_deleted_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(2));
    let mut client = filled(&archive, &device).await;
    for gid in [2, 1] {
        client.restore_to(Point::Gid(gid), "").await.unwrap();
    }
    let again = client.restore_to(Point::Gid(1), "").await.unwrap_err();
    assert_eq!(reason(&again), Reason::AlreadyExists);
    // A restore that was killed leaves this.
    std::fs::write(archive.volume_dir().join("restored/9.img.tmp"), "x").unwrap();
    archive.kill();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    let list = client.archive.list_restored(volume()).await.unwrap().into_inner().restored;
    let seen: Vec<_> = list.iter().map(|r| (r.gid, r.size_bytes)).collect();
    assert_eq!(seen, [(1, 4096 * 512), (2, 4096 * 512)]);
    let tmp = common::files(&archive.volume_dir().join("restored"), ".tmp");
    assert!(tmp.is_empty(), "{tmp:?}");
    let delete = |gid| SnapshotRef { volume: VOLUME.into(), gid };
    client.archive.delete_restored(delete(1)).await.unwrap();
    let gone = client.archive.delete_restored(delete(1)).await.unwrap_err();
    assert_eq!(reason(&gone), Reason::UnknownSnapshot);
    let list = client.archive.list_restored(volume()).await.unwrap().into_inner().restored;
    assert_eq!(list.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_become_holes_in_the_base_image_and_in_what_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    client.init().await;
    let mut image = vec![0; 64 << 20];
    image[5 << 20..6 << 20].fill(7);
    client.full_sync(&image, 0).await.unwrap();
    let allocated = |path: &std::path::Path| std::fs::metadata(path).unwrap().blocks() * 512;
    assert!(allocated(&archive.volume_dir().join("base.img")) <= 2 << 20);
    let done = client.restore_to(Point::Gid(0), "").await.unwrap();
    assert!(allocated(done.path.as_ref()) <= 2 << 20, "{done:?}");
    same(&std::fs::read(&done.path).unwrap(), &image, "the restored image");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_come_stop_start_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(2));
    let mut client = filled(&archive, &device).await;
    let stop = proto::v1::StopRequest { volume: VOLUME.into(), mode: 0 };
    client.archive.stop(stop.clone()).await.unwrap();
    assert_eq!(client.get().await.state, "Stopped");
    assert_eq!(reason(&client.apply(1).await.unwrap_err()), Reason::WrongState);
    archive.kill();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert_eq!(client.get().await.state, "Stopped", "a stop survives a restart");
    client.archive.start(volume()).await.unwrap();
    same(&client.restored(2).await, &device.history[2], "after stop and start");
    let cleared = client.archive.clear(volume()).await.unwrap_err();
    assert_eq!(reason(&cleared), Reason::WrongState);
    client.archive.stop(stop).await.unwrap();
    let reset = proto::v1::ResetArchiveRequest { volume: VOLUME.into() };
    client.archive.reset(reset).await.unwrap();
    let status = client.get().await;
    assert_eq!((status.state.as_str(), status.diffs, status.base), ("SyncReady", 0, None));
    // And its second copy.
    assert_eq!(archive.files(""), ["state", "state-copy"]);
    client.full_sync(&device.history[1], 0).await.unwrap();
    same(&client.restored(0).await, &device.history[1], "the second full backup");
    client.archive.stop(proto::v1::StopRequest { volume: VOLUME.into(), mode: 1 }).await.unwrap();
    client.archive.clear(volume()).await.unwrap();
    assert_eq!(client.get().await.state, "Clear");
    assert!(!archive.volume_dir().exists());
    client.init().await;
    assert_eq!(client.get().await.state, "SyncReady");
}
