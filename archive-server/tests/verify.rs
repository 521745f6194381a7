//! Damage of every kind is found, named with the snapshots that it harms, and told in status; a
//! drill knows a snapshot again; what was proved of a snapshot is listed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use archive_server::{FileImages, Settings};
use common::{Archive, Client, Device, UUID, VOLUME, filled, messages, meta, same, start_of};
use proto::v1::restore_request::Point;
use proto::v1::{
    Damage, DamageKind, DamageList, DrillRequest, MergeRequest, MountRequest, Operation,
    OperationStatus, SetExplicitRequest, VerifyRequest, VolumeRef, WdiffResult, merge_request,
    mount_request,
};
use server_kit::error::Reason;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wdiff_format::compression::Compression;
use wdiff_format::header::FileType;
use wdiff_format::open::WdiffReader;
use wdiff_format::split::MaxIo;
use wdiff_format::write::{WriteOptions, write_records};

fn device(steps: u64) -> Device {
    let mut device = Device::new(4096, 31);
    (0..steps).for_each(|_| device.write(40));
    device
}

fn of_volume() -> VolumeRef {
    VolumeRef { volume: VOLUME.into() }
}

async fn verify(client: &mut Client) -> DamageList {
    let request = VerifyRequest { volume: VOLUME.into(), ..VerifyRequest::default() };
    let started = client.archive.verify(request).await.unwrap().into_inner();
    let done = client.finish(&started.id).await;
    assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
    assert!(done.total_bytes > 0 && done.done_bytes == done.total_bytes, "{done:?}");
    client.archive.list_damage(of_volume()).await.unwrap().into_inner()
}

async fn drill(client: &mut Client, gid: Option<u64>) -> Operation {
    let request = DrillRequest { volume: VOLUME.into(), gid, scan_bytes_per_s: 0 };
    let started = client.archive.drill(request).await.unwrap().into_inner();
    client.finish(&started.id).await
}

/// How each snapshot was verified last.
async fn ways(client: &mut Client) -> Vec<(u64, String)> {
    let list = client.restorable(true).await;
    let way = |s: proto::v1::Restorable| {
        assert_eq!(s.verified_s == 0, s.verified_how.is_empty());
        (s.gid, s.verified_how)
    };
    list.into_iter().map(way).collect()
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// What is done to the file of the diff that leads to gid 3.
type Harm = fn(&Path);

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

fn truncate(path: &Path) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(len(path) - 100).unwrap();
}

fn renamed(path: &Path) -> PathBuf {
    path.with_file_name("20200101000000----90-91.wdiff")
}

const HARMS: [(&str, Harm, DamageKind); 6] = [
    ("a flipped byte in the file header", |p| flip(p, 9), DamageKind::Wdiff),
    ("a flipped byte in a pack header", |p| flip(p, 32 + 40), DamageKind::Wdiff),
    ("a flipped byte in the data", |p| flip(p, len(p) - 4200), DamageKind::Wdiff),
    ("a cut", truncate, DamageKind::WrongSize),
    ("no file", |p| std::fs::remove_file(p).unwrap(), DamageKind::Missing),
    ("another name", |p| std::fs::rename(p, renamed(p)).unwrap(), DamageKind::Missing),
];

/// The damage to the diff that leads to gid 3, alone.
fn only(found: &DamageList, what: &str) -> Damage {
    let mut harmful = found.damages.iter().filter(|d| d.harmed > 0);
    let damage = harmful.next().unwrap_or_else(|| panic!("{what}: {found:?}")).clone();
    assert!(harmful.next().is_none(), "{what}: {found:?}");
    damage
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_damage_is_found_and_names_the_snapshots_that_it_harms() {
    for (what, harm, kind) in HARMS {
        let (dir, device) = (tempfile::tempdir().unwrap(), device(5));
        let archive = Archive::start(&dir);
        let mut client = filled(&archive, &device).await;
        let well = verify(&mut client).await;
        assert!(well.damages.is_empty() && well.verified_s > 0, "{what}: {well:?}");
        assert_eq!((well.wdiffs, well.checked_wdiffs), (5, 5), "{what}");
        let all: Vec<_> = (0..=5).map(|gid| (gid, "checked".to_owned())).collect();
        assert_eq!(ways(&mut client).await, all, "{what}");

        let name = archive.files("-2-3.wdiff").remove(0);
        harm(&archive.volume_dir().join(&name));
        let found = verify(&mut client).await;
        let damage = only(&found, what);
        assert_eq!(damage.kind(), kind, "{what}: {damage:?}");
        assert_eq!(damage.file, name, "{what}");
        let ends = (damage.harmed, damage.first_gid, damage.last_gid);
        assert_eq!(ends, (3, 3, 5), "{what}: {damage:?}");
        assert_eq!((damage.first_s, damage.last_s), (1_700_000_030, 1_700_000_050), "{what}");
        assert!(damage.next_step.contains("walbc repair ARCHIVE vol0 --from"), "{what}");
        let foreign = found.damages.iter().any(|d| d.kind() == DamageKind::Foreign);
        assert_eq!(foreign, what == "another name", "{what}: {found:?}");
        let status = client.get().await;
        assert!(status.error.contains(&name), "{what}: {}", status.error);
        assert!(status.damages.contains(&damage), "{what}: {status:?}");
        for (gid, how) in ways(&mut client).await {
            assert_eq!(how == "checked", gid < 3, "{what}: gid {gid} is {how}");
        }
        // What is not harmed is whole.
        same(&client.restored(2).await, &device.history[2], what);
        if !matches!(kind, DamageKind::Missing) {
            // It is known after a restart without reading again.
            archive.kill();
            let archive = Archive::start(&dir);
            let mut after = archive.client().get().await.damages;
            // Its size is what the directory says now.
            after[0].diff = damage.diff;
            assert_eq!(after, [damage], "{what}: after a restart");
        }
    }
}

/// What meets the damage of the diff that leads to gid 3; what it said.
async fn use_it(client: &mut Client, how: &str) -> String {
    let volume = VOLUME.into();
    let ended = match how {
        "apply" => client.apply(4).await.unwrap(),
        "drill" => drill(client, Some(4)).await,
        "restore" => client.restore_to(Point::Gid(4), "").await.unwrap(),
        "merge" => {
            let until = Some(merge_request::Until::GidEnd(4));
            let request = MergeRequest { volume, gid_begin: 1, until, ..MergeRequest::default() };
            let started = client.archive.merge(request).await.unwrap().into_inner();
            client.finish(&started.id).await
        }
        _ => {
            let point = Some(mount_request::Point::Gid(4));
            let request = MountRequest { volume, point, ..MountRequest::default() };
            let refused = client.archive.mount(request).await.unwrap_err();
            return refused.message().to_owned();
        }
    };
    assert_eq!(ended.status(), OperationStatus::Failed, "{how}: {ended:?}");
    let step = ended.detail.unwrap().next_step;
    assert!(how == "drill" || step.contains("walbc repair ARCHIVE vol0 --from"), "{how}: {step}");
    ended.error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_anybody_meets_is_known_until_the_file_is_well_and_no_longer() {
    let (_, in_header, _) = HARMS[1];
    let (_, gone, _) = HARMS[4];
    let harms = [(in_header, DamageKind::Wdiff), (gone, DamageKind::Missing)];
    for how in ["apply", "drill", "restore", "merge", "mount"] {
        for (harm, kind) in harms {
            let what = format!("{how}, {kind:?}");
            let (dir, mut device) = (tempfile::tempdir().unwrap(), Device::new(4096, 31));
            (0..4).for_each(|_| device.write(40));
            let archive = Archive::start(&dir);
            let mut client = filled(&archive, &device).await;
            for gid in 1..=3 {
                let gids = SetExplicitRequest {
                    volume: VOLUME.into(),
                    gids: vec![gid],
                    ..Default::default()
                };
                client.archive.set_explicit(gids).await.unwrap();
            }
            let name = archive.files("-2-3.wdiff").remove(0);
            let path = archive.volume_dir().join(&name);
            let whole = std::fs::read(&path).unwrap();
            harm(&path);
            let said = use_it(&mut client, how).await;
            assert!(said.contains(&name), "{what}: {said}");
            let status = client.get().await;
            let [damage] = status.damages.as_slice() else { panic!("{what}: {status:?}") };
            assert_eq!((damage.kind(), &damage.file), (kind, &name), "{what}");
            assert_eq!((damage.harmed, damage.first_gid), (2, 3), "{what}: {damage:?}");
            assert_eq!(status.error.matches(&name).count(), 1, "{what}: {}", status.error);
            assert_eq!(status.error_reason(), Reason::Damaged, "{what}");
            // The file is found again.
            std::fs::write(&path, whole).unwrap();
            assert_eq!(verify(&mut client).await.damages, [], "{what}");
            assert_eq!(client.get().await.error, "", "{what}: nothing is wrong any more");
            same(&client.restored(4).await, device.now(), &what);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_in_the_index_of_an_indexed_wdiff_is_found() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(3));
    let archive = Archive::start(&dir);
    filled(&archive, &device).await;
    let path = archive.volume_dir().join(archive.files("-1-2.wdiff").remove(0));
    archive.kill();
    let options = WriteOptions {
        file_type: FileType::Indexed,
        uuid: UUID,
        compression: Compression::default(),
        max_io: MaxIo::default(),
        threads: 1,
    };
    let mut indexed = Vec::new();
    write_records(WdiffReader::open(&path).unwrap(), &mut indexed, &options).unwrap();
    std::fs::write(&path, &indexed).unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert!(verify(&mut client).await.damages.is_empty());
    // The super block is the last of it; the records lie before.
    for back in [20, 100] {
        flip(&path, len(&path) - back);
        let damage = only(&verify(&mut client).await, "index");
        assert_eq!((damage.kind(), damage.first_gid), (DamageKind::Wdiff, 2));
        flip(&path, len(&path) - back);
        assert!(verify(&mut client).await.damages.is_empty(), "it is over when it is well again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_image_that_is_too_short_harms_everything() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(2));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    let path = archive.volume_dir().join("base.img");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    file.set_len(len(&path) - 4096).unwrap();
    let request = VerifyRequest { volume: VOLUME.into(), ..VerifyRequest::default() };
    let started = client.archive.verify(request).await.unwrap().into_inner();
    client.finish(&started.id).await;
    let damage =
        only(&client.archive.list_damage(of_volume()).await.unwrap().into_inner(), "short");
    assert_eq!(damage.kind(), DamageKind::Image);
    assert_eq!((damage.harmed, damage.first_gid, damage.last_gid), (3, 0, 2));
    assert!(ways(&mut client).await.iter().all(|(_, how)| how.is_empty()));
    std::fs::write(&path, whole).unwrap();
    assert!(verify(&mut client).await.damages.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_is_over_when_nothing_needs_the_file_any_more() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(4));
    let archive = Archive::start(&dir);
    let mut client = filled(&archive, &device).await;
    flip(&archive.volume_dir().join(archive.files("-0-1.wdiff").remove(0)), 9);
    assert_eq!(only(&verify(&mut client).await, "flip").harmed, 4);
    // The same gids come anew, from a proxy that repeats them after a full backup.
    flip(&archive.volume_dir().join(archive.files("-0-1.wdiff").remove(0)), 9);
    client.restored(4).await;
    let status = client.get().await;
    assert!(status.damages.is_empty() && status.error.is_empty(), "{status:?}");
    let restored = ways(&mut client).await.pop();
    assert_eq!(restored, Some((4, "restored".to_owned())), "what was read anew is not checked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_knows_a_snapshot_again_whatever_became_of_its_files() {
    let (dir, mut device) = (tempfile::tempdir().unwrap(), Device::new(3 * 2048 + 512, 5));
    (0..4).for_each(|_| device.write(40));
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    for gid in 1..=4 {
        let mergeable = gid != 4;
        let diff = proto::v1::DiffMeta { mergeable, ..meta(gid - 1, gid) };
        let start = start_of(diff, device.size_lb());
        let sent = client.send(messages(start, &device.wdiff(gid), 1000)).await.unwrap();
        assert_eq!(sent.result(), WdiffResult::Stored);
    }
    let first = drill(&mut client, Some(3)).await;
    assert_eq!((first.status(), first.gid), (OperationStatus::Done, Some(3)), "{first:?}");
    let known = client.archive.list_drills(of_volume()).await.unwrap().into_inner().drills;
    assert_eq!(known.len(), 1);
    // Merged, applied and grown: it is the same snapshot.
    let until = Some(merge_request::Until::GidEnd(3));
    let merge = MergeRequest { volume: VOLUME.into(), gid_begin: 0, until, ..Default::default() };
    let started = client.archive.merge(merge).await.unwrap().into_inner();
    client.finish(&started.id).await;
    assert_eq!(drill(&mut client, Some(3)).await.status(), OperationStatus::Done, "merged");
    client.apply(3).await.unwrap();
    let size_lb = device.size_lb() + 4096;
    let resize = proto::v1::ResizeRequest { volume: VOLUME.into(), size_lb };
    client.archive.resize(resize).await.unwrap();
    assert_eq!(drill(&mut client, Some(3)).await.status(), OperationStatus::Done, "grown");
    let again = client.archive.list_drills(of_volume()).await.unwrap().into_inner().drills;
    assert_eq!(again[0].hash, known[0].hash);
    assert_eq!(again[0].recorded_s, known[0].recorded_s);
    assert_eq!(ways(&mut client).await, [(3, "drilled".into()), (4, String::new())]);
    // One byte of the base image, where no wdiff is over it.
    flip(&archive.volume_dir().join("base.img"), 2048 * 512 + 77);
    archive.kill();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    let broken = drill(&mut client, Some(3)).await;
    assert_eq!(broken.status(), OperationStatus::Failed);
    assert_eq!(broken.detail.unwrap().reason(), Reason::Damaged);
    assert!(broken.error.contains(&known[0].hash), "{}", broken.error);
    let damage = only(&verify(&mut client).await, "drill");
    assert_eq!((damage.kind(), damage.first_gid), (DamageKind::Content, 3));
    flip(&archive.volume_dir().join("base.img"), 2048 * 512 + 77);
    assert_eq!(drill(&mut client, Some(3)).await.status(), OperationStatus::Done);
    assert_eq!(client.get().await.error, "");
    let random = drill(&mut client, None).await;
    assert!([Some(3), Some(4)].contains(&random.gid), "{random:?}");
    let gone = DrillRequest { volume: VOLUME.into(), gid: Some(2), scan_bytes_per_s: 0 };
    let refused = client.archive.drill(gone).await.unwrap_err();
    assert_eq!(common::reason(&refused), Reason::UnknownSnapshot);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_drill_command_sees_the_snapshot_and_has_the_last_word() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(2));
    let said = dir.path().join("said");
    let with = |exit: &str| Settings {
        drill_command: [
            "sh",
            "-c",
            "test -S \"$WALB_NBD_SOCKET\" && \
             echo \"$WALB_VOLUME $WALB_GID $WALB_NBD_URI\" > \"$0\"; \
             echo 'it is $(no) \"filesystem\"' >&2; exit $1",
            said.to_str().unwrap(),
            exit,
        ]
        .map(str::to_owned)
        .to_vec(),
        ..common::settings()
    };
    let archive = Archive::with(&dir, with("0"), Arc::new(FileImages));
    let mut client = filled(&archive, &device).await;
    let done = drill(&mut client, Some(2)).await;
    assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
    let text = std::fs::read_to_string(&said).unwrap();
    assert!(text.starts_with("vol0 2 nbd+unix:///vol0?socket="), "{text}");
    let mounts = client.archive.list_mounts(of_volume()).await.unwrap().into_inner().mounts;
    assert!(mounts.is_empty(), "{mounts:?}");
    archive.kill();
    let archive = Archive::with(&dir, with("7"), Arc::new(FileImages));
    let mut client = archive.client();
    let refused = drill(&mut client, Some(1)).await;
    assert_eq!(refused.status(), OperationStatus::Failed);
    assert!(refused.error.contains("it is $(no) \"filesystem\""), "{}", refused.error);
    assert!(ways(&mut client).await.contains(&(1, String::new())));
    let restored = client.restore_to(Point::Gid(1), "").await.unwrap();
    assert_eq!(restored.status(), OperationStatus::Done);
}
