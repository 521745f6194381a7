//! Gaps that heal by themselves, the person who stops that, and wdiffs that a proxy has lost.
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
use proto::v1::{GapCause, StopMode, StorageMode};
use server_kit::durable::Fuse;
use storage_server::serve::Resync;

fn auto() -> StorageOptions {
    StorageOptions {
        resync: Resync::Auto,
        archive_poll: Duration::from_millis(30),
        ..StorageOptions::default()
    }
}

fn polling() -> StorageOptions {
    StorageOptions { resync: Resync::Manual, ..auto() }
}

/// The log overflows; the proxies take no log before `accept`.
async fn overflow(cluster: &mut Cluster) {
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Refuse));
    cluster.device.fill(8 << 20).await;
    eventually("the overflow is seen", || async {
        (cluster.storage.get(VOLUME).await.gap_since_s > 0).then_some(())
    })
    .await;
}

fn accept(cluster: &Cluster) {
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Accept));
}

async fn healed(cluster: &mut Cluster) {
    eventually("a target without a gap", || async {
        let view = cluster.storage.get(VOLUME).await;
        (view.state == "Target" && view.gap_since_s == 0).then_some(())
    })
    .await;
    cluster.device.scribble(5).await;
    cluster.check_restorable().await;
}

#[tokio::test]
async fn an_overflow_heals_by_itself_as_soon_as_the_archive_agrees() {
    let mut cluster = Cluster::target(4, auto()).await;
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    cluster.archive.change(|disk| disk.refuse = true);
    overflow(&mut cluster).await;
    accept(&cluster);
    let view = eventually("the reason is told", || async {
        let view = cluster.storage.get(VOLUME).await;
        view.error.contains("the stub is full").then_some(view)
    })
    .await;
    assert_eq!((view.state.as_str(), view.auto_resync), ("Stopped", true));
    assert_eq!(view.gap_cause(), GapCause::Overflow);
    assert!(view.error.contains("overflowed"), "{}", view.error);
    cluster.archive.change(|disk| disk.refuse = false);
    healed(&mut cluster).await;
}

#[tokio::test]
async fn an_overflow_that_a_full_disk_could_not_remember_heals_when_there_is_room_again() {
    let fuse = Fuse::whole();
    let options = StorageOptions { fuse: Some(fuse.clone()), ..auto() };
    let mut cluster = Cluster::target(4, options).await;
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    cluster.proxies.iter().for_each(|p| p.behave(Behaviour::Refuse));
    fuse.set(0);
    cluster.device.fill(8 << 20).await;
    eventually("the overflow is seen, and cannot be remembered", || async {
        let view = cluster.storage.get(VOLUME).await;
        (view.error.contains("overflowed") && fuse.is_blown()).then_some(())
    })
    .await;
    accept(&cluster);
    fuse.mend();
    healed(&mut cluster).await;
}

#[tokio::test]
async fn healing_goes_on_after_a_restart_and_a_person_who_stops_it_wins() {
    let mut cluster = Cluster::target(4, auto()).await;
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    cluster.archive.change(|disk| disk.refuse = true);
    overflow(&mut cluster).await;
    accept(&cluster);
    cluster.storage.stop_volume(VOLUME, StopMode::Graceful).await.unwrap();
    cluster.archive.change(|disk| disk.refuse = false);
    cluster.storage.kill().await;
    cluster.storage.revive(auto()).await;
    // That nothing happens can only be seen by waiting: ten times the longest back-off of a test.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.state.as_str(), view.auto_resync), ("Stopped", false));
    assert!(view.gap_since_s > 0);
    assert!(view.error.contains("walbc hash-backup S vol"), "{}", view.error);
    assert!(cluster.archive.disk.lock().hash_syncs.is_empty());

    // Who starts it lets it heal; the server is killed before it can.
    cluster.archive.change(|disk| disk.break_hash = true);
    cluster.storage.start_volume(VOLUME, StorageMode::Target).await.unwrap_err();
    eventually("an attempt", || async {
        (!cluster.archive.disk.lock().hash_syncs.is_empty()).then_some(())
    })
    .await;
    cluster.storage.kill().await;
    cluster.archive.change(|disk| disk.break_hash = false);
    cluster.storage.revive(auto()).await;
    healed(&mut cluster).await;
}

#[tokio::test]
async fn what_was_shipped_before_the_gap_is_let_through_first() {
    let mut cluster = Cluster::target(4, auto()).await;
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    let have = cluster.archive.latest().gid_begin;
    cluster.archive.change(|disk| disk.delivered_to = Some(have));
    let mut gids = Vec::new();
    for _ in 0..5 {
        cluster.device.scribble(2).await;
        gids.push(cluster.storage.snapshot(VOLUME).await.unwrap().gid);
    }
    cluster.shipped(gids[4]).await;
    let first = cluster.storage.get(VOLUME).await.log_uuid;
    overflow(&mut cluster).await;
    accept(&cluster);
    // One more snapshot arrives before each look of the server.
    let mut at = 0;
    while cluster.archive.disk.lock().hash_syncs.is_empty() {
        let asked = cluster.archive.disk.lock().asked;
        if at < gids.len() {
            cluster.archive.change(|disk| disk.delivered_to = Some(gids[at]));
            at += 1;
        }
        eventually("a look", || async {
            let disk = cluster.archive.disk.lock();
            (disk.asked > asked || !disk.hash_syncs.is_empty()).then_some(())
        })
        .await;
    }
    cluster.archive.change(|disk| disk.delivered_to = None);
    healed(&mut cluster).await;
    let base = cluster.archive.disk.lock().base.unwrap();
    assert!(base.gid_begin > gids[4], "the archive had gid {} at most", base.gid_begin - 1);
    assert_ne!(cluster.storage.get(VOLUME).await.log_uuid, first);
}

/// A target whose first proxy holds wdiffs that the archive has not got.
async fn undelivered(options: StorageOptions) -> (Cluster, u64) {
    let mut cluster = Cluster::target(16, options).await;
    cluster.device.scribble(10).await;
    cluster.check_restorable().await;
    let have = cluster.archive.latest().gid_begin;
    cluster.archive.change(|disk| disk.delivered_to = Some(have));
    cluster.device.scribble(10).await;
    let gid = cluster.storage.snapshot(VOLUME).await.unwrap().gid;
    cluster.shipped(gid).await;
    (cluster, have)
}

async fn data_lost(cluster: &Cluster) {
    let view = eventually("the loss is seen", || async {
        let view = cluster.storage.get(VOLUME).await;
        // The gap is durable before the state follows.
        (view.gap_since_s > 0 && view.state != "StopTarget").then_some(view)
    })
    .await;
    assert_eq!((view.state.as_str(), view.gap_cause()), ("Stopped", GapCause::ProxyDataLost));
    assert!(view.error.contains("p0.sock") && view.error.contains("gid"), "{}", view.error);
}

#[tokio::test]
async fn a_proxy_that_comes_back_empty_is_a_gap() {
    let (cluster, have) = undelivered(polling()).await;
    cluster.proxies[0].lose_data(have, false);
    data_lost(&cluster).await;
}

#[tokio::test]
async fn a_proxy_that_was_set_up_anew_is_a_gap_also_when_that_is_seen_by_a_transfer() {
    let options = StorageOptions { resync: Resync::Auto, ..StorageOptions::default() };
    let (mut cluster, have) = undelivered(options).await;
    cluster.proxies[0].lose_data(have, true);
    cluster.device.scribble(1).await;
    eventually("the loss heals by itself", || async {
        (cluster.archive.disk.lock().hash_syncs.len() == 1).then_some(())
    })
    .await;
    cluster.archive.change(|disk| disk.delivered_to = None);
    healed(&mut cluster).await;
}

#[tokio::test]
async fn a_doubt_survives_a_restart() {
    let (mut cluster, have) = undelivered(StorageOptions::default()).await;
    cluster.archive.change(|disk| disk.lose_answer = true);
    cluster.proxies[0].lose_data(have, true);
    cluster.device.scribble(1).await;
    eventually("the doubt", || async {
        cluster.storage.record().history.unwrap().doubt.map(|_| ())
    })
    .await;
    cluster.storage.kill().await;
    cluster.archive.change(|disk| disk.lose_answer = false);
    cluster.storage.revive(polling()).await;
    data_lost(&cluster).await;
}

#[tokio::test]
async fn a_proxy_that_is_away_or_has_delivered_everything_is_no_gap() {
    let (mut cluster, _) = undelivered(polling()).await;
    cluster.proxies[0].down().await;
    let asked = cluster.archive.disk.lock().asked;
    eventually("some looks", || async {
        (cluster.archive.disk.lock().asked > asked + 5).then_some(())
    })
    .await;
    let view = cluster.storage.get(VOLUME).await;
    assert_eq!((view.state.as_str(), view.gap_since_s), ("Target", 0));
    cluster.proxies[0].up().await;

    // Everything arrives, then the proxy is emptied.
    cluster.archive.change(|disk| disk.delivered_to = None);
    cluster.proxies[0].lose_data(u64::MAX, true);
    cluster.device.scribble(5).await;
    let gid = cluster.storage.snapshot(VOLUME).await.unwrap().gid;
    cluster.shipped(gid).await;
    let view = eventually("the archive was asked", || async {
        let view = cluster.storage.get(VOLUME).await;
        (view.archive_gid >= gid && view.archive_asked_s > 0).then_some(view)
    })
    .await;
    assert_eq!((view.state.as_str(), view.gap_since_s), ("Target", 0));
    eventually("no doubt is left", || async {
        cluster.storage.record().history.unwrap().doubt.is_none().then_some(())
    })
    .await;
    // Nothing is new: nobody is asked.
    let asked = cluster.archive.disk.lock().asked;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(cluster.archive.disk.lock().asked <= asked + 1, "an idle volume costs nothing");
    cluster.check_restorable().await;
}
