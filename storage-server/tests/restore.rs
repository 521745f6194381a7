//! A snapshot of the archive is written onto the device: what is there afterwards, what refuses it,
//! interruptions, and how backup goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::device::SIZE_BYTES;
use common::{Cluster, StorageOptions, VOLUME, checks, eventually};
use proto::v1::{
    GapCause, Operation, OperationStatus, Peer, Reason, ResizeRequest, RestoreToDeviceRequest,
    StopMode, StorageMode,
};
use server_kit::durable::Fuse;
use server_kit::error::RoleError;
use storage_server::serve::Resync;
use tonic::Status;

/// A volume with a snapshot at the archive, whose content has changed since.
async fn changed(options: StorageOptions) -> (Cluster, u64, Vec<u8>) {
    let mut cluster = Cluster::target(16, options).await;
    cluster.device.scribble(60).await;
    let gid = cluster.storage.snapshot(VOLUME).await.unwrap().gid;
    cluster.shipped(gid).await;
    let image = cluster.device.image().await;
    cluster.device.fill(SIZE_BYTES).await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    (cluster, gid, image)
}

fn request(cluster: &Cluster, device: &str, gid: u64) -> RestoreToDeviceRequest {
    let address = cluster.archive.endpoint.to_string();
    let archive = Some(Peer { id: "a0".into(), address });
    RestoreToDeviceRequest { device: device.into(), archive, volume: VOLUME.into(), gid }
}

async fn begin(cluster: &Cluster, device: &str, gid: u64) -> Result<Operation, Status> {
    let request = request(cluster, device, gid);
    Ok(cluster.storage.client().restore_to_device(request).await?.into_inner())
}

async fn restore(cluster: &Cluster, device: &str, gid: u64) -> Operation {
    let started = begin(cluster, device, gid).await.unwrap();
    cluster.storage.ended(&started.id).await
}

#[tokio::test]
async fn the_device_is_the_snapshot_and_a_hash_backup_goes_on_from_there() {
    let (mut cluster, gid, image) = changed(StorageOptions::default()).await;
    let ended = restore(&cluster, &cluster.device.address(), gid).await;
    assert_eq!(ended.status(), OperationStatus::Done, "{ended:?}");
    assert_eq!((ended.done_bytes, ended.total_bytes), (SIZE_BYTES, SIZE_BYTES));
    checks::same_image(&cluster.device.image().await, &image);
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.state.as_str(), view.gap_cause()), ("Stopped", GapCause::LogReset));
    assert!(view.error.contains("replaced by snapshot"), "{}", view.error);
    cluster.storage.hash_backup(VOLUME).await.unwrap();
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_bare_name_is_found_and_the_volume_is_protected_again_when_it_is_started() {
    let options = StorageOptions { resync: Resync::Auto, ..StorageOptions::default() };
    let (mut cluster, gid, image) = changed(options).await;
    assert_eq!(restore(&cluster, "vol", gid).await.status(), OperationStatus::Done);
    checks::same_image(&cluster.device.image().await, &image);
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.state.as_str(), view.auto_resync), ("Stopped", false), "a person stopped it");
    cluster.storage.start_volume(VOLUME, StorageMode::Target).await.expect_err("there is a gap");
    cluster.storage.wait_state("Target").await;
    cluster.check_restorable().await;
}

#[tokio::test]
async fn an_interrupted_restore_serves_nobody_and_is_repeated() {
    let (mut cluster, gid, image) = changed(StorageOptions::default()).await;
    cluster.archive.change(|disk| disk.break_read = Some(9));
    let failed = restore(&cluster, "vol", gid).await;
    assert_eq!(failed.status(), OperationStatus::Failed);
    assert!(failed.detail.unwrap().next_step.contains("walbc restore-to-device A vol"));
    cluster.device.volume().read(0, 4096).await.expect_err("half of this and half of that");
    let hash = cluster.storage.hash_backup(VOLUME).await.unwrap_err();
    assert!(hash.error.contains("half replaced"), "{}", hash.error);
    cluster.restart_storage().await;
    cluster.device.stop().await;
    cluster.device.start().await;
    let view = eventually("the device answers", || async {
        let view = cluster.storage.get(VOLUME).await;
        (view.size_lb > 0 || view.error.contains("replaced")).then_some(view)
    })
    .await;
    assert!(view.gap_since_s > 0 && !view.auto_resync);
    cluster.archive.change(|disk| disk.break_read = None);
    let ended = restore(&cluster, "vol", gid).await;
    assert_eq!(ended.status(), OperationStatus::Done, "{ended:?}");
    checks::same_image(&cluster.device.image().await, &image);
    cluster.storage.hash_backup(VOLUME).await.unwrap();
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_restore_survives_a_kill_at_every_step_to_the_disk() {
    let (mut cluster, gid, image) = changed(StorageOptions::default()).await;
    let changed = cluster.device.image().await;
    cluster.archive.change(|disk| drop(disk.kept.insert(gid, image.clone())));
    // That nothing starts by itself, the gap, and that things are as before.
    for steps in 0..=3 * 4 {
        cluster.storage.kill().await;
        let fuse = Fuse::new(steps);
        let options = StorageOptions { fuse: Some(fuse.clone()), ..StorageOptions::default() };
        cluster.storage.revive(options).await;
        let done = restore(&cluster, "vol", gid).await.status() == OperationStatus::Done;
        assert!(done || fuse.is_blown());
        cluster.restart_storage().await;
        let now = cluster.device.image().await;
        let view = cluster.storage.get(VOLUME).await;
        assert!(now == image || (now == changed && !done), "neither this nor that");
        assert!(view.gap_since_s > 0 || now == changed, "another content, and no gap: {view:?}");
        assert_eq!(restore(&cluster, "vol", gid).await.status(), OperationStatus::Done);
        checks::same_image(&cluster.device.image().await, &image);
        // As before.
        for (at, piece) in changed.chunks(1 << 20).enumerate() {
            cluster.device.write((at as u64) << 20, piece.to_vec()).await;
        }
        cluster.storage.hash_backup(VOLUME).await.unwrap();
        cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    }
}

#[tokio::test]
async fn a_larger_device_ends_in_zeroes_and_a_smaller_one_is_not_touched() {
    let (mut cluster, gid, image) = changed(StorageOptions::default()).await;
    let more = 3 << 20;
    let data = std::fs::File::options().write(true).open(cluster.dir.path().join("data")).unwrap();
    data.set_len(SIZE_BYTES + more).unwrap();
    let resize = ResizeRequest { volume: VOLUME.into(), size_lb: 0 };
    cluster.storage.client().resize(resize).await.unwrap();
    cluster.device.write(SIZE_BYTES + 4096, vec![9; 4096]).await;
    let ended = restore(&cluster, "vol", gid).await;
    assert_eq!(ended.status(), OperationStatus::Done, "{ended:?}");
    checks::same_image(&cluster.device.image().await, &image);
    let tail = std::fs::read(cluster.dir.path().join("data")).unwrap();
    assert!(tail[usize::try_from(SIZE_BYTES).unwrap()..].iter().all(|b| *b == 0));

    let before = cluster.device.image().await;
    cluster.archive.change(|disk| {
        disk.image.resize(usize::try_from(SIZE_BYTES + more + 4096).unwrap(), 1);
    });
    let failed = restore(&cluster, "vol", gid).await;
    assert_eq!(failed.detail.unwrap().reason(), Reason::WrongSize);
    checks::same_image(&cluster.device.image().await, &before);
    cluster.device.scribble(3).await;
}

#[tokio::test]
async fn a_device_in_use_and_nonsense_are_refused() {
    let cluster = Cluster::target(16, StorageOptions::default()).await;
    let reason = |answer: Result<Operation, Status>| {
        RoleError::from_status("s0", &answer.unwrap_err()).reason()
    };
    let address = cluster.device.address();
    assert_eq!(reason(begin(&cluster, &address, 1).await), Reason::WrongState);
    assert_eq!(reason(begin(&cluster, "nobody", 1).await), Reason::BadRequest);
    assert_eq!(reason(begin(&cluster, "relative#x", 1).await), Reason::BadRequest);
    let nowhere = RestoreToDeviceRequest { archive: None, ..request(&cluster, &address, 1) };
    let refused = cluster.storage.client().restore_to_device(nowhere).await.map(|r| r.into_inner());
    assert_eq!(reason(refused), Reason::BadRequest);
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    let unknown = restore(&cluster, "vol", 99).await;
    assert_eq!(unknown.detail.unwrap().reason(), Reason::UnknownSnapshot);
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.state.as_str(), view.gap_since_s), ("Stopped", 0), "nothing was touched");
    cluster.storage.start_volume(VOLUME, StorageMode::Target).await.unwrap();
}
