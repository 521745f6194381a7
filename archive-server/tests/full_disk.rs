//! I10: a full disk stops acceptance with a clear state, loses nothing, and ends by itself when
//! there is space again. Needs a small file system of its own, so root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use archive_server::{FileImages, Settings};
use common::{
    Archive, Client, Device, VOLUME, filled, messages, meta, reason, same, start_of, wdiff,
};
use proto::v1::restore_request::Point;
use proto::v1::{
    DiffMeta, MountRequest, OperationStatus, Retention, SetExplicitRequest, SetRetentionRequest,
    UnmountRequest, WdiffResult, mount_request,
};
use server_kit::error::Reason;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use wdiff_format::record::DiffRecord;
use wlog_format::units::Lb;

/// A small file system in memory.
struct Small(PathBuf);

impl Small {
    fn mount(path: &Path) -> Option<Self> {
        std::fs::create_dir(path).unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=8m", "walb-test"];
        let done = Command::new("mount").args(mount).arg(path).output();
        done.is_ok_and(|d| d.status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

impl Small {
    /// Leaves so many bytes free.
    fn fill(&self, leave: usize) -> PathBuf {
        let filler = self.0.join("filler");
        let stat = Command::new("stat").args(["-f", "-c", "%a %S"]).arg(&self.0).output().unwrap();
        let text = String::from_utf8(stat.stdout).unwrap();
        let (blocks, size) = text.trim().split_once(' ').unwrap();
        let free = blocks.parse::<usize>().unwrap() * size.parse::<usize>().unwrap();
        std::fs::write(&filler, vec![1; free - leave]).unwrap();
        filler
    }
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut device = Device::new(1, seed);
    (0..bytes).map(|_| device.random(256) as u8).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_loses_nothing_and_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&dir.path().join("a0")) else {
        eprintln!("skipped: a_full_disk_refuses_loses_nothing_and_ends_by_itself needs root");
        return;
    };
    let settings = Settings { reserve_bytes: 2 << 20, ..Settings::default() };
    let archive = Archive::with(&dir, settings, Arc::new(FileImages));
    let mut device = Device::new(2048, 5);
    device.write(10);
    let mut client = filled(&archive, &device).await;
    let filler = small.fill(1 << 20);
    device.write(10);
    // Refused at once.
    let refused = client.send_step(&device, 2).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::NoSpace);
    let status = client.get().await;
    assert_eq!(status.state, "Archived");
    assert!(status.error.contains("bytes free, needed are"), "{}", status.error);
    assert_eq!(archive.files(".tmp").len() + archive.files(".wdiff").len(), 1);
    std::fs::remove_file(&filler).unwrap();
    assert_eq!(client.send_step(&device, 2).await.unwrap().result(), WdiffResult::Stored);
    assert_eq!(client.get().await.error, "");
    let image = dir.path().join("image");
    let done = client.restore_to(Point::Gid(2), image.to_str().unwrap()).await.unwrap();
    assert_eq!(done.status(), OperationStatus::Done);
    same(&std::fs::read(&image).unwrap(), device.now(), "after the disk was full");
    archive.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_on_a_full_disk_keeps_what_there_is_and_goes_on_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&dir.path().join("a0")) else {
        eprintln!("skipped: a_policy_on_a_full_disk_keeps_what_there_is needs root");
        return;
    };
    let upkeep_pause = Duration::from_millis(20);
    let settings = Settings { reserve_bytes: 1 << 20, upkeep_pause, ..Settings::default() };
    let archive = Archive::with(&dir, settings, Arc::new(FileImages));
    let mut device = Device::new(2048, 5);
    (0..6).for_each(|_| device.write(10));
    // Every diff is years old.
    let mut client = filled(&archive, &device).await;
    let gids = async |client: &mut Client| -> Vec<u64> {
        client.restorable(true).await.into_iter().map(|s| s.gid).collect()
    };
    for gid in 1..=5 {
        let request =
            SetExplicitRequest { volume: VOLUME.into(), gids: vec![gid], is_explicit: false };
        client.archive.set_explicit(request).await.unwrap();
    }
    let filler = small.fill(256 << 10);
    let retention =
        Some(Retention { policy: "all 1h, every 1d 36500d".into(), ..Retention::default() });
    let request = SetRetentionRequest { volume: VOLUME.into(), retention };
    client.archive.set_retention(request).await.unwrap();
    let thinning = async |client: &Client| {
        let mut client = client.clone();
        client.archive.get_upkeep(common::volume()).await.unwrap().into_inner().thinning.unwrap()
    };
    let failed = common::until("the run to fail", || async {
        Some(thinning(&client).await).filter(|t| !t.error.is_empty())
    });
    let failed = failed.await;
    assert!(failed.error.contains("bytes free, needed are"), "{failed:?}");
    assert!(!failed.next_step.is_empty() && failed.failures > 0, "{failed:?}");
    assert_eq!(gids(&mut client).await, [0, 1, 2, 3, 4, 5, 6], "nothing went");
    assert_eq!(client.get().await.state, "Archived");
    std::fs::remove_file(filler).unwrap();
    common::until("the history to be thinned out", || {
        let mut client = client.clone();
        async move { (gids(&mut client).await == [0, 6]).then_some(()) }
    })
    .await;
    let well = common::until("the run to be told", || async {
        Some(thinning(&client).await).filter(|t| t.error.is_empty())
    });
    assert_eq!(well.await.failures, 0);
    let image = dir.path().join("image");
    let done = client.restore_to(Point::Gid(6), image.to_str().unwrap()).await.unwrap();
    assert_eq!(done.status(), OperationStatus::Done);
    same(&std::fs::read(&image).unwrap(), device.now(), "after the disk was full");
    assert_eq!(client.get().await.error, "");
    archive.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fills_up_on_the_way_leaves_no_half_made_file() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&dir.path().join("a0")) else {
        eprintln!("skipped: a_disk_that_fills_up_on_the_way_leaves_no_half_made_file needs root");
        return;
    };
    let settings = Settings { reserve_bytes: 0, ..Settings::default() };
    let archive = Archive::with(&dir, settings, Arc::new(FileImages));
    let device = Device::new(2048, 5);
    let mut client = filled(&archive, &device).await;
    let filler = small.fill(256 << 10);
    let record = DiffRecord::from_raw(Lb(0), noise(3, 1 << 20).into()).unwrap();
    // Larger than what is left; the sender did not know its size.
    let large = wdiff(&[record], common::UUID);
    let start = || start_of(meta(0, 1), device.size_lb());
    let full = client.send(messages(start(), &large, 1 << 20)).await.unwrap_err();
    assert_eq!(reason(&full), Reason::NoSpace, "{full}");
    assert!(client.get().await.error.contains("cannot write a wdiff"));
    assert_eq!(archive.files(".tmp").len() + archive.files(".wdiff").len(), 0);
    // A restore has no space either, and leaves nothing.
    let done = client.restore_to(Point::Gid(0), "").await.unwrap();
    assert_eq!(done.detail.unwrap().reason(), Reason::NoSpace, "{}", done.error);
    assert!(common::files(&archive.volume_dir().join("restored"), "").is_empty());
    std::fs::remove_file(filler).unwrap();
    let stored = client.send(messages(start(), &large, 1 << 20)).await.unwrap();
    assert_eq!(stored.result(), WdiffResult::Stored);
    let mut expected = device.now().to_vec();
    expected[..1 << 20].copy_from_slice(&noise(3, 1 << 20));
    same(&client.restored(1).await, &expected, "after the disk had space again");
    assert_eq!(client.get().await.error, "");
    archive.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_its_deletion_makes_room_unless_somebody_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Small::mount(&dir.path().join("a0")) else {
        eprintln!("skipped: what_waits_for_its_deletion_makes_room_unless_somebody_reads_it: root");
        return;
    };
    let (reserve_bytes, grace) = (1 << 20, std::time::Duration::from_secs(3600));
    let settings = Settings { reserve_bytes, grace, ..Settings::default() };
    let archive = Archive::with(&dir, settings, Arc::new(FileImages));
    let device = Device::new(2048, 5);
    let mut client = filled(&archive, &device).await;
    let large = |gid| {
        let data = noise(gid, 1 << 20);
        wdiff(&[DiffRecord::from_raw(Lb(0), data.into()).unwrap()], common::UUID)
    };
    let sent = |gid: u64| {
        let file = large(gid);
        let diff = DiffMeta { size_bytes: file.len() as u64, ..meta(gid - 1, gid) };
        messages(start_of(diff, device.size_lb()), &file, 1 << 20)
    };
    assert_eq!(client.send(sent(1)).await.unwrap().result(), WdiffResult::Stored);
    assert_eq!(client.apply(1).await.unwrap().status(), OperationStatus::Done);
    assert_eq!(archive.marked().len(), 1);
    // Above the reserve, so that nothing is short before the next one comes.
    let filler = small.fill((3 << 20) / 2);
    assert_eq!(client.send(sent(2)).await.unwrap().result(), WdiffResult::Stored);
    assert!(archive.marked().is_empty(), "{:?}", archive.marked());
    let point = Some(mount_request::Point::Gid(2));
    let request = MountRequest { volume: common::VOLUME.into(), point, ..Default::default() };
    std::fs::remove_file(&filler).unwrap();
    let mounted = client.archive.mount(request).await.unwrap().into_inner();
    assert_eq!(client.apply(2).await.unwrap().status(), OperationStatus::Done);
    let filler = small.fill((3 << 20) / 2);
    let refused = client.send(sent(3)).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::NoSpace);
    assert_eq!(archive.marked().len(), 1, "it is read");
    let unmount = UnmountRequest { volume: common::VOLUME.into(), id: mounted.id };
    client.archive.unmount(unmount).await.unwrap();
    assert_eq!(client.send(sent(3)).await.unwrap().result(), WdiffResult::Stored);
    assert!(archive.marked().is_empty());
    std::fs::remove_file(filler).unwrap();
    let expected = noise(3, 1 << 20);
    same(&client.restored(3).await, &expected, "after the disk was full");
    archive.kill();
}
