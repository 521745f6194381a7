//! Requests that are no good: each is answered with a typed error, changes nothing, and the server
//! goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::{Cluster, StorageOptions, VOLUME};
use proto::v1::*;
use server_kit::error::RoleError;
use tonic::Status;

fn reason<T>(answer: Result<T, Status>) -> Reason {
    let status = answer.err().expect("a refusal");
    let error = RoleError::from_status("s0", &status);
    assert!(!status.message().is_empty());
    error.reason()
}

fn volume(name: &str) -> VolumeRef {
    VolumeRef { volume: name.into() }
}

#[tokio::test]
async fn an_unknown_volume_is_refused_by_every_request() {
    let cluster = Cluster::without_volume(4, StorageOptions::default()).await;
    let storage = &cluster.storage;
    let mut client = storage.client();
    let unknown = Reason::UnknownVolume;
    assert_eq!(reason(client.get(volume("no")).await), unknown);
    assert_eq!(reason(client.clear(volume("no")).await), unknown);
    assert_eq!(reason(client.take_snapshot(volume("no")).await), unknown);
    assert_eq!(reason(storage.begin_backup("no").await), unknown);
    assert_eq!(reason(storage.start_volume("no", StorageMode::Target).await), unknown);
    assert_eq!(reason(storage.stop_volume("no", StopMode::Force).await), unknown);
    let reset = ResetStorageRequest { volume: "no".into(), gid: 0 };
    assert_eq!(reason(client.reset(reset).await), unknown);
    assert_eq!(reason(client.kick(KickStorageRequest { volume: "no".into() }).await), unknown);
    for name in ["", "../x", "a/b", "ä", &"x".repeat(65)] {
        assert_eq!(reason(client.get(volume(name)).await), Reason::BadRequest, "{name:?}");
        assert_eq!(reason(client.clear(volume(name)).await), Reason::BadRequest, "{name:?}");
        assert_eq!(reason(storage.init(name, "/x#y").await), Reason::BadRequest, "{name:?}");
    }
    assert_eq!(client.list(Empty {}).await.unwrap().into_inner().volumes.len(), 0);
}

#[tokio::test]
async fn only_a_device_that_is_there_and_free_can_be_taken() {
    let cluster = Cluster::without_volume(4, StorageOptions::default()).await;
    let (storage, device) = (&cluster.storage, cluster.device.address());
    let socket = device.split('#').next().unwrap();
    assert_eq!(reason(storage.init(VOLUME, "nonsense").await), Reason::BadRequest);
    assert_eq!(reason(storage.init(VOLUME, "/no/such.sock#vol").await), Reason::Unreachable);
    let other = format!("{socket}#other");
    assert_eq!(reason(storage.init(VOLUME, &other).await), Reason::UnknownVolume);
    // A server of another role.
    let proxy = format!("{}#vol", cluster.dir.path().join("p0.sock").display());
    assert_eq!(reason(storage.init(VOLUME, &proxy).await), Reason::WrongPeer);
    assert!(!storage.base.join(VOLUME).exists(), "nothing is left behind");
    // The name at the device is that of the volume when none is given.
    storage.init(VOLUME, socket).await.unwrap();
    assert_eq!(storage.get(VOLUME).await.device, device);
    assert_eq!(reason(storage.init(VOLUME, &device).await), Reason::AlreadyExists);
    assert_eq!(reason(storage.init("second", &device).await), Reason::AlreadyExists);
    storage.client().clear(volume(VOLUME)).await.unwrap();
    storage.init("second", &device).await.unwrap();
}

#[tokio::test]
async fn a_wrong_state_is_told_with_the_states_that_would_do() {
    let mut cluster = Cluster::new(16, StorageOptions::default()).await;
    let mut client = cluster.storage.client();
    let storage = &cluster.storage;
    let wrong = Reason::WrongState;
    // SyncReady.
    assert_eq!(reason(storage.snapshot(VOLUME).await), wrong);
    assert_eq!(reason(storage.start_volume(VOLUME, StorageMode::Target).await), wrong);
    assert_eq!(reason(storage.stop_volume(VOLUME, StopMode::Graceful).await), wrong);
    let reset = ResetStorageRequest { volume: VOLUME.into(), gid: 0 };
    let refused = client.reset(reset.clone()).await.unwrap_err();
    let error = RoleError::from_status("s0", &refused);
    assert_eq!(error.detail().state, "SyncReady");
    assert_eq!(error.detail().allowed_states, ["Stopped"]);
    // Target.
    storage.full_backup(VOLUME).await.unwrap();
    assert_eq!(reason(storage.begin_backup(VOLUME).await), wrong);
    assert_eq!(reason(client.clear(volume(VOLUME)).await), wrong);
    assert_eq!(reason(client.reset(reset).await), wrong);
    assert_eq!(reason(storage.start_volume(VOLUME, StorageMode::Standby).await), wrong);
    let empty = storage.stop_volume(VOLUME, StopMode::Empty).await;
    assert_eq!(reason(empty), Reason::BadRequest);
    // Stopped.
    storage.stop_volume(VOLUME, StopMode::Force).await.unwrap();
    assert_eq!(reason(storage.stop_volume(VOLUME, StopMode::Force).await), wrong);
    assert_eq!(reason(client.clear(volume(VOLUME)).await), wrong);
    storage.start_volume(VOLUME, StorageMode::Target).await.unwrap();
    cluster.device.scribble(5).await;
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_target_that_became_a_standby_has_no_gap() {
    let cluster = Cluster::new(16, StorageOptions::default()).await;
    let mut client = cluster.storage.client();
    cluster.storage.full_backup(VOLUME).await.unwrap();
    cluster.storage.stop_volume(VOLUME, StopMode::Force).await.unwrap();
    client.reset(ResetStorageRequest { volume: VOLUME.into(), gid: 0 }).await.unwrap();
    assert!(cluster.storage.get(VOLUME).await.gap_since_s > 0);
    cluster.storage.start_volume(VOLUME, StorageMode::Standby).await.unwrap();
    let leg = cluster.storage.get(VOLUME).await;
    assert_eq!((leg.gap_since_s, leg.error.as_str()), (0, ""), "it has no history");
}

#[tokio::test]
async fn numbers_that_make_no_sense_are_refused() {
    let cluster = Cluster::new(4, StorageOptions::default()).await;
    let mut client = cluster.storage.client();
    let start = StartStorageRequest { volume: VOLUME.into(), mode: 77 };
    assert_eq!(reason(client.start(start).await), Reason::BadRequest);
    let stop = StopRequest { volume: VOLUME.into(), mode: 77 };
    assert_eq!(reason(client.stop(stop).await), Reason::BadRequest);
    for bulk_bytes in [1, 4095, 5000, (1 << 20) + 4096, u64::MAX] {
        let backup =
            FullBackupRequest { volume: VOLUME.into(), bulk_bytes, ..FullBackupRequest::default() };
        assert_eq!(reason(client.full_backup(backup).await), Reason::BadRequest, "{bulk_bytes}");
    }
    assert_eq!(cluster.storage.get(VOLUME).await.state, "SyncReady");
    cluster.storage.full_backup(VOLUME).await.unwrap();
}

#[tokio::test]
async fn a_kick_names_the_volumes_that_it_woke() {
    let cluster = Cluster::new(16, StorageOptions::default()).await;
    let mut client = cluster.storage.client();
    let kick = KickStorageRequest::default();
    assert_eq!(client.kick(kick.clone()).await.unwrap().into_inner().kicked.len(), 0);
    cluster.storage.full_backup(VOLUME).await.unwrap();
    assert_eq!(client.kick(kick).await.unwrap().into_inner().kicked, [VOLUME]);
}

#[tokio::test]
async fn a_device_that_is_away_is_an_error_and_not_the_end() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.device.stop().await;
    let storage = &cluster.storage;
    assert_eq!(reason(storage.snapshot(VOLUME).await), Reason::Unreachable);
    assert!(!storage.get(VOLUME).await.error.is_empty());
    storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    let started = storage.start_volume(VOLUME, StorageMode::Target).await;
    assert_eq!(reason(started), Reason::Unreachable);
    assert_eq!(storage.get(VOLUME).await.state, "Stopped");
    cluster.device.start().await;
    let storage = &cluster.storage;
    storage.start_volume(VOLUME, StorageMode::Target).await.unwrap();
    cluster.check_restorable().await;
}
