//! Whatever a peer asks for: a typed error, nothing changed, and the server goes on.
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

use bytes::Bytes;
use common::{
    Answer, Archive, Client, Device, VOLUME, bulk, filled, full, full_end, full_start, reason, same,
};
use proto::v1::full_sync_request::Step;
use proto::v1::restore_request::Point;
use proto::v1::{
    ApplyRequest, FullSyncBulk, FullSyncEnd, FullSyncRequest, PrepareFullSyncRequest,
    ResetArchiveRequest, RestorableRequest, RestoreRequest, SnapshotRef, StopRequest, VolumeRef,
};
use server_kit::error::Reason;

fn why<T: std::fmt::Debug>(answer: Answer<T>) -> Reason {
    reason(&answer.unwrap_err())
}

async fn every_rpc(client: &mut Client, name: &str, expected: Reason) {
    let mut a = client.archive.clone();
    let volume = || VolumeRef { volume: name.into() };
    let snapshot = || SnapshotRef { volume: name.into(), gid: 1 };
    let apply = ApplyRequest { volume: name.into(), ..common::apply_to(1) };
    let restore = RestoreRequest {
        volume: name.into(),
        point: Some(Point::Gid(1)),
        ..RestoreRequest::default()
    };
    let prepare = PrepareFullSyncRequest { volume: name.into(), size_lb: 8, ..Default::default() };
    assert_eq!(why(a.clear(volume()).await), expected, "clear");
    assert_eq!(why(a.reset(ResetArchiveRequest { volume: name.into() }).await), expected, "reset");
    assert_eq!(why(a.start(volume()).await), expected, "start");
    let stop = StopRequest { volume: name.into(), mode: 0 };
    assert_eq!(why(a.stop(stop).await), expected, "stop");
    assert_eq!(why(a.prepare_full_sync(prepare).await), expected, "prepare");
    let all = RestorableRequest { volume: name.into(), all: true };
    assert_eq!(why(a.list_restorable(all).await), expected, "restorable");
    assert_eq!(why(a.restore(restore).await), expected, "restore");
    assert_eq!(why(a.list_restored(volume()).await), expected, "restored");
    assert_eq!(why(a.delete_restored(snapshot()).await), expected, "delete");
    assert_eq!(why(a.list_diffs(volume()).await), expected, "diffs");
    assert_eq!(why(a.apply(apply).await), expected, "apply");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_volumes_and_impossible_names_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), Device::new(1024, 1));
    let mut client = filled(&archive, &device).await;
    every_rpc(&mut client, "other", Reason::UnknownVolume).await;
    for name in ["", "..", "a/b", "vol0.tmp", &"x".repeat(65)] {
        every_rpc(&mut client, name, Reason::BadRequest).await;
        let volume = || VolumeRef { volume: name.into() };
        assert_eq!(why(client.archive.init(volume()).await), Reason::BadRequest);
        assert_eq!(why(client.archive.get(volume()).await), Reason::BadRequest);
    }
    same(&client.restored(0).await, device.now(), "the server goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_states_say_which_states_would_do() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), Device::new(1024, 1));
    let mut client = archive.client();
    client.init().await;
    let mut a = client.archive.clone();
    let again = a.init(common::volume()).await.unwrap_err();
    assert_eq!(reason(&again), Reason::WrongState);
    let refused = client.restore_to(Point::Gid(0), "").await.unwrap_err();
    let error = server_kit::error::RoleError::from_status("a0", &refused);
    assert_eq!(
        (error.detail().state.as_str(), error.detail().volume.as_str()),
        ("SyncReady", VOLUME)
    );
    assert_eq!(error.detail().allowed_states, ["Archived", "WdiffRecv", "HashSync", "ReplSync"]);
    let stop = |mode| StopRequest { volume: VOLUME.into(), mode };
    assert_eq!(why(a.stop(stop(0)).await), Reason::WrongState);
    client.full_sync(device.now(), 0).await.unwrap();
    assert_eq!(why(a.start(common::volume()).await), Reason::WrongState);
    assert_eq!(why(client.prepare(1024, &[]).await), Reason::WrongState);
    assert_eq!(why(a.stop(stop(2)).await), Reason::BadRequest);
    assert_eq!(why(a.stop(stop(9)).await), Reason::BadRequest);
    assert_eq!(client.get().await.state, "Archived");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_backups_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), Device::new(1024, 1));
    let mut client = archive.client();
    client.init().await;
    assert_eq!(why(client.prepare(0, &[]).await), Reason::WrongSize);
    assert_eq!(why(client.prepare(u64::MAX, &[]).await), Reason::WrongSize);
    assert_eq!(why(client.prepare(8, &[1, 2]).await), Reason::BadRequest);
    let image = device.now();
    let size = image.len();
    let piece = |at: usize, len: usize| bulk(at, &vec![1; len]);
    let zeros =
        |at, n| full(Step::Bulk(FullSyncBulk { offset_bytes: at, chunk: None, zeros_bytes: n }));
    let bad = Step::Bulk(FullSyncBulk {
        offset_bytes: 0,
        chunk: Some(common::bad_chunk(&[1; 512])),
        zeros_bytes: 0,
    });
    let backwards = FullSyncEnd {
        base: Some(proto::v1::Snapshot { gid_begin: 2, gid_end: 1 }),
        timestamp_s: 0,
    };
    let end = full(full_end(0, 0));
    let cases: Vec<(&str, Vec<FullSyncRequest>, Reason)> = vec![
        ("a gap", vec![piece(0, 512), piece(1024, 512)], Reason::BadRequest),
        ("an overlap", vec![piece(0, 1024), piece(512, 512)], Reason::BadRequest),
        ("half a block", vec![piece(0, 100)], Reason::BadRequest),
        ("nothing", vec![zeros(0, 0)], Reason::BadRequest),
        ("beyond the end", vec![zeros(0, size as u64), piece(size, 512)], Reason::WrongSize),
        ("endless zeros", vec![zeros(0, u64::MAX - 511)], Reason::WrongSize),
        ("a damaged chunk", vec![full(bad)], Reason::Damaged),
        ("too little", vec![piece(0, 512), end.clone()], Reason::WrongSize),
        (
            "no snapshot",
            vec![
                zeros(0, size as u64),
                full(Step::End(FullSyncEnd { base: None, timestamp_s: 0 })),
            ],
            Reason::BadRequest,
        ),
        (
            "a snapshot backwards",
            vec![zeros(0, size as u64), full(Step::End(backwards))],
            Reason::BadRequest,
        ),
        ("no end", vec![zeros(0, size as u64)], Reason::BadRequest),
        ("an empty message", vec![FullSyncRequest { step: None }], Reason::BadRequest),
    ];
    for (what, rest, expected) in cases {
        let (session, _) = client.prepare(device.size_lb(), &[]).await.unwrap();
        let start = full(Step::Start(full_start(session)));
        let messages: Vec<_> = std::iter::once(start).chain(rest).collect();
        let answer = client.archive.full_sync(tokio_stream::iter(messages)).await;
        assert_eq!(why(answer), expected, "{what}");
        assert_eq!(client.get().await.state, "SyncReady", "{what}");
    }
    client.full_sync(image, 0).await.unwrap();
    same(&client.restored(0).await, image, "the server goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_known_once_and_forgotten_after_a_silence() {
    let dir = tempfile::tempdir().unwrap();
    let silence = std::time::Duration::from_millis(300);
    let settings = archive_server::Settings { silence, ..common::settings() };
    let archive = Archive::with(&dir, settings, std::sync::Arc::new(archive_server::FileImages));
    let mut client = archive.client();
    client.init().await;
    let start = async |client: &mut Client, start| {
        let messages = vec![full(Step::Start(start))];
        reason(&client.archive.full_sync(tokio_stream::iter(messages)).await.unwrap_err())
    };
    assert_eq!(start(&mut client, full_start("x".into())).await, Reason::WrongPeer);
    let (old, _) = client.prepare(8, &[]).await.unwrap();
    let (new, _) = client.prepare(8, &[]).await.unwrap();
    assert_eq!(start(&mut client, full_start(old)).await, Reason::WrongPeer, "replaced");
    let mut nameless = full_start(new.clone());
    nameless.log_uuid = Bytes::new();
    assert_eq!(start(&mut client, nameless).await, Reason::BadRequest);
    assert_eq!(client.get().await.state, "FullSync");
    common::until("the session to be forgotten", || {
        let mut client = client.clone();
        async move { (client.get().await.state == "SyncReady").then_some(()) }
    })
    .await;
    assert_eq!(start(&mut client, full_start(new)).await, Reason::WrongPeer);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restores_and_applies_that_make_no_sense_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, mut device) = (Archive::start(&dir), Device::new(1024, 1));
    (0..3).for_each(|_| device.write(10));
    let mut client = filled(&archive, &device).await;
    let taken = dir.path().join("taken");
    std::fs::write(&taken, "mine").unwrap();
    let own = archive.volume_dir().join("x.img");
    let cases = [
        ("relative/image".to_owned(), Reason::BadRequest),
        ("/nonexistent/image".to_owned(), Reason::BadRequest),
        (dir.path().join("..").display().to_string(), Reason::AlreadyExists),
        (taken.display().to_string(), Reason::AlreadyExists),
        ("/dev/null".to_owned(), Reason::AlreadyExists),
        (own.display().to_string(), Reason::BadRequest),
    ];
    for (path, expected) in cases {
        let refused = client.restore_to(Point::Gid(1), &path).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{path}: {refused}");
    }
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");
    let pointless = RestoreRequest { volume: VOLUME.into(), ..RestoreRequest::default() };
    assert_eq!(why(client.archive.restore(pointless).await), Reason::BadRequest);
    for gid in [4, u64::MAX] {
        assert_eq!(why(client.restore_to(Point::Gid(gid), "").await), Reason::UnknownSnapshot);
    }
    let nothing = client.apply(0).await.unwrap();
    assert_eq!(nothing.status(), proto::v1::OperationStatus::Done);
    client.apply(2).await.unwrap();
    assert_eq!(why(client.apply(1).await), Reason::UnknownSnapshot);
    assert_eq!(why(client.apply(u64::MAX).await), Reason::UnknownSnapshot);
    same(&client.restored(3).await, device.now(), "the server goes on");
}
