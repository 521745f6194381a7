//! Bad input to every call gives a typed error, changes nothing, and the server goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]
mod common;
use bytes::Bytes;
use common::archive::Archive;
use common::log::{Device, Piece};
use common::{Place, Proxy, error, info, names, started};
use proto::v1::wlog_transfer_request::Step;
use proto::v1::{
    ArchiveInfo, ArchiveInfoRef, ArchiveInfoRequest, KickProxyRequest, Snapshot, StopMode,
    StopRequest, VolumeRef, WlogTransferRequest,
};
use server_kit::chunks;
use server_kit::error::Reason;
use tonic::Status;

fn message(step: Step) -> WlogTransferRequest {
    WlogTransferRequest { step: Some(step) }
}

fn reason<T>(result: Result<T, Status>) -> Reason {
    match result {
        Ok(_) => panic!("accepted"),
        Err(status) => error(&status).reason(),
    }
}

/// What a client may send instead of the piece, and what it must hear.
fn spoiled(piece: &Piece) -> Vec<(&'static str, Vec<WlogTransferRequest>, Reason)> {
    let bad = Reason::BadRequest;
    let with = |change: &dyn Fn(&mut Piece)| {
        let mut piece = piece.clone();
        change(&mut piece);
        piece.messages()
    };
    let all = piece.messages();
    let chunk = |data: &[u8]| chunks::encode(Bytes::copy_from_slice(data));
    let mut false_crc = chunk(&piece.data);
    false_crc.crc32 ^= 1;
    let mut bomb = chunk(&piece.data[..100]);
    bomb.raw_bytes = u32::MAX;
    let cut = piece.data.len() - 512;
    vec![
        ("nothing", vec![], bad),
        ("no start", all[1..].to_vec(), bad),
        ("an empty message", vec![WlogTransferRequest { step: None }], bad),
        ("two starts", [&all[..1], &all[..]].concat(), bad),
        ("no end", all[..all.len() - 1].to_vec(), bad),
        ("unknown volume", with(&|p| p.start.volume = "other".into()), Reason::UnknownVolume),
        ("a path", with(&|p| p.start.volume = "../v0".into()), bad),
        ("a short uuid", with(&|p| p.start.log_uuid = Bytes::from_static(b"x")), bad),
        ("odd blocks", with(&|p| p.start.physical_block_bytes = 513), bad),
        ("no size", with(&|p| p.start.device_size_lb = 0), bad),
        ("lsids beyond 64 bits", with(&|p| p.start.begin_lsid = u64::MAX - 1), bad),
        ("an absurd length", with(&|p| p.start.max_log_pb = u64::MAX / 512), Reason::NoSpace),
        ("more than announced", with(&|p| p.start.max_log_pb -= 1), bad),
        ("another salt", with(&|p| p.start.salt ^= 1), Reason::Damaged),
        ("another lsid", with(&|p| p.start.begin_lsid += 1), Reason::Damaged),
        ("a flipped bit", with(&|p| p.data[1000] ^= 1), Reason::Damaged),
        ("a cut pack", with(&|p| p.data.truncate(cut)), Reason::Damaged),
        ("garbage", with(&|p| p.data.fill(0xa5)), Reason::Damaged),
        ("another end", with(&|p| p.end.end_lsid += 1), bad),
        ("no diff", with(&|p| p.end.diff = None), bad),
        ("no begin", with(&|p| p.end.diff.as_mut().unwrap().begin = None), bad),
        ("a comparison", with(&|p| p.end.diff.as_mut().unwrap().comparison = true), bad),
        ("no time", with(&|p| p.end.diff.as_mut().unwrap().timestamp_s = u64::MAX), bad),
        (
            "a dirty diff",
            with(&|p| {
                let end = Snapshot { gid_begin: 1, gid_end: 9 };
                p.end.diff.as_mut().unwrap().end = Some(end);
            }),
            bad,
        ),
        (
            "no progress",
            with(&|p| p.end.diff.as_mut().unwrap().end = p.end.diff.unwrap().begin),
            bad,
        ),
        (
            "a chunk with another checksum",
            vec![all[0].clone(), message(Step::Chunk(false_crc))],
            Reason::Damaged,
        ),
        ("a bomb", vec![all[0].clone(), message(Step::Chunk(bomb))], Reason::Damaged),
    ]
}

#[tokio::test]
async fn a_bad_wlog_is_refused_and_the_next_good_one_is_taken() {
    let place = Place::new();
    let (archive, proxy) = (Archive::start(&place.socket("a0")).await, Proxy::start(&place).await);
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(20, 64);
    let piece = device.write(&ios);
    for (what, messages, expected) in spoiled(&piece) {
        let status = proxy.send(messages).await.expect_err(what);
        let refused = error(&status);
        assert_eq!(refused.reason(), expected, "{what}: {refused}");
        assert!(!refused.message().is_empty());
        assert_eq!(proxy.state().await, "Started", "{what}");
        assert!(place.staged("a0").is_empty(), "{what}");
    }
    common::until("nothing half-made", || async {
        names(&place.volume_dir().join("received")).is_empty()
    })
    .await;
    proxy.send(piece.messages()).await.unwrap();
    proxy.empty("a0").await;
    assert!(archive.image() == device.image);
    proxy.kill().await;
}

#[tokio::test]
async fn a_wlog_is_refused_while_stopped_and_while_another_arrives() {
    let place = Place::new();
    let proxy = Proxy::start(&place).await;
    proxy.add("a0", &place.socket("a0")).await.unwrap();
    let mut device = Device::new();
    let ios = device.random_ios(4, 64);
    let piece = device.write(&ios);
    let refused = error(&proxy.send(piece.messages()).await.unwrap_err());
    assert_eq!(refused.reason(), Reason::WrongState);
    assert_eq!(refused.detail().state, "Stopped");
    assert_eq!(refused.detail().allowed_states, ["Started"]);
    proxy.start_volume().await.unwrap();
    let (messages, stream) = tokio::sync::mpsc::channel(10);
    messages.send(piece.start_message()).await.unwrap();
    let mut client = proxy.client.clone();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let call = tokio::spawn(async move { client.wlog_transfer(stream).await });
    common::until("a wlog", || async { proxy.state().await == "WlogRecv" }).await;
    assert_eq!(reason(proxy.send(piece.messages()).await), Reason::Busy);
    for message in piece.messages().into_iter().skip(1) {
        messages.send(message).await.unwrap();
    }
    common::soon("the first one", call).await.unwrap().unwrap();
    proxy.kill().await;
}

#[tokio::test]
async fn at_most_so_many_wlogs_are_received_at_a_time() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.max_receiving = Some(1);
    let proxy = Proxy::start_with(&place, settings).await;
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(4, 64);
    let piece = device.write(&ios);
    let (messages, stream) = tokio::sync::mpsc::channel(10);
    messages.send(piece.start_message()).await.unwrap();
    let mut client = proxy.client.clone();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let call = tokio::spawn(async move { client.wlog_transfer(stream).await });
    common::until("a wlog", || async { proxy.state().await == "WlogRecv" }).await;
    let refused = error(&proxy.send(piece.messages()).await.unwrap_err());
    assert_eq!(refused.reason(), Reason::Busy);
    assert!(refused.message().contains("max-receiving"), "{refused}");
    drop(messages);
    assert!(common::soon("the end", call).await.unwrap().is_err());
    common::until("room again", || async { proxy.send(piece.messages()).await.is_ok() }).await;
    proxy.kill().await;
}

#[tokio::test]
async fn bad_control_requests_are_typed_and_change_nothing() {
    let place = Place::new();
    let proxy = Proxy::start(&place).await;
    started(&place, &proxy).await;
    let before = proxy.volume().await;
    let client = || proxy.client.clone();
    let volume = |name: &str| VolumeRef { volume: name.into() };
    let unknown = Reason::UnknownVolume;
    assert_eq!(reason(client().start(volume("x")).await), unknown);
    assert_eq!(reason(client().clear(volume("x")).await), unknown);
    assert_eq!(reason(client().start(volume("")).await), Reason::BadRequest);
    assert_eq!(reason(client().get(volume("a/b")).await), Reason::BadRequest);
    assert_eq!(client().get(volume("x")).await.unwrap().into_inner().state, "Clear");
    assert_eq!(reason(client().start(volume("v0")).await), Reason::WrongState);
    assert_eq!(reason(client().clear(volume("v0")).await), Reason::WrongState);
    let stop = |name: &str, mode| StopRequest { volume: name.into(), mode };
    assert_eq!(reason(client().stop(stop("x", 0)).await), unknown);
    assert_eq!(reason(client().stop(stop("v0", 9)).await), Reason::BadRequest);
    let kick = |volume: &str, archive: &str| KickProxyRequest {
        volume: volume.into(),
        archive: archive.into(),
    };
    assert_eq!(reason(client().kick(kick("x", "")).await), unknown);
    assert_eq!(reason(client().kick(kick("v0", "x")).await), Reason::BadRequest);
    assert_eq!(reason(client().kick(kick("", "a0")).await), Reason::BadRequest);
    let kicked = client().kick(kick("", "")).await.unwrap().into_inner().kicked;
    assert_eq!(kicked, ["v0/a0"]);
    assert_eq!(proxy.volume().await, before);
    proxy.stop_volume(StopMode::Graceful).await.unwrap();
    assert_eq!(reason(proxy.stop_volume(StopMode::Graceful).await), Reason::WrongState);
    proxy.kill().await;
}

#[tokio::test]
async fn archive_info_is_added_changed_and_deleted_and_mistakes_change_nothing() {
    let place = Place::new();
    let proxy = Proxy::start(&place).await;
    let (a0, a1) = (place.socket("a0"), place.socket("a1"));
    let put = |info: ArchiveInfo| ArchiveInfoRequest { volume: "v0".into(), info: Some(info) };
    let named = |name: &str| ArchiveInfoRef { volume: "v0".into(), name: name.into() };
    let client = || proxy.client.clone();
    let none = ArchiveInfoRequest { volume: "v0".into(), info: None };
    assert_eq!(reason(client().add_archive(none).await), Reason::BadRequest);
    let mut odd = info("a0", &a0);
    odd.compression = "zip".into();
    assert_eq!(reason(client().add_archive(put(odd)).await), Reason::BadRequest);
    assert_eq!(reason(client().update_archive(put(info("a0", &a0))).await), Reason::UnknownVolume);
    assert_eq!(proxy.state().await, "Clear", "a refused first archive makes no volume");
    assert!(place.volumes().is_empty());
    proxy.add("a0", &a0).await.unwrap();
    assert_eq!(proxy.state().await, "Stopped");
    // An existing name: refused, and the stored entry is as before, also after a restart.
    assert_eq!(reason(proxy.add("a0", &a1).await), Reason::AlreadyExists);
    assert_eq!(proxy.queue("a0").await.archive.unwrap(), info("a0", &a0));
    proxy.kill().await;
    let proxy = Proxy::start(&place).await;
    let client = || proxy.client.clone();
    assert_eq!(proxy.queue("a0").await.archive.unwrap(), info("a0", &a0));
    assert_eq!(reason(client().update_archive(put(info("a1", &a1))).await), Reason::BadRequest);
    proxy.start_volume().await.unwrap();
    assert_eq!(reason(proxy.add("a1", &a1).await), Reason::WrongState);
    assert_eq!(reason(client().update_archive(put(info("a0", &a1))).await), Reason::WrongState);
    assert_eq!(reason(client().delete_archive(named("a0")).await), Reason::WrongState);
    let mut device = Device::new();
    let ios = device.random_ios(4, 64);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    proxy.stop_volume(StopMode::Graceful).await.unwrap();
    proxy.add("a1", &a1).await.unwrap();
    assert_eq!(proxy.queue("a1").await.wdiffs, 0, "a new archive begins with what comes next");
    client().update_archive(put(info("a0", &a1))).await.unwrap();
    assert_eq!(proxy.queue("a0").await.wdiffs, 1, "an update keeps the queue");
    assert_eq!(reason(client().delete_archive(named("a2")).await), Reason::BadRequest);
    client().delete_archive(named("a0")).await.unwrap();
    assert_eq!(names(&place.volume_dir().join("sendto")), ["a1"]);
    proxy.kill().await;
    let proxy = Proxy::start(&place).await;
    let queues = proxy.volume().await.queues;
    assert_eq!(queues.len(), 1);
    proxy.client.clone().delete_archive(named("a1")).await.unwrap();
    assert_eq!(proxy.state().await, "Clear", "the last one takes the volume with it");
    assert!(place.volumes().is_empty());
    proxy.kill().await;
}
