//! Whom the server talks to: changed while it runs, kept over restarts and kills, until other flags
//! are given. Also the small commands that the recovery manual needs: forget a backup, resize.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::device::SIZE_BYTES;
use common::{Cluster, StorageOptions, StubArchive, VOLUME};
use proto::v1::{
    Empty, Peer, Peers, Reason, ResetStorageRequest, ResizeRequest, StopMode, VolumeRef,
};
use server_kit::durable::Fuse;
use server_kit::error::RoleError;
use server_kit::net::Endpoint;
use tonic::Status;

fn reason<T>(answer: Result<T, Status>) -> Reason {
    RoleError::from_status("s0", &answer.err().expect("a refusal")).reason()
}

fn peer(id: &str, endpoint: &Endpoint) -> Peer {
    Peer { id: id.into(), address: endpoint.to_string() }
}

async fn peers(cluster: &Cluster) -> Peers {
    cluster.storage.client().get_peers(Empty {}).await.unwrap().into_inner()
}

async fn set_peers(cluster: &Cluster, peers: Peers) -> Result<(), Status> {
    cluster.storage.client().set_peers(peers).await.map(|_| ())
}

/// The second archive, and the second proxy alone.
fn others(cluster: &Cluster, archive: &StubArchive) -> Peers {
    let proxies = vec![peer("p1", &cluster.proxies[1].endpoint)];
    Peers { archive: Some(peer("a1", &archive.endpoint)), proxies }
}

#[tokio::test]
async fn other_peers_are_used_at_once_and_after_a_restart() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.check_restorable().await;
    assert!(cluster.wire.stored().iter().all(|s| s.proxy == "p0"));
    let first = peers(&cluster).await;
    let ids: Vec<_> = first.proxies.iter().map(|p| p.id.as_str()).collect();
    assert_eq!(ids, ["p0", "p1"], "flags tell no ids, the proxies do");
    assert_eq!(first.archive.unwrap().address, cluster.archive.endpoint.to_string());

    let promoted = StubArchive::start_as(cluster.dir.path(), "a1", &cluster.wire).await;
    let wanted = others(&cluster, &promoted);
    set_peers(&cluster, wanted.clone()).await.unwrap();
    let before = cluster.wire.stored().len();
    cluster.device.scribble(5).await;
    cluster.check_restorable().await;
    assert!(cluster.wire.stored()[before..].iter().all(|s| s.proxy == "p1"));

    cluster.restart_storage().await;
    assert_eq!(peers(&cluster).await, wanted);
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    let reset = ResetStorageRequest { volume: VOLUME.into(), gid: 0 };
    cluster.storage.client().reset(reset).await.unwrap();
    cluster.storage.full_backup(VOLUME).await.unwrap();
    assert_eq!(promoted.disk.lock().syncs.len(), 1);
    assert_eq!(cluster.archive.disk.lock().syncs.len(), 1, "the backup before");
}

#[tokio::test]
async fn other_flags_win_over_peers_that_were_set_and_those_are_forgotten() {
    let mut cluster = Cluster::new(4, StorageOptions::default()).await;
    let archive = StubArchive::start_as(cluster.dir.path(), "a1", &cluster.wire).await;
    set_peers(&cluster, others(&cluster, &archive)).await.unwrap();
    let flags = cluster.storage.args.proxy.clone();
    cluster.storage.args.proxy = flags[..1].to_vec();
    cluster.restart_storage().await;
    let found = peers(&cluster).await;
    assert_eq!(found.proxies, [peer("p0", &flags[0])]);
    assert_eq!(found.archive.unwrap().address, cluster.archive.endpoint.to_string());
    cluster.storage.args.proxy = flags;
    cluster.restart_storage().await;
    assert_eq!(peers(&cluster).await.proxies.len(), 2, "the flags again, not what was set once");
}

#[tokio::test]
async fn a_kill_while_peers_are_set_leaves_the_old_or_the_new_ones() {
    let mut cluster = Cluster::new(4, StorageOptions::default()).await;
    let archive = StubArchive::start_as(cluster.dir.path(), "a1", &cluster.wire).await;
    let wanted = others(&cluster, &archive);
    let mut kept = 0;
    for steps in 0..=4 {
        cluster.storage.kill().await;
        let options = StorageOptions { fuse: Some(Fuse::new(steps)), ..Default::default() };
        cluster.storage.revive(options).await;
        let old = peers(&cluster).await;
        let told = set_peers(&cluster, wanted.clone()).await.is_ok();
        assert_eq!(peers(&cluster).await, if told { wanted.clone() } else { old.clone() });
        cluster.restart_storage().await;
        let found = peers(&cluster).await;
        assert!(found == wanted || (!told && found == old), "{found:?}");
        kept += usize::from(told);
        let _ = std::fs::remove_file(cluster.storage.base.join("storage.peers"));
    }
    assert_eq!(kept, 1, "only the last was not killed");
}

#[tokio::test]
async fn peers_that_make_no_sense_are_refused() {
    let cluster = Cluster::new(4, StorageOptions::default()).await;
    let good = others(&cluster, &cluster.archive);
    let one = good.proxies[0].clone();
    let nowhere = Peer { id: "p".into(), address: "nowhere".into() };
    let unnameable = Peer { id: "../p".into(), ..one.clone() };
    for bad in [
        Peers { archive: None, ..good.clone() },
        Peers { proxies: vec![], ..good.clone() },
        Peers { proxies: vec![one.clone(), one], ..good.clone() },
        Peers { proxies: vec![nowhere.clone()], ..good.clone() },
        Peers { archive: Some(nowhere), ..good.clone() },
        Peers { proxies: vec![unnameable], ..good.clone() },
    ] {
        assert_eq!(reason(set_peers(&cluster, bad).await), Reason::BadRequest);
    }
    assert_eq!(peers(&cluster).await.proxies.len(), 2);
}

#[tokio::test]
async fn a_backup_to_an_archive_that_is_primary_no_more_is_given_up() {
    let mut cluster = Cluster::new(16, StorageOptions::default()).await;
    cluster.device.fill(SIZE_BYTES).await;
    cluster.archive.change(|disk| disk.hang_at = Some(2 << 20));
    let id = cluster.storage.begin_backup(VOLUME).await.unwrap().id;
    cluster.archive.hanging.notified().await;
    let archive = StubArchive::start_as(cluster.dir.path(), "a1", &cluster.wire).await;
    set_peers(&cluster, others(&cluster, &archive)).await.unwrap();
    let ended = cluster.storage.ended(&id).await;
    assert!(ended.error.contains("primary"), "{}", ended.error);
    assert_eq!(cluster.storage.get(VOLUME).await.state, "SyncReady");
}

#[tokio::test]
async fn a_forgotten_backup_is_never_resumed() {
    let mut cluster = Cluster::new(16, StorageOptions::default()).await;
    cluster.device.fill(SIZE_BYTES).await;
    cluster.archive.change(|disk| disk.hang_at = Some(3 << 20));
    let id = cluster.storage.begin_backup(VOLUME).await.unwrap().id;
    cluster.archive.hanging.notified().await;
    let forget = VolumeRef { volume: VOLUME.into() };
    let running = cluster.storage.client().forget_backup(forget.clone()).await;
    assert_eq!(reason(running), Reason::Busy);
    cluster.storage.stop_volume(VOLUME, StopMode::Force).await.unwrap();
    cluster.storage.ended(&id).await;
    assert!(cluster.storage.get(VOLUME).await.backup_resumable);
    cluster.storage.client().forget_backup(forget).await.unwrap();
    cluster.restart_storage().await;
    assert!(!cluster.storage.get(VOLUME).await.backup_resumable);
    cluster.archive.change(|disk| disk.hang_at = None);
    cluster.storage.full_backup(VOLUME).await.unwrap();
    assert!(cluster.archive.disk.lock().syncs[1].resume_uuid.is_empty());
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_volume_grows_with_its_data_device_and_never_shrinks() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    let data = std::fs::File::options().write(true).open(cluster.dir.path().join("data")).unwrap();
    data.set_len(SIZE_BYTES + (1 << 20)).unwrap();
    let resize = |size: u64| {
        let request = ResizeRequest { volume: VOLUME.into(), size_lb: size / 512 };
        let mut client = cluster.storage.client();
        async move { client.resize(request).await }
    };
    resize(SIZE_BYTES + (64 << 10)).await.unwrap();
    assert_eq!(cluster.storage.get(VOLUME).await.size_lb, (SIZE_BYTES + (64 << 10)) / 512);
    resize(0).await.unwrap();
    assert_eq!(cluster.storage.get(VOLUME).await.size_lb, (SIZE_BYTES + (1 << 20)) / 512);
    for bad in [SIZE_BYTES, SIZE_BYTES * 2] {
        resize(bad).await.unwrap_err();
    }
    cluster.device.scribble(5).await;
    let gid = cluster.storage.snapshot(VOLUME).await.unwrap().gid;
    cluster.shipped(gid).await;
}
