//! What the proxy does about each answer of an archive (semantics.md §4.5), and what arrives.
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
use common::{DEADLINE, Place, Proxy, started, until};
use proto::v1::{Reason, WdiffResult};
use server_kit::units::Span;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use wlog_format::units::{BlockSize, LogUuid};

#[tokio::test]
async fn what_was_written_arrives_at_once_and_leaves_the_proxy() {
    let place = Place::new();
    let (archive, proxy) = (Archive::start(&place.socket("a0")).await, Proxy::start(&place).await);
    started(&place, &proxy).await;
    let mut device = Device::new();
    for _ in 0..5 {
        let ios = device.random_ios(20, 64);
        let bytes = proxy.send(device.write(&ios).messages()).await.unwrap();
        assert!(bytes > 0);
    }
    proxy.empty("a0").await;
    assert!(archive.image() == device.image, "the archive has another image");
    assert!(place.staged("a0").is_empty(), "{:?}", place.staged("a0"));
    let start = &archive.stored()[0].start;
    assert_eq!((start.volume.as_str(), start.sender_id.as_str()), ("v0", "p0"));
    assert_eq!((start.size_lb, start.log_uuid.to_vec()), (4096, vec![7; 16]));
    let queue = proxy.queue("a0").await;
    assert!(queue.last_sent_s > 0 && queue.error.is_empty() && !queue.send_error, "{queue:?}");
    proxy.kill().await;
}

#[tokio::test]
async fn logs_of_large_blocks_and_empty_logs_arrive_too() {
    let place = Place::new();
    let (archive, proxy) = (Archive::start(&place.socket("a0")).await, Proxy::start(&place).await);
    started(&place, &proxy).await;
    let mut device = Device::new();
    device.block = BlockSize::B4096;
    let mut ios = device.random_ios(20, 64);
    ios.push((100, vec![0; 8192]));
    proxy.send(device.write(&ios).messages()).await.unwrap();
    // A snapshot without a write since the last one.
    proxy.send(device.write_as(&[], false).messages()).await.unwrap();
    proxy.empty("a0").await;
    assert!(archive.image() == device.image);
    assert_eq!(archive.stored().last().unwrap().diff.end().to_string(), "|2|");
    proxy.kill().await;
}

#[tokio::test]
async fn what_waited_is_merged_but_not_over_an_explicit_snapshot() {
    let place = Place::new();
    let archive = Archive::start(&place.socket("a0")).await;
    let dead = archive.kill().await;
    let proxy = Proxy::start(&place).await;
    started(&place, &proxy).await;
    let mut device = Device::new();
    // Snapshot 3 was taken on purpose: the diff that starts there is not mergeable.
    for mergeable in [true, true, true, false, true] {
        let ios = device.random_ios(10, 64);
        proxy.send(device.write_as(&ios, mergeable).messages()).await.unwrap();
    }
    assert_eq!(proxy.queue("a0").await.wdiffs, 5);
    assert_eq!(place.staged("a0").len(), 5);
    let archive = dead.revive().await;
    proxy.empty("a0").await;
    let diffs: Vec<_> = archive.stored().iter().map(|s| s.diff.to_string()).collect();
    assert_eq!(diffs, ["|0|-->|3|", "|3|-->|5|"]);
    assert_eq!(archive.stored()[0].diff.timestamp, 1_700_000_003);
    assert!(archive.image() == device.image);
    proxy.kill().await;
}

#[tokio::test]
async fn a_dead_archive_is_tried_for_ever_and_is_no_send_error() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.give_up_after = Some(Span(Duration::ZERO));
    let proxy = Proxy::start_with(&place, settings).await;
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(3, 8);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    until("an error", || async { !proxy.queue("a0").await.error.is_empty() }).await;
    let queue = proxy.queue("a0").await;
    assert!(queue.error.starts_with("cannot reach a0"), "{}", queue.error);
    assert_eq!(queue.error_reason(), Reason::Unreachable);
    assert!(!queue.send_error);
    let archive = Archive::start(&place.socket("a0")).await;
    proxy.empty("a0").await;
    assert!(archive.image() == device.image);
    assert!(proxy.queue("a0").await.error.is_empty(), "success clears the error");
    proxy.kill().await;
}

#[tokio::test]
async fn a_broken_transfer_is_repeated_whole() {
    let place = Place::new();
    let (archive, proxy) = (Archive::start(&place.socket("a0")).await, Proxy::start(&place).await);
    archive.order(&[Order::Break, Order::Break]);
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(60, 128);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    proxy.empty("a0").await;
    assert_eq!(archive.attempts().len(), 3);
    assert!(archive.image() == device.image);
    proxy.kill().await;
}

#[tokio::test]
async fn what_the_archive_will_never_need_is_dropped_and_the_next_is_sent_at_once() {
    for answer in [WdiffResult::TooOld, WdiffResult::DifferentUuid] {
        let place = Place::new();
        let archive = Archive::start(&place.socket("a0")).await;
        let proxy = Proxy::start(&place).await;
        archive.order(&[Order::Answer(answer)]);
        started(&place, &proxy).await;
        let mut device = Device::new();
        for _ in 0..2 {
            let ios = device.random_ios(10, 64);
            proxy.send(device.write(&ios).messages()).await.unwrap();
            proxy.empty("a0").await;
        }
        let diffs: Vec<_> = archive.stored().iter().map(|s| s.diff.to_string()).collect();
        assert_eq!(diffs, ["|1|-->|2|"], "{answer:?}");
        assert!(place.staged("a0").is_empty());
        assert!(!proxy.queue("a0").await.send_error);
        proxy.kill().await;
    }
}

#[tokio::test]
async fn an_archive_that_cannot_take_it_stops_the_queue_until_a_kick_or_a_new_wlog() {
    for answer in [WdiffResult::SmallerSize, WdiffResult::ArchiveNotFound] {
        let place = Place::new();
        let archive = Archive::start(&place.socket("a0")).await;
        let proxy = Proxy::start(&place).await;
        archive.always(Some(Order::Answer(answer)));
        started(&place, &proxy).await;
        let mut device = Device::new();
        let ios = device.random_ios(10, 64);
        proxy.send(device.write(&ios).messages()).await.unwrap();
        until("a send error at the end of an attempt", || async {
            let queue = proxy.queue("a0").await;
            queue.send_error && !queue.sending
        })
        .await;
        let queue = proxy.queue("a0").await;
        assert_eq!((queue.wdiffs, queue.retry_in_ms), (1, 0));
        assert_eq!(queue.last_result(), answer);
        assert!(queue.error.contains("as ordered"), "{}", queue.error);
        assert_eq!(archive.attempts().len(), 1);
        assert_eq!(proxy.kick().await.unwrap(), ["v0/a0"]);
        archive.attempted(2).await;
        until("a send error", || async { proxy.queue("a0").await.send_error }).await;
        archive.always(None);
        let ios = device.random_ios(10, 64);
        proxy.send(device.write(&ios).messages()).await.unwrap();
        proxy.empty("a0").await;
        assert!(!proxy.queue("a0").await.send_error);
        assert!(archive.image() == device.image);
        proxy.kill().await;
    }
}

#[tokio::test]
async fn an_archive_that_waits_for_something_is_tried_for_ever() {
    for order in [
        Order::Answer(WdiffResult::TooNew),
        Order::AnswerLate(WdiffResult::Syncing),
        Order::AnswerLate(WdiffResult::TooNew),
    ] {
        let place = Place::new();
        let mut settings = place.settings();
        settings.give_up_after = Some(Span(Duration::ZERO));
        let archive = Archive::start(&place.socket("a0")).await;
        let proxy = Proxy::start_with(&place, settings).await;
        archive.always(Some(order));
        started(&place, &proxy).await;
        let mut device = Device::new();
        let ios = device.random_ios(10, 64);
        proxy.send(device.write(&ios).messages()).await.unwrap();
        archive.attempted(5).await;
        assert!(!proxy.queue("a0").await.send_error);
        archive.always(None);
        proxy.empty("a0").await;
        assert!(archive.image() == device.image);
        proxy.kill().await;
    }
}

fn refusals() -> [Order; 4] {
    let answers = [WdiffResult::Stopped, WdiffResult::Busy, WdiffResult::Unspecified];
    let [stopped, busy, other] = answers.map(Order::Answer);
    [stopped, busy, other, Order::Refuse]
}

#[tokio::test]
async fn an_archive_that_refuses_is_tried_again_while_the_volume_is_in_use() {
    for order in refusals() {
        let place = Place::new();
        let archive = Archive::start(&place.socket("a0")).await;
        let proxy = Proxy::start(&place).await;
        archive.always(Some(order));
        started(&place, &proxy).await;
        let mut device = Device::new();
        let ios = device.random_ios(10, 64);
        proxy.send(device.write(&ios).messages()).await.unwrap();
        archive.attempted(4).await;
        assert!(!proxy.queue("a0").await.send_error);
        archive.always(None);
        proxy.empty("a0").await;
        proxy.kill().await;
    }
}

#[tokio::test]
async fn an_archive_that_refuses_is_given_up_when_the_volume_is_quiet() {
    for order in refusals() {
        let place = Place::new();
        let mut settings = place.settings();
        settings.give_up_after = Some(Span(Duration::from_millis(100)));
        let archive = Archive::start(&place.socket("a0")).await;
        let proxy = Proxy::start_with(&place, settings).await;
        archive.always(Some(order));
        started(&place, &proxy).await;
        let mut device = Device::new();
        let ios = device.random_ios(10, 64);
        proxy.send(device.write(&ios).messages()).await.unwrap();
        until("a send error", || async { proxy.queue("a0").await.send_error }).await;
        let before = archive.attempts().len();
        proxy.kick().await.unwrap();
        archive.attempted(before + 1).await;
        until("the mark again", || async { proxy.queue("a0").await.send_error }).await;
        assert_eq!(archive.attempts().len(), before + 1, "one attempt after a kick");
        archive.always(None);
        proxy.kick().await.unwrap();
        proxy.empty("a0").await;
        proxy.kill().await;
    }
}

#[tokio::test]
async fn two_archives_are_fed_from_one_file_and_the_slow_one_keeps_it() {
    let place = Place::new();
    let a0 = Archive::start(&place.socket("a0")).await;
    let proxy = Proxy::start(&place).await;
    proxy.add("a0", &place.socket("a0")).await.unwrap();
    proxy.add("a1", &place.socket("a1")).await.unwrap();
    proxy.start_volume().await.unwrap();
    let mut device = Device::new();
    for _ in 0..3 {
        let ios = device.random_ios(10, 64);
        proxy.send(device.write(&ios).messages()).await.unwrap();
    }
    proxy.empty("a0").await;
    assert!(a0.image() == device.image);
    assert!(place.staged("a0").is_empty());
    assert_eq!(place.staged("a1").len(), 3, "a1 is dead and has acknowledged nothing");
    let a1 = Archive::start(&place.socket("a1")).await;
    proxy.empty("a1").await;
    assert!(a1.image() == device.image);
    assert!(place.staged("a1").is_empty());
    proxy.kill().await;
}

#[tokio::test]
async fn wdiffs_of_another_log_are_kept_apart_even_when_gids_start_anew() {
    let place = Place::new();
    let proxy = Proxy::start(&place).await;
    started(&place, &proxy).await;
    let mut old = Device::new();
    let mut new = Device::new();
    new.uuid = LogUuid([9; 16]);
    new.now += 1000;
    for device in [&mut old, &mut new] {
        for _ in 0..2 {
            let ios = device.random_ios(10, 64);
            proxy.send(device.write(&ios).messages()).await.unwrap();
        }
    }
    assert_eq!(proxy.queue("a0").await.wdiffs, 4);
    let archive = Archive::start(&place.socket("a0")).await;
    archive.order(&[Order::Answer(WdiffResult::DifferentUuid)]);
    proxy.empty("a0").await;
    let stored = archive.stored();
    assert_eq!(archive.attempts().len(), 2, "the old history was offered first");
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].start.log_uuid.to_vec(), vec![9; 16]);
    assert_eq!(stored[0].diff.to_string(), "|0|-->|2|");
    assert!(archive.image() == new.image);
    proxy.kill().await;
}

#[tokio::test]
async fn a_damaged_wdiff_is_named_and_kept_until_it_is_mended() {
    let place = Place::new();
    let proxy = Proxy::start(&place).await;
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(40, 64);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    let file = place.queue_dir("a0").join(&place.staged("a0")[0]);
    let good = std::fs::read(&file).unwrap();
    // One byte in place: whoever reads meanwhile sees a whole file.
    let spoil = std::fs::OpenOptions::new().write(true).open(&file).unwrap();
    let middle = good.len() / 2;
    spoil.write_all_at(&[good[middle] ^ 1], middle as u64).unwrap();
    let archive = Archive::start(&place.socket("a0")).await;
    until("a send error", || async { proxy.queue("a0").await.send_error }).await;
    let queue = proxy.queue("a0").await;
    assert!(queue.error.contains(file.to_str().unwrap()), "{}", queue.error);
    assert!(queue.error.contains("checksum"), "{}", queue.error);
    assert!(!proxy.volume().await.error.is_empty());
    // A new wlog is taken, and does not make it try again and again.
    let ios = device.random_ios(4, 64);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    assert_eq!(place.staged("a0").len(), 2, "nothing is deleted");
    assert!(archive.stored().is_empty());
    assert!(proxy.queue("a0").await.send_error);
    spoil.write_all_at(&good[middle..=middle], middle as u64).unwrap();
    proxy.kick().await.unwrap();
    proxy.empty("a0").await;
    assert!(archive.image() == device.image);
    proxy.kill().await;
}

#[tokio::test]
async fn a_send_delay_lets_wdiffs_merge_and_a_kick_ends_it() {
    let place = Place::new();
    let (archive, proxy) = (Archive::start(&place.socket("a0")).await, Proxy::start(&place).await);
    let mut info = common::info("a0", &place.socket("a0"));
    info.send_delay_ms = DEADLINE.as_millis() as u64 * 10;
    let request = proto::v1::ArchiveInfoRequest { volume: "v0".into(), info: Some(info) };
    proxy.client.clone().add_archive(request).await.unwrap();
    proxy.start_volume().await.unwrap();
    let mut device = Device::new();
    for _ in 0..3 {
        let ios = device.random_ios(10, 64);
        proxy.send(device.write(&ios).messages()).await.unwrap();
    }
    assert_eq!(proxy.queue("a0").await.wdiffs, 3);
    proxy.kick().await.unwrap();
    proxy.empty("a0").await;
    assert_eq!(archive.stored().len(), 1);
    assert!(archive.image() == device.image);
    proxy.kill().await;
}
