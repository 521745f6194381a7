//! Replication between two archives: full, diff, hash and resync bring the other one to the same
//! images, lists and log; what does not fit is refused; cut anywhere, the next attempt goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::hooked::{Access, Hooked};
use common::pair::{OPEN, Pair, explicit};
use common::sync::snapshot;
use common::{Archive, Client, Device, UUID, messages, meta, same, start_of};
use proto::v1::replicate_request::Until;
use proto::v1::{OperationStatus, ReplicateRequest, WdiffResult, merge_request};
use server_kit::error::Reason;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use wlog_format::units::LogUuid;

const NEW: LogUuid = LogUuid([9; 16]);
const BLOCKS: usize = 3 * 2048 + 1024;

fn device(steps: u64) -> Device {
    let mut device = Device::new(BLOCKS, 31);
    (0..steps).for_each(|_| device.write(60));
    device
}

fn plain() -> ReplicateRequest {
    ReplicateRequest::default()
}

fn resync() -> ReplicateRequest {
    ReplicateRequest { resync: true, ..plain() }
}

/// Another write, which the archive gets by a wdiff.
async fn step(client: &mut Client, device: &mut Device) {
    device.write(60);
    let reply = client.send_step(device, device.gid()).await.unwrap();
    assert_eq!(reply.result(), WdiffResult::Stored, "{reply:?}");
}

async fn empty_diff(client: &mut Client, begin: u64, end: u64, uuid: LogUuid) -> WdiffResult {
    let mut start = start_of(meta(begin, end), BLOCKS as u64);
    start.log_uuid = bytes::Bytes::copy_from_slice(&uuid.0);
    let reply = client.send(messages(start, &common::wdiff(&[], uuid), 5000)).await.unwrap();
    reply.result()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_then_diff_then_hash_make_the_other_archive_equal() {
    let mut device = device(4);
    let mut pair = Pair::of(&device).await;
    pair.equal(plain(), &device, "full, then diffs").await;
    assert_eq!(explicit(&mut pair.to).await, [0, 1, 2, 3, 4]);
    pair.equal(plain(), &device, "nothing to do").await;
    step(&mut pair.from, &mut device).await;
    pair.equal(plain(), &device, "diff").await;
    // What the other one would need next is gone here.
    step(&mut pair.from, &mut device).await;
    step(&mut pair.from, &mut device).await;
    assert_eq!(pair.from.apply(7).await.unwrap().gid, Some(7));
    step(&mut pair.from, &mut device).await;
    pair.wire.left.store(OPEN, Ordering::SeqCst);
    pair.equal(plain(), &device, "hash, then diff").await;
    assert!(pair.target.files(".wdiff").iter().any(|f| f.contains("-MC-5-7.wdiff")));
    assert!(pair.wire.passed() < BLOCKS as u64 * 256, "{} bytes", pair.wire.passed());
    same(&pair.to.restored(3).await, &device.history[3], "its own history stays");
    // Both go on with what proxies send.
    step(&mut pair.from, &mut device).await;
    let reply = pair.to.send_step(&device, device.gid()).await.unwrap();
    assert_eq!(reply.result(), WdiffResult::Stored);
    pair.equal(plain(), &device, "at the end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_carried_along_so_that_the_other_one_can_be_synchronized() {
    let mut device = device(3);
    let mut pair = Pair::of(&device).await;
    pair.equal(plain(), &device, "full, then diffs").await;
    device.write(60);
    pair.from.hash_backup(device.now(), NEW, 5).await.unwrap();
    assert_eq!(empty_diff(&mut pair.from, 4, 5, NEW).await, WdiffResult::Stored);
    device.history.insert(4, device.now().to_vec());
    pair.equal(plain(), &device, "a hash backup, by diff").await;
    for (begin, end) in [(5, 6), (6, 7)] {
        assert_eq!(empty_diff(&mut pair.to, begin, end, UUID).await, WdiffResult::DifferentUuid);
        assert_eq!(empty_diff(&mut pair.to, begin, end, NEW).await, WdiffResult::Stored);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_history_needs_a_resync_that_somebody_allows() {
    let device = device(4);
    let mut pair = Pair::of(&device).await;
    let mut other = common::Device::new(BLOCKS, 99);
    other.write(60);
    pair.to.full_sync(&other.history[0], 0).await.unwrap();
    pair.to.send_step(&other, 1).await.unwrap();
    let refused = pair.replicate(plain()).await;
    let detail = refused.detail.unwrap();
    assert_eq!(detail.reason(), Reason::NeedsResync);
    assert!(detail.next_step.starts_with("walbc replicate a0 vol0 "), "{}", detail.next_step);
    assert!(detail.next_step.ends_with(" --resync"), "{}", detail.next_step);
    same(&pair.to.restored(1).await, &other.history[1], "nothing was given up");
    pair.equal(resync(), &device, "resync").await;
    // The same gid of two logs is not the same (I13): here it was made by a hash backup.
    assert_eq!(empty_diff(&mut pair.to, 4, 5, UUID).await, WdiffResult::Stored);
    pair.from.hash_backup(device.now(), NEW, 5).await.unwrap();
    assert_eq!(pair.from.get().await.latest, Some(snapshot(5, 5)));
    let refused = pair.replicate(plain()).await;
    assert_eq!(refused.detail.unwrap().reason(), Reason::NeedsResync, "equal gids");
    assert_eq!(empty_diff(&mut pair.from, 5, 6, NEW).await, WdiffResult::Stored);
    let refused = pair.replicate(plain()).await;
    assert_eq!(refused.detail.unwrap().reason(), Reason::NeedsResync, "a later gid");
    let done = pair.replicate(resync()).await;
    assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
    same(&pair.to.restored(6).await, device.now(), "after the resync");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_anywhere_the_next_attempt_makes_it_equal() {
    for kind in ["full", "diff", "hash", "resync"] {
        for cut in [3_000, 60_000, 700_000] {
            let what = format!("{kind}, cut after {cut} bytes");
            let mut device = device(2);
            let mut pair = Pair::of(&device).await;
            if kind != "full" {
                pair.equal(plain(), &device, "before").await;
                (0..8).for_each(|_| device.write(80));
                for gid in 3..=10 {
                    pair.from.send_step(&device, gid).await.unwrap();
                }
            }
            if kind == "hash" {
                pair.from.apply(9).await.unwrap();
            }
            let change = if kind == "resync" { resync() } else { plain() };
            pair.wire.left.store(cut, Ordering::SeqCst);
            let before = pair.to.get().await;
            let broken = pair.replicate(change.clone()).await;
            if broken.status() == OperationStatus::Done {
                continue;
            }
            let reason = broken.detail.as_ref().unwrap().reason();
            assert_eq!(reason, Reason::Unreachable, "{what}: {broken:?}");
            common::until("the end of the transfer", || {
                let mut to = pair.to.clone();
                async move {
                    let state = to.get().await.state;
                    ["Archived", "SyncReady"].contains(&&*state).then_some(())
                }
            })
            .await;
            let after = pair.to.get().await;
            if matches!(kind, "diff" | "hash") {
                assert_eq!(after.state, "Archived", "{what}");
                let gid = before.latest.unwrap().gid_begin;
                same(&pair.to.restored(gid).await, &device.history[gid as usize], &what);
            }
            pair.wire.left.store(OPEN, Ordering::SeqCst);
            // A broken resync has left a mixture, which only a resync, or all of it, mends.
            pair.equal(change, &device, &what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_replication_goes_on_where_it_was_cut_unless_the_source_has_moved() {
    let mut device = Device::new(16 * 2048, 5);
    device.write(200);
    for moved in [false, true] {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (left, written) = (Arc::new(AtomicI64::new(i64::MAX)), Arc::new(AtomicU64::new(0)));
        let (counted, count) = (left.clone(), written.clone());
        let images = Hooked::images(move |access, path| {
            let base = access == Access::Write && path.ends_with("base.img");
            let pass = !base || counted.fetch_sub(1, Ordering::SeqCst) > 0;
            count.fetch_add(u64::from(base), Ordering::SeqCst);
            Box::pin(async move {
                if pass { Ok(()) } else { Err(std::io::Error::from_raw_os_error(5)) }
            })
        });
        let mut settings = common::settings();
        settings.flush_bytes = 1 << 20;
        let (source, target) =
            (Archive::start(&dirs[0]), Archive::with(&dirs[1], settings, images));
        let mut pair = Pair::with(dirs, source, target, &device).await;
        left.store(6, Ordering::SeqCst);
        let broken = pair.replicate(plain()).await;
        assert_eq!(broken.detail.unwrap().reason(), Reason::Io);
        assert_eq!(pair.to.get().await.state, "SyncReady");
        left.store(i64::MAX, Ordering::SeqCst);
        let before = written.swap(0, Ordering::SeqCst);
        if moved {
            pair.from.apply(1).await.unwrap();
        }
        pair.equal(plain(), &device, "resumed").await;
        let after = written.load(Ordering::SeqCst);
        let whole = 8 + u64::from(moved) * 4;
        assert_eq!(after < whole, !moved, "{before} writes before, {after} after, moved {moved}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_resync_leaves_no_archive_and_is_mended_by_the_next() {
    let device = device(3);
    let mut pair = Pair::of(&device).await;
    pair.to.full_sync(&vec![0; BLOCKS * 512], 0).await.unwrap();
    pair.wire.left.store(200_000, Ordering::SeqCst);
    let broken = pair.replicate(resync()).await;
    assert_eq!(broken.status(), OperationStatus::Failed, "{broken:?}");
    common::until("SyncReady", || {
        let mut to = pair.to.clone();
        async move { (to.get().await.state == "SyncReady").then_some(()) }
    })
    .await;
    assert_eq!(pair.to.get().await.newest_restorable_gid, 0);
    assert!(pair.target.volume_dir().join("base.img").exists());
    pair.wire.left.store(OPEN, Ordering::SeqCst);
    pair.equal(resync(), &device, "the second attempt").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_have_a_limit_and_files_pass_through_as_they_are() {
    let mut device = Device::new(BLOCKS, 8);
    (0..7).for_each(|_| device.write(60));
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (source, target) = (Archive::start(&dirs[0]), Archive::start(&dirs[1]));
    let mut from = source.client();
    from.init().await;
    from.full_sync(&device.history[0], 0).await.unwrap();
    for gid in 1..=7 {
        let mut diff = meta(gid - 1, gid);
        diff.mergeable = gid != 4;
        let start = start_of(diff, BLOCKS as u64);
        from.send(messages(start, &device.wdiff(gid), 1000)).await.unwrap();
    }
    let mut to = target.client();
    to.init().await;
    let wire = common::pair::Wire::to(&target, &dirs[1]);
    let mut pair = Pair { dirs, source, target, wire, from, to };
    let until = Some(Until::Gid(2));
    let done = pair.replicate(ReplicateRequest { until, dont_merge: true, ..plain() }).await;
    assert_eq!(done.gid, Some(2), "{done:?}");
    let files = pair.target.files(".wdiff");
    assert_eq!(files, pair.source.files(".wdiff")[..2].to_vec());
    for name in &files {
        let read = |archive: &Archive| std::fs::read(archive.volume_dir().join(name)).unwrap();
        assert!(read(&pair.source) == read(&pair.target), "{name} was changed");
    }
    pair.equal(plain(), &device, "merged").await;
    let names = pair.target.files("-7.wdiff");
    assert!(names.len() == 1 && names[0].ends_with("----3-7.wdiff"), "{names:?}");
    assert_eq!(explicit(&mut pair.to).await, [0, 3, 7]);
    for gid in 8..=11 {
        device.write(60);
        let start = start_of(proto::v1::DiffMeta { mergeable: true, ..meta(gid - 1, gid) }, 8);
        pair.from.send(messages(start, &device.wdiff(gid), 1000)).await.unwrap();
    }
    let limit = 2 * device.wdiff(8).len() as u64 + 1000;
    let limited = ReplicateRequest { max_merge_bytes: limit, ..plain() };
    pair.equal(limited, &device, "merged two by two").await;
    assert!(pair.target.files(".wdiff").len() >= 5, "{:?}", pair.target.files(".wdiff"));
    // Little is missing: enough for who says so.
    device.write(1);
    pair.from.send_step(&device, 12).await.unwrap();
    let until = Some(Until::MaxBytes(1 << 20));
    let done = pair.replicate(ReplicateRequest { until, ..plain() }).await;
    assert_eq!(done.gid, Some(11));
    pair.equal(plain(), &device, "the rest").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_history_is_replicated() {
    let mut seed = Device::new(1024, 1234);
    for round in 0..6 {
        let mut device = Device::new(2048 + 512, 1 + round);
        let mut pair = Pair::of(&device).await;
        let mut base = 0;
        for turn in 0..12 {
            let what = format!("round {round}, turn {turn}");
            match seed.random(6) {
                0 => {
                    let kept = explicit(&mut pair.from).await;
                    let gid = kept[seed.random(kept.len())];
                    if gid > base {
                        pair.from.apply(gid).await.unwrap();
                        base = gid;
                    }
                }
                1 => {
                    let until = Some(merge_request::Until::MaxBytes(1 << 30));
                    let request = common::merge_of(base, until);
                    if let Ok(started) = pair.from.archive.merge(request).await {
                        pair.from.finish(&started.into_inner().id).await;
                    }
                }
                2 => pair.equal(plain(), &device, &what).await,
                _ => {
                    device.write(30);
                    let gid = device.gid();
                    let mergeable = seed.random(2) == 0;
                    let diff = proto::v1::DiffMeta { mergeable, ..meta(gid - 1, gid) };
                    let start = start_of(diff, device.size_lb());
                    let sent = messages(start, &device.wdiff(gid), 3000);
                    assert_eq!(pair.from.send(sent).await.unwrap().result(), WdiffResult::Stored);
                }
            }
        }
        pair.equal(plain(), &device, &format!("round {round}, the end")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_are_made_equal_where_that_is_growing() {
    let device = device(2);
    let mut pair = Pair::of(&device).await;
    pair.equal(plain(), &device, "before").await;
    let resize = |size_lb| proto::v1::ResizeRequest { volume: common::VOLUME.into(), size_lb };
    pair.from.archive.resize(resize(BLOCKS as u64 + 4096)).await.unwrap();
    assert_eq!(empty_diff(&mut pair.from, 2, 3, UUID).await, WdiffResult::Stored);
    let done = pair.replicate(plain()).await;
    assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
    assert_eq!(pair.to.get().await.size_lb, BLOCKS as u64 + 4096);
    let mut grown = device.now().to_vec();
    grown.resize((BLOCKS + 4096) * 512, 0);
    same(&pair.to.restored(3).await, &grown, "the grown image");
    pair.to.archive.resize(resize(BLOCKS as u64 + 8192)).await.unwrap();
    let refused = pair.replicate(plain()).await;
    assert_eq!(refused.detail.unwrap().reason(), Reason::WrongSize);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replication_excludes_apply_and_can_be_cancelled() {
    let device = device(2);
    let mut pair = Pair::of(&device).await;
    let slow = ReplicateRequest { scan_bytes_per_s: 1 << 20, ..plain() };
    let started = pair.start(slow).await.unwrap();
    let busy = pair.from.apply(1).await.unwrap_err();
    assert_eq!(common::reason(&busy), Reason::Busy);
    let second = pair.start(plain()).await.unwrap_err();
    assert_eq!(common::reason(&second), Reason::Busy);
    let cancel = proto::v1::OperationRef { id: started.id.clone() };
    pair.from.host.cancel_operation(cancel).await.unwrap();
    let done = pair.from.finish(&started.id).await;
    assert_eq!(done.status(), OperationStatus::Cancelled);
    pair.from.apply(1).await.unwrap();
    pair.equal(plain(), &device, "after the cancel").await;
}
