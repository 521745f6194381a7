//! Two volumes, two proxies, one archive under mixed load: nothing grows, nothing falls behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use std::process::Command;
use std::time::Duration;

use tests::cluster::{Cluster, Layout, size};
use tests::outside::Background;
use tests::skip::have_programs;

/// Resident bytes and open files of a process.
fn usage(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (kib << 10, std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

fn load(cluster: &Cluster, volume: &str, seconds: u64) -> Background {
    let mut command = Command::new("fio");
    command.args(["--name=mixed", "--ioengine=nbd", "--rw=randrw", "--rwmixread=40"]);
    command.args(["--bsrange=4k-128k", "--iodepth=8", "--rate=8m,8m", "--fsync=100"]);
    command.args(["--time_based=1", &format!("--runtime={seconds}"), "--size=200M"]);
    command.arg(format!("--uri={}", cluster.nbd_uri(volume)));
    Background::start(&mut command).unwrap()
}

fn nothing_grows(test: &str, seconds: u64) {
    if !have_programs(test, &["fio", "nbdcopy"]) {
        return;
    }
    let layout = Layout {
        volumes: vec!["vol0".to_owned(), "vol1".to_owned()],
        data_bytes: size("256M"),
        log_bytes: size("512M"),
        ..Layout::default()
    };
    let mut cluster = Cluster::start(layout).unwrap();
    for volume in ["vol0", "vol1"] {
        cluster.full_backup(volume).unwrap();
    }
    let measure = |cluster: &mut Cluster| -> Vec<(String, u64, usize)> {
        let each = cluster.roles.iter().map(|(name, process)| {
            let (bytes, files) = usage(process.pid().unwrap());
            (name.clone(), bytes, files)
        });
        each.collect()
    };
    // The first third warms pools and caches; after that nothing may grow.
    let warm = seconds / 3;
    for (index, part) in [warm, seconds - warm].into_iter().enumerate() {
        let before = measure(&mut cluster);
        let loads = [load(&cluster, "vol0", part), load(&cluster, "vol1", part)];
        for fio in loads {
            fio.finish(Duration::from_secs(part + 60)).unwrap();
        }
        for volume in ["vol0", "vol1"] {
            cluster.verify_restore(volume).unwrap();
        }
        let after = measure(&mut cluster);
        eprintln!("{before:?}\n{after:?}");
        for ((name, bytes, files), (_, bytes_after, files_after)) in before.into_iter().zip(after) {
            if index == 0 {
                continue;
            }
            assert!(bytes_after < bytes * 3 / 2 + (32 << 20), "{name}: {bytes} -> {bytes_after}");
            assert!(files_after <= files + 16, "{name}: {files} -> {files_after} files");
        }
    }
}

#[test]
fn a_minute_of_mixed_load_grows_nothing() {
    nothing_grows("a_minute_of_mixed_load_grows_nothing", 45);
}

#[test]
#[ignore = "long: ten minutes; cargo long-test"]
fn ten_minutes_of_mixed_load_grow_nothing() {
    nothing_grows("ten_minutes_of_mixed_load_grow_nothing", 600);
}
