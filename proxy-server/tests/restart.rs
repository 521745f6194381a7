//! A restart, in order or by a kill, goes on where it was (I5, I9); what is half-made goes, what is
//! damaged is named and harms nobody else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]
mod common;
use common::archive::{Archive, Order};
use common::log::Device;
use common::{Place, Proxy, names, started, until, with_one_wdiff};
use proto::v1::{Empty, StopMode, VolumeRef};
use proxy_server::{World, serve_on};
use server_kit::durable::{RealDir, StateFile};
use server_kit::error::Reason;
use server_kit::net::Listener;
use server_kit::shutdown::Shutdown;
use std::fs;

#[tokio::test]
async fn queues_and_states_survive_a_restart_of_either_kind() {
    for mode in [StopMode::Graceful, StopMode::Force] {
        let place = Place::new();
        let proxy = Proxy::start(&place).await;
        started(&place, &proxy).await;
        let mut device = Device::new();
        for _ in 0..3 {
            let ios = device.random_ios(10, 64);
            proxy.send(device.write(&ios).messages()).await.unwrap();
        }
        let before = proxy.queue("a0").await;
        proxy.end(mode).await;
        let archive = Archive::start(&place.socket("a0")).await;
        archive.order(&[Order::Hold]);
        let proxy = Proxy::start(&place).await;
        archive.holds_one().await;
        let after = proxy.queue("a0").await;
        assert_eq!((after.wdiffs, after.bytes), (before.wdiffs, before.bytes), "{mode:?}");
        assert_eq!(proxy.state().await, "Started", "a started volume starts at boot");
        assert_eq!(proxy.volume().await.size_lb, common::log::SIZE_LB);
        archive.release();
        proxy.empty("a0").await;
        assert!(archive.image() == device.image);
        proxy.kill().await;
    }
}

#[tokio::test]
async fn a_manual_stop_survives_a_restart_and_so_does_a_start() {
    let place = Place::new();
    let mut proxy = Proxy::start(&place).await;
    started(&place, &proxy).await;
    for mode in [StopMode::Graceful, StopMode::Force] {
        proxy.stop_volume(StopMode::Graceful).await.unwrap();
        assert_eq!(proxy.state().await, "Stopped");
        proxy.end(mode).await;
        proxy = Proxy::start(&place).await;
        assert_eq!(proxy.state().await, "Stopped");
        proxy.start_volume().await.unwrap();
        proxy.end(mode).await;
        proxy = Proxy::start(&place).await;
        assert_eq!(proxy.state().await, "Started");
    }
    proxy.kill().await;
    // Started with everything stopped, for once: the next start is as before.
    let mut settings = place.settings();
    settings.stopped = true;
    let proxy = Proxy::start_with(&place, settings).await;
    assert_eq!(proxy.state().await, "Stopped");
    proxy.kill().await;
    let proxy = Proxy::start(&place).await;
    assert_eq!(proxy.state().await, "Started");
    proxy.kill().await;
}

/// The state file before it had the identity.
#[derive(serde::Serialize, serde::Deserialize)]
struct Older {
    started: bool,
    size_lb: u64,
}

#[tokio::test]
async fn the_identity_of_a_volumes_directory_lasts_as_long_as_the_directory() {
    let place = Place::new();
    let mut proxy = Proxy::start(&place).await;
    started(&place, &proxy).await;
    let first = proxy.volume().await.store_uuid;
    assert_eq!(first.len(), 16);
    proxy.kill().await;
    proxy = Proxy::start(&place).await;
    assert_eq!(proxy.volume().await.store_uuid, first);
    let mut device = Device::new();
    let ios = device.random_ios(1, 8);
    let messages = device.write(&ios).messages();
    let stream = tokio_stream::iter(messages);
    let reply = proxy.client.clone().wlog_transfer(stream).await.unwrap().into_inner();
    assert_eq!(reply.store_uuid, first);
    proxy.kill().await;
    // A directory of a version that had no identity gets one, once.
    let dir = std::sync::Arc::new(RealDir::open(place.volume_dir()).unwrap());
    StateFile::new(dir, "state").store(&Older { started: true, size_lb: 8 }).unwrap();
    proxy = Proxy::start(&place).await;
    let second = proxy.volume().await.store_uuid;
    assert!(second.len() == 16 && second != first);
    proxy.kill().await;
    proxy = Proxy::start(&place).await;
    assert_eq!(proxy.volume().await.store_uuid, second);
    // What is cleared and made again is another one.
    proxy.stop_volume(StopMode::Graceful).await.unwrap();
    proxy.client.clone().clear(VolumeRef { volume: common::VOLUME.into() }).await.unwrap();
    started(&place, &proxy).await;
    let third = proxy.volume().await.store_uuid;
    assert!(third.len() == 16 && third != second);
    proxy.kill().await;
}

/// The proxy dies after the wdiff was committed and before the storage server heard of it: the log
/// comes again, with the same time or (from another storage server) with another one.
#[tokio::test]
async fn a_log_that_comes_again_after_a_kill_makes_one_wdiff() {
    for later in [0, 77] {
        let place = Place::new();
        let proxy = Proxy::start(&place).await;
        started(&place, &proxy).await;
        let mut device = Device::new();
        let ios = device.random_ios(10, 64);
        let mut piece = device.write(&ios);
        proxy.send(piece.messages()).await.unwrap();
        let first = place.staged("a0");
        proxy.kill().await;
        let proxy = Proxy::start(&place).await;
        piece.end.diff.as_mut().unwrap().timestamp_s += later;
        proxy.send(piece.messages()).await.unwrap();
        assert_eq!(place.staged("a0"), first, "the first one stays");
        assert_eq!(proxy.queue("a0").await.wdiffs, 1);
        // A longer range that begins at the same place contains it.
        let mut longer = piece.clone();
        let more = device.random_ios(10, 64);
        let tail = device.write(&more);
        longer.data.extend_from_slice(&tail.data);
        longer.start.max_log_pb += tail.start.max_log_pb;
        longer.end.end_lsid = tail.end.end_lsid;
        longer.end.diff.as_mut().unwrap().end = tail.end.diff.unwrap().end;
        longer.end.diff.as_mut().unwrap().timestamp_s = tail.end.diff.unwrap().timestamp_s;
        proxy.send(longer.messages()).await.unwrap();
        proxy.kill().await;
        let archive = Archive::start(&place.socket("a0")).await;
        let proxy = Proxy::start(&place).await;
        proxy.empty("a0").await;
        assert_eq!(archive.attempts().len(), 2, "the shorter one was offered, and too old");
        assert_eq!(archive.stored()[0].diff.to_string(), "|0|-->|2|");
        assert!(archive.image() == device.image);
        proxy.kill().await;
    }
}

#[tokio::test]
async fn two_files_with_the_same_gids_become_one_at_start() {
    let (place, proxy) = with_one_wdiff().await;
    proxy.kill().await;
    let name = place.staged("a0").remove(0);
    let dir = place.queue_dir("a0");
    // The same with a later time in its name, as the original left behind.
    fs::hard_link(dir.join(&name), dir.join(name.replacen("2023", "2024", 1))).unwrap();
    assert_eq!(place.staged("a0").len(), 2);
    let proxy = Proxy::start(&place).await;
    assert_eq!(proxy.state().await, "Started");
    assert_eq!(place.staged("a0"), [name]);
    proxy.kill().await;
}

#[tokio::test]
async fn a_storage_server_that_dies_in_the_middle_leaves_nothing() {
    let place = Place::new();
    let (archive, proxy) = (Archive::start(&place.socket("a0")).await, Proxy::start(&place).await);
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(60, 128);
    let piece = device.write(&ios);
    let (messages, stream) = tokio::sync::mpsc::channel(100);
    for message in piece.messages().into_iter().take(5) {
        messages.send(message).await.unwrap();
    }
    let mut client = proxy.client.clone();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let call = tokio::spawn(async move { client.wlog_transfer(stream).await });
    until("a wlog on its way", || async { proxy.state().await == "WlogRecv" }).await;
    let received = place.volume_dir().join("received");
    until("a half-made file", || async { names(&received).len() == 1 }).await;
    call.abort();
    until("the volume is free again", || async { proxy.state().await == "Started" }).await;
    until("nothing half-made", || async { names(&received).is_empty() }).await;
    drop(messages);
    proxy.send(piece.messages()).await.unwrap();
    proxy.empty("a0").await;
    assert!(archive.image() == device.image);
    proxy.kill().await;
}

#[tokio::test]
async fn what_is_half_made_or_half_deleted_goes_at_start() {
    let (place, proxy) = with_one_wdiff().await;
    proxy.kill().await;
    let base = place.base();
    // Volumes whose creation or deletion was cut short, and archives.
    fs::create_dir_all(base.join("half.tmp/sendto/a0")).unwrap();
    fs::create_dir_all(place.queue_dir("half")).unwrap();
    fs::create_dir_all(place.queue_dir("deleted.tmp")).unwrap();
    fs::write(place.queue_dir("deleted.tmp").join("x.wdiff"), b"x").unwrap();
    fs::write(place.volume_dir().join("received/9-9.tmp"), b"x").unwrap();
    fs::write(place.queue_dir("a0").join("none-of-ours"), b"x").unwrap();
    let proxy = Proxy::start(&place).await;
    let list = proxy.client.clone().list(Empty {}).await.unwrap().into_inner().volumes;
    assert_eq!(list.len(), 1);
    assert_eq!(proxy.queue("a0").await.wdiffs, 1);
    assert_eq!(place.volumes(), ["v0"]);
    assert_eq!(names(&place.volume_dir().join("sendto")), ["a0"]);
    assert!(names(&place.volume_dir().join("received")).is_empty());
    assert!(place.staged("a0").contains(&"none-of-ours".to_owned()));
    proxy.kill().await;
}

#[tokio::test]
async fn a_deletion_that_was_cut_short_before_its_record_went_did_not_happen() {
    let (place, proxy) = with_one_wdiff().await;
    proxy.kill().await;
    let moved = std::process::Command::new("mv")
        .args([place.queue_dir("a0"), place.queue_dir("a0.tmp")])
        .status();
    assert!(moved.unwrap().success());
    let proxy = Proxy::start(&place).await;
    assert_eq!(proxy.queue("a0").await.wdiffs, 1);
    proxy.kill().await;
}

#[tokio::test]
async fn a_queue_whose_record_is_lost_is_told_and_not_thrown_away() {
    let (place, proxy) = with_one_wdiff().await;
    proxy.kill().await;
    fs::remove_file(place.volume_dir().join("a0.archive")).unwrap();
    let proxy = Proxy::start(&place).await;
    let volume = proxy.volume().await;
    assert!(volume.error.contains("a0.archive is missing"), "{}", volume.error);
    assert_eq!(place.staged("a0").len(), 1);
    proxy.kill().await;
}

#[tokio::test]
async fn a_base_directory_that_is_somebody_elses_is_refused_and_not_touched() {
    let place = Place::new();
    fs::create_dir_all(place.base().join("alice/documents")).unwrap();
    fs::create_dir_all(place.base().join("bob.tmp")).unwrap();
    let listener = Listener::bind(&place.socket("p0"), false).await.unwrap();
    let served = serve_on(listener, &place.settings(), World::real(), Shutdown::new()).await;
    assert_eq!(served.unwrap_err().reason(), Reason::WrongPeer);
    assert_eq!(names(&place.base()), ["alice", "bob.tmp"]);
    assert_eq!(names(&place.base().join("alice")), ["documents"]);
}

#[tokio::test]
async fn a_damaged_state_file_is_named_and_other_volumes_go_on() {
    for file in ["state", "a0.archive"] {
        let place = Place::new();
        let proxy = Proxy::start(&place).await;
        started(&place, &proxy).await;
        let mut device = Device::new();
        let ios = device.random_ios(10, 64);
        let mut piece = device.write(&ios);
        proxy.send(piece.messages()).await.unwrap();
        proxy.kill().await;
        let copied = std::process::Command::new("cp")
            .args(["-r".as_ref(), place.volume_dir().as_os_str()])
            .arg(place.base().join("v1"))
            .status();
        assert!(copied.unwrap().success());
        let path = place.volume_dir().join(file);
        let mut text = fs::read(&path).unwrap();
        text[3] ^= 1;
        fs::write(&path, text).unwrap();
        let proxy = Proxy::start(&place).await;
        let volume = proxy.volume().await;
        assert_eq!(volume.state, "Stopped");
        assert!(volume.error.contains(path.to_str().unwrap()), "{}", volume.error);
        let refused = common::error(&proxy.start_volume().await.unwrap_err());
        assert_eq!(refused.reason(), Reason::Damaged);
        let refused = common::error(&proxy.send(piece.messages()).await.unwrap_err());
        assert_eq!(refused.reason(), Reason::Damaged);
        assert_eq!(place.staged("a0").len(), 1, "nothing is deleted");
        piece.start.volume = "v1".into();
        proxy.send(piece.messages()).await.unwrap();
        let clear = VolumeRef { volume: common::VOLUME.into() };
        proxy.client.clone().clear(clear).await.unwrap();
        assert_eq!(place.volumes(), ["v1"]);
        proxy.kill().await;
    }
}

#[tokio::test]
async fn staged_wdiffs_without_their_volume_state_are_not_thrown_away() {
    let (place, proxy) = with_one_wdiff().await;
    proxy.kill().await;
    fs::remove_file(place.volume_dir().join("state")).unwrap();
    let proxy = Proxy::start(&place).await;
    let volume = proxy.volume().await;
    assert!(volume.error.contains("state is missing"), "{}", volume.error);
    assert_eq!(place.staged("a0").len(), 1);
    proxy.kill().await;
}
