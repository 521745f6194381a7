//! Kill and restart (I9) at every step that state takes to the disk: nothing is lost, nothing is
//! told twice with another meaning (I6), no log is released too early (I4).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::{Behaviour, Cluster, StorageOptions, VOLUME, eventually};
use proto::v1::{StopMode, StorageMode};
use server_kit::durable::Fuse;

fn fused(steps: i64) -> StorageOptions {
    StorageOptions { fuse: Some(Fuse::new(steps)), ..StorageOptions::default() }
}

/// Steps to the disk of one change of a record: create, sync file, rename, sync directory.
const STEPS: i64 = 4;

#[tokio::test]
async fn shipping_survives_a_kill_at_every_step_to_the_disk() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    // An implicit snapshot, done, an explicit one, done: and one more for good measure.
    for steps in 0..5 * STEPS {
        cluster.storage.kill().await;
        let options = fused(steps);
        let fuse = options.fuse.clone().unwrap();
        cluster.storage.revive(options).await;
        cluster.device.scribble(3).await;
        // It may fail: the process was killed while it was at it.
        let _ = cluster.storage.snapshot(VOLUME).await;
        cluster.device.scribble(3).await;
        eventually("the kill", || async {
            cluster.storage.client().kick(proto::v1::KickStorageRequest::default()).await.unwrap();
            if !fuse.is_blown() {
                let _ = cluster.storage.snapshot(VOLUME).await;
            }
            fuse.is_blown().then_some(())
        })
        .await;
        cluster.restart_storage().await;
        cluster.check_restorable().await;
    }
}

#[tokio::test]
async fn a_kill_while_an_answer_is_lost_repeats_the_same_piece_with_another_piece_size_too() {
    let mut cluster = Cluster::target(32, StorageOptions::default()).await;
    cluster.check_restorable().await;
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::LoseAck));
    cluster.device.fill(5 << 20).await;
    eventually("a lost answer", || async {
        cluster.wire.stored().iter().any(|s| !s.acknowledged).then_some(())
    })
    .await;
    cluster.storage.kill().await;
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Accept));
    let larger = StorageOptions { max_wlog_send: 3 << 20, ..StorageOptions::default() };
    cluster.storage.revive(larger).await;
    cluster.check_restorable().await;
    let stored = cluster.wire.stored();
    for lost in stored.iter().filter(|s| !s.acknowledged) {
        let covers = stored.iter().any(|s| {
            s.acknowledged
                && s.start.begin_lsid == lost.start.begin_lsid
                && s.end.end_lsid >= lost.end.end_lsid
        });
        assert!(covers, "shipped again, or more of it: {:?}", lost.summary());
    }
}

#[tokio::test]
async fn a_full_backup_survives_a_kill_at_every_step_to_the_disk() {
    let mut cluster = Cluster::new(16, StorageOptions::default()).await;
    // The log reset, the snapshot at the end, that it is the end, the end, what is shipped.
    for steps in 0..6 * STEPS {
        cluster.device.scribble(5).await;
        cluster.storage.kill().await;
        let options = fused(steps);
        let fuse = options.fuse.clone().unwrap();
        cluster.storage.revive(options).await;
        let operation = cluster.storage.full_backup(VOLUME).await;
        let state = cluster.storage.get(VOLUME).await.state;
        match operation {
            Ok(_) => assert_eq!(state, "Target"),
            Err(_) => assert!(fuse.is_blown() && state == "SyncReady", "{state}"),
        }
        cluster.restart_storage().await;
        let view = cluster.storage.get(VOLUME).await;
        if view.state != "Target" {
            assert_eq!(view.state, "SyncReady", "{view:?}");
            cluster.storage.full_backup(VOLUME).await.unwrap();
        }
        cluster.device.scribble(5).await;
        cluster.check_restorable().await;
        cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
        let reset = proto::v1::ResetStorageRequest { volume: VOLUME.into(), gid: 0 };
        cluster.storage.client().reset(reset).await.unwrap();
        cluster.archive.change(|disk| disk.base = None);
    }
}

#[tokio::test]
async fn a_kill_during_init_leaves_a_volume_or_none() {
    let mut cluster = Cluster::without_volume(4, StorageOptions::default()).await;
    for steps in 0..=STEPS {
        cluster.storage.kill().await;
        cluster.storage.revive(fused(steps)).await;
        let done = cluster.storage.init(VOLUME, &cluster.device.address()).await.is_ok();
        cluster.restart_storage().await;
        let client = &mut cluster.storage.client();
        let reference = proto::v1::VolumeRef { volume: VOLUME.into() };
        let found = client.get(reference.clone()).await;
        match &found {
            Ok(volume) => assert_eq!(volume.get_ref().state, "SyncReady"),
            Err(status) => {
                assert!(!done);
                assert_eq!(status.code(), tonic::Code::NotFound);
                assert!(!cluster.storage.base.join(VOLUME).exists());
                cluster.storage.init(VOLUME, &cluster.device.address()).await.unwrap();
            }
        }
        client.clear(reference).await.unwrap();
    }
}

#[tokio::test]
async fn states_survive_a_restart() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    let gid = cluster.storage.snapshot(VOLUME).await.unwrap().gid;
    cluster.restart_storage().await;
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.state.as_str(), view.latest_gid), ("Stopped", gid));
    cluster.storage.start_volume(VOLUME, StorageMode::Target).await.unwrap();
    cluster.shipped(gid).await;
    cluster.restart_storage().await;
    cluster.storage.wait_state("Target").await;
    cluster.device.scribble(5).await;
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_stop_that_cannot_be_saved_leaves_the_target_at_work() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.check_restorable().await;
    cluster.storage.kill().await;
    let options = fused(0);
    let fuse = options.fuse.clone().unwrap();
    cluster.storage.revive(options).await;
    cluster.storage.wait_state("Target").await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap_err();
    assert_eq!(cluster.storage.get(VOLUME).await.state, "Target");
    fuse.mend();
    cluster.device.scribble(5).await;
    cluster.check_restorable().await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
}

#[tokio::test]
async fn a_half_made_volume_is_removed_and_a_damaged_one_keeps_nobody_from_working() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.storage.kill().await;
    let base = cluster.storage.base.clone();
    std::fs::create_dir(base.join("half")).unwrap();
    std::fs::write(base.join("half/1-0.tmp"), "x").unwrap();
    std::fs::create_dir(base.join("doomed.tmp")).unwrap();
    std::fs::create_dir(base.join("bad")).unwrap();
    let record = std::fs::read_to_string(base.join("vol/volume")).unwrap();
    std::fs::write(base.join("bad/volume"), record.replace("Target", "Stopped")).unwrap();
    cluster.storage.revive(StorageOptions::default()).await;
    assert!(!base.join("half").exists() && !base.join("doomed.tmp").exists());
    let bad = cluster.storage.get("bad").await;
    assert_eq!(bad.state, "Damaged");
    assert!(bad.error.contains("bad/volume"), "{}", bad.error);
    let refused = cluster.storage.snapshot("bad").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::DataLoss);
    let clear = proto::v1::VolumeRef { volume: "bad".into() };
    cluster.storage.client().clear(clear).await.unwrap();
    assert!(!base.join("bad").exists());
    cluster.device.scribble(5).await;
    cluster.check_restorable().await;
}
