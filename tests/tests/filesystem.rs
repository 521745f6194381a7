//! Real filesystems on a protected volume, in the kernel: what is restored mounts and is clean.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use std::path::Path;

use tests::cluster::{Cluster, Layout, size};
use tests::outside::{KernelDevice, Mount, run};
use tests::skip::{have_loop_devices, have_programs};

struct Filesystem {
    mkfs: &'static [&'static str],
    check: &'static [&'static str],
    mount: &'static str,
    mount_restored: &'static str,
}

const EXT4: Filesystem = Filesystem {
    mkfs: &["mkfs.ext4", "-q", "-F"],
    check: &["e2fsck", "-f", "-n"],
    mount: "noatime",
    mount_restored: "loop,noatime",
};

const XFS: Filesystem = Filesystem {
    mkfs: &["mkfs.xfs", "-q", "-f"],
    check: &["xfs_repair", "-n"],
    mount: "noatime",
    mount_restored: "loop,nouuid,noatime",
};

/// Files of several sizes, a directory tree, a deleted file.
fn fill(root: &Path, salt: u8) {
    for n in 0..40_u8 {
        let dir = root.join(format!("d{}", n % 5));
        std::fs::create_dir_all(&dir).unwrap();
        let bytes = vec![n ^ salt; 1000 * usize::from(n) * usize::from(n)];
        std::fs::write(dir.join(format!("f{n}")), bytes).unwrap();
    }
    std::fs::remove_file(root.join("d3/f3")).unwrap();
}

/// Every file below `root` with its content, by path.
fn contents(root: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = walkdir::WalkDir::new(root)
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.file_type().is_file())
        .map(|entry| {
            let name = entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned();
            (name, std::fs::read(entry.path()).unwrap())
        })
        .collect();
    found.sort();
    found
}

fn survives(test: &str, filesystem: &Filesystem) {
    let programs = ["nbdfuse", filesystem.mkfs[0], filesystem.check[0]];
    if !have_loop_devices(test) || !have_programs(test, &programs) {
        return;
    }
    let layout = Layout { data_bytes: size("512M"), log_bytes: size("256M"), ..Layout::default() };
    let cluster = Cluster::start(layout).unwrap();
    let device = KernelDevice::attach(&cluster.nbd_uri("vol0")).unwrap();
    run(filesystem.mkfs[0], &[&filesystem.mkfs[1..], &[device.path()]].concat()).unwrap();
    let mount = Mount::new(device.path(), filesystem.mount).unwrap();
    fill(mount.path(), 0);
    cluster.full_backup("vol0").unwrap();
    fill(mount.path(), 0x55);
    run("sync", &["-f", &mount.path().to_string_lossy()]).unwrap();
    let expected = contents(mount.path());
    // Still mounted, journal and all: the snapshot is what a power cut would leave.
    let gid = cluster.snapshot("vol0").unwrap();
    fill(mount.path(), 0xaa);
    let image = cluster.restore("a0", "vol0", gid).unwrap();
    let image = image.to_string_lossy();
    // The first mount replays the journal, then the filesystem must be clean.
    let restored = Mount::new(&image, filesystem.mount_restored).unwrap();
    assert!(contents(restored.path()) == expected, "contents differ");
    drop(restored);
    run(filesystem.check[0], &[&filesystem.check[1..], &[&*image]].concat()).unwrap();
    drop(mount);
}

/// Reads through a mount checked by qemu-img compare, nbdcopy and a loop-mounted filesystem.
#[test]
fn others_read_through_a_mount_what_a_restore_has() {
    let test = "others_read_through_a_mount_what_a_restore_has";
    let programs = ["nbdfuse", "nbdcopy", "qemu-img", EXT4.mkfs[0]];
    if !have_loop_devices(test) || !have_programs(test, &programs) {
        return;
    }
    let layout = Layout { data_bytes: size("64M"), log_bytes: size("64M"), ..Layout::default() };
    let cluster = Cluster::start(layout).unwrap();
    let device = KernelDevice::attach(&cluster.nbd_uri("vol0")).unwrap();
    run(EXT4.mkfs[0], &[&EXT4.mkfs[1..], &[device.path()]].concat()).unwrap();
    let mount = Mount::new(device.path(), EXT4.mount).unwrap();
    fill(mount.path(), 0);
    cluster.full_backup("vol0").unwrap();
    fill(mount.path(), 0x55);
    run("sync", &["-f", &mount.path().to_string_lossy()]).unwrap();
    let expected = contents(mount.path());
    let gid = cluster.snapshot("vol0").unwrap();
    fill(mount.path(), 0xaa);
    run("sync", &["-f", &mount.path().to_string_lossy()]).unwrap();
    // What comes later is not seen through it.
    cluster.snapshot("vol0").unwrap();

    let image = cluster.restore("a0", "vol0", gid).unwrap();
    let restored = image.to_string_lossy();
    let uri = cluster.vol().walbc(&format!("mount a0 VOL {gid}")).unwrap();
    let same = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &restored, uri.trim()]);
    assert!(same.unwrap().contains("identical"));
    let copy = cluster.path("copy.img");
    run("nbdcopy", &[uri.trim(), &copy.to_string_lossy()]).unwrap();
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&image).unwrap(), "nbdcopy differs");
    // The journal is replayed, so the kernel has to write.
    let uri = cluster.vol().walbc(&format!("mount a0 VOL {gid} --writable")).unwrap();
    let looped = KernelDevice::attach(uri.trim()).unwrap();
    let through = Mount::new(looped.path(), EXT4.mount).unwrap();
    assert!(contents(through.path()) == expected, "contents differ");
    drop(through);
    run(EXT4.check[0], &[&EXT4.check[1..], &[looped.path()]].concat()).unwrap();
    drop(looped);
    drop(mount);
}

#[test]
fn ext4_on_a_protected_volume_is_restored_clean() {
    survives("ext4_on_a_protected_volume_is_restored_clean", &EXT4);
}

#[test]
fn xfs_on_a_protected_volume_is_restored_clean() {
    survives("xfs_on_a_protected_volume_is_restored_clean", &XFS);
}
