//! What an archive does by itself: histories thin out by their policies, are replicated on
//! schedule, and raise an alarm when they get old. The wall clock is the test's.
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

use archive_server::{BackendChoice, Settings, World};
use common::{Archive, Client, Device, UUID, VOLUME, files, messages, outside, reason, same};
use common::{until, volume};
use proto::v1::mount_request::Point;
use proto::v1::{
    CompleteRequest, CompleteTo, DiffMeta, DropReplicationRequest, MountRequest, OperationRef,
    OperationStatus, Peer, PlanRetentionRequest, ReplicationSchedule, Retention,
    SetAgeLimitRequest, SetExplicitRequest, SetReplicationRequest, SetRetentionRequest, TaskStatus,
    UnmountRequest, WdiffResult,
};
use server_kit::error::Reason;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// The time of gid 0; each further gid is 10 s later (`common::meta`).
const EPOCH: u64 = 1_700_000_000;

/// A wall clock that stands where it is put.
#[derive(Clone)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    /// At the time of a gid.
    fn at(gid: u64) -> Self {
        Self(Arc::new(AtomicU64::new(EPOCH + gid * 10)))
    }

    fn set(&self, gid: u64) {
        self.0.store(EPOCH + gid * 10, Ordering::SeqCst);
    }

    fn world(&self) -> World {
        let clock = self.0.clone();
        World { now: Arc::new(move || clock.load(Ordering::SeqCst)), ..World::real() }
    }
}

fn settings() -> Settings {
    Settings { upkeep_pause: Duration::from_millis(10), ..common::settings() }
}

fn start(dir: &TempDir, clock: &Clock) -> Archive {
    Archive::within(dir, settings(), clock.world())
}

fn device(gids: usize) -> Device {
    let mut device = Device::new(1024, 7);
    (0..gids).for_each(|_| device.write(10));
    device
}

async fn set(client: &mut Client, retention: Option<Retention>) {
    let request = SetRetentionRequest { volume: VOLUME.into(), retention };
    client.archive.set_retention(request).await.unwrap();
}

fn policy(text: &str) -> Option<Retention> {
    Some(Retention { policy: text.into(), ..Retention::default() })
}

async fn gids(client: &mut Client) -> Vec<u64> {
    client.restorable(true).await.into_iter().map(|s| s.gid).collect()
}

async fn until_gids(client: &Client, wanted: &[u64]) {
    until(&format!("only {wanted:?} to be left"), || {
        let mut client = client.clone();
        async move { (gids(&mut client).await == wanted).then_some(()) }
    })
    .await;
}

async fn thinning(client: &mut Client) -> TaskStatus {
    client.archive.get_upkeep(volume()).await.unwrap().into_inner().thinning.unwrap()
}

async fn until_thinning(client: &Client, what: &str, is: impl Fn(&TaskStatus) -> bool) {
    until(what, || {
        let (mut client, is) = (client.clone(), &is);
        async move { is(&thinning(&mut client).await).then_some(()) }
    })
    .await;
}

/// The wdiff to `gid`, before which nothing was taken on purpose.
async fn receive(client: &mut Client, device: &Device, gid: u64) {
    let diff = DiffMeta { mergeable: true, ..common::meta(gid - 1, gid) };
    let sent = messages(common::start_of(diff, device.size_lb()), &device.wdiff(gid), 3000);
    assert_eq!(client.send(sent).await.unwrap().result(), WdiffResult::Stored);
}

async fn filled(archive: &Archive, device: &Device) -> Client {
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    for gid in 1..=device.gid() {
        receive(&mut client, device, gid).await;
    }
    client
}

/// Every snapshot that is left is what it was.
async fn all_right(client: &mut Client, device: &Device, what: &str) {
    for gid in gids(client).await {
        same(&client.restored(gid).await, &device.history[gid as usize], &format!("{what}: {gid}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_history_thins_out_by_itself_and_goes_on_after_a_kill() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::at(30));
    let mut device = device(30);
    let archive = start(&dir, &clock);
    let mut client = filled(&archive, &device).await;
    // All of 100 s, one of each whole minute (gids 4, 10, 16, ... end minutes) of 240 s.
    set(&mut client, policy("all 100s, every 1m 240s")).await;
    // Gid 0 is 20 s into a minute: 4 to 9 are one, 10 to 15 the next, and that of 16 is not over
    // for 100 s. What is 240 s old goes into the base image: up to gid 6.
    assert_eq!(EPOCH % 60, 20);
    let wanted: Vec<u64> = [6, 9].into_iter().chain(15..=30).collect();
    until_gids(&client, &wanted).await;
    until_thinning(&client, "the run to be told", |t| {
        t.done == "made 2 wdiffs of 9, applied up to gid 6"
    })
    .await;
    all_right(&mut client, &device, "first").await;
    archive.kill();
    let archive = start(&dir, &clock);
    let mut client = archive.client();
    let kept = client.archive.get_upkeep(volume()).await.unwrap().into_inner();
    assert_eq!(kept.retention.unwrap().policy, "keep all 100s, every 1m 4m");
    assert!(kept.thinning.unwrap().done.contains("applied up to gid 6"));
    // Time goes on, the archive does the rest.
    (0..6).for_each(|_| device.write(10));
    for gid in 31..=36 {
        receive(&mut client, &device, gid).await;
    }
    clock.set(36);
    // Gid 12 is gone: the last one that is left of what is 240 s old is 9.
    let wanted: Vec<u64> = [9, 15].into_iter().chain(21..=36).collect();
    until_gids(&client, &wanted).await;
    all_right(&mut client, &device, "second").await;
    let status = client.get().await;
    assert_eq!(status.error, "");
    let done = || async {
        (files(&archive.volume_dir(), ".wdiff").len() == wanted.len() - 1).then_some(())
    };
    until("the files to go", done).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_volume_has_the_policy_that_the_archive_was_started_with() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::at(3));
    let default = Some("all 1h, every 1m 1d".parse().unwrap());
    let archive =
        Archive::on(dir.path(), settings(), (BackendChoice::File, default), clock.world());
    let mut client = archive.client();
    client.init().await;
    let kept = client.archive.get_upkeep(volume()).await.unwrap().into_inner();
    assert_eq!(kept.retention.unwrap().policy, "keep all 1h, every 1m 1d");
    set(&mut client, None).await;
    archive.kill();
    let archive = start(&dir, &clock);
    let kept = archive.client().archive.get_upkeep(volume()).await.unwrap().into_inner();
    assert_eq!(kept.retention, None, "it was taken away");
    let plan = PlanRetentionRequest { volume: VOLUME.into(), policy: String::new() };
    let refused = archive.client().archive.plan_retention(plan).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::WrongState, "there is no image yet");
    for bad in ["all", "every 1m 1d, all 7d"] {
        let request = SetRetentionRequest { volume: VOLUME.into(), retention: policy(bad) };
        let refused = archive.client().archive.set_retention(request).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::BadRequest);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_needs_stays() {
    let (dir, clock, device) = (tempfile::tempdir().unwrap(), Clock::at(200), device(12));
    let archive = start(&dir, &clock);
    let mut client = filled(&archive, &device).await;
    let explicit = |gid, is_explicit| SetExplicitRequest {
        volume: VOLUME.into(),
        gids: vec![gid],
        is_explicit,
    };
    client.archive.set_explicit(explicit(4, true)).await.unwrap();
    let (name, point) = (VOLUME.into(), Some(Point::Gid(2)));
    let request = MountRequest { volume: name, point, ..MountRequest::default() };
    let mounted = client.archive.mount(request).await.unwrap().into_inner();
    set(&mut client, policy("all 60s")).await;
    // Everything is old: the explicit snapshot keeps itself and all that follows it.
    until_gids(&client, &(4..=12).collect::<Vec<_>>()).await;
    // What the mount is of has gone, and it reads on.
    if outside::has("what_somebody_needs_stays", "nbdcopy") {
        let read = outside::copied(dir.path(), &mounted.uri).await;
        same(&read, &device.history[2], "a mount of gid 2");
    }
    let request = UnmountRequest { volume: VOLUME.into(), id: mounted.id };
    client.archive.unmount(request).await.unwrap();
    let plan = PlanRetentionRequest { volume: VOLUME.into(), policy: "all 60s".into() };
    let mut plan = client.archive.plan_retention(plan).await.unwrap().into_inner();
    let plan = plan.message().await.unwrap().unwrap();
    assert_eq!((plan.held_by, plan.apply), (Some(4), None));
    until("the apply to end", || {
        let mut client = client.clone();
        async move { client.get().await.running.is_empty().then_some(()) }
    })
    .await;
    client.archive.set_explicit(explicit(4, false)).await.unwrap();
    // The last clean snapshot is all that is left, however old it is.
    until_gids(&client, &[12]).await;
    all_right(&mut client, &device, "the last").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_told_harms_nothing_else_and_is_tried_again() {
    let (dir, clock, device) = (tempfile::tempdir().unwrap(), Clock::at(200), device(8));
    let archive = start(&dir, &clock);
    let mut client = filled(&archive, &device).await;
    let file = files(&archive.volume_dir(), ".wdiff").remove(4);
    let path = archive.volume_dir().join(file);
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    let last = damaged.len() - 5000;
    damaged[last] ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    set(&mut client, policy("all 60s")).await;
    until_thinning(&client, "two failures", |t| t.failures > 1 && !t.error.is_empty()).await;
    let status = client.get().await;
    assert_eq!(status.base.unwrap().end, None, "the base image was not touched");
    for gid in 0..=4 {
        same(&client.restored(gid).await, &device.history[gid as usize], "before the damage");
    }
    archive.kill();
    std::fs::write(&path, &whole).unwrap();
    let archive = start(&dir, &clock);
    let mut client = archive.client();
    until_gids(&client, &[8]).await;
    until_thinning(&client, "the error to be over", |t| t.failures == 0 && t.error.is_empty())
        .await;
    all_right(&mut client, &device, "mended").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_apply_goes_no_faster_and_can_be_given_up() {
    let (dir, clock, device) = (tempfile::tempdir().unwrap(), Clock::at(8), device(8));
    let archive = start(&dir, &clock);
    let mut client = filled(&archive, &device).await;
    let slow = proto::v1::ApplyRequest { bytes_per_s: 1, ..common::apply_to(8) };
    let begun = client.archive.apply(slow).await.unwrap().into_inner();
    until("the apply to begin", || {
        let mut client = client.clone();
        async move { client.get().await.base.unwrap().end.map(drop) }
    })
    .await;
    client.host.cancel_operation(OperationRef { id: begun.id.clone() }).await.unwrap();
    let done = client.finish(&begun.id).await;
    assert_eq!(done.status(), OperationStatus::Cancelled, "{done:?}");
    assert!(client.get().await.base.unwrap().end.is_some(), "it had not come to its end");
    // By time, and as fast as it goes.
    let point = Some(proto::v1::apply_request::Point::AtS(EPOCH + 89));
    let rest = proto::v1::ApplyRequest { point, ..common::apply_to(0) };
    let begun = client.archive.apply(rest).await.unwrap().into_inner();
    assert_eq!(client.finish(&begun.id).await.gid, Some(8));
    let slow = proto::v1::MergeRequest {
        bytes_per_s: 1,
        ..common::merge_of(8, Some(proto::v1::merge_request::Until::GidEnd(10)))
    };
    let mut device = device;
    (0..2).for_each(|_| device.write(10));
    for gid in 9..=10 {
        receive(&mut client, &device, gid).await;
    }
    let begun = client.archive.merge(slow).await.unwrap().into_inner();
    client.host.cancel_operation(OperationRef { id: begun.id.clone() }).await.unwrap();
    assert_eq!(client.finish(&begun.id).await.status(), OperationStatus::Cancelled);
    assert_eq!(gids(&mut client).await, [8, 9, 10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_replicates_until_it_is_dropped() {
    let clock = Clock::at(5);
    let mut device = device(5);
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (source, target) = (start(&dirs[0], &clock), start(&dirs[1], &clock));
    let (mut from, mut to) = (filled(&source, &device).await, target.client());
    to.init().await;
    let peer = Some(Peer { id: "a1".into(), address: format!("unix:{}", target.socket.display()) });
    let schedule = ReplicationSchedule { to: peer, every_s: 10, ..Default::default() };
    let request = SetReplicationRequest { volume: VOLUME.into(), schedule: Some(schedule) };
    from.archive.set_replication(request).await.unwrap();
    until_latest(&to, 5).await;
    until("where it is to be known", || {
        let mut from = from.clone();
        async move { (replication(&mut from).await.gid == 5).then_some(()) }
    })
    .await;
    assert_eq!(replication(&mut from).await.status.unwrap().started_s, EPOCH + 50);
    // What the source knows of itself, its replica knows too.
    assert_eq!(to.get().await.complete_s, EPOCH + 50);
    device.write(10);
    receive(&mut from, &device, 6).await;
    source.kill();
    let source = start(&dirs[0], &clock);
    let mut from = source.client();
    assert_eq!(to.get().await.latest.unwrap().gid_begin, 5, "it is not time yet");
    clock.set(6);
    until_latest(&to, 6).await;
    same(&to.restored(6).await, &device.history[6], "by schedule");
    let request = DropReplicationRequest { volume: VOLUME.into(), to: "a1".into() };
    let left = from.archive.drop_replication(request.clone()).await.unwrap().into_inner();
    assert!(left.replications.is_empty());
    let twice = from.archive.drop_replication(request).await.unwrap_err();
    assert_eq!(reason(&twice), Reason::BadRequest);
}

/// The history of `a_history_thins_out_by_itself_and_goes_on_after_a_kill`, with limits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_and_applies_come_no_sooner_and_no_larger_than_asked() {
    let limited = |change: fn(&mut Retention)| {
        let mut retention = policy("all 100s, every 1m 240s").unwrap();
        change(&mut retention);
        Some(retention)
    };
    let kept = |coarse: &[u64], all: std::ops::RangeInclusive<u64>| -> Vec<u64> {
        coarse.iter().copied().chain(all).collect()
    };
    let merges_wait: fn(&mut Retention) = |r| r.merge_every_s = 1000;
    let applies_wait: fn(&mut Retention) = |r| r.apply_every_s = 1000;
    for (change, later, done) in [
        (merges_wait, kept(&[9], 15..=36), "applied up to gid 9"),
        (applies_wait, kept(&[6, 9, 15], 21..=36), "made 1 wdiffs of 6"),
    ] {
        let (dir, clock) = (tempfile::tempdir().unwrap(), Clock::at(30));
        let mut device = device(30);
        let archive = start(&dir, &clock);
        let mut client = filled(&archive, &device).await;
        // Both would do, but no wdiff is that small.
        set(&mut client, limited(|r| r.merge_max_bytes = 1)).await;
        until_gids(&client, &kept(&[], 6..=30)).await;
        // The first time comes at once. The apply has had its own.
        set(&mut client, limited(change)).await;
        until_gids(&client, &kept(&[6, 9], 15..=30)).await;
        (0..6).for_each(|_| device.write(10));
        for gid in 31..=36 {
            receive(&mut client, &device, gid).await;
        }
        clock.set(36);
        until_gids(&client, &later).await;
        until_thinning(&client, "the run to be told", |t| t.started_s == EPOCH + 360).await;
        assert_eq!(thinning(&mut client).await.done, done);
        set(&mut client, limited(|_| ())).await;
        until_gids(&client, &kept(&[9, 15], 21..=36)).await;
        all_right(&mut client, &device, "all done").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduled_run_sends_no_more_than_asked() {
    let (clock, device) = (Clock::at(5), device(8));
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (source, target) = (start(&dirs[0], &clock), start(&dirs[1], &clock));
    let (mut from, mut to) = (source.client(), target.client());
    for client in [&mut from, &mut to] {
        client.init().await;
    }
    from.full_sync(&device.history[0], 0).await.unwrap();
    let peer = Some(Peer { id: "a1".into(), address: format!("unix:{}", target.socket.display()) });
    let schedule =
        ReplicationSchedule { to: peer, every_s: 1, max_send_bytes: 1, ..Default::default() };
    let request = SetReplicationRequest { volume: VOLUME.into(), schedule: Some(schedule) };
    from.archive.set_replication(request).await.unwrap();
    until("the image to be there", || {
        let mut to = to.clone();
        async move { to.get().await.latest.is_some().then_some(()) }
    })
    .await;
    for gid in 1..=8 {
        receive(&mut from, &device, gid).await;
    }
    // Each run begins when its time has come, and ends after one wdiff.
    for gid in 1..=3 {
        clock.set(5 + gid);
        until("the run to end", || {
            let mut from = from.clone();
            async move { (replication(&mut from).await.gid == gid).then_some(()) }
        })
        .await;
        assert_eq!(to.get().await.latest.unwrap().gid_begin, gid);
    }
    same(&to.restored(3).await, &device.history[3], "by pieces");
}

async fn until_latest(client: &Client, gid: u64) {
    until(&format!("gid {gid} to arrive"), || {
        let mut client = client.clone();
        async move { client.get().await.latest.is_some_and(|at| at.gid_begin == gid).then_some(()) }
    })
    .await;
}

async fn replication(client: &mut Client) -> proto::v1::ScheduledReplication {
    let kept = client.archive.get_upkeep(volume()).await.unwrap().into_inner();
    kept.replications.into_iter().next().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_volume_is_fresh_while_its_source_is_heard() {
    let (dir, clock, device) = (tempfile::tempdir().unwrap(), Clock::at(5), device(5));
    let archive = start(&dir, &clock);
    let mut client = filled(&archive, &device).await;
    let limit = SetAgeLimitRequest { volume: VOLUME.into(), age_limit_s: 60 };
    client.archive.set_age_limit(limit).await.unwrap();
    let status = client.get().await;
    assert_eq!((status.complete_s, status.stale_since_s), (EPOCH + 50, 0));
    let complete = |gid, at_s, log: u8| {
        let log_uuid = if log == 0 { UUID.0.to_vec() } else { vec![log; 16] };
        let said = CompleteTo { volume: VOLUME.into(), log_uuid: log_uuid.into(), gid, at_s };
        let other = CompleteTo { volume: "not-known".into(), ..said.clone() };
        CompleteRequest { volumes: vec![other, said] }
    };
    // Idle: no new snapshot, but heard of.
    clock.set(50);
    client.archive.complete(complete(5, EPOCH + 499, 0)).await.unwrap();
    assert_eq!(client.get().await.complete_s, EPOCH + 499);
    // Behind, and of another log: that proves nothing.
    for strange in [complete(6, EPOCH + 600, 0), complete(5, EPOCH + 600, 9)] {
        client.archive.complete(strange).await.unwrap();
        assert_eq!(client.get().await.complete_s, EPOCH + 499);
    }
    clock.set(70);
    until("the alarm", || {
        let mut client = client.clone();
        async move { (client.get().await.stale_since_s == EPOCH + 700).then_some(()) }
    })
    .await;
    client.archive.complete(complete(5, EPOCH + 690, 0)).await.unwrap();
    until("the end of the alarm", || {
        let mut client = client.clone();
        async move { (client.get().await.stale_since_s == 0).then_some(()) }
    })
    .await;
}
