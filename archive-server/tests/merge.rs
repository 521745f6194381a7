//! Merge, explicit snapshots and gc (semantics.md §2.5, §2.12, §2.13, §5.10): what is kept stays
//! what it was, whatever runs beside it and wherever the process is killed.
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
use common::{Answer, Archive, Client, Device, VOLUME, messages, meta, reason, same, start_of};
use common::{UUID, until, volume, wdiff};
use proto::v1::merge_request::Until;
use proto::v1::restore_request::Point;
use proto::v1::{Operation, OperationStatus, RestoreRequest, SetExplicitRequest, SnapshotRef};
use server_kit::error::Reason;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Semaphore;
use wdiff_format::compression::CompressionKind;
use wdiff_format::open::WdiffReader;
use wdiff_format::record::DiffRecord;
use wlog_format::units::Lb;

const GIDS: u64 = 8;

fn device() -> Device {
    let mut device = Device::new(4096, 21);
    (0..GIDS).for_each(|_| device.write(40));
    device
}

/// A volume with a diff to each gid; the snapshots `explicit` are.
async fn filled(archive: &Archive, device: &Device, explicit: &[u64]) -> Client {
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    for gid in 1..=device.gid() {
        let mut diff = meta(gid - 1, gid);
        diff.mergeable = !explicit.contains(&(gid - 1));
        let sent = messages(start_of(diff, device.size_lb()), &device.wdiff(gid), 1000);
        let reply = client.send(sent).await.unwrap();
        assert_eq!(reply.result(), proto::v1::WdiffResult::Stored, "{reply:?}");
    }
    client
}

async fn merge(client: &mut Client, gid_begin: u64, until: Until) -> Answer<Operation> {
    let request = common::merge_of(gid_begin, Some(until));
    let operation = client.archive.merge(request).await?.into_inner();
    Ok(client.finish(&operation.id).await)
}

async fn merged(client: &mut Client, begin: u64, end: u64) {
    let operation = merge(client, begin, Until::GidEnd(end)).await.unwrap();
    assert_eq!(operation.status(), OperationStatus::Done, "{operation:?}");
    assert_eq!((operation.gid, operation.done_bytes), (Some(end), operation.total_bytes));
}

/// The diffs, as `begin-end` with an M when mergeable.
async fn diffs(client: &mut Client) -> Vec<String> {
    let diffs = client.diffs().await;
    let text = |d: proto::v1::DiffEntry| {
        let diff = d.diff.unwrap();
        let flag = if diff.mergeable { "M" } else { "" };
        format!("{}-{}{flag}", diff.begin.unwrap().gid_begin, diff.end.unwrap().gid_begin)
    };
    diffs.into_iter().map(text).collect()
}

async fn restorable(client: &mut Client, all: bool) -> Vec<u64> {
    client.restorable(all).await.into_iter().map(|s| s.gid).collect()
}

/// Everything that is said to be restorable is what it was.
async fn check(client: &mut Client, device: &Device, gids: &[u64]) {
    assert_eq!(restorable(client, true).await, gids);
    for gid in gids {
        same(&client.restored(*gid).await, &device.history[*gid as usize], &format!("gid {gid}"));
    }
}

async fn set(client: &mut Client, gids: &[u64], is_explicit: bool) -> Answer<Vec<u64>> {
    let request = SetExplicitRequest { volume: VOLUME.into(), gids: gids.to_vec(), is_explicit };
    Ok(client.archive.set_explicit(request).await?.into_inner().changed)
}

fn wrong(answer: Answer<Operation>) -> (Reason, String) {
    let status = answer.unwrap_err();
    (reason(&status), status.message().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_keeps_its_ends_and_explicit_snapshots_stop_it() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device, &[0, 1, 6]).await;
    let before = client.get().await;
    // What semantics.md §6.4 wants, one by one.
    for (begin, end, why, text) in [
        (1, 7, Reason::WrongState, "snapshot 6 is explicit"),
        (0, 3, Reason::WrongState, "snapshot 1 is explicit"),
        (1, 1, Reason::BadRequest, "backwards"),
        (5, 2, Reason::BadRequest, "backwards"),
        (8, 9, Reason::UnknownSnapshot, "no diff starts at gid 8"),
        (6, 9, Reason::UnknownSnapshot, "no diff starts at gid 8"),
        (2, 3, Reason::WrongState, "no two diffs"),
    ] {
        let (reason, message) = wrong(merge(&mut client, begin, Until::GidEnd(end)).await);
        assert_eq!(reason, why, "{begin} to {end}: {message}");
        assert!(message.contains(text), "{message}");
    }
    merged(&mut client, 1, 6).await;
    assert_eq!(diffs(&mut client).await, ["0-1", "1-6", "6-7", "7-8M"]);
    let (_, message) = wrong(merge(&mut client, 2, Until::GidEnd(6)).await);
    assert!(message.contains("no diff starts at gid 2"), "{message}");
    let (_, message) = wrong(merge(&mut client, 1, Until::GidEnd(4)).await);
    assert!(message.contains("leads past gid 4"), "{message}");
    let after = client.get().await;
    assert_eq!(after.latest, before.latest);
    let sizes: u64 = archive.files(".wdiff").iter().map(|f| size(&archive, f)).sum();
    assert_eq!((after.diffs, after.diff_bytes), (4, sizes));
    assert_eq!(restorable(&mut client, false).await, [0, 1, 6, 8]);
    check(&mut client, &device, &[0, 1, 6, 7, 8]).await;
    // The time of a merged diff is that of its last snapshot.
    let list = client.restorable(true).await;
    assert_eq!(list[2].timestamp_s, meta(5, 6).timestamp_s);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merged_data_is_compressed_with_zstd() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::start(&dir);
    let device = Device::new(4096, 1);
    let mut client = filled(&archive, &device, &[]).await;
    for gid in [1, 2] {
        let data = vec![gid as u8; 8 * 512].into();
        let record = DiffRecord::from_raw(Lb(gid * 100), data).unwrap();
        let diff = proto::v1::DiffMeta { mergeable: true, ..meta(gid - 1, gid) };
        let file = wdiff(&[record], UUID);
        client.send(messages(start_of(diff, device.size_lb()), &file, 1000)).await.unwrap();
    }
    assert_eq!(kinds(&archive.volume_dir().join(&archive.files("-0-1.wdiff")[0])), ["snappy"]);
    merged(&mut client, 0, 2).await;
    assert_eq!(kinds(&archive.volume_dir().join(&archive.files("-0-2.wdiff")[0])), ["zstd"]);
    let image = client.restored(2).await;
    assert!(image[100 * 512..108 * 512].iter().all(|b| *b == 1));
    assert!(image[200 * 512..208 * 512].iter().all(|b| *b == 2));
}

fn size(archive: &Archive, file: &str) -> u64 {
    archive.volume_dir().join(file).metadata().unwrap().len()
}

/// How the data of a wdiff is compressed.
fn kinds(path: &Path) -> Vec<&'static str> {
    let records = WdiffReader::open(path).unwrap().map(|r| r.unwrap().stored_kind());
    let mut kinds: Vec<_> = records.flatten().filter(|k| *k != CompressionKind::None).collect();
    kinds.dedup();
    kinds.into_iter().map(CompressionKind::name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_by_size_takes_what_fits() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device, &[]).await;
    let files = archive.files(".wdiff");
    let three: u64 = files.iter().take(3).map(|f| size(&archive, f)).sum();
    let (_, message) = wrong(merge(&mut client, 0, Until::MaxBytes(1)).await);
    assert!(message.contains("no two diffs"), "{message}");
    let operation = merge(&mut client, 0, Until::MaxBytes(three)).await.unwrap();
    assert_eq!((operation.status(), operation.gid), (OperationStatus::Done, Some(3)));
    assert_eq!(diffs(&mut client).await[0], "0-3M");
    check(&mut client, &device, &[0, 3, 4, 5, 6, 7, 8]).await;
    let operation = merge(&mut client, 2, Until::MaxBytes(u64::MAX)).await.unwrap();
    assert_eq!((operation.status(), operation.gid), (OperationStatus::Done, Some(8)));
    check(&mut client, &device, &[0, 3, 8]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_diffs_than_may_be_open_are_merged_in_passes() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let settings = Settings { max_open: 3, ..common::settings() };
    let archive = Archive::with(&dir, settings, Arc::new(archive_server::FileImages));
    let mut client = filled(&archive, &device, &[]).await;
    merged(&mut client, 0, 8).await;
    assert_eq!(archive.files(".wdiff").len(), 1);
    check(&mut client, &device, &[0, 8]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_that_a_kill_left_beside_the_merged_diff_are_removed_at_start() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device, &[]).await;
    let kept: Vec<_> = archive.files(".wdiff");
    let copies: Vec<_> = kept.iter().map(|f| std::fs::read(archive.volume_dir().join(f))).collect();
    merged(&mut client, 2, 5).await;
    let files = archive.volume_dir();
    archive.kill();
    // Killed before any input was deleted, and before the last one was.
    for left in [&kept[2..5], &kept[4..5]] {
        for file in left {
            let at = kept.iter().position(|k| k == file).unwrap();
            std::fs::write(files.join(file), copies[at].as_ref().unwrap()).unwrap();
        }
        let archive = Archive::start(&dir);
        let mut client = archive.client();
        assert_eq!(client.get().await.error, "");
        assert_eq!(archive.files(".wdiff").len(), 6);
        check(&mut client, &device, &[0, 1, 2, 5, 6, 7, 8]).await;
        archive.kill();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_input_stops_a_merge_that_then_changes_nothing() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device, &[]).await;
    let files = archive.files(".wdiff");
    let path = archive.volume_dir().join(&files[3]);
    let sound = std::fs::read(&path).unwrap();
    let mut bytes = sound.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let operation = merge(&mut client, 2, Until::GidEnd(6)).await.unwrap();
    assert_eq!(operation.detail.clone().unwrap().reason(), Reason::Damaged, "{operation:?}");
    assert!(operation.error.contains(&files[3]), "{}", operation.error);
    assert_eq!(archive.files(".wdiff"), files);
    assert!(archive.files(".tmp").is_empty());
    std::fs::write(&path, sound).unwrap();
    check(&mut client, &device, &[0, 1, 2, 3, 4, 5, 6, 7, 8]).await;
}

const OPEN: usize = 1 << 20;

/// An archive that opens one wdiff at a time, and whose restores of gid 7 wait at the gate after
/// the copy of the base image.
fn slow(dir: &tempfile::TempDir) -> (Archive, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(2));
    let seen = gate.clone();
    let images = Hooked::images(move |access, path| {
        let mine = access == Access::Write && path.to_string_lossy().ends_with("7.img.tmp");
        let gate = seen.clone();
        Box::pin(async move {
            if mine {
                gate.acquire().await.map_err(std::io::Error::other)?.forget();
            }
            Ok(())
        })
    });
    let settings = Settings { max_open: 1, ..common::settings() };
    (Archive::with(dir, settings, images), gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_reads_on_while_its_wdiffs_are_merged_and_renamed() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let (archive, gate) = slow(&dir);
    let mut client = filled(&archive, &device, &[]).await;
    let point = Some(Point::Gid(7));
    let request = RestoreRequest { volume: VOLUME.into(), point, ..RestoreRequest::default() };
    let restored = client.archive.restore(request).await.unwrap().into_inner();
    let id = restored.operation.unwrap().id;
    // It has planned, and waits in the middle.
    until("the restore", || async { (gate.available_permits() == 0).then_some(()) }).await;
    assert_eq!(set(&mut client, &[2, 5, 6], true).await.unwrap(), [2, 5, 6]);
    assert_eq!(set(&mut client, &[6], false).await.unwrap(), [6]);
    merged(&mut client, 2, 5).await;
    merged(&mut client, 5, 8).await;
    assert_eq!(diffs(&mut client).await, ["0-1M", "1-2M", "2-5", "5-8"]);
    gate.add_permits(OPEN);
    let restored = client.finish(&id).await;
    assert_eq!(restored.status(), OperationStatus::Done, "{restored:?}");
    same(&std::fs::read(&restored.path).unwrap(), &device.history[7], "the restored image");
    assert_eq!(archive.files(".wdiff").len(), 4);
    archive.all_deleted().await;
    let deleted = SnapshotRef { volume: VOLUME.into(), gid: 7 };
    client.archive.delete_restored(deleted).await.unwrap();
    check(&mut client, &device, &[0, 1, 2, 5, 8]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merges_and_applies_exclude_each_other() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let gate = Arc::new(Semaphore::new(OPEN));
    let seen = gate.clone();
    let images = Hooked::images(move |access, path| {
        let base = access == Access::Write && path.ends_with("base.img");
        let gate = seen.clone();
        Box::pin(async move {
            if base {
                drop(gate.acquire().await.map_err(std::io::Error::other)?);
            }
            Ok(())
        })
    });
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device, &[]).await;
    gate.forget_permits(OPEN);
    let applied = client.archive.apply(common::apply_to(3)).await.unwrap().into_inner();
    let (busy, message) = wrong(merge(&mut client, 4, Until::GidEnd(8)).await);
    assert_eq!(busy, Reason::Busy, "{message}");
    let busy = set(&mut client, &[4], true).await.unwrap_err();
    assert_eq!(reason(&busy), Reason::Busy);
    let busy = client.archive.gc(volume()).await.unwrap_err();
    assert_eq!(reason(&busy), Reason::Busy);
    until("the apply to begin", || {
        let mut client = client.clone();
        async move { client.get().await.base.unwrap().end.map(drop) }
    })
    .await;
    // Cancelled, the base image is left half-way: that alone forbids a merge.
    client.host.cancel_operation(proto::v1::OperationRef { id: applied.id.clone() }).await.unwrap();
    gate.add_permits(OPEN);
    assert_eq!(client.finish(&applied.id).await.status(), OperationStatus::Cancelled);
    let (busy, message) = wrong(merge(&mut client, 4, Until::GidEnd(8)).await);
    assert_eq!(busy, Reason::Busy);
    assert!(message.contains("its base image is <|0|-->|3|>"), "{message}");
    assert_eq!(client.apply(3).await.unwrap().status(), OperationStatus::Done);
    merged(&mut client, 4, 8).await;
    check(&mut client, &device, &[3, 4, 8]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explicit_snapshots_are_changed_all_or_none_and_stay_so_over_a_restart() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device, &[3]).await;
    let refused = set(&mut client, &[2, 8], true).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::UnknownSnapshot);
    assert!(refused.message().contains("it is the latest one"), "{}", refused.message());
    let refused = set(&mut client, &[2, 77], true).await.unwrap_err();
    assert!(refused.message().contains("no diff starts there"), "{}", refused.message());
    assert_eq!(restorable(&mut client, false).await, [0, 3, 8]);
    // 0 is always listed; it was not explicit.
    assert_eq!(set(&mut client, &[2, 3, 2, 0], true).await.unwrap(), [0, 2]);
    assert_eq!(set(&mut client, &[3], false).await.unwrap(), [3]);
    assert_eq!(set(&mut client, &[3], false).await.unwrap(), [0; 0]);
    let listed = diffs(&mut client).await;
    assert_eq!(listed[..4], ["0-1", "1-2M", "2-3", "3-4M"]);
    check(&mut client, &device, &[0, 1, 2, 3, 4, 5, 6, 7, 8]).await;
    archive.kill();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert_eq!(diffs(&mut client).await, listed);
    assert_eq!(restorable(&mut client, false).await, [0, 2, 8]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gc_removes_what_lies_behind_a_gap_and_nothing_else() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device, &[]).await;
    let none = client.gc().await;
    assert_eq!(none, Vec::<String>::new());
    let files = archive.files(".wdiff");
    archive.kill();
    std::fs::remove_file(dir.path().join("a0").join(VOLUME).join(&files[5])).unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert!(client.get().await.error.contains("a wdiff is missing"));
    let removed = client.gc().await;
    assert_eq!(removed, files[6..]);
    assert_eq!(archive.files(".wdiff"), files[..5]);
    assert_eq!(client.get().await.error, "");
    check(&mut client, &device, &[0, 1, 2, 3, 4, 5]).await;
    // What comes next goes where the history ends now.
    assert_eq!(
        client.send_step(&device, 6).await.unwrap().result(),
        proto::v1::WdiffResult::Stored
    );
    check(&mut client, &device, &[0, 1, 2, 3, 4, 5, 6]).await;
}
