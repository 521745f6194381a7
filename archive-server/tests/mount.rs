//! Instant mounts: what NBD clients that we did not write see of a snapshot is that snapshot,
//! whatever runs beside it.
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
use block_io::nbd::Client as Nbd;
use bytes::Bytes;
use common::outside::{copied, has, run};
use common::{Answer, Archive, Client, Device, VOLUME, messages, meta, reason, same, start_of};
use common::{filled, until, volume};
use proto::v1::merge_request::Until;
use proto::v1::mount_request::Point;
use proto::v1::{
    MountRequest, Mounted, OperationStatus, ResizeRequest, SetExplicitRequest, UnmountRequest,
    VolumeRef, WdiffResult,
};
use server_kit::error::Reason;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use wdiff_format::record::DiffRecord;
use wlog_format::units::Lb;

fn device(steps: u64) -> Device {
    let mut device = Device::new(4096, 31);
    (0..steps).for_each(|_| device.write(40));
    device
}

/// As `common::filled`, all diffs mergeable.
async fn mergeable(archive: &Archive, device: &Device) -> Client {
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    for gid in 1..=device.gid() {
        send(&mut client, device, gid).await;
    }
    client
}

async fn send(client: &mut Client, device: &Device, gid: u64) {
    let mut diff = meta(gid - 1, gid);
    diff.mergeable = true;
    let sent = messages(start_of(diff, device.size_lb()), &device.wdiff(gid), 1000);
    assert_eq!(client.send(sent).await.unwrap().result(), WdiffResult::Stored);
}

async fn mount_as(client: &mut Client, request: MountRequest) -> Answer<Mounted> {
    let request = MountRequest { volume: VOLUME.into(), ..request };
    Ok(client.archive.mount(request).await?.into_inner())
}

async fn mount(client: &mut Client, gid: u64) -> Mounted {
    let point = Some(Point::Gid(gid));
    mount_as(client, MountRequest { point, ..MountRequest::default() }).await.unwrap()
}

async fn unmount(client: &mut Client, id: &str) -> Answer<()> {
    let request = UnmountRequest { volume: VOLUME.into(), id: id.into() };
    client.archive.unmount(request).await.map(drop)
}

async fn mounts(client: &mut Client) -> Vec<Mounted> {
    client.archive.list_mounts(VolumeRef::default()).await.unwrap().into_inner().mounts
}

async fn check(dir: &Path, mounted: &Mounted, device: &Device) {
    let what = format!("a mount of gid {}", mounted.gid);
    same(&copied(dir, &mounted.uri).await, &device.history[mounted.gid as usize], &what);
}

fn raw(dir: &Path, image: &[u8]) -> PathBuf {
    let path = dir.join("expected.img");
    std::fs::write(&path, image).unwrap();
    path
}

/// Leaves no clone to be made, so that mounts hold the base image on every file system.
fn settings() -> Settings {
    Settings { max_open: 2, ..common::settings() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_snapshot_is_what_outside_programs_read_of_its_mount() {
    let test = "every_snapshot_is_what_outside_programs_read_of_its_mount";
    if !has(test, "nbdcopy") || !has(test, "qemu-img") || !has(test, "nbdinfo") {
        return;
    }
    let (dir, device) = (tempfile::tempdir().unwrap(), device(7));
    let archive = Archive::with(&dir, settings(), Arc::new(FileImages));
    let mut client = filled(&archive, &device).await;
    let mut all = Vec::new();
    for gid in 0..=7 {
        let mounted = mount(&mut client, gid).await;
        assert_eq!((mounted.gid, mounted.wdiffs, mounted.writable), (gid, gid, false));
        assert_eq!(mounted.size_bytes, device.now().len() as u64);
        all.push(mounted);
    }
    assert_eq!(mounts(&mut client).await, all);
    for mounted in &all {
        check(dir.path(), mounted, &device).await;
        let expected = raw(dir.path(), &device.history[mounted.gid as usize]);
        let args = ["compare", "-f", "raw", "-F", "raw", &mounted.uri, expected.to_str().unwrap()];
        assert!(run("qemu-img", &args).await.contains("identical"));
    }
    // Holes are holes: all that is data there is data in the map, and zeros that were written,
    // discards, and what was never written are none.
    let map = run("nbdinfo", &["--map", &all[7].uri]).await;
    let data: u64 = map.lines().filter(|l| l.contains("data")).map(length).sum();
    let all_bytes: u64 = map.lines().map(length).sum();
    let image = &device.history[7];
    let nonzero = image.chunks(512).filter(|b| b.iter().any(|b| *b != 0)).count() as u64 * 512;
    assert_eq!(all_bytes, image.len() as u64);
    assert!(nonzero <= data && data < all_bytes, "{nonzero} {data} of {all_bytes}\n{map}");
    for mounted in &all {
        unmount(&mut client, &mounted.id).await.unwrap();
    }
    assert_eq!(mounts(&mut client).await, []);
    assert!(archive.files(".sock").is_empty() && archive.files(".tmp").is_empty());
    assert_eq!(reason(&unmount(&mut client, "1").await.unwrap_err()), Reason::UnknownSnapshot);
}

/// An ext4 of 8 MiB with one file in it.
async fn ext4(dir: &Path, text: &str) -> Vec<u8> {
    let (root, image) = (dir.join("root"), dir.join("ext4.img"));
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("file"), text.repeat(5000)).unwrap();
    let _ = std::fs::remove_file(&image);
    let (root, image) = (root.to_str().unwrap(), image.to_str().unwrap());
    run("mkfs.ext4", &["-q", "-F", "-d", root, image, "8M"]).await;
    std::fs::read(image).unwrap()
}

/// The file in an ext4 that is mounted by the kernel, from an export as a loop device.
async fn file_in(dir: &Path, mounted: &Mounted) -> Vec<u8> {
    let (disk, at) = (dir.join("disk"), dir.join("at"));
    std::fs::write(&disk, "").unwrap();
    std::fs::create_dir_all(&at).unwrap();
    let (disk_path, at_path) = (disk.to_str().unwrap(), at.to_str().unwrap());
    let mut fuse = Command::new("nbdfuse").args(["-r", disk_path, &mounted.uri]).spawn().unwrap();
    let size = || async { (std::fs::metadata(&disk).unwrap().len() > 0).then_some(()) };
    until("nbdfuse", size).await;
    let device = run("losetup", &["-r", "-f", "--show", disk_path]).await;
    run("mount", &["-t", "ext4", "-o", "ro,noload", device.trim(), at_path]).await;
    let found = std::fs::read(at.join("file"));
    run("umount", &[at_path]).await;
    run("losetup", &["-d", device.trim()]).await;
    // Once the kernel has let go of the loop device.
    let gone = || async {
        let ended = Command::new("umount").arg(disk_path).output();
        ended.is_ok_and(|o| o.status.success()).then_some(())
    };
    until("the end of nbdfuse", gone).await;
    fuse.wait().unwrap();
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_mounts_the_file_systems_that_were_there_over_tcp() {
    let test = "the_kernel_mounts_the_file_systems_that_were_there_over_tcp";
    for program in ["nbdfuse", "losetup", "mkfs.ext4", "mount", "nbdcopy"] {
        if !has(test, program) {
            return;
        }
    }
    if !Command::new("losetup").arg("-f").output().is_ok_and(|o| o.status.success()) {
        eprintln!("SKIPPED {test}: there are no loop devices for this user");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut device = Device::new(16_384, 9);
    for text in ["first ", "second "] {
        device.become_image(ext4(dir.path(), text).await);
    }
    let archive = Archive::with(&dir, settings(), Arc::new(FileImages));
    let mut client = filled(&archive, &device).await;
    for (gid, text) in [(1, "first "), (2, "second ")] {
        let (nbd, point) = ("127.0.0.1:0".into(), Some(Point::Gid(gid)));
        let request = MountRequest { nbd, point, ..MountRequest::default() };
        let mounted = mount_as(&mut client, request).await.unwrap();
        assert!(mounted.uri.starts_with("nbd://127.0.0.1:"), "{}", mounted.uri);
        check(dir.path(), &mounted, &device).await;
        assert!(file_in(dir.path(), &mounted).await == text.repeat(5000).as_bytes(), "{text}");
        unmount(&mut client, &mounted.id).await.unwrap();
    }
}

/// The length in a line of `nbdinfo --map`.
fn length(line: &str) -> u64 {
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_stays_as_it_is_beside_merge_apply_rename_gc_and_receive() {
    let test = "a_mount_stays_as_it_is_beside_merge_apply_rename_gc_and_receive";
    if !has(test, "nbdcopy") || !has(test, "qemu-img") {
        return;
    }
    let (dir, mut device) = (tempfile::tempdir().unwrap(), device(8));
    let archive = Archive::with(&dir, settings(), Arc::new(FileImages));
    let mut client = mergeable(&archive, &device).await;
    let point = Some(Point::AtS(meta(0, 6).timestamp_s + 5));
    let six = mount_as(&mut client, MountRequest { point, ..MountRequest::default() }).await;
    let six = six.unwrap();
    assert_eq!(six.gid, 6);
    let kept = SetExplicitRequest { volume: VOLUME.into(), gids: vec![2, 6], is_explicit: true };
    client.archive.set_explicit(kept).await.unwrap();
    check(dir.path(), &six, &device).await;
    for (begin, end) in [(0, 2), (2, 6)] {
        let until = Some(Until::GidEnd(end));
        let request = common::merge_of(begin, until);
        let merge = client.archive.merge(request).await.unwrap().into_inner();
        assert_eq!(client.finish(&merge.id).await.status(), OperationStatus::Done);
        check(dir.path(), &six, &device).await;
    }
    for gid in [2, 6] {
        assert_eq!(client.apply(gid).await.unwrap().status(), OperationStatus::Done);
        check(dir.path(), &six, &device).await;
    }
    device.write(40);
    send(&mut client, &device, 9).await;
    client.archive.gc(volume()).await.unwrap();
    // Beyond the mount, also where the base image cannot be cloned.
    for gid in [7, 8] {
        assert_eq!(client.apply(gid).await.unwrap().status(), OperationStatus::Done);
        check(dir.path(), &six, &device).await;
    }
    let expected = raw(dir.path(), &device.history[6]);
    let args = ["compare", "-f", "raw", "-F", "raw", &six.uri, expected.to_str().unwrap()];
    assert!(run("qemu-img", &args).await.contains("identical"));
    // Another one, of what came since.
    let nine = mount(&mut client, 9).await;
    check(dir.path(), &nine, &device).await;
    unmount(&mut client, &six.id).await.unwrap();
    assert_eq!(client.apply(9).await.unwrap().status(), OperationStatus::Done);
    check(dir.path(), &nine, &device).await;
    unmount(&mut client, &nine.id).await.unwrap();
    assert!(archive.files(".wdiff").is_empty());
    archive.all_deleted().await;
    same(&client.restored(9).await, &device.history[9], "the applied image");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_to_a_mount_is_read_there_and_nowhere_else() {
    let test = "what_is_written_to_a_mount_is_read_there_and_nowhere_else";
    if !has(test, "nbdcopy") || !has(test, "qemu-io") {
        return;
    }
    let (dir, device) = (tempfile::tempdir().unwrap(), device(4));
    let archive = Archive::with(&dir, settings(), Arc::new(FileImages));
    let mut client = filled(&archive, &device).await;
    let request = MountRequest { writable: true, point: Some(Point::Gid(3)), ..Default::default() };
    let mounted = mount_as(&mut client, request).await.unwrap();
    let other = mount(&mut client, 3).await;
    check(dir.path(), &mounted, &device).await;
    let mut image = device.history[3].clone();
    let mut args = vec!["-f".to_owned(), "raw".to_owned(), mounted.uri.clone()];
    // Over the seams of base, records and holes, and over itself.
    for (command, at, len, byte) in [
        ("write -P 17", 100_352, 66_048, 17),
        ("write -P 18", 131_072, 4_096, 18),
        ("write -z", 133_120, 4_096, 0),
        ("discard", 600_064, 512, 0),
        ("write -P 19 -f", 2_093_056, 4_096, 19),
    ] {
        args.extend(["-c".to_owned(), format!("{command} {at} {len}")]);
        image[at..at + len].fill(byte);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run("qemu-io", &args).await;
    same(&copied(dir.path(), &mounted.uri).await, &image, "the written mount");
    check(dir.path(), &other, &device).await;
    let mut writer = Command::new("qemu-io");
    let refused = writer.args(["-f", "raw", &other.uri, "-c", "write 0 512"]).output().unwrap();
    assert!(!refused.status.success(), "a read-only mount was written: {refused:?}");
    unmount(&mut client, &mounted.id).await.unwrap();
    assert!(archive.files(".cow.tmp").is_empty(), "the layer is left");
    same(&client.restored(3).await, &device.history[3], "the snapshot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_that_cannot_be_had_says_why_and_leaves_nothing() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(4));
    let archive = Archive::with(&dir, settings(), Arc::new(FileImages));
    let mut client = filled(&archive, &device).await;
    let at = |gid| MountRequest { point: Some(Point::Gid(gid)), ..Default::default() };
    let refuse = |request| {
        let mut client = client.clone();
        async move {
            let status = mount_as(&mut client, request).await.unwrap_err();
            (reason(&status), status.message().to_owned())
        }
    };
    assert_eq!(refuse(at(9)).await.0, Reason::UnknownSnapshot);
    let early = MountRequest { point: Some(Point::AtS(1)), ..Default::default() };
    assert_eq!(refuse(early).await.0, Reason::UnknownSnapshot);
    assert_eq!(refuse(MountRequest::default()).await.0, Reason::BadRequest);
    let open = MountRequest { nbd: "0.0.0.0:0".into(), ..at(1) };
    let (why, message) = refuse(open).await;
    assert!(why == Reason::BadRequest && message.contains("without TLS"), "{message}");
    let (why, message) = refuse(MountRequest { nbd: "nonsense".into(), ..at(1) }).await;
    assert!(why == Reason::BadRequest && message.contains("is not an address"), "{message}");
    let name = archive.files(".wdiff")[0].clone();
    let path = archive.volume_dir().join(&name);
    let moved = dir.path().join("away");
    std::fs::copy(&path, &moved).unwrap();
    std::fs::remove_file(&path).unwrap();
    let (why, message) = refuse(at(1)).await;
    assert_eq!(why, Reason::Damaged, "{message}");
    for part in ["every snapshot after gid 0 needs", &name, "cannot be opened: No such file"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    std::fs::copy(&moved, &path).unwrap();
    assert_eq!(mounts(&mut client).await, []);
    assert!(archive.files(".sock").is_empty() && archive.files(".tmp").is_empty());
    let mounted = mount(&mut client, 1).await;
    // A mounted volume is not emptied under its clients.
    let stop = proto::v1::StopRequest { volume: VOLUME.into(), mode: 0 };
    client.archive.stop(stop).await.unwrap();
    for refused in [
        client.archive.clear(volume()).await.unwrap_err(),
        client
            .archive
            .reset(proto::v1::ResetArchiveRequest { volume: VOLUME.into() })
            .await
            .unwrap_err(),
    ] {
        assert_eq!(reason(&refused), Reason::Busy);
        assert!(refused.message().contains("it is mounted"), "{}", refused.message());
    }
    unmount(&mut client, &mounted.id).await.unwrap();
    client.archive.clear(volume()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_mount_left_is_gone_after_a_restart() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(3));
    let archive = Archive::with(&dir, settings(), Arc::new(FileImages));
    let mut client = filled(&archive, &device).await;
    let request = MountRequest { writable: true, point: Some(Point::Gid(3)), ..Default::default() };
    mount_as(&mut client, request).await.unwrap();
    assert!(!archive.files(".cow.tmp").is_empty());
    archive.kill();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert_eq!(mounts(&mut client).await, []);
    assert!(archive.files(".sock").is_empty() && archive.files(".tmp").is_empty());
    same(&client.restored(3).await, &device.history[3], "after the restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_reaches_the_client_of_a_mount_as_an_error() {
    let test = "damage_reaches_the_client_of_a_mount_as_an_error";
    if !has(test, "nbdcopy") {
        return;
    }
    let (dir, device) = (tempfile::tempdir().unwrap(), device(3));
    let archive = Archive::with(&dir, settings(), Arc::new(FileImages));
    let mut client = filled(&archive, &device).await;
    let path = archive.volume_dir().join(&archive.files(".wdiff")[1]);
    let mut file = std::fs::read(&path).unwrap();
    let at = file.len() - 4200;
    file[at] ^= 0x40;
    std::fs::write(&path, &file).unwrap();
    // The index is sound, the data of one record is not.
    let mounted = mount(&mut client, 2).await;
    let to = dir.path().join("copy.img");
    let copy = Command::new("nbdcopy").args([&mounted.uri, to.to_str().unwrap()]).output().unwrap();
    assert!(!copy.status.success(), "damaged data was copied");
    let one = mount(&mut client, 1).await;
    check(dir.path(), &one, &device).await;
}

/// Mounts read the base image through the page cache, and applies write to it past that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mount_has_read_of_the_base_image_is_not_read_again_after_an_apply() {
    let test = "what_a_mount_has_read_of_the_base_image_is_not_read_again_after_an_apply";
    if !has(test, "nbdcopy") {
        return;
    }
    let (dir, device) = (tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(), device(4));
    let archive = Archive::with(&dir, settings(), Arc::new(FileImages));
    let mut client = filled(&archive, &device).await;
    let before = mount(&mut client, 1).await;
    check(dir.path(), &before, &device).await;
    for gid in 2..=4 {
        assert_eq!(client.apply(gid).await.unwrap().status(), OperationStatus::Done);
        let after = mount(&mut client, gid).await;
        assert_eq!(after.wdiffs, 0, "all of it is in the base image");
        check(dir.path(), &after, &device).await;
    }
    check(dir.path(), &before, &device).await;
}

/// Where the image cannot be cloned, an apply keeps for a mount what it writes over: only as much
/// as there was when the mount began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_from_before_a_growth_does_not_hinder_an_apply_across_the_old_end() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device(1));
    let archive = Archive::with(&dir, settings(), Arc::new(FileImages));
    let mut client = mergeable(&archive, &device).await;
    let (old, grown) = (device.size_lb(), device.size_lb() + 64);
    let mounted = mount(&mut client, 1).await;
    let (_, socket) = mounted.uri.split_once("socket=").unwrap();
    let nbd = Nbd::unix(socket, VOLUME).await.unwrap();
    let resize = ResizeRequest { volume: VOLUME.into(), size_lb: grown };
    client.archive.resize(resize).await.unwrap();
    for (gid, fill) in [(2, 0x22), (3, 0x33)] {
        let data = Bytes::from(vec![fill; 24 * 512]);
        let record = DiffRecord::from_raw(Lb(old - 8), data).unwrap();
        let start = start_of(meta(gid - 1, gid), grown);
        let sent = messages(start, &common::wdiff(&[record], common::UUID), 1000);
        assert_eq!(client.send(sent).await.unwrap().result(), WdiffResult::Stored);
        let applied = client.apply(gid).await.unwrap();
        assert_eq!(applied.status(), OperationStatus::Done, "{applied:?}");
        let read = nbd.read(0, (old * 512) as u32).await.unwrap();
        same(&read, device.now(), "the mount beside the apply");
        let mut now = device.now().to_vec();
        now.resize((grown * 512) as usize, 0);
        now[(old as usize - 8) * 512..][..24 * 512].fill(fill);
        same(&client.restored(gid).await, &now, "restored");
    }
}
