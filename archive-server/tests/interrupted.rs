//! Killed at any instant and started again, an archive goes on: full backups resume, applies are
//! finished, half-made things are gone, and one bad volume does not keep the others from serving.
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

use archive_server::{FileImages, Images, Settings};
use common::hooked::{Access, Hooked};
use common::slow::{PIECE, progress, send_up_to, slowly};
use common::{
    Archive, Client, Device, UUID, VOLUME, filled, full, full_end, full_start, messages, meta,
    reason, same, start_of, until, volume,
};
use proto::v1::full_sync_request::Step;
use proto::v1::restore_request::Point;
use proto::v1::{OperationStatus, SnapshotRef, VolumeRef};
use server_kit::error::Reason;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

fn device(steps: u64) -> Device {
    let mut device = Device::new(4096, 99);
    (0..steps).for_each(|_| device.write(40));
    device
}

/// What happens to the writes after the allowed ones.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Hang,
    Fail(i32),
}

/// Images whose base takes so many writes and no more, and how many are left.
fn limited(then: Then) -> (Arc<dyn Images>, Arc<AtomicI64>) {
    let left = Arc::new(AtomicI64::new(i64::MAX));
    let counted = left.clone();
    let images = Hooked::images(move |access, path| {
        let base = access == Access::Write && path.ends_with("base.img");
        let pass = !base || counted.fetch_sub(1, Ordering::SeqCst) > 0;
        Box::pin(async move {
            match then {
                _ if pass => Ok(()),
                Then::Hang => std::future::pending().await,
                Then::Fail(errno) => Err(io::Error::from_raw_os_error(errno)),
            }
        })
    });
    (images, left)
}

fn base_gid(status: &proto::v1::ArchiveVolume) -> Option<u64> {
    let base = status.base?;
    base.end.is_none().then(|| base.begin.unwrap().gid_begin)
}

async fn until_base(client: &Client, gid: u64) {
    until("the end of the apply", || {
        let mut client = client.clone();
        async move { (base_gid(&client.get().await) == Some(gid)).then_some(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_apply_is_finished_after_a_restart() {
    let device = device(6);
    for writes in [0, 1, 7, 30] {
        let dir = tempfile::tempdir().unwrap();
        let (images, left) = limited(Then::Hang);
        let archive = Archive::with(&dir, common::settings(), images);
        let mut client = filled(&archive, &device).await;
        left.store(writes, Ordering::SeqCst);
        client.archive.apply(common::apply_to(4)).await.unwrap();
        until("the writes", || async { (left.load(Ordering::SeqCst) < 0).then_some(()) }).await;
        let status = client.get().await;
        assert_eq!(status.running, ["apply"]);
        assert_eq!(status.base.unwrap().end.unwrap().gid_begin, 4);
        archive.kill();
        assert_eq!(common::files(&dir.path().join("a0/vol0"), ".wdiff").len(), 6);
        let archive = Archive::start(&dir);
        let mut client = archive.client();
        until_base(&client, 4).await;
        until("the files to go", || async { (archive.files(".wdiff").len() == 2).then_some(()) })
            .await;
        for gid in 4..=6 {
            let what = format!("gid {gid} after {writes} writes");
            same(&client.restored(gid).await, &device.history[gid as usize], &what);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_during_an_apply_is_right_and_keeps_its_wdiffs() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(6));
    let (images, left) = limited(Then::Hang);
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device).await;
    left.store(20, Ordering::SeqCst);
    client.archive.apply(common::apply_to(4)).await.unwrap();
    until("the writes", || async { (left.load(Ordering::SeqCst) < 0).then_some(()) }).await;
    // The base image is of two times now.
    same(&client.restored(5).await, &device.history[5], "gid 5 from a base that is applied");
    let early = client.restore_to(Point::Gid(2), "").await.unwrap_err();
    assert_eq!(reason(&early), Reason::UnknownSnapshot);
    let busy = client.apply(5).await.unwrap_err();
    assert_eq!(reason(&busy), Reason::Busy);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apply_that_fails_for_want_of_space_goes_on_by_itself() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(3));
    let (images, left) = limited(Then::Fail(28));
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device).await;
    left.store(5, Ordering::SeqCst);
    let failed = client.apply(3).await.unwrap();
    assert_eq!(failed.status(), OperationStatus::Failed);
    assert_eq!(failed.detail.unwrap().reason(), Reason::NoSpace);
    assert!(client.get().await.error.contains("No space left"), "{}", client.get().await.error);
    left.store(i64::MAX, Ordering::SeqCst);
    until_base(&client, 3).await;
    until("the error to go", || {
        let mut client = client.clone();
        async move { client.get().await.error.is_empty().then_some(()) }
    })
    .await;
    same(&client.restored(3).await, &device.history[3], "after the disk had space again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_space_and_a_start_goes_on_with_the_apply() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(3));
    let (images, left) = limited(Then::Fail(28));
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device).await;
    left.store(5, Ordering::SeqCst);
    client.apply(3).await.unwrap();
    let stop = proto::v1::StopRequest { volume: VOLUME.into(), mode: 0 };
    tokio::time::timeout(common::LIMIT, client.archive.stop(stop)).await.unwrap().unwrap();
    assert_eq!(client.get().await.state, "Stopped");
    left.store(i64::MAX, Ordering::SeqCst);
    client.archive.start(volume()).await.unwrap();
    until_base(&client, 3).await;
    same(&client.restored(3).await, &device.history[3], "after stop and start");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_backup_goes_on_where_it_was_durable() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(0));
    let settings = Settings { flush_bytes: 512 << 10, ..common::settings() };
    let image = device.now();
    let archive = Archive::with(&dir, settings.clone(), Arc::new(FileImages));
    let mut client = archive.client();
    client.init().await;
    let (session, _) = client.prepare(device.size_lb(), &UUID.0).await.unwrap();
    let (sender, reply) = slowly(&client);
    sender.send(full(Step::Start(full_start(session)))).await.unwrap();
    send_up_to(&sender, image, 0, 15 * PIECE).await;
    until("progress", || async { (progress(&dir) == Some(512 << 10)).then_some(()) }).await;
    assert_eq!(client.get().await.state, "FullSync");
    archive.kill();
    assert!(reply.await.unwrap().is_err());
    // Whatever the killed one wrote behind its progress must not shine through.
    let path = dir.path().join("a0/vol0/base.img");
    let mut half = std::fs::read(&path).unwrap();
    half[512 << 10..].fill(0xee);
    std::fs::write(&path, half).unwrap();
    let archive = Archive::with(&dir, settings, Arc::new(FileImages));
    let mut client = archive.client();
    assert_eq!(client.get().await.state, "SyncReady");
    let (_, other) = client.prepare(device.size_lb(), &[9; 16]).await.unwrap();
    assert_eq!(other, 0, "another log is not resumed");
    let (_, larger) = client.prepare(device.size_lb() + 8, &UUID.0).await.unwrap();
    assert_eq!(larger, 0, "another size is not resumed");
    let (session, start) = client.prepare(device.size_lb(), &UUID.0).await.unwrap();
    assert_eq!(start, 512 << 10);
    let (sender, reply) = slowly(&client);
    sender.send(full(Step::Start(full_start(session)))).await.unwrap();
    send_up_to(&sender, image, 8 * PIECE, image.len()).await;
    sender.send(full(full_end(0, 0))).await.unwrap();
    drop(sender);
    reply.await.unwrap().unwrap();
    assert_eq!(progress(&dir), None);
    same(&client.restored(0).await, image, "the resumed backup");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_backup_that_breaks_off_leaves_the_volume_ready_for_another() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(0));
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    client.init().await;
    let (session, _) = client.prepare(device.size_lb(), &[]).await.unwrap();
    let (sender, reply) = slowly(&client);
    sender.send(full(Step::Start(full_start(session)))).await.unwrap();
    send_up_to(&sender, device.now(), 0, 3 * PIECE).await;
    until("the backup to run", || {
        let mut client = client.clone();
        async move {
            let known = client.host.list_operations(proto::v1::Empty {}).await.unwrap();
            (known.into_inner().operations.len() == 1).then_some(())
        }
    })
    .await;
    reply.abort();
    drop(sender);
    until("SyncReady", || {
        let mut client = client.clone();
        async move { (client.get().await.state == "SyncReady").then_some(()) }
    })
    .await;
    client.full_sync(device.now(), 0).await.unwrap();
    assert_eq!(client.get().await.error, "");
    same(&client.restored(0).await, device.now(), "the second attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wdiff_that_was_cut_by_a_kill_is_sent_again() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(2));
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    client.send_step(&device, 1).await.unwrap();
    let parts = messages(start_of(meta(1, 2), device.size_lb()), &device.wdiff(2), 4000);
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut sending = client.archive.clone();
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let reply = tokio::spawn(async move { sending.wdiff_transfer(stream).await });
    for part in &parts[..parts.len() - 1] {
        sender.send(part.clone()).await.unwrap();
    }
    until("a half-made file", || async { (archive.files(".tmp").len() == 1).then_some(()) }).await;
    archive.kill();
    assert!(reply.await.unwrap().is_err());
    // As SIGKILL would leave it.
    std::fs::write(dir.path().join("a0/vol0/77-1.tmp"), "x").unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert_eq!(client.get().await.diffs, 1);
    assert_eq!((archive.files(".tmp").len(), archive.files(".wdiff").len()), (0, 1));
    client.send_step(&device, 2).await.unwrap();
    same(&client.restored(2).await, &device.history[2], "after the kill");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_is_killed_leaves_nothing_wherever_it_went() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(2));
    let images = Hooked::images(|access, path| {
        let hangs = access == Access::Write && path.ends_with("mine.img.tmp");
        Box::pin(async move { if hangs { std::future::pending().await } else { Ok(()) } })
    });
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device).await;
    let target = dir.path().join("mine.img");
    let request = proto::v1::RestoreRequest {
        volume: VOLUME.into(),
        point: Some(Point::Gid(2)),
        to_path: target.to_str().unwrap().into(),
        dry_run: false,
    };
    client.archive.restore(request).await.unwrap();
    let tmp = || common::files(dir.path(), "mine.img.tmp").len();
    until("the half-made image", || async { (tmp() == 1).then_some(()) }).await;
    archive.kill();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert_eq!(client.get().await.state, "Archived");
    assert_eq!(tmp(), 0);
    client.restore_to(Point::Gid(2), target.to_str().unwrap()).await.unwrap();
    same(&std::fs::read(&target).unwrap(), &device.history[2], "the second attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_that_was_killed_after_its_first_step_is_finished_at_start() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(2));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    client.restore_to(Point::Gid(1), "").await.unwrap();
    client.archive.init(VolumeRef { volume: "fresh".into() }).await.unwrap();
    archive.kill();
    // The first step of a reset is the state file of a fresh volume.
    let base = dir.path().join("a0");
    std::fs::copy(base.join("fresh/state"), base.join("vol0/state")).unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    let status = client.get().await;
    assert_eq!((status.state.as_str(), status.error.as_str()), ("SyncReady", ""));
    assert!(archive.files(".wdiff").is_empty());
    let restored = client.archive.list_restored(volume()).await.unwrap().into_inner().restored;
    assert!(restored.is_empty(), "{restored:?}");
    client.full_sync(&device.history[2], 0).await.unwrap();
    same(&client.restored(0).await, &device.history[2], "the next full backup");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_volume_is_reported_and_the_others_serve() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(2));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    for name in ["flipped", "lost"] {
        client.archive.init(VolumeRef { volume: name.into() }).await.unwrap();
    }
    archive.kill();
    let base = dir.path().join("a0");
    let state = base.join("flipped/state");
    let text = std::fs::read_to_string(&state).unwrap();
    std::fs::write(&state, text.replace("size_lb = 0", "size_lb = 8")).unwrap();
    std::fs::remove_file(base.join("lost/state")).unwrap();
    // An init, and a clear, that were killed half-way.
    std::fs::create_dir(base.join("half.tmp")).unwrap();
    std::fs::write(base.join("half.tmp/state"), "x").unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    same(&client.restored(2).await, &device.history[2], "the good volume");
    assert!(!base.join("half.tmp").exists());
    for (name, part) in [("flipped", "is damaged"), ("lost", "is missing")] {
        let named = VolumeRef { volume: name.into() };
        let status = client.archive.get(named.clone()).await.unwrap().into_inner();
        assert_eq!(status.state, "Broken");
        assert!(status.error.contains(&format!("{name}/state {part}")), "{}", status.error);
        let refused = client.archive.start(named.clone()).await.unwrap_err();
        assert_eq!(reason(&refused), Reason::Damaged);
        let mut start = start_of(meta(0, 1), 8);
        start.volume = name.into();
        let kept = client.send(messages(start, &device.wdiff(1), 999)).await.unwrap_err();
        assert_eq!(reason(&kept), Reason::Damaged, "the sender must not drop it");
        client.archive.clear(named.clone()).await.unwrap();
        client.archive.init(named).await.unwrap();
    }
    let listed = client.archive.list(proto::v1::Empty {}).await.unwrap().into_inner();
    assert_eq!(listed.volumes.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_or_missing_wdiff_is_named_and_harms_only_what_needs_it() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(4));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    let name = &archive.files(".wdiff")[2];
    let path = archive.volume_dir().join(name);
    let mut file = std::fs::read(&path).unwrap();
    let at = file.len() - 4200;
    file[at] ^= 0x40;
    std::fs::write(&path, &file).unwrap();
    for (gid, good) in [(2, true), (3, false), (4, false)] {
        let done = client.restore_to(Point::Gid(gid), "").await.unwrap();
        if good {
            same(&std::fs::read(&done.path).unwrap(), &device.history[2], "before the damage");
            continue;
        }
        assert_eq!(done.status(), OperationStatus::Failed);
        assert_eq!(done.detail.as_ref().unwrap().reason(), Reason::Damaged);
        for part in [VOLUME, name.as_str(), "at byte "] {
            assert!(done.error.contains(part), "{part}: {}", done.error);
        }
        assert!(client.get().await.error.contains(name.as_str()));
        assert!(!archive.volume_dir().join(format!("restored/{gid}.img.tmp")).exists());
    }
    same(&client.restored(1).await, &device.history[1], "an older one");
    assert!(client.get().await.error.contains(name.as_str()), "the damage is still there");
    let applied = client.apply(4).await.unwrap();
    assert_eq!(applied.detail.unwrap().reason(), Reason::Damaged);
    assert_eq!(client.get().await.base.unwrap().end, None, "the base image was not touched");
    let restored = SnapshotRef { volume: VOLUME.into(), gid: 2 };
    client.archive.delete_restored(restored).await.unwrap();
    same(&client.restored(2).await, &device.history[2], "older than the damage");
    std::fs::remove_file(&path).unwrap();
    archive.kill();
    let archive = Archive::start(&dir);
    assert_eq!(archive.files(".wdiff").len(), 3, "nothing behind the gap is deleted");
    file[at] ^= 0x40;
    archive.kill();
    std::fs::write(&path, &file).unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert_eq!(client.apply(4).await.unwrap().status(), OperationStatus::Done);
    same(&client.restored(4).await, &device.history[4], "after the file was brought back");
    assert_eq!(client.get().await.error, "");
    assert!(client.archive.list_restored(volume()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_any_wdiff_of_an_apply_leaves_the_base_image_as_it_was() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(5));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    let image = archive.volume_dir().join("base.img");
    let before = std::fs::read(&image).unwrap();
    for name in archive.files(".wdiff") {
        let path = archive.volume_dir().join(&name);
        let whole = std::fs::read(&path).unwrap();
        let mut harmed = whole.clone();
        let at = harmed.len() - 4200;
        harmed[at] ^= 0x40;
        std::fs::write(&path, &harmed).unwrap();
        let applied = client.apply(5).await.unwrap();
        assert_eq!(applied.detail.as_ref().unwrap().reason(), Reason::Damaged, "{applied:?}");
        assert!(applied.error.contains(&name), "{}", applied.error);
        let base = client.get().await.base.unwrap();
        assert_eq!((base.begin.unwrap().gid_begin, base.end), (0, None));
        same(&std::fs::read(&image).unwrap(), &before, &name);
        std::fs::write(&path, &whole).unwrap();
    }
    assert_eq!(client.apply(5).await.unwrap().status(), OperationStatus::Done);
    same(&client.restored(5).await, &device.history[5], "when all are whole again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_apply_says_which_wdiff_is_missing_and_goes_on_when_it_is_back() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(4));
    let (images, left) = limited(Then::Hang);
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device).await;
    left.store(7, Ordering::SeqCst);
    client.archive.apply(common::apply_to(4)).await.unwrap();
    until("the writes", || async { (left.load(Ordering::SeqCst) < 0).then_some(()) }).await;
    archive.kill();
    let wdiffs = common::files(&dir.path().join("a0/vol0"), ".wdiff");
    let path = dir.path().join("a0/vol0").join(&wdiffs[2]);
    let wdiff = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let archive = Archive::start(&dir);
    let status = archive.client().get().await;
    // The apply said what it was up to: only the missing diff leads out of that.
    assert!(status.error.contains("a wdiff is missing"), "{}", status.error);
    assert_eq!(archive.files(".wdiff").len(), 3, "nothing behind the gap is deleted");
    archive.kill();
    std::fs::write(&path, wdiff).unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    until_base(&client, 4).await;
    same(&client.restored(4).await, &device.history[4], "after the file was brought back");
    assert_eq!(client.get().await.error, "");
}
