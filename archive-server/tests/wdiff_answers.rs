//! A wdiff is stored as a whole or refused with the answer that its sender understands; what is not
//! sound leaves nothing behind.
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
    Archive, Client, Device, LIMIT, UUID, VOLUME, filled, messages, meta, reason, same, start_of,
    until, volume, wdiff,
};
use proto::v1::wdiff_transfer_request::Step;
use proto::v1::{
    Snapshot, StopRequest, WdiffEnd, WdiffResult as R, WdiffSender, WdiffTransferRequest,
};
use server_kit::error::Reason;
use wdiff_format::record::{DiffRecord, Payload};
use wlog_format::units::{Lb, LogUuid};

fn device(steps: u64) -> Device {
    let mut device = Device::new(1024, 7);
    (0..steps).for_each(|_| device.write(10));
    device
}

/// The answer to the wdiff of the last step with a start that is changed a bit.
async fn answer(
    client: &mut Client,
    device: &Device,
    change: impl Fn(&mut proto::v1::WdiffStart),
) -> R {
    let gid = device.gid();
    let mut start = start_of(meta(gid - 1, gid), device.size_lb());
    change(&mut start);
    client.send(messages(start, &device.wdiff(gid), 5000)).await.unwrap().result()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_has_its_answer_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, mut device) = (Archive::start(&dir), device(2));
    let mut client = filled(&archive, &device).await;
    device.write(10);
    let before = (client.get().await, archive.files(""));
    let other = Bytes::from_static(&[9; 16]);
    let foreign = answer(&mut client, &device, |s| s.log_uuid = other.clone()).await;
    assert_eq!(foreign, R::DifferentUuid);
    assert_eq!(answer(&mut client, &device, |s| s.size_lb += 1).await, R::SmallerSize);
    assert_eq!(answer(&mut client, &device, |s| s.diff = Some(meta(3, 4))).await, R::TooNew);
    assert_eq!(answer(&mut client, &device, |s| s.diff = Some(meta(1, 2))).await, R::TooOld);
    assert_eq!(answer(&mut client, &device, |s| s.diff = Some(meta(0, 2))).await, R::TooOld);
    let unknown = answer(&mut client, &device, |s| s.volume = "other".into()).await;
    assert_eq!(unknown, R::ArchiveNotFound);
    assert_eq!((client.get().await, archive.files("")), before);
    let reply = client.send_step(&device, 3).await.unwrap();
    assert_eq!(reply.result(), R::Stored);
    assert_eq!(reply.latest, Some(Snapshot { gid_begin: 3, gid_end: 3 }));
    // The answer was lost: the sender tries again, and may then forget it.
    assert_eq!(client.send_step(&device, 3).await.unwrap().result(), R::TooOld);
    same(&client.restored(3).await, &device.history[3], "after all");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn states_refuse_each_in_its_way() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(1));
    let mut client = archive.client();
    assert_eq!(answer(&mut client, &device, |_| ()).await, R::ArchiveNotFound);
    client.init().await;
    assert_eq!(answer(&mut client, &device, |_| ()).await, R::Stopped);
    client.prepare(device.size_lb(), &[]).await.unwrap();
    assert_eq!(answer(&mut client, &device, |_| ()).await, R::Syncing);
    client.full_sync(&device.history[0], 0).await.unwrap();
    let stop = StopRequest { volume: VOLUME.into(), mode: 0 };
    client.archive.stop(stop).await.unwrap();
    assert_eq!(answer(&mut client, &device, |_| ()).await, R::Stopped);
    client.archive.start(volume()).await.unwrap();
    assert_eq!(answer(&mut client, &device, |_| ()).await, R::Stored);
}

/// A transfer whose messages are handed in one by one.
fn slowly(
    client: &Client,
) -> (
    tokio::sync::mpsc::Sender<WdiffTransferRequest>,
    tokio::task::JoinHandle<common::Answer<proto::v1::WdiffTransferReply>>,
) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut archive = client.archive.clone();
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let reply = async move { Ok(archive.wdiff_transfer(stream).await?.into_inner()) };
    (sender, tokio::spawn(reply))
}

async fn until_state(client: &mut Client, state: &str) {
    until(state, || {
        let mut client = client.clone();
        async move { (client.get().await.state == state).then_some(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_wdiff_at_a_time_and_a_stop_waits_for_it_or_breaks_it_off() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(2));
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    let mut parts = messages(start_of(meta(0, 1), device.size_lb()), &device.wdiff(1), 4000);
    let rest = parts.split_off(2);
    let (sender, reply) = slowly(&client);
    for part in parts {
        sender.send(part).await.unwrap();
    }
    until_state(&mut client, "WdiffRecv").await;
    assert_eq!(client.get().await.running, ["wdiff-receive"]);
    let busy = client.send_step(&device, 1).await.unwrap();
    assert_eq!(busy.result(), R::Busy);
    let mut stopper = client.clone();
    let stop = |mode| StopRequest { volume: VOLUME.into(), mode };
    let graceful = tokio::spawn(async move { stopper.archive.stop(stop(0)).await });
    until("the stop", || {
        let mut client = client.clone();
        let (step, device) = (start_of(meta(0, 1), 1024), &device);
        async move {
            // While a stop waits nothing new begins.
            let reply = client.send(messages(step, &device.wdiff(1), 4000)).await.unwrap();
            (reply.result() == R::Busy).then_some(())
        }
    })
    .await;
    assert!(!graceful.is_finished());
    for part in rest {
        sender.send(part).await.unwrap();
    }
    drop(sender);
    assert_eq!(reply.await.unwrap().unwrap().result(), R::Stored);
    graceful.await.unwrap().unwrap();
    client.archive.start(volume()).await.unwrap();
    let (sender, reply) = slowly(&client);
    let parts = messages(start_of(meta(1, 2), device.size_lb()), &device.wdiff(2), 4000);
    sender.send(parts[0].clone()).await.unwrap();
    until_state(&mut client, "WdiffRecv").await;
    client.archive.stop(stop(1)).await.unwrap();
    assert_eq!(reason(&reply.await.unwrap().unwrap_err()), Reason::Stopping);
    assert_eq!(archive.files(".wdiff").len(), 1);
    assert!(archive.files(".tmp").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sound_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(1));
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    let start = start_of(meta(0, 1), device.size_lb());
    let file = device.wdiff(1);
    let good = messages(start.clone(), &file, 3000);
    let flipped = |at: usize| {
        let mut file = file.clone();
        file[at] ^= 1;
        messages(start.clone(), &file, 3000)
    };
    let beyond = DiffRecord { address: Lb(1020), blocks: 5, payload: Payload::AllZero };
    let mut trailing = file.clone();
    trailing.push(0);
    let end =
        |total_bytes| WdiffTransferRequest { step: Some(Step::End(WdiffEnd { total_bytes })) };
    let chunk = common::bad_chunk(&file[..100]);
    let bad = WdiffTransferRequest { step: Some(Step::Chunk(chunk)) };
    let cases: Vec<(&str, Vec<WdiffTransferRequest>, Reason)> = vec![
        ("a flipped bit in the header", flipped(3), Reason::Damaged),
        ("a flipped bit in a record", flipped(100), Reason::Damaged),
        ("a flipped bit in the data", flipped(file.len() - 4200), Reason::Damaged),
        ("no end pack", messages(start.clone(), &file[..file.len() - 4096], 999), Reason::Damaged),
        ("half of it", messages(start.clone(), &file[..file.len() / 2], 999), Reason::Damaged),
        ("a byte too many", messages(start.clone(), &trailing, 999), Reason::Damaged),
        ("nothing", messages(start.clone(), &[], 999), Reason::Damaged),
        ("no end", good[..good.len() - 1].to_vec(), Reason::BadRequest),
        ("a wrong total", [&good[..good.len() - 1], &[end(1)]].concat(), Reason::Damaged),
        ("a chunk of another sum", vec![good[0].clone(), bad], Reason::Damaged),
        ("two starts", [&good[..1], &good[..1]].concat(), Reason::BadRequest),
        ("an empty message", vec![WdiffTransferRequest { step: None }], Reason::BadRequest),
        ("no message", vec![], Reason::BadRequest),
        ("an end first", vec![end(0)], Reason::BadRequest),
        (
            "a record beyond the end",
            messages(start.clone(), &wdiff(&[beyond], UUID), 999),
            Reason::WrongSize,
        ),
        (
            "the log of another volume",
            messages(start.clone(), &wdiff(&[], LogUuid([9; 16])), 999),
            Reason::WrongPeer,
        ),
    ];
    let before = archive.files("");
    for (what, messages, expected) in cases {
        let refused = client.send(messages).await.unwrap_err();
        assert_eq!(reason(&refused), expected, "{what}: {refused}");
        assert_eq!(archive.files(""), before, "{what}");
        assert_eq!(client.get().await.state, "Archived", "{what}");
    }
    let damaged = client.send(flipped(file.len() - 4200)).await.unwrap_err();
    for part in ["vol0", "0-1.wdiff as sent by p0", "at byte "] {
        assert!(damaged.message().contains(part), "{part}: {damaged}");
    }
    assert_eq!(client.send(good).await.unwrap().result(), R::Stored);
    same(&client.restored(1).await, &device.history[1], "the sound one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn impossible_starts_are_bad_requests() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(1));
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    let refused = async |change: &dyn Fn(&mut proto::v1::WdiffStart)| {
        let mut start = start_of(meta(0, 1), device.size_lb());
        change(&mut start);
        let mut client = archive.client();
        reason(&client.send(messages(start, &device.wdiff(1), 5000)).await.unwrap_err())
    };
    assert_eq!(refused(&|s| s.diff = None).await, Reason::BadRequest);
    assert_eq!(refused(&|s| s.diff = Some(meta(1, 1))).await, Reason::BadRequest);
    assert_eq!(refused(&|s| s.log_uuid = Bytes::new()).await, Reason::BadRequest);
    assert_eq!(refused(&|s| s.volume = "../x".into()).await, Reason::BadRequest);
    assert_eq!(refused(&|s| s.sender = 7).await, Reason::BadRequest);
    let far = |s: &mut proto::v1::WdiffStart| s.diff.as_mut().unwrap().timestamp_s = u64::MAX;
    assert_eq!(refused(&far).await, Reason::BadRequest);
    let compared = |s: &mut proto::v1::WdiffStart| s.diff.as_mut().unwrap().comparison = true;
    assert_eq!(refused(&compared).await, Reason::BadRequest);
    let elsewhere = |s: &mut proto::v1::WdiffStart| {
        let mut diff = meta(3, 5);
        diff.comparison = true;
        (s.diff, s.sender) = (Some(diff), WdiffSender::Archive.into());
    };
    assert_eq!(refused(&elsewhere).await, Reason::UnknownSnapshot);
    assert_eq!(client.send_step(&device, 1).await.unwrap().result(), R::Stored);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_diff_of_another_archive_is_taken_at_its_own_start() {
    let dir = tempfile::tempdir().unwrap();
    let (archive, device) = (Archive::start(&dir), device(2));
    let mut client = filled(&archive, &device).await;
    let changed = DiffRecord::from_raw(Lb(3), Bytes::from(vec![5; 512])).unwrap();
    let (log, mut diff) = (LogUuid([8; 16]), meta(2, 9));
    (diff.comparison, diff.mergeable) = (true, true);
    let mut start = start_of(diff, device.size_lb());
    start.sender = WdiffSender::Archive.into();
    start.log_uuid = Bytes::copy_from_slice(&log.0);
    let reply = client.send(messages(start, &wdiff(&[changed], log), 999)).await.unwrap();
    assert_eq!(reply.result(), R::Stored);
    assert!(archive.files("-MC-2-9.wdiff").len() == 1, "{:?}", archive.files(".wdiff"));
    assert_eq!(client.get().await.log_uuid, log.0.as_slice(), "the log goes along");
    let mut expected = device.history[2].clone();
    expected[3 * 512..4 * 512].fill(5);
    same(&client.restored(9).await, &expected, "what was compared");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_falls_silent_is_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let device = device(1);
    let silence = std::time::Duration::from_millis(200);
    let settings = archive_server::Settings { silence, ..common::settings() };
    let images = std::sync::Arc::new(archive_server::FileImages);
    let archive = Archive::with(&dir, settings, images);
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    let parts = messages(start_of(meta(0, 1), device.size_lb()), &device.wdiff(1), 4000);
    let (sender, reply) = slowly(&client);
    sender.send(parts[0].clone()).await.unwrap();
    let given_up = tokio::time::timeout(LIMIT, reply).await.unwrap().unwrap().unwrap_err();
    assert_eq!(reason(&given_up), Reason::Unreachable);
    drop(sender);
    assert_eq!(client.send_step(&device, 1).await.unwrap().result(), R::Stored);
}
