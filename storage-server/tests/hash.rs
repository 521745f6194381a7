//! Hash backup: what reaches the archive, what is compared, failures that change nothing, lost
//! answers, kills.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::{Behaviour, Cluster, StorageOptions, VOLUME};
use proto::v1::{GapCause, HashBackupRequest, OperationRef, OperationStatus, Reason, StopMode};
use server_kit::durable::Fuse;
use server_kit::error::RoleError;
use storage_server::device::Regions;
use wlog_format::units::LogUuid;

const MIB: u64 = 1 << 20;

/// A target whose log has overflowed: the archive has less than the device.
async fn overflowed() -> Cluster {
    let mut cluster = Cluster::target(4, StorageOptions::default()).await;
    cluster.device.scribble(20).await;
    cluster.check_restorable().await;
    overflow(&mut cluster).await;
    cluster
}

async fn overflow(cluster: &mut Cluster) {
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Refuse));
    cluster.device.fill(8 << 20).await;
    cluster.storage.wait_state("Stopped").await;
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Accept));
}

#[tokio::test]
async fn a_hash_backup_heals_a_gap_and_the_history_before_it_stays() {
    let mut cluster = overflowed().await;
    let (old, before) = (cluster.storage.get(VOLUME).await, cluster.archive.latest());
    let gid = cluster.storage.hash_backup(VOLUME).await.unwrap();
    let base = cluster.archive.disk.lock().base.unwrap();
    // What waited to be shipped had gids, too.
    let told = old.latest_gid.max(before.gid_end);
    assert_eq!(base.gid_begin, told + 1, "no gid means two things");
    assert_eq!(base.gid_end, gid);
    assert!(gid > base.gid_begin);
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.state.as_str(), view.gap_since_s, view.error.as_str()), ("Target", 0, ""));
    assert_eq!(view.gap_cause(), GapCause::None);
    assert_ne!(view.log_uuid, old.log_uuid);
    cluster.device.scribble(20).await;
    cluster.check_restorable().await;
    let start = &cluster.archive.disk.lock().hash_syncs[0];
    assert!(start.only_ranges, "the device knows what was written since");
}

#[tokio::test]
async fn writes_during_the_comparison_are_in_the_diff_or_in_the_log() {
    let mut cluster = Cluster::target(64, StorageOptions::default()).await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    cluster.device.fill(4 << 20).await;
    let request =
        HashBackupRequest { volume: VOLUME.into(), scan_bytes_per_s: 4 << 20, everything: true };
    let id = cluster.storage.client().hash_backup(request).await.unwrap().into_inner().id;
    assert_eq!(cluster.storage.get(VOLUME).await.operation, id);
    while cluster.storage.get(VOLUME).await.operation == id {
        cluster.device.scribble(10).await;
    }
    let ended = cluster.storage.ended(&id).await;
    assert_eq!(ended.status(), OperationStatus::Done, "{ended:?}");
    assert!(ended.total_bytes > 0);
    assert_eq!(ended.done_bytes, ended.total_bytes);
    assert_eq!(cluster.storage.get(VOLUME).await.operation, "");
    cluster.check_restorable().await;
}

#[tokio::test]
async fn only_what_was_written_since_the_archives_snapshot_is_compared() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.device.scribble(20).await;
    cluster.check_restorable().await;
    let have = cluster.archive.latest().gid_begin;
    cluster.archive.change(|disk| disk.delivered_to = Some(have));
    let at_archive = cluster.storage.get(VOLUME).await.done_lsid;
    cluster.device.write(3 * MIB + 8192, vec![7; 4096]).await;
    let gid = cluster.storage.snapshot(VOLUME).await.unwrap().gid;
    let uuid = cluster.shipped(gid).await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    cluster.device.write(5 * MIB, vec![8; 4096]).await;
    let written = 3 * MIB..3 * MIB + 65536;
    let later = 5 * MIB..5 * MIB + 65536;
    cluster.storage.map.lock().answer = Some(Regions::Known(vec![written.clone(), later.clone()]));
    cluster.storage.hash_backup(VOLUME).await.unwrap();
    let (log, since) = cluster.storage.map.lock().asked[0];
    assert_eq!(log, LogUuid(uuid[..].try_into().unwrap()), "the log that led to the archive");
    assert!(since.0 <= at_archive, "asked about {since}, the archive has up to {at_archive}");
    assert!(since.0 > 0);
    {
        let start = &cluster.archive.disk.lock().hash_syncs[0];
        assert!(start.only_ranges);
        let sent: Vec<_> = start.ranges.iter().map(|r| r.begin..r.end).collect();
        assert_eq!(sent, [written, later]);
    }
    cluster.archive.change(|disk| disk.delivered_to = None);
    cluster.check_restorable().await;

    // A device that does not know, a person who does not trust it: everything.
    for (answer, everything) in
        [(Regions::Unknown("restarted".into()), false), (Regions::Known(vec![0..1, 5..6]), true)]
    {
        cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
        cluster.storage.map.lock().answer = Some(answer);
        let request = HashBackupRequest { volume: VOLUME.into(), scan_bytes_per_s: 0, everything };
        let id = cluster.storage.client().hash_backup(request).await.unwrap().into_inner().id;
        assert_eq!(cluster.storage.ended(&id).await.status(), OperationStatus::Done);
        assert!(!cluster.archive.disk.lock().hash_syncs.last().unwrap().only_ranges);
        cluster.check_restorable().await;
    }
}

#[tokio::test]
async fn after_a_lost_record_the_whole_volume_is_compared() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.device.scribble(20).await;
    cluster.check_restorable().await;
    cluster.storage.kill().await;
    std::fs::remove_dir_all(cluster.storage.base.join(VOLUME)).unwrap();
    cluster.storage.revive(StorageOptions::default()).await;
    cluster.storage.init(VOLUME, &cluster.device.address()).await.unwrap();
    cluster.storage.map.lock().answer = Some(Regions::Known(vec![]));
    cluster.device.scribble(20).await;
    cluster.storage.hash_backup(VOLUME).await.unwrap();
    assert!(cluster.storage.map.lock().asked.is_empty(), "there is nothing to ask with");
    assert!(!cluster.archive.disk.lock().hash_syncs[0].only_ranges);
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_late_failure_leaves_the_archive_as_it_was_and_says_what_to_do() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.device.scribble(20).await;
    cluster.check_restorable().await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    cluster.device.scribble(20).await;
    let before = (cluster.archive.image(), cluster.archive.latest());
    cluster.archive.change(|disk| disk.break_hash = true);
    let failed = cluster.storage.hash_backup(VOLUME).await.unwrap_err();
    assert!(failed.error.contains("breaks off"), "{}", failed.error);
    assert!(failed.detail.unwrap().next_step.contains("walbc hash-backup S vol"));
    assert!((cluster.archive.image(), cluster.archive.latest()) == before);
    for restart in [false, true] {
        if restart {
            cluster.restart_storage().await;
        }
        let view = cluster.storage.get(VOLUME).await;
        assert_eq!(view.state, "SyncReady");
        assert_eq!(view.gap_cause(), GapCause::LogReset);
        assert!(view.error.contains("walbc hash-backup S vol"), "{}", view.error);
        assert!(!view.backup_resumable);
    }
    cluster.archive.change(|disk| disk.break_hash = false);
    cluster.storage.hash_backup(VOLUME).await.unwrap();
    assert_eq!(cluster.storage.get(VOLUME).await.error, "");
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_refusal_of_the_archive_costs_nothing() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.device.scribble(20).await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    cluster.device.scribble(20).await;
    let before = cluster.storage.get(VOLUME).await;
    cluster.archive.change(|disk| disk.refuse = true);
    let failed = cluster.storage.hash_backup(VOLUME).await.unwrap_err();
    assert_eq!(failed.detail.unwrap().reason(), Reason::NoSpace);
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.state.as_str(), view.gap_since_s), ("Stopped", 0));
    assert_eq!((view.log_uuid, view.latest_lsid), (before.log_uuid, before.latest_lsid));
    // Continuity was not lost.
    cluster.storage.start_volume(VOLUME, proto::v1::StorageMode::Target).await.unwrap();
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_target_is_not_hashed_and_a_backup_can_be_cancelled() {
    let cluster = Cluster::target(16, StorageOptions::default()).await;
    let refused = cluster.storage.begin_hash_backup(VOLUME).await.unwrap_err();
    let error = RoleError::from_status("s0", &refused);
    assert_eq!(error.reason(), Reason::WrongState);
    assert_eq!(error.detail().allowed_states, ["SyncReady", "Stopped"]);
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    let request =
        HashBackupRequest { volume: VOLUME.into(), scan_bytes_per_s: 4096, everything: true };
    cluster.device.write(0, vec![1; 2 << 20]).await;
    for force in [false, true] {
        let id =
            cluster.storage.client().hash_backup(request.clone()).await.unwrap().into_inner().id;
        match force {
            true => cluster.storage.stop_volume(VOLUME, StopMode::Force).await.unwrap(),
            false => {
                let cancel = OperationRef { id: id.clone() };
                cluster.storage.host().cancel_operation(cancel).await.unwrap();
            }
        }
        assert_eq!(cluster.storage.ended(&id).await.status(), OperationStatus::Cancelled);
    }
    cluster.storage.hash_backup(VOLUME).await.unwrap();
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_and_the_log_is_kept() {
    let mut cluster = overflowed().await;
    cluster.archive.change(|disk| disk.lose_answer = true);
    cluster.storage.hash_backup(VOLUME).await.unwrap_err();
    let uuid = cluster.storage.get(VOLUME).await.log_uuid;
    cluster.device.scribble(10).await;
    cluster.restart_storage().await;
    cluster.archive.change(|disk| disk.lose_answer = false);
    let gid = cluster.storage.hash_backup(VOLUME).await.unwrap();
    assert_eq!(cluster.archive.disk.lock().hash_syncs.len(), 1, "nothing was compared again");
    assert_eq!(cluster.archive.disk.lock().base.unwrap().gid_end, gid);
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.log_uuid, view.gap_since_s), (uuid, 0));
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_hash_backup_survives_a_kill_at_every_step_to_the_disk() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    // Not held, the reset to come, the reset, the snapshot, that it is the end, the end; shipping.
    for steps in 0..7 * 4 {
        cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
        cluster.device.scribble(5).await;
        cluster.storage.kill().await;
        let fuse = Fuse::new(steps);
        let fused = StorageOptions { fuse: Some(fuse.clone()), ..StorageOptions::default() };
        cluster.storage.revive(fused).await;
        // The command itself may be what is killed.
        if let Ok(started) = cluster.storage.begin_hash_backup(VOLUME).await {
            cluster.storage.ended(&started.id).await;
        }
        cluster.restart_storage().await;
        let view = cluster.storage.get(VOLUME).await;
        if view.state != "Target" {
            assert!(fuse.is_blown() && ["Stopped", "SyncReady"].contains(&view.state.as_str()));
            let reset = view.log_uuid != cluster.archive.disk.lock().base_uuid;
            assert!(!reset || view.gap_since_s > 0, "a gap that nobody sees: {view:?}");
            cluster.storage.hash_backup(VOLUME).await.unwrap();
        }
        cluster.device.scribble(5).await;
        cluster.check_restorable().await;
    }
}
