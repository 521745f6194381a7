//! Images grow and never shrink, also when the process dies meanwhile; a snapshot can be read as a
//! stream.
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

use common::{Archive, Client, Device, VOLUME, filled, reason, same};
use proto::v1::{ReadSnapshotRequest, ResizeRequest};
use server_kit::durable::{DurableDir, RealDir, StateFile};
use server_kit::error::Reason;
use std::sync::Arc;

fn device(steps: u64) -> Device {
    let mut device = Device::new(4096, 42);
    (0..steps).for_each(|_| device.write(40));
    device
}

fn to(size_lb: u64) -> ResizeRequest {
    ResizeRequest { volume: VOLUME.into(), size_lb }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_grows_by_a_hole_and_never_shrinks() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(2));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    for bad in [4088, 0] {
        let refused = client.archive.resize(to(bad)).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::WrongSize);
    }
    client.archive.resize(to(4096)).await.unwrap();
    client.archive.resize(to(10_000)).await.unwrap();
    let mut grown = device.now().to_vec();
    grown.resize(10_000 * 512, 0);
    same(&client.restored(2).await, &grown, "grown");
    archive.kill();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert_eq!(client.get().await.size_lb, 10_000);
    archive.kill();
    // Killed after it said so, before and after the file has grown.
    for file_lb in [10_000_u64, 12_000] {
        let vol = dir.path().join("a0").join(VOLUME);
        let opened: Arc<dyn DurableDir> = Arc::new(RealDir::open(&vol).unwrap());
        let state: StateFile<toml::Table> = StateFile::new(opened, "state");
        let mut record = state.load().unwrap().unwrap();
        record.insert("size_lb".into(), 10_000.into());
        record.insert("growing_lb".into(), 12_000.into());
        state.store(&record).unwrap();
        let image = std::fs::OpenOptions::new().write(true).open(vol.join("base.img")).unwrap();
        image.set_len(file_lb * 512).unwrap();
        let archive = Archive::start(&dir);
        let mut client = archive.client();
        assert_eq!(client.get().await.size_lb, 12_000);
        grown.resize(12_000 * 512, 0);
        same(&client.restored(2).await, &grown, "after the crash");
        archive.kill();
    }
}

/// The snapshot as it is read, and how many messages that takes.
async fn read(client: &mut Client, gid: u64) -> Result<(Vec<u8>, usize), tonic::Status> {
    let request = ReadSnapshotRequest { volume: VOLUME.into(), gid, scan_bytes_per_s: 0 };
    let mut stream = client.archive.read_snapshot(request).await?.into_inner();
    let (mut image, mut count) = (Vec::new(), 0);
    while let Some(bulk) = stream.message().await? {
        assert_eq!(bulk.offset_bytes, image.len() as u64);
        match bulk.chunk {
            Some(chunk) => image.extend_from_slice(&server_kit::chunks::decode(chunk).unwrap()),
            None => image.resize(image.len() + bulk.zeros_bytes as usize, 0),
        }
        assert!(image.len() as u64 <= bulk.size_bytes);
        count += 1;
    }
    Ok((image, count))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_read_as_it_was_and_zeroes_cost_nothing() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(3));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    for gid in 0..=3 {
        let (image, _) = read(&mut client, gid).await.unwrap();
        same(&image, &device.history[gid as usize], &format!("gid {gid}"));
    }
    client.apply(2).await.unwrap();
    same(&read(&mut client, 3).await.unwrap().0, device.now(), "after an apply");
    let gone = read(&mut client, 1).await.unwrap_err();
    assert_eq!(reason(&gone), Reason::UnknownSnapshot);
    client.archive.resize(to(1 << 20)).await.unwrap();
    let (image, count) = read(&mut client, 3).await.unwrap();
    assert_eq!(image.len(), 512 << 20);
    assert!(count <= 4, "{count} messages");
    // A reader that goes away lets go of everything.
    let request = ReadSnapshotRequest { volume: VOLUME.into(), gid: 3, scan_bytes_per_s: 1 };
    let stream = client.archive.read_snapshot(request).await.unwrap().into_inner();
    assert_eq!(reason(&client.apply(3).await.unwrap_err()), Reason::Busy);
    drop(stream);
    common::until("the end of the read", || {
        let mut client = client.clone();
        async move { client.get().await.running.is_empty().then_some(()) }
    })
    .await;
    client.apply(3).await.unwrap();
    assert_eq!(archive.files(".wdiff").len(), 0);
}
