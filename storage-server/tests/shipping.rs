//! Following and shipping: what is sent to whom, under which gids, and what happens when proxies
//! refuse, break off or forget to answer.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::time::Duration;

use common::{Behaviour, Cluster, StorageOptions, VOLUME, eventually};
use proto::v1::{Reason, StopMode, StorageMode};
use server_kit::units::Span;

fn slow_snapshots() -> StorageOptions {
    StorageOptions { snapshot_interval: Duration::from_secs(3600), ..StorageOptions::default() }
}

#[tokio::test]
async fn writes_are_shipped_by_themselves_and_a_snapshot_is_the_device_at_that_time() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    for _ in 0..10 {
        cluster.device.scribble(20).await;
        cluster.check_restorable().await;
    }
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.state.as_str(), view.error.as_str()), ("Target", ""));
    assert!(view.last_proxy.ends_with("p0.sock"), "{}", view.last_proxy);
    // All of it is released once the device has taken a checkpoint.
    eventually("an empty log", || async {
        (cluster.storage.get(VOLUME).await.log_usage_pb == 0).then_some(())
    })
    .await;
    cluster.wire.assert_sound();
}

#[tokio::test]
async fn the_first_write_after_a_pause_is_shipped_at_once_and_the_interval_bounds_the_gids() {
    let mut cluster = Cluster::target(16, slow_snapshots()).await;
    cluster.check_restorable().await;
    let before = cluster.wire.stored().len();
    cluster.device.scribble(1).await;
    // The interval is an hour: that it is shipped at all shows that it did not wait for that.
    eventually("the write", || async { (cluster.wire.stored().len() > before).then_some(()) })
        .await;
    cluster.device.scribble(5).await;
    let snapshots = cluster.storage.get(VOLUME).await.latest_gid;
    cluster.check_restorable().await;
    let after = cluster.storage.get(VOLUME).await.latest_gid;
    assert_eq!(after, snapshots + 1, "an implicit snapshot before its time");
}

#[tokio::test]
async fn a_long_log_goes_in_pieces_each_with_its_gid() {
    let mut cluster = Cluster::target(32, slow_snapshots()).await;
    cluster.check_restorable().await;
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    let (before, base) = (cluster.wire.stored().len(), cluster.storage.record());
    let done = base.history.unwrap().marks.done;
    // 5 MiB in 64 KiB writes and their headers, in pieces of 1 MiB = 256 blocks.
    cluster.device.fill(5 << 20).await;
    let snapshot = cluster.storage.snapshot(VOLUME).await.unwrap();
    let reserved = (snapshot.lsid - done.lsid.0) / 256;
    assert!(reserved >= 5);
    assert_eq!(snapshot.gid, done.gid.0 + 1 + reserved, "one gid for each started piece");
    cluster.storage.start_volume(VOLUME, StorageMode::Target).await.unwrap();
    cluster.shipped(snapshot.gid).await;
    let pieces: Vec<_> = cluster.wire.stored()[before..].iter().map(|s| s.summary()).collect();
    for (index, (begin, end, from, to, mergeable)) in pieces.iter().enumerate() {
        assert_eq!(*begin, done.gid.0 + index as u64, "{pieces:?}");
        assert_eq!(*mergeable, index > 0, "only what follows the explicit snapshot is kept");
        let last = *end == snapshot.gid;
        assert!(last || (*end == begin + 1 && to - from <= 256), "{pieces:?}");
    }
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_dead_is_passed_over() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.proxies[0].behave(Behaviour::Refuse);
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    assert_eq!(cluster.wire.stored().last().unwrap().proxy, "p1");
    cluster.proxies[0].behave(Behaviour::Accept);
    cluster.check_restorable().await;
    assert_eq!(cluster.wire.stored().last().unwrap().proxy, "p0", "a refusal is not remembered");
    cluster.proxies[0].down().await;
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    assert_eq!(cluster.wire.stored().last().unwrap().proxy, "p1");
}

/// Semantics §9.3, 1.0.9: a first proxy to which no connection can be made, and it takes the
/// system minutes to say so.
#[tokio::test]
async fn a_first_proxy_whose_connect_hangs_costs_one_time_limit_once() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // Nobody accepts: when the queue is full, further connections get no answer at all.
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    while let Ok(Ok(stream)) =
        tokio::time::timeout(Duration::from_millis(300), tokio::net::TcpStream::connect(address))
            .await
    {
        queued.push(stream);
    }
    cluster.storage.args.proxy.insert(0, address.to_string().parse().unwrap());
    cluster.restart_storage().await;
    let begin = tokio::time::Instant::now();
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    let first = begin.elapsed();
    assert!(first < 4 * server_kit::net::CONNECT_TIMEOUT, "{first:?}");
    let begin = tokio::time::Instant::now();
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    assert!(begin.elapsed() < server_kit::net::CONNECT_TIMEOUT, "it is remembered");
}

#[tokio::test]
async fn a_proxy_that_takes_everything_and_never_answers_is_passed_over() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.storage.args.send_timeout = Some(Span(Duration::from_millis(500)));
    cluster.restart_storage().await;
    cluster.check_restorable().await;
    cluster.proxies[0].behave(Behaviour::Hang);
    for _ in 0..3 {
        cluster.device.scribble(10).await;
        cluster.check_restorable().await;
    }
    assert_eq!(cluster.wire.stored().last().unwrap().proxy, "p1");
    assert_eq!(cluster.wire.hanging(), 1, "it is not tried again for a while");
    cluster.proxies[0].behave(Behaviour::Accept);
    cluster.storage.client().kick(proto::v1::KickStorageRequest::default()).await.unwrap();
    cluster.check_restorable().await;
    assert_eq!(cluster.wire.stored().last().unwrap().proxy, "p0");
}

#[tokio::test]
async fn with_no_proxy_left_the_log_is_kept_and_the_error_shown_until_one_is_back() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.check_restorable().await;
    cluster.proxies[0].down().await;
    cluster.proxies[1].behave(Behaviour::Refuse);
    cluster.device.scribble(30).await;
    let view = eventually("an error", || async {
        let view = cluster.storage.get(VOLUME).await;
        (!view.error.is_empty()).then_some(view)
    })
    .await;
    assert_eq!(view.state, "Target");
    assert!(view.error.contains("p0.sock") && view.error.contains("the stub is full"), "{view:?}");
    assert_eq!(view.error_reason(), Reason::Unreachable);
    let reasons: Vec<_> = view.refusals.iter().map(|refusal| refusal.reason()).collect();
    assert_eq!(reasons, [Reason::Unreachable, Reason::NoSpace], "{view:?}");
    assert!(view.log_usage_pb > 0 && view.done_lsid < view.latest_lsid);
    cluster.proxies[0].up().await;
    cluster.storage.client().kick(proto::v1::KickStorageRequest::default()).await.unwrap();
    cluster.check_restorable().await;
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.error.as_str(), view.error_reason()), ("", Reason::Unspecified));
    assert!(view.refusals.is_empty());
}

#[tokio::test]
async fn a_lost_answer_repeats_the_same_range_under_the_same_gids_elsewhere() {
    let mut cluster = Cluster::target(16, slow_snapshots()).await;
    cluster.check_restorable().await;
    cluster.proxies[0].behave(Behaviour::LoseAck);
    cluster.device.scribble(30).await;
    cluster.check_restorable().await;
    let stored = cluster.wire.stored();
    let lost: Vec<_> = stored.iter().filter(|s| !s.acknowledged).collect();
    assert!(!lost.is_empty());
    for first in lost {
        let again = stored.iter().find(|s| s.acknowledged && s.diff() == first.diff()).unwrap();
        assert_eq!((again.proxy.as_str(), again.summary()), ("p1", first.summary()));
        assert_eq!(again.end, first.end, "timestamp and flags too");
        assert_eq!(again.bytes, first.bytes);
    }
}

#[tokio::test]
async fn a_transfer_that_breaks_off_starts_again_from_what_was_acknowledged() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.proxies[0].behave(Behaviour::BreakOff);
    cluster.proxies[1].behave(Behaviour::BreakOff);
    cluster.device.fill(3 << 20).await;
    eventually("a broken transfer", || async { (cluster.wire.broken_off() > 2).then_some(()) })
        .await;
    cluster.proxies[1].behave(Behaviour::Accept);
    cluster.check_restorable().await;
}

#[tokio::test]
async fn an_idle_volume_does_nothing_at_all() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    eventually("an empty log", || async {
        (cluster.storage.get(VOLUME).await.log_usage_pb == 0).then_some(())
    })
    .await;
    let (attempts, gid) = (cluster.wire.attempts(), cluster.storage.get(VOLUME).await.latest_gid);
    // That nothing happens can only be seen by waiting.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(cluster.wire.attempts(), attempts);
    assert_eq!(cluster.storage.get(VOLUME).await.latest_gid, gid);
}

#[tokio::test]
async fn shipping_goes_on_when_the_device_role_comes_back() {
    let mut cluster = Cluster::target(16, StorageOptions::default()).await;
    cluster.check_restorable().await;
    cluster.device.stop().await;
    eventually("the device is missed", || async {
        let view = cluster.storage.get(VOLUME).await;
        (!view.error.is_empty() && view.state == "Target").then_some(())
    })
    .await;
    cluster.device.start().await;
    cluster.device.scribble(20).await;
    cluster.check_restorable().await;
}

#[tokio::test]
async fn a_standby_throws_its_log_away_also_without_new_writes() {
    let mut cluster = Cluster::new(16, StorageOptions::default()).await;
    cluster.storage.start_volume(VOLUME, StorageMode::Standby).await.unwrap();
    // More than the ring holds, over several checkpoints.
    for _ in 0..5 {
        cluster.device.fill(5 << 20).await;
        eventually("an empty log", || async {
            (cluster.storage.get(VOLUME).await.log_usage_pb == 0).then_some(())
        })
        .await;
    }
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.overflow, view.state.as_str()), (false, "Standby"));
    assert_eq!(cluster.wire.stored().len(), 0);
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    assert_eq!(cluster.storage.get(VOLUME).await.state, "SyncReady");
}

/// Semantics §9.2 #4: the original depends on an edge, and its standbys can overflow while they
/// are written to.
#[tokio::test]
async fn a_standby_keeps_its_log_small_while_it_is_written_to() {
    let mut cluster = Cluster::new(4, StorageOptions::default()).await;
    cluster.device.policy = device_server::OverflowPolicy::Stall;
    cluster.device.stop().await;
    cluster.device.start().await;
    cluster.storage.start_volume(VOLUME, StorageMode::Standby).await.unwrap();
    // Three times the ring, over several checkpoint intervals, without a pause for longer than
    // one. Writers wait when the ring is full: for ever, if nobody released it.
    let begin = tokio::time::Instant::now();
    let interval = Duration::from_millis(300);
    let mut written = 0;
    while begin.elapsed() < 6 * interval || written < 12 << 20 {
        let filled = tokio::time::timeout(common::PATIENCE, cluster.device.fill(256 << 10)).await;
        filled.expect("the log is released while writes go on");
        written += 256 << 10;
    }
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.overflow, view.error.as_str()), (false, ""));
}

#[tokio::test]
async fn a_graceful_stop_waits_for_the_transfer_and_a_forced_one_overtakes_it() {
    let mut cluster = Cluster::target(16, slow_snapshots()).await;
    cluster.check_restorable().await;
    cluster.proxies[0].behave(Behaviour::Hang);
    cluster.device.scribble(5).await;
    eventually("a transfer", || async { (cluster.wire.hanging() > 0).then_some(()) }).await;
    let graceful = cluster.storage.stop_volume(VOLUME, StopMode::Graceful);
    let both = async {
        cluster.storage.wait_state("StopTarget").await;
        let again = cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap_err();
        assert_eq!(again.code(), tonic::Code::Aborted, "{again:?}");
        cluster.storage.stop_volume(VOLUME, StopMode::Force).await.unwrap();
    };
    let (graceful, ()) = tokio::join!(graceful, both);
    graceful.unwrap();
    assert_eq!(cluster.storage.get(VOLUME).await.state, "Stopped");
    cluster.proxies[0].behave(Behaviour::Accept);
    cluster.storage.start_volume(VOLUME, StorageMode::Target).await.unwrap();
    cluster.check_restorable().await;
}
