//! Hash backup: what differs becomes a diff that bridges the gap; history before it stays; a
//! failure at any point leaves what was there.
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

use common::sync::snapshot;
use common::{
    Archive, Client, Device, UUID, VOLUME, filled, messages, meta, reason, same, start_of,
};
use proto::v1::hash_sync_request::Step;
use proto::v1::{BulkRefs, HashSyncEnd, HashSyncRequest, HashSyncStart, WdiffResult};
use server_kit::durable::{DurableDir, RealDir, StateFile};
use server_kit::error::Reason;
use std::sync::Arc;
use wlog_format::units::LogUuid;

const NEW: LogUuid = LogUuid([9; 16]);

/// Several cells, so that more than one is compared.
const BLOCKS: usize = 3 * 2048 + 1024;

fn device(steps: u64) -> Device {
    let mut device = Device::new(BLOCKS, 77);
    (0..steps).for_each(|_| device.write(60));
    device
}

/// Sends the diff from `begin` to `end` of the new log: it has nothing that is not there.
async fn empty_diff(client: &mut Client, begin: u64, end: u64, uuid: LogUuid) -> WdiffResult {
    let mut start = start_of(meta(begin, end), BLOCKS as u64);
    start.log_uuid = bytes::Bytes::copy_from_slice(&uuid.0);
    let reply = client.send(messages(start, &common::wdiff(&[], uuid), 5000)).await.unwrap();
    reply.result()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hash_backup_bridges_a_gap_and_keeps_the_history_before_it() {
    let (dir, mut device) = (tempfile::tempdir().unwrap(), device(4));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    // Writes whose log was lost.
    (0..3).for_each(|_| device.write(60));
    let from = client.hash_backup(device.now(), NEW, 6).await.unwrap();
    assert_eq!(from, snapshot(4, 4));
    let status = client.get().await;
    assert_eq!(status.state, "Archived");
    assert_eq!(status.log_uuid, NEW.0.as_slice());
    assert_eq!(status.latest, Some(snapshot(5, 6)));
    assert_eq!(status.newest_restorable_gid, 4, "a mixture of times is no snapshot");
    assert!(archive.files(".wdiff")[4].ends_with("----4-4-5-6.wdiff"), "{:?}", archive.files(""));
    assert_eq!(empty_diff(&mut client, 4, 5, UUID).await, WdiffResult::DifferentUuid);
    assert_eq!(empty_diff(&mut client, 5, 6, NEW).await, WdiffResult::Stored);
    same(&client.restored(6).await, device.now(), "what was backed up");
    for gid in 0..=4 {
        same(&client.restored(gid).await, &device.history[gid as usize], "the history");
    }
    // A second one, on top of what is not clean.
    assert_eq!(empty_diff(&mut client, 6, 7, NEW).await, WdiffResult::Stored);
    let second = LogUuid([10; 16]);
    let before = device.now().to_vec();
    device.write(60);
    client.hash_backup(device.now(), second, 12).await.unwrap();
    device.write(60);
    let from = client.hash_backup(device.now(), NEW, 15).await.unwrap();
    assert_eq!(from, snapshot(8, 12));
    let files = archive.files(".wdiff");
    assert!(files.iter().any(|f| f.contains("-M--8-12-13-15")), "dirty: given up: {files:?}");
    assert_eq!(empty_diff(&mut client, 13, 15, NEW).await, WdiffResult::Stored);
    same(&client.restored(15).await, device.now(), "the last one");
    same(&client.restored(7).await, &before, "the one before");
    archive.kill();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    same(&client.restored(15).await, device.now(), "after a restart");
    assert_eq!(client.get().await.log_uuid, NEW.0.as_slice());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dirty_base_alone_can_be_compared_with() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(3));
    let mut client = archive.client();
    client.init().await;
    let mixed: Vec<u8> = (0..device.now().len()).map(|i| device.history[i / 512 % 3][i]).collect();
    client.full_sync(&mixed, 2).await.unwrap();
    let from = client.hash_backup(device.now(), NEW, 5).await.unwrap();
    assert_eq!(from, snapshot(0, 2));
    assert_eq!(empty_diff(&mut client, 3, 5, NEW).await, WdiffResult::Stored);
    same(&client.restored(5).await, device.now(), "after the log of its scan");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_can_fail_is_refused_before_a_session_is_granted() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(2));
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    let unknown = client.prepare_hash(BLOCKS as u64).await.unwrap_err();
    assert_eq!(reason(&unknown), Reason::UnknownVolume);
    client.init().await;
    let no_image = client.prepare_hash(BLOCKS as u64).await.unwrap_err();
    assert_eq!(reason(&no_image), Reason::WrongState);
    let mut client = filled_again(&archive, &device).await;
    let larger = client.prepare_hash(BLOCKS as u64 + 8).await.unwrap_err();
    let larger = server_kit::error::RoleError::from_status("a0", &larger);
    assert_eq!(larger.reason(), Reason::WrongSize);
    let step = format!("walbc resize {VOLUME} {}", (BLOCKS + 8) * 512);
    assert_eq!(larger.detail().next_step, step);
    let smaller = client.prepare_hash(BLOCKS as u64 - 8).await.unwrap_err();
    assert_eq!(reason(&smaller), Reason::WrongSize);
    // A wdiff that is gone.
    let lost = archive.volume_dir().join(&archive.files(".wdiff")[1]);
    let hidden = dir.path().join("lost");
    std::fs::copy(&lost, &hidden).unwrap();
    std::fs::remove_file(&lost).unwrap();
    let damaged = client.prepare_hash(BLOCKS as u64).await.unwrap_err();
    assert_eq!(reason(&damaged), Reason::Damaged);
    std::fs::copy(&hidden, &lost).unwrap();
    // Announced, it holds the volume; announced again, the first session is over.
    let first = client.prepare_hash(BLOCKS as u64).await.unwrap();
    assert_eq!(client.get().await.state, "HashSync");
    assert_eq!(empty_diff(&mut client, 2, 3, UUID).await, WdiffResult::Syncing);
    assert_eq!(reason(&client.apply(1).await.unwrap_err()), Reason::Busy);
    same(&client.restored(1).await, &device.history[1], "a restore meanwhile");
    let second = client.prepare_hash(BLOCKS as u64).await.unwrap();
    let start = HashSyncStart::default;
    let late = client.hash_rest(first.session, device.now(), NEW, (3, 4), start()).await;
    assert_eq!(late.unwrap_err().reason(), Reason::WrongPeer);
    client.hash_rest(second.session, device.now(), NEW, (3, 4), start()).await.unwrap();
    assert_eq!(client.get().await.state, "Archived");
}

async fn filled_again(archive: &Archive, device: &Device) -> Client {
    let mut client = archive.client();
    client.full_sync(&device.history[0], 0).await.unwrap();
    for gid in 1..=device.gid() {
        client.send_step(device, gid).await.unwrap();
    }
    client
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_nobody_uses_ends_and_a_full_disk_is_refused() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(1));
    let mut settings = common::settings();
    settings.silence = std::time::Duration::from_millis(200);
    let images = Arc::new(archive_server::FileImages);
    let archive = Archive::with(&dir, settings.clone(), images.clone());
    let mut client = filled(&archive, &device).await;
    client.prepare_hash(BLOCKS as u64).await.unwrap();
    common::until("the end of the session", || {
        let mut client = client.clone();
        async move { (client.get().await.state == "Archived").then_some(()) }
    })
    .await;
    archive.kill();
    settings.reserve_bytes = u64::MAX;
    let archive = Archive::with(&dir, settings, images);
    let full = archive.client().prepare_hash(BLOCKS as u64).await.unwrap_err();
    assert_eq!(reason(&full), Reason::NoSpace);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_at_any_point_changes_nothing_and_the_next_attempt_succeeds() {
    let (dir, mut device) = (tempfile::tempdir().unwrap(), device(3));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    device.write(60);
    let status = client.get().await;
    let files = archive.files("");
    let step = |step| HashSyncRequest { step: Some(step) };
    let data = common::wdiff(&[], NEW);
    for phase in 0..6 {
        let session = client.prepare_hash(BLOCKS as u64).await.unwrap().session;
        let start = HashSyncStart {
            volume: VOLUME.into(),
            session,
            log_uuid: bytes::Bytes::copy_from_slice(&NEW.0),
            size_lb: BLOCKS as u64,
            seed: vec![5; 32].into(),
            protocol: server_kit::hash_sync::PROTOCOL,
            ..HashSyncStart::default()
        };
        let chunk = |from: usize, to: usize| {
            let part = bytes::Bytes::copy_from_slice(&data[from..to]);
            step(Step::Data(server_kit::chunks::encode(part)))
        };
        let mut sent = vec![step(Step::Start(start))];
        sent.extend((phase > 0).then(|| step(Step::Wanted(BulkRefs::default()))));
        sent.extend((phase > 1).then(|| chunk(0, 20)));
        sent.extend((phase > 2).then(|| chunk(20, data.len())));
        // An end that does not fit what came, and one that makes no diff.
        let backup = proto::v1::hash_sync_end::Result::Backup;
        let end = |total_bytes: usize, begin| HashSyncEnd {
            total_bytes: total_bytes as u64,
            result: Some(backup(snapshot(begin, 9))),
        };
        sent.extend((phase == 4).then(|| step(Step::End(end(data.len() + 1, 4)))));
        sent.extend((phase == 5).then(|| step(Step::End(end(data.len(), 3)))));
        let replies = client.archive.hash_sync(tokio_stream::iter(sent)).await;
        let mut replies = replies.unwrap().into_inner();
        let failed = loop {
            match replies.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("phase {phase}: it ended well"),
                Err(status) => break status,
            }
        };
        assert_ne!(reason(&failed), Reason::Unspecified, "phase {phase}: {failed:?}");
        common::until("Archived", || {
            let mut client = client.clone();
            async move { (client.get().await.state == "Archived").then_some(()) }
        })
        .await;
        let mut now = client.get().await;
        now.error.clone_from(&status.error);
        assert_eq!(now, status, "phase {phase}");
        assert_eq!(archive.files(""), files, "phase {phase}");
    }
    client.hash_backup(device.now(), NEW, 6).await.unwrap();
    assert_eq!(empty_diff(&mut client, 4, 6, NEW).await, WdiffResult::Stored);
    same(&client.restored(6).await, device.now(), "after all the cuts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_diff_and_its_log_count_together_wherever_the_process_dies() {
    let (dir, mut device) = (tempfile::tempdir().unwrap(), device(2));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    device.write(60);
    let before = std::fs::read(archive.volume_dir().join("state")).unwrap();
    client.hash_backup(device.now(), NEW, 5).await.unwrap();
    let name = archive.files("3-5.wdiff").pop().unwrap();
    let path = archive.volume_dir().join(&name);
    archive.kill();
    let vol = dir.path().join("a0").join(VOLUME);
    // Killed between the announcement and the name of the file, or behind the name.
    for there in [false, true] {
        std::fs::write(vol.join("state"), &before).unwrap();
        let opened: Arc<dyn DurableDir> = Arc::new(RealDir::open(&vol).unwrap());
        let state: StateFile<toml::Table> = StateFile::new(opened, "state");
        let mut record = state.load().unwrap().unwrap();
        let mut coming = toml::Table::new();
        coming.insert("file".into(), name.clone().into());
        coming.insert("log_uuid".into(), "09".repeat(16).into());
        record.insert("coming".into(), coming.into());
        state.store(&record).unwrap();
        let hidden = dir.path().join("hidden");
        if !there {
            std::fs::copy(&path, &hidden).unwrap();
            std::fs::remove_file(&path).unwrap();
        }
        let archive = Archive::start(&dir);
        let mut client = archive.client();
        let status = client.get().await;
        let (uuid, latest) = if there { (NEW, snapshot(3, 5)) } else { (UUID, snapshot(2, 2)) };
        assert_eq!(status.log_uuid, uuid.0.as_slice(), "there: {there}");
        assert_eq!(status.latest, Some(latest));
        if there {
            assert_eq!(empty_diff(&mut client, 3, 5, NEW).await, WdiffResult::Stored);
            same(&client.restored(5).await, device.now(), "after the crash");
            assert_eq!(client.apply(5).await.unwrap().gid, Some(5));
            archive.kill();
            let archive = Archive::start(&dir);
            let uuid = archive.client().get().await.log_uuid;
            assert_eq!(uuid, NEW.0.as_slice(), "also when the file is gone");
        } else {
            archive.kill();
            std::fs::copy(&hidden, &path).unwrap();
        }
    }
}
