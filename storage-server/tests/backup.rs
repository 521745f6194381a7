//! Full backup: what reaches the archive, resuming, lost answers, refusals, cancelling, overflow.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::device::SIZE_BYTES;
use common::{Behaviour, Cluster, StorageOptions, VOLUME, checks, eventually};
use proto::v1::{OperationRef, OperationStatus, Reason, StopMode};

#[tokio::test]
async fn the_image_and_the_log_since_then_are_the_device() {
    let mut cluster = Cluster::new(16, StorageOptions::default()).await;
    cluster.device.scribble(40).await;
    let before = cluster.device.image().await;
    let gid = cluster.storage.full_backup(VOLUME).await.unwrap();
    assert_eq!(gid, 1, "nothing was written meanwhile");
    checks::same_image(&before, &cluster.archive.image());
    {
        let disk = cluster.archive.disk.lock();
        let base = disk.base.unwrap();
        assert_eq!((base.gid_begin, base.gid_end), (0, gid));
        assert!(disk.zero_runs > 0, "holes are told, not sent");
        assert!(disk.data_bytes < SIZE_BYTES);
    }
    cluster.shipped(gid).await;
    let first = cluster.wire.stored()[0].summary();
    assert_eq!(first, (0, 1, 0, 0, false), "the first clean snapshot, as an empty diff");
    assert_eq!(cluster.storage.get(VOLUME).await.state, "Target");
    cluster.device.scribble(40).await;
    cluster.check_restorable().await;
}

#[tokio::test]
async fn writes_during_the_backup_are_in_the_image_or_in_the_log() {
    let mut cluster = Cluster::new(64, StorageOptions::default()).await;
    cluster.device.scribble(100).await;
    let id = cluster.storage.begin_backup(VOLUME).await.unwrap().id;
    for _ in 0..20 {
        cluster.device.scribble(10).await;
    }
    let operation = cluster.storage.ended(&id).await;
    assert_eq!(operation.status(), OperationStatus::Done, "{operation:?}");
    assert_eq!((operation.done_bytes, operation.total_bytes), (SIZE_BYTES, SIZE_BYTES));
    cluster.check_restorable().await;
}

#[tokio::test]
async fn an_interrupted_backup_goes_on_where_the_archive_has_its_last_block() {
    let mut cluster = Cluster::new(64, StorageOptions::default()).await;
    cluster.device.fill(SIZE_BYTES).await;
    cluster.archive.change(|disk| disk.break_at = Some(3 << 20));
    let failed = cluster.storage.full_backup(VOLUME).await.unwrap_err();
    assert_eq!(failed.detail.unwrap().reason(), Reason::Unreachable);
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!(view.state, "SyncReady");
    assert!(view.error.contains("breaks off"), "{}", view.error);
    // Also when both the server and the writes go on in between.
    cluster.device.scribble(50).await;
    cluster.restart_storage().await;
    assert_eq!(cluster.storage.get(VOLUME).await.state, "SyncReady");
    let durable = cluster.archive.disk.lock().durable;
    assert!(durable >= 3 << 20);
    cluster.archive.change(|disk| disk.break_at = None);
    cluster.archive.change(|disk| disk.data_bytes = 0);
    cluster.storage.full_backup(VOLUME).await.unwrap();
    {
        let disk = cluster.archive.disk.lock();
        let resumed = &disk.syncs[1];
        assert_eq!(resumed.resume_uuid, disk.log_uuid);
        assert_eq!(resumed.started_s, disk.syncs[0].started_s);
        let left = SIZE_BYTES - durable as u64;
        assert!(disk.data_bytes <= left, "{} bytes, {left} were left", disk.data_bytes);
    }
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_backup_starts_anew_when_what_was_shipped_may_be_gone() {
    let mut cluster = Cluster::new(64, StorageOptions::default()).await;
    cluster.device.fill(SIZE_BYTES).await;
    assert!(!cluster.storage.get(VOLUME).await.backup_resumable);
    cluster.archive.change(|disk| disk.hang_at = Some(2 << 20));
    let id = cluster.storage.begin_backup(VOLUME).await.unwrap().id;
    cluster.archive.hanging.notified().await;
    cluster.device.scribble(10).await;
    eventually("something is shipped", || async {
        (cluster.storage.get(VOLUME).await.done_lsid > 0).then_some(())
    })
    .await;
    cluster.storage.stop_volume(VOLUME, StopMode::Force).await.unwrap();
    cluster.storage.ended(&id).await;
    assert!(cluster.storage.get(VOLUME).await.backup_resumable);
    cluster.archive.change(|disk| (disk.hang_at, disk.refuse) = (None, true));
    let id = cluster.storage.begin_backup_as(VOLUME, false).await.unwrap().id;
    assert_eq!(cluster.storage.ended(&id).await.status(), OperationStatus::Failed);
    let view = cluster.storage.get(VOLUME).await;
    assert!(!view.backup_resumable, "from now on it is too late to resume");
    cluster.archive.change(|disk| disk.refuse = false);
    cluster.storage.full_backup(VOLUME).await.unwrap();
    assert!(cluster.archive.disk.lock().syncs[1].resume_uuid.is_empty());
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_backup_is_not_resumed_on_a_log_that_was_lost() {
    let mut cluster = Cluster::new(4, StorageOptions::default()).await;
    cluster.device.fill(2 << 20).await;
    cluster.archive.change(|disk| disk.break_at = Some(1 << 20));
    cluster.storage.full_backup(VOLUME).await.unwrap_err();
    // Nobody ships in this state: the log overflows.
    cluster.device.fill(8 << 20).await;
    assert!(cluster.storage.get(VOLUME).await.overflow);
    cluster.archive.change(|disk| disk.break_at = None);
    cluster.storage.full_backup(VOLUME).await.unwrap();
    assert!(cluster.archive.disk.lock().syncs[1].resume_uuid.is_empty());
    assert!(!cluster.storage.get(VOLUME).await.overflow);
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_lost_answer_of_the_archive_is_asked_for() {
    let mut cluster = Cluster::new(16, StorageOptions::default()).await;
    cluster.device.scribble(40).await;
    cluster.archive.change(|disk| disk.lose_answer = true);
    cluster.storage.full_backup(VOLUME).await.unwrap_err();
    assert_eq!(cluster.storage.get(VOLUME).await.state, "SyncReady");
    cluster.archive.change(|disk| disk.lose_answer = false);
    let (gid, syncs) = (cluster.storage.full_backup(VOLUME).await.unwrap(), 1);
    assert_eq!(cluster.archive.disk.lock().syncs.len(), syncs, "it was not made again");
    assert_eq!(cluster.archive.disk.lock().base.unwrap().gid_end, gid);
    cluster.check_restorable().await;
}

#[tokio::test]
async fn the_log_is_left_alone_when_the_archive_refuses() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    cluster.device.scribble(10).await;
    let request = proto::v1::ResetStorageRequest { volume: VOLUME.into(), gid: 7 };
    cluster.storage.client().reset(request).await.unwrap();
    let before = cluster.storage.get(VOLUME).await;
    assert_eq!((before.done_gid, before.done_lsid), (7, 0));
    assert!(before.gap_since_s > 0, "what was not shipped is lost");
    cluster.archive.change(|disk| disk.refuse = true);
    let failed = cluster.storage.full_backup(VOLUME).await.unwrap_err();
    assert_eq!(failed.detail.unwrap().reason(), Reason::NoSpace);
    let after = cluster.storage.get(VOLUME).await;
    assert_eq!((after.log_uuid, after.done_gid), (before.log_uuid, 7));
    cluster.archive.change(|disk| disk.refuse = false);
    cluster.storage.full_backup(VOLUME).await.unwrap();
    assert_eq!(cluster.storage.get(VOLUME).await.gap_since_s, 0, "a backup heals the gap");
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_cancelled_backup_and_a_forced_stop_fall_back_and_can_be_resumed() {
    let mut cluster = Cluster::new(16, StorageOptions::default()).await;
    cluster.device.fill(SIZE_BYTES).await;
    cluster.archive.change(|disk| disk.hang_at = Some(2 << 20));
    let id = cluster.storage.begin_backup(VOLUME).await.unwrap().id;
    cluster.archive.hanging.notified().await;
    let refused = cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let twice = cluster.storage.begin_backup(VOLUME).await.unwrap_err();
    assert_eq!(twice.code(), tonic::Code::Aborted, "{twice:?}");
    cluster.storage.host().cancel_operation(OperationRef { id: id.clone() }).await.unwrap();
    assert_eq!(cluster.storage.ended(&id).await.status(), OperationStatus::Cancelled);
    cluster.storage.wait_state("SyncReady").await;

    cluster.archive.change(|disk| disk.hang_at = Some(4 << 20));
    let id = cluster.storage.begin_backup(VOLUME).await.unwrap().id;
    cluster.archive.hanging.notified().await;
    cluster.storage.stop_volume(VOLUME, StopMode::Force).await.unwrap();
    assert_eq!(cluster.storage.get(VOLUME).await.state, "SyncReady");
    assert_eq!(cluster.storage.ended(&id).await.status(), OperationStatus::Cancelled);

    cluster.archive.change(|disk| disk.hang_at = None);
    cluster.storage.full_backup(VOLUME).await.unwrap();
    let resumed =
        cluster.archive.disk.lock().syncs.iter().filter(|s| !s.resume_uuid.is_empty()).count();
    assert_eq!(resumed, 2);
    cluster.check_restorable().await;
}

#[tokio::test]
async fn an_overflow_during_the_backup_fails_it_clearly() {
    let mut cluster = Cluster::new(4, StorageOptions::default()).await;
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Refuse));
    cluster.device.fill(2 << 20).await;
    cluster.archive.change(|disk| disk.hang_at = Some(1 << 20));
    let id = cluster.storage.begin_backup(VOLUME).await.unwrap().id;
    cluster.archive.hanging.notified().await;
    cluster.device.fill(8 << 20).await;
    let failed = cluster.storage.ended(&id).await;
    assert_eq!(failed.detail.unwrap().reason(), Reason::Overflow, "{}", failed.error);
    cluster.storage.wait_state("SyncReady").await;
    let view = cluster.storage.get(VOLUME).await;
    assert!(view.gap_since_s > 0);
    cluster.archive.change(|disk| disk.hang_at = None);
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Accept));
    cluster.storage.full_backup(VOLUME).await.unwrap();
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_server_that_stops_gives_the_backup_up_and_resumes_it_later() {
    let mut cluster = Cluster::new(16, StorageOptions::default()).await;
    cluster.device.fill(SIZE_BYTES).await;
    cluster.archive.change(|disk| disk.hang_at = Some(2 << 20));
    cluster.storage.begin_backup(VOLUME).await.unwrap();
    cluster.archive.hanging.notified().await;
    let request = proto::v1::ShutdownRequest { mode: StopMode::Graceful.into() };
    cluster.storage.host().shutdown(request).await.unwrap();
    eventually("the server's end", || async {
        let list = cluster.storage.client().list(proto::v1::Empty {}).await;
        list.is_err().then_some(())
    })
    .await;
    cluster.restart_storage().await;
    cluster.archive.change(|disk| disk.hang_at = None);
    cluster.storage.full_backup(VOLUME).await.unwrap();
    assert!(!cluster.archive.disk.lock().syncs[1].resume_uuid.is_empty());
    cluster.check_restorable().await;
}
