//! Killed before any step to the disk of a hash backup, a replication or a resize, an archive has
//! either what it had or what it was given, and the next attempt goes on from there.
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

use archive_server::World;
use common::pair::Wire;
use common::sync::snapshot;
use common::{Archive, Client, Device, UUID, VOLUME, filled, messages, meta, same, start_of};
use proto::v1::{OperationStatus, Peer, ReplicateRequest, ResizeRequest, WdiffResult};
use server_kit::durable::Fuse;
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
