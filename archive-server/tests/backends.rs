//! Every backend keeps the same promises: what is restored and mounted is the device as it was,
//! while the image is applied to and grows, and after a kill; space that is not needed comes back.
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
#[path = "../../tests/src/skip.rs"]
#[allow(dead_code, reason = "not all is of use here")]
mod skip;

use archive_server::{BackendChoice, World};
use common::{Archive, Client, Device, VOLUME, filled, reason, same, until, volume};
use proto::v1::restore_request::Point;
use proto::v1::{
    ApplyRequest, MountRequest, Mounted, OperationStatus, ResizeRequest, SnapshotRef,
    UnmountRequest, apply_request, mount_request,
};
use server_kit::error::Reason;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Blocks of the device: 8 MiB.
const BLOCKS: usize = 16_384;

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A loop device over a sparse file.
struct Loop(String);

impl Loop {
    fn new(dir: &Path, name: &str, bytes: u64) -> Self {
        let file = dir.join(name);
        std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        Self(run("losetup", &["-f", "--show", file.to_str().unwrap()]))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

/// A filesystem on a loop device, mounted.
struct Filesystem {
    path: PathBuf,
    _device: Loop,
}

impl Filesystem {
    fn new(dir: &Path, mkfs: &[&str]) -> Self {
        let device = Loop::new(dir, "filesystem", 512 << 20);
        run(mkfs[0], &[&mkfs[1..], &[&device.0]].concat());
        let path = dir.join("mnt");
        std::fs::create_dir(&path).unwrap();
        run("mount", &[&device.0, path.to_str().unwrap()]);
        Self { path, _device: device }
    }

    /// Bytes in use, with nothing in the page cache that has no place yet.
    fn used(&self) -> u64 {
        run("sync", &["-f", self.path.to_str().unwrap()]);
        let stat = nix::sys::statvfs::statvfs(&self.path).unwrap();
        (stat.blocks() - stat.blocks_free()) * stat.fragment_size()
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.path).status();
    }
}

fn device(seed: u64, steps: u64) -> Device {
    let mut device = Device::new(BLOCKS, seed);
    (0..steps).for_each(|_| device.write(60));
    device
}

fn start(dir: &Path, backend: &BackendChoice) -> Archive {
    Archive::on(dir, common::settings(), (backend.clone(), None), World::real())
}

/// The beginning of a file or device.
fn content(path: &str, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    std::fs::File::open(path).unwrap().read_exact(&mut data).unwrap();
    data
}

/// Restores a gid and compares; where it is.
async fn restore(client: &mut Client, gid: u64, expected: &[u8]) -> String {
    let operation = client.restore_to(Point::Gid(gid), "").await.unwrap();
    assert_eq!(operation.status(), OperationStatus::Done, "{operation:?}");
    same(&content(&operation.path, expected.len()), expected, &format!("restored gid {gid}"));
    operation.path
}

async fn delete(client: &mut Client, gid: u64) {
    let restored = SnapshotRef { volume: VOLUME.into(), gid };
    client.archive.delete_restored(restored).await.unwrap();
}

async fn mount(client: &mut Client, gid: u64) -> Mounted {
    let point = Some(mount_request::Point::Gid(gid));
    let request = MountRequest { volume: VOLUME.into(), point, ..MountRequest::default() };
    client.archive.mount(request).await.unwrap().into_inner()
}

async fn unmount(client: &mut Client, mounted: &Mounted) {
    let request = UnmountRequest { volume: VOLUME.into(), id: mounted.id.clone() };
    client.archive.unmount(request).await.unwrap();
}

/// Compares all that an NBD client reads of a mount.
async fn check(dir: &Path, mounted: &Mounted, expected: &[u8]) {
    let (to, uri) = (dir.join("copy.img"), mounted.uri.clone());
    let target = to.clone();
    let copy = move || run("nbdcopy", &[&uri, target.to_str().unwrap()]);
    tokio::task::spawn_blocking(copy).await.unwrap();
    let what = format!("a mount of gid {}", mounted.gid);
    same(&std::fs::read(&to).unwrap(), expected, &what);
    std::fs::remove_file(&to).unwrap();
}

async fn resize(client: &mut Client, size_lb: u64) -> common::Answer<()> {
    let request = ResizeRequest { volume: VOLUME.into(), size_lb };
    client.archive.resize(request).await.map(drop)
}

/// Starts an apply that takes seconds; its operation.
async fn slow_apply(client: &mut Client, gid: u64) -> String {
    let request = ApplyRequest {
        volume: VOLUME.into(),
        point: Some(apply_request::Point::Gid(gid)),
        bytes_per_s: 100 << 10,
    };
    client.archive.apply(request).await.unwrap().into_inner().id
}

fn grown(image: &[u8]) -> Vec<u8> {
    let mut image = image.to_vec();
    image.resize(2 * image.len(), 0);
    image
}

/// All that a backend has to do. Clones share blocks with the base image, or they are copies.
async fn keeps_its_promises(dir: &Path, backend: &BackendChoice, shares: bool) {
    let (base, device) = (dir.join("archive"), device(7, 6));
    std::fs::create_dir_all(&base).unwrap();
    let archive = start(&base, backend);
    let mut client = filled(&archive, &device).await;
    let at = |gid: u64| &device.history[gid as usize][..];

    restore(&mut client, 2, at(2)).await;
    let elsewhere = dir.join("elsewhere.img").to_str().unwrap().to_owned();
    let operation = client.restore_to(Point::Gid(1), &elsewhere).await.unwrap();
    assert_eq!(operation.status(), OperationStatus::Done, "{operation:?}");
    same(&std::fs::read(&elsewhere).unwrap(), at(1), "restored elsewhere");
    // A copy leaves out what is zero. (Of a reflink XFS counts what it allocates ahead, too.)
    if *backend != BackendChoice::File {
        let blocks = std::fs::metadata(&elsewhere).unwrap().blocks() * 512;
        assert!(blocks < at(1).len() as u64 * 3 / 4, "the hole of the base image became data");
    }
    let again = client.restore_to(Point::Gid(2), "").await.unwrap_err();
    assert_eq!(reason(&again), Reason::AlreadyExists);

    // A mount of the past, an apply beyond it where a clone allows that, and growth beside both.
    let mounted = mount(&mut client, 3).await;
    assert_eq!(mounted.holds_base, !shares);
    check(dir, &mounted, at(3)).await;
    let to = if shares { 4 } else { 3 };
    let apply = slow_apply(&mut client, to).await;
    resize(&mut client, 2 * BLOCKS as u64).await.unwrap();
    assert!(client.get().await.running.contains(&"apply".to_owned()), "the apply was too fast");
    check(dir, &mounted, at(3)).await;

    // Killed in the middle: the apply is finished by itself, the mount and its clone are gone.
    archive.kill();
    let archive = start(&base, backend);
    let mut client = archive.client();
    drop(apply);
    until("the interrupted apply", || {
        let mut client = client.clone();
        async move {
            let base = client.get().await.base?;
            (base.end.is_none() && base.begin?.gid_begin == to).then_some(())
        }
    })
    .await;
    assert_eq!(client.get().await.size_lb, 2 * BLOCKS as u64);
    let restored = client.archive.list_restored(volume()).await.unwrap().into_inner().restored;
    let restored: Vec<_> = restored.iter().map(|r| (r.gid, r.size_bytes)).collect();
    assert_eq!(restored, [(2, at(2).len() as u64)]);
    delete(&mut client, 2).await;
    let path = restore(&mut client, 6, &grown(at(6))).await;
    assert!(std::fs::metadata(&path).is_ok());
    let mounted = mount(&mut client, 5).await;
    check(dir, &mounted, &grown(at(5))).await;
    unmount(&mut client, &mounted).await;
    delete(&mut client, 6).await;
    assert!(std::fs::metadata(&path).is_err(), "{path} is left");
    client.archive.stop(stop()).await.unwrap();
    client.archive.clear(volume()).await.unwrap();
}

fn stop() -> proto::v1::StopRequest {
    let mode = proto::v1::StopMode::Graceful.into();
    proto::v1::StopRequest { volume: VOLUME.into(), mode }
}

/// Base image with data everywhere; `used` is measured, all of it is discarded, and again.
async fn gives_space_back(base: &Path, backend: &BackendChoice, used: impl Fn() -> u64) {
    std::fs::create_dir_all(base).unwrap();
    let archive = start(base, backend);
    let (mut client, image) = (archive.client(), vec![0x5a; BLOCKS * 512]);
    client.init().await;
    client.full_sync(&image, 0).await.unwrap();
    let before = used();
    let discard = wdiff_format::record::DiffRecord {
        address: wlog_format::units::Lb(1),
        blocks: BLOCKS as u32 - 2,
        payload: wdiff_format::record::Payload::Discard,
    };
    let file = common::wdiff(&[discard], common::UUID);
    let start = common::start_of(common::meta(0, 1), BLOCKS as u64);
    client.send(common::messages(start, &file, 1000)).await.unwrap();
    client.apply(1).await.unwrap();
    let mut expected = vec![0; image.len()];
    expected[..512].fill(0x5a);
    expected[image.len() - 512..].fill(0x5a);
    restore(&mut client, 1, &expected).await;
    delete(&mut client, 1).await;
    until("the space of what was discarded", || async {
        (used() + image.len() as u64 * 3 / 4 < before).then_some(())
    })
    .await;
}

async fn file_backend(test: &str, mkfs: &[&str]) {
    if !skip::have_loop_devices(test) || !skip::have_programs(test, &[mkfs[0], "nbdcopy"]) {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let filesystem = Filesystem::new(tmp.path(), mkfs);
    let dir = &filesystem.path;
    keeps_its_promises(dir, &BackendChoice::File, true).await;
    gives_space_back(&dir.join("space"), &BackendChoice::File, || filesystem.used()).await;
    shares_blocks(&filesystem).await;
}

/// Bytes of a file that are not shared with another one, and of those that are.
fn extents(path: &str) -> (u64, u64) {
    let listed = run("filefrag", &["-k", "-v", path]);
    let (mut own, mut shared) = (0, 0);
    for line in listed.lines() {
        // Number: logical: physical: length: expected: flags
        let fields: Vec<_> = line.split(':').map(str::trim).collect();
        let Some(kib) = fields.get(3).and_then(|length| length.parse::<u64>().ok()) else {
            continue;
        };
        *if line.contains("shared") { &mut shared } else { &mut own } += kib << 10;
    }
    (own, shared)
}

/// A restored image has of its own what is different in it, and gives its space back.
async fn shares_blocks(filesystem: &Filesystem) {
    let dir = filesystem.path.join("shared");
    std::fs::create_dir(&dir).unwrap();
    let device = device(3, 1);
    let archive = start(&dir, &BackendChoice::File);
    let mut client = filled(&archive, &device).await;
    let before = filesystem.used();
    let path = restore(&mut client, 1, device.now()).await;
    // Not by what the file system has in use: XFS keeps room for further copies on write for a
    // while.
    let (own, shared) = extents(&path);
    let most = device.now().len() as u64 / 4;
    assert!(own < most && shared > most, "{own} bytes of its own, {shared} shared");
    delete(&mut client, 1).await;
    until("the space of the restored image", || async {
        (filesystem.used() <= before + (256 << 10)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_on_xfs_are_cloned() {
    file_backend("files_on_xfs_are_cloned", &["mkfs.xfs", "-q", "-f"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_on_btrfs_are_cloned() {
    file_backend("files_on_btrfs_are_cloned", &["mkfs.btrfs", "-q", "-f"]).await;
}

fn on_device(device: &Loop) -> BackendChoice {
    let volume = VOLUME.parse().unwrap();
    BackendChoice::Block([(volume, PathBuf::from(&device.0))].into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_block_device_is_the_base_image() {
    let test = "a_block_device_is_the_base_image";
    if !skip::have_loop_devices(test) || !skip::have_programs(test, &["nbdcopy"]) {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    // Larger than the volume, and with old content behind the end of the image, which has to read
    // as zeroes once the volume has grown.
    let device = Loop::new(tmp.path(), "device", 40 << 20);
    let mut file = std::fs::File::options().write(true).open(&device.0).unwrap();
    file.seek(SeekFrom::Start(2 << 20)).unwrap();
    file.write_all(&vec![0xee; 38 << 20]).unwrap();
    file.sync_all().unwrap();
    drop(file);
    keeps_its_promises(tmp.path(), &on_device(&device), false).await;
    let file = tmp.path().join("device");
    let used = || std::fs::metadata(&file).unwrap().blocks() * 512;
    gives_space_back(&tmp.path().join("space"), &on_device(&device), used).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_not_free_is_refused() {
    let test = "a_device_that_is_not_free_is_refused";
    if !skip::have_loop_devices(test) {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let device = Loop::new(tmp.path(), "device", 16 << 20);
    let history = self::device(5, 1);
    let refused = async |what: &str, reason_then: Reason, name: &str| {
        let base = tmp.path().join(name);
        std::fs::create_dir(&base).unwrap();
        let archive = start(&base, &on_device(&device));
        let mut client = archive.client();
        let done = match client.archive.init(volume()).await {
            Ok(_) => client.full_sync(&history.history[0], 0).await.map(drop),
            Err(error) => Err(error),
        };
        let error = done.unwrap_err();
        assert_eq!(reason(&error), reason_then, "{what}: {error}");
        assert!(error.message().contains(what), "{what}: {error}");
    };
    // Somebody else's.
    let begin = |data: &[u8]| {
        let mut file = std::fs::File::options().write(true).open(&device.0).unwrap();
        file.write_all(data).unwrap();
        file.sync_all().unwrap();
    };
    begin(&[1; 512]);
    refused("there is something on it", Reason::BadRequest, "content").await;
    begin(&[0; 512]);
    let held = block_io::OpenOptions { exclusive: true, ..block_io::OpenOptions::default() };
    let held = block_io::open(&device.0, held).unwrap();
    refused("it is in use", Reason::BadRequest, "used").await;
    drop(held);
    // One that belongs to another volume, of another archive, which does not run.
    let base = tmp.path().join("owner");
    std::fs::create_dir(&base).unwrap();
    let owner = start(&base, &on_device(&device));
    drop(filled(&owner, &history).await);
    refused("it is in use", Reason::BadRequest, "running").await;
    owner.kill();
    refused("there is something on it", Reason::BadRequest, "stopped").await;
    // A larger volume than the device, then another device under the same flag.
    let owner = start(&base, &on_device(&device));
    let mut client = owner.client();
    let error = resize(&mut client, 3 * BLOCKS as u64).await.unwrap_err();
    assert_eq!(reason(&error), Reason::WrongSize, "{error}");
    owner.kill();
    let other = Loop::new(tmp.path(), "other", 64 << 20);
    let owner = start(&base, &on_device(&other));
    client = owner.client();
    let found = client.get().await;
    assert_eq!(found.state, "Broken");
    assert!(found.error.contains("its image is on"), "{}", found.error);
}

#[path = "backends/thin.rs"]
mod thin;
