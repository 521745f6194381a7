//! A restore where nothing can be cloned: base image and wdiffs become the image in one pass.
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

use archive_server::Settings;
use common::hooked::{Access, Hooked};
use common::{Archive, Device, VOLUME, filled, same, until};
use proto::v1::restore_request::Point;
use proto::v1::{OperationRef, OperationStatus, RestoreRequest};
use server_kit::error::Reason;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use tokio::sync::Semaphore;

/// Blocks of 1 MiB, the unit of the pass.
const MIB: usize = 2048;

/// A device of some MiB and a bit, whose steps write over each other, and discard long ranges that
/// begin and end anywhere.
fn device() -> Device {
    let mut device = Device::new(7 * MIB + 3, 77);
    (0..3).for_each(|_| device.write(60));
    device.discard(MIB - 5..6 * MIB + 9);
    device.write(60);
    device.discard(5 * MIB..7 * MIB + 3);
    device.write(7);
    device
}

fn restore(gid: u64) -> RestoreRequest {
    let point = Some(Point::Gid(gid));
    RestoreRequest { volume: VOLUME.into(), point, ..RestoreRequest::default() }
}

/// What zeros of an image must be holes of a file: whole runs of 16 KiB and more, in the file
/// system's blocks. The rest, in bytes.
fn data_bytes(image: &[u8]) -> u64 {
    let (mut data, mut zeros) = (0, 0);
    for block in image.chunks(4096) {
        if block.iter().all(|byte| *byte == 0) {
            zeros += 1;
            continue;
        }
        data += 1 + if zeros < 4 { zeros } else { 0 };
        zeros = 0;
    }
    data * 4096
}

fn allocated(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().blocks() * 512
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_snapshot_is_right_in_any_number_of_rounds() {
    let device = device();
    for max_open in [1, 2, 3, 100] {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { max_open, ..common::settings() };
        let archive = Archive::with(&dir, settings, Arc::new(archive_server::FileImages));
        let mut client = filled(&archive, &device).await;
        for gid in 0..=device.gid() {
            let what = format!("gid {gid} in rounds of {max_open}");
            same(&client.restored(gid).await, &device.history[gid as usize], &what);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn zeros_of_the_base_image_and_of_wdiffs_stay_holes_and_the_progress_is_the_image() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    for gid in [0, 4, 6, 7] {
        let image = &device.history[gid as usize];
        let done = client.restore_to(Point::Gid(gid), "").await.unwrap();
        let has = allocated(done.path.as_ref());
        // The file system may take a block of its own.
        let expected = data_bytes(image) + 4096;
        assert!(has <= expected, "gid {gid}: {has} of {expected}");
        assert_eq!((done.done_bytes, done.total_bytes), {
            let rounds = if done_by_cloning(&archive) { 1 + u64::from(gid > 0) } else { 1 };
            (rounds * image.len() as u64, rounds * image.len() as u64)
        });
    }
}

/// Whether the file system below can clone files.
fn done_by_cloning(archive: &Archive) -> bool {
    let (from, to) = (archive.base.join("from"), archive.base.join("to"));
    std::fs::write(&from, [1; 4096]).unwrap();
    std::process::Command::new("cp")
        .args(["--reflink=always"])
        .args([from, to])
        .status()
        .is_ok_and(|s| s.success())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_restore_ends_and_leaves_nothing() {
    for gid in [0, 1] {
        cancelled(gid).await;
    }
}

async fn cancelled(gid: u64) {
    // Half of it is a hole; the rest is twice what can be in flight together.
    let (dir, mut device) = (tempfile::tempdir().unwrap(), Device::new(64 * MIB, 7));
    device.write(200);
    // The third request that writes the image is where it is cancelled.
    let gate = Arc::new(Semaphore::new(2));
    let seen = gate.clone();
    let images = Hooked::images(move |access, path| {
        let mine = access == Access::Write && path.to_string_lossy().ends_with(".img.tmp");
        let gate = seen.clone();
        Box::pin(async move {
            if mine {
                gate.acquire().await.map_err(std::io::Error::other)?.forget();
            }
            Ok(())
        })
    });
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device).await;
    let begun = client.archive.restore(restore(gid)).await.unwrap().into_inner();
    let id = begun.operation.unwrap().id;
    let tmp = archive.volume_dir().join(format!("restored/{gid}.img.tmp"));
    until("some of the image", || async { (tmp.exists() && allocated(&tmp) > 0).then_some(()) })
        .await;
    client.host.cancel_operation(OperationRef { id: id.clone() }).await.unwrap();
    // What is in flight ends, much more slowly than a restore hears that it is cancelled.
    let slowly = gate.clone();
    let passing = tokio::spawn(async move {
        loop {
            slowly.add_permits(1);
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let ended = client.finish(&id).await;
    passing.abort();
    gate.add_permits(1 << 20);
    assert_eq!(ended.status(), OperationStatus::Cancelled, "{ended:?}");
    assert!(ended.done_bytes < ended.total_bytes, "{ended:?}");
    assert!(!tmp.exists());
    same(&client.restored(gid).await, &device.history[gid as usize], "the next one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_a_record_that_a_newer_one_hides_fails_the_restore_and_is_remembered() {
    let (dir, mut device) = (tempfile::tempdir().unwrap(), Device::new(3 * MIB, 5));
    for fill in [0x11, 0x22] {
        let mut image = device.now().to_vec();
        image[MIB * 512..][..40 * 4096].fill(fill);
        device.become_image(image);
    }
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    let name = archive.files(".wdiff").remove(0);
    let path = archive.volume_dir().join(&name);
    let mut file = std::fs::read(&path).unwrap();
    // The end pack is the last page; before it is the data of the last record.
    let at = file.len() - 4096 - 2;
    file[at] ^= 1;
    std::fs::write(&path, &file).unwrap();
    let done = client.restore_to(Point::Gid(2), "").await.unwrap();
    assert_eq!(done.status(), OperationStatus::Failed, "{done:?}");
    let detail = done.detail.as_ref().unwrap();
    assert_eq!(detail.reason(), Reason::Damaged);
    assert!(done.error.contains(&name) && done.error.contains("checksum"), "{}", done.error);
    assert!(detail.next_step.contains("walbc repair"), "{detail:?}");
    assert!(client.get().await.error.contains(&name), "the ledger has it");
    assert!(archive.volume_dir().join("restored").read_dir().unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_image_that_is_half_way_in_an_apply_is_covered_by_wdiffs_of_any_round() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let left = Arc::new(AtomicI64::new(i64::MAX));
    let counted = left.clone();
    let images = Hooked::images(move |access, path| {
        let base = access == Access::Write && path.ends_with("base.img");
        let hangs = base && counted.fetch_sub(1, Ordering::SeqCst) <= 0;
        Box::pin(async move { if hangs { std::future::pending().await } else { Ok(()) } })
    });
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device).await;
    left.store(90, Ordering::SeqCst);
    client.archive.apply(common::apply_to(5)).await.unwrap();
    until("the writes", || async { (left.load(Ordering::SeqCst) < 0).then_some(()) }).await;
    archive.kill();
    // It cannot go on; of its wdiffs a restore reads one at a time.
    let stuck = Hooked::images(|access, path| {
        let base = access == Access::Write && path.ends_with("base.img");
        Box::pin(async move { if base { std::future::pending().await } else { Ok(()) } })
    });
    let settings = Settings { max_open: 1, ..common::settings() };
    let archive = Archive::with(&dir, settings, stuck);
    let mut client = archive.client();
    assert!(client.get().await.base.unwrap().end.is_some(), "the apply is unfinished");
    for gid in 5..=7 {
        same(&client.restored(gid).await, &device.history[gid as usize], &format!("gid {gid}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_block_is_written_once() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let writes = Arc::new(AtomicU64::new(0));
    let counted = writes.clone();
    let images = Hooked::images(move |access, path| {
        if access == Access::Write && path.to_string_lossy().contains("restored/") {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        Box::pin(async { Ok(()) })
    });
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device).await;
    if done_by_cloning(&archive) {
        return;
    }
    // No zeros of 16 KiB: one write for each MiB.
    same(&client.restored(3).await, &device.history[3], "gid 3");
    let whole = runs_of(&device.history[3]);
    assert_eq!(writes.load(Ordering::SeqCst), whole);
}

/// Runs of data with no 16 KiB of zeros inside, cut at each MiB.
fn runs_of(image: &[u8]) -> u64 {
    let mut runs = 0;
    for piece in image.chunks(1 << 20) {
        let mut zeros = usize::MAX;
        for block in piece.chunks(4096) {
            if block.iter().any(|byte| *byte != 0) {
                runs += u64::from(zeros >= 4);
                zeros = 0;
            } else {
                zeros = zeros.saturating_add(1);
            }
        }
    }
    runs
}
