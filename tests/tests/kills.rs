//! kill -9 of any role at a random instant under a verifying writer loses nothing.
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

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tests::cluster::{Cluster, Layout, size};
use tests::outside::{Background, Reconnecting, run};
use tests::skip::have_programs;

/// fio over NBD that writes 4 KiB blocks at random, and after each pass reads and verifies them.
fn fio_args(uri: &str, seed: u64, seconds: u64) -> Vec<String> {
    let mut args: Vec<String> = [
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--size=24M",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--verify_backlog=256",
        "--fsync=64",
        "--time_based=1",
        "--output-format=terse",
    ]
    .map(str::to_owned)
    .into();
    args.push(format!("--uri={uri}"));
    args.push(format!("--randseed={seed}"));
    args.push(format!("--runtime={seconds}"));
    args
}

/// Kills roles at random while fio writes and verifies, `kills` times; the restored image must
/// equal the device whenever fio has come to an end.
fn survives_kills(test: &str, kills: usize, kills_per_round: usize) {
    if !have_programs(test, &["fio", "nbdkit", "nbdcopy"]) {
        return;
    }
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let layout = Layout {
        data_bytes: size("32M"),
        log_bytes: size("128M"),
        device_flags: vec!["--overflow".to_owned(), "stall".to_owned()],
        ..Layout::default()
    };
    let mut cluster = Cluster::start(layout).unwrap();
    cluster.full_backup("vol0").unwrap();
    let names: Vec<_> = cluster.roles.iter().map(|(name, _)| name.clone()).collect();
    let mut killed = 0;
    while killed < kills {
        let client = Reconnecting::start(&cluster.nbd_uri("vol0")).unwrap();
        let mut command = Command::new("fio");
        command.args(fio_args(
            &client.uri(),
            rng.random_range(0..1 << 31),
            2 * kills_per_round as u64,
        ));
        let fio = Background::start(&mut command).unwrap();
        for _ in 0..kills_per_round.min(kills - killed) {
            let name = names.choose(&mut rng).unwrap();
            // A random instant of the writer's run: the one place where time itself is the input.
            std::thread::sleep(Duration::from_millis(rng.random_range(0..1000)));
            eprintln!("kill {name}");
            cluster.kill_and_restart(name).unwrap();
            killed += 1;
        }
        fio.finish(Duration::from_secs(300)).expect("fio loses no write");
        drop(client);
        cluster.verify_restore("vol0").unwrap();
    }
}

#[test]
fn no_acknowledged_write_is_lost_by_kills() {
    survives_kills("no_acknowledged_write_is_lost_by_kills", 12, 4);
}

#[test]
#[ignore = "long: 200 kills take about ten minutes; cargo long-test"]
fn no_acknowledged_write_is_lost_by_200_kills() {
    survives_kills("no_acknowledged_write_is_lost_by_200_kills", 200, 10);
}

#[test]
fn a_killed_archive_does_not_stop_the_writer() {
    let test = "a_killed_archive_does_not_stop_the_writer";
    if !have_programs(test, &["qemu-io", "nbdcopy"]) {
        return;
    }
    let mut cluster = Cluster::start(Layout::default()).unwrap();
    cluster.full_backup("vol0").unwrap();
    cluster.role("a0").unwrap().kill().unwrap();
    cluster.role("s0").unwrap().kill().unwrap();
    let uri = cluster.nbd_uri("vol0");
    run("qemu-io", &["-f", "raw", "-c", "write -P 9 0 8M", "-c", "flush", &uri]).unwrap();
    cluster.start_all().unwrap();
    cluster.verify_restore("vol0").unwrap();
}
