//! The real program, driven by clients that we did not write: qemu-io, fio and nbdinfo; killed at
//! random moments.
//!
//! What is not installed is said and skipped.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    missing_docs,
    reason = "a test may panic, and says what it skips"
)]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use block_io::nbd::Client;
use common::role::{Loop, Role, command, file, must_succeed, run, spawn};
use common::{Numbers, SECTOR, sector_content};
use device_server::format_ldev;
use wlog_format::superblock::{DeviceName, SuperBlock};
use wlog_format::units::BlockSize;

#[tokio::test]
async fn qemu_io_sees_a_disk() {
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let mut role = Role::start(16 << 20, 32 << 20, block_size, &[]).await;
        drop(role.connect().await);
        let script = [
            "write -P 7 0 1M",
            "write -f -P 9 512 512",
            "read -P 9 512 512",
            "read -P 7 1024 4096",
            "discard 4096 64k",
            "read -P 0 4096 64k",
            "write -z 8192 4096",
            "write -z -u 1M 4M",
            "read -P 0 1M 4M",
            "write -P 3 31M 1M",
            "flush",
            "read -P 3 31M 1M",
        ];
        let uri = role.uri();
        let mut args = vec!["-f", "raw"];
        script.iter().for_each(|line| args.extend(["-c", line]));
        args.push(&uri);
        must_succeed(run("qemu-io", &args));
        must_succeed(run("nbdinfo", &["--map", &uri]));
        role.stop();
        let data = std::fs::read(role.path("data")).unwrap();
        if run("qemu-io", &["--version"]).is_some() {
            assert!(data[31 << 20..].iter().all(|byte| *byte == 3), "it is all on the data device");
            assert!(data[4096..4096 + (64 << 10)].iter().all(|byte| *byte == 0));
        }
        let log = std::fs::read(role.path("log")).unwrap();
        let super_block = SuperBlock::decode(&log[4096..8192]).unwrap();
        assert!(super_block.written > super_block.oldest, "a clean stop needs no redo");
    }
}

/// fio writes and reads back with checksums, over and over through a ring much smaller than that.
#[tokio::test]
async fn fio_verifies_what_it_wrote() {
    for (block_size, bs) in [(BlockSize::B512, "512-64k"), (BlockSize::B4096, "4k-4k")] {
        let mut role = Role::start(8 << 20, 64 << 20, block_size, &[]).await;
        drop(role.connect().await);
        let uri = format!("--uri={}", role.uri());
        let range = format!("--bsrange={bs}");
        let args = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            &range,
            "--iodepth=32",
            "--size=48M",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_backlog=256",
            "--verify_state_save=0",
            "--fsync=500",
            "--randrepeat=0",
        ];
        must_succeed(run("fio", &args));
        role.stop();
    }
}

/// Block devices with sectors of 4096 bytes: the volume has them too, and nobody else gets the
/// devices.
#[tokio::test]
async fn block_devices_are_served_with_their_sectors() {
    let dir = tempfile::tempdir().unwrap();
    let (log_file, data_file) = (dir.path().join("log.img"), dir.path().join("data.img"));
    file(&log_file, 8 << 20);
    file(&data_file, 16 << 20);
    let Some(log) = Loop::attach(&log_file, 4096) else { return };
    let Some(data) = Loop::attach(&data_file, 4096) else { return };
    let refused =
        format_ldev(log.0.as_ref(), data.0.as_ref(), BlockSize::B512, DeviceName::EMPTY).await;
    assert!(refused.unwrap_err().to_string().contains("--block-size 4096"));
    format_ldev(log.0.as_ref(), data.0.as_ref(), BlockSize::B4096, DeviceName::EMPTY)
        .await
        .unwrap();
    std::os::unix::fs::symlink(&log.0, dir.path().join("log")).unwrap();
    std::os::unix::fs::symlink(&data.0, dir.path().join("data")).unwrap();
    let child = spawn(dir.path(), &[]);
    let mut role = Role { dir, child, flags: Vec::new() };
    let client = role.connect().await;
    assert_eq!(client.block_bytes(), 4096);
    client.write(0, common::payload(1, 0, 64), true).await.unwrap();
    client.trim(4096, 4096, true).await.unwrap();
    assert!(client.write(512, common::payload(2, 1, 1), false).await.is_err());
    let taken = format_ldev(log.0.as_ref(), data.0.as_ref(), BlockSize::B4096, DeviceName::EMPTY);
    assert!(taken.await.unwrap_err().to_string().contains("is in use"));
    role.kill();
    role.restart();
    let client = role.connect().await;
    let expected =
        [&common::payload(1, 0, 8)[..], &[0; 4096], &common::payload(1, 16, 48)].concat();
    assert_eq!(client.read(0, 32 << 10).await.unwrap(), expected);
    drop(client);
    role.stop();
}

/// A writer that knows what was acknowledged, and a role that is killed under it.
async fn survive_kills(kills: u64, seed: u64) {
    const SECTORS: u64 = 2048;
    let mut numbers = Numbers(seed);
    let block_size = if seed & 1 == 0 { BlockSize::B512 } else { BlockSize::B4096 };
    let mut role =
        Role::start(1 << 20, SECTORS * 512, block_size, &["--checkpoint-interval", "50ms"]).await;
    // For each sector the stamp that was acknowledged, and one that may or may not be there.
    let mut known: Vec<(Option<u32>, Option<u32>)> = vec![(None, None); SECTORS as usize];
    let mut stamp = 0;
    for kill in 0..kills {
        let client = role.connect().await;
        verify(&client, &mut known).await;
        let writes = 20 + numbers.below(200);
        let mut batch = Vec::new();
        for _ in 0..writes {
            let (sector, sectors) = (numbers.below(SECTORS - 8), 1 + numbers.below(8));
            // Unacknowledged writes do not overlap, so that what may be there stays simple.
            let range = sector as usize..(sector + sectors) as usize;
            if known[range.clone()].iter().any(|(_, maybe)| maybe.is_some()) {
                continue;
            }
            known[range].iter_mut().for_each(|state| state.1 = Some(stamp));
            batch.push((stamp, sector, sectors));
            stamp += 1;
        }
        let killer_waits = Duration::from_micros(numbers.below(30_000));
        let done = write_until_killed(&client, &mut role, batch, killer_waits).await;
        for (stamp, sector, sectors) in done {
            for state in &mut known[sector as usize..(sector + sectors) as usize] {
                *state = (Some(stamp), None);
            }
        }
        let _ = kill;
        role.restart();
    }
    let client = role.connect().await;
    verify(&client, &mut known).await;
    role.stop();
}

async fn write_until_killed(
    client: &Client,
    role: &mut Role,
    batch: Vec<(u32, u64, u64)>,
    wait: Duration,
) -> Vec<(u32, u64, u64)> {
    use futures::stream::StreamExt;
    let writes = futures::stream::iter(batch).map(|(stamp, sector, sectors)| async move {
        let data = common::payload(stamp, sector, sectors);
        let written = client.write(sector * SECTOR as u64, data, false).await;
        written.is_ok().then_some((stamp, sector, sectors))
    });
    let writes = writes.buffer_unordered(16).filter_map(|done| async move { done }).collect();
    let kill = async {
        tokio::time::sleep(wait).await;
        role.kill();
    };
    let (done, ()) = futures::join!(writes, kill);
    done
}

async fn verify(client: &Client, known: &mut [(Option<u32>, Option<u32>)]) {
    let image = client.read(0, (known.len() * SECTOR) as u32).await.unwrap();
    for (sector, state) in known.iter_mut().enumerate() {
        let found = &image[sector * SECTOR..(sector + 1) * SECTOR];
        let is = |stamp: Option<u32>| match stamp {
            Some(stamp) => found == sector_content(stamp, sector as u64),
            None => found.iter().all(|byte| *byte == 0),
        };
        if state.1.is_some() && is(state.1) {
            state.0 = state.1;
        } else {
            assert!(is(state.0), "sector {sector} has lost write {:?}", state.0);
        }
        state.1 = None;
    }
}

#[tokio::test]
async fn a_killed_role_has_lost_no_acknowledged_write() {
    for seed in 0..2 {
        survive_kills(6, seed).await;
    }
}

#[tokio::test]
#[ignore = "long"]
async fn long_a_role_killed_200_times_has_lost_no_acknowledged_write() {
    for seed in 0..2 {
        survive_kills(100, seed).await;
    }
}

fn stderr_of_failure(dir: &Path) -> String {
    let output = command(dir, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[tokio::test]
async fn what_cannot_be_served_is_said_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let (log, data) = (dir.path().join("log"), dir.path().join("data"));
    assert!(stderr_of_failure(dir.path()).contains("cannot open the log device"));
    file(&log, 1 << 20);
    assert!(stderr_of_failure(dir.path()).contains("cannot open the data device"));
    file(&data, 1 << 20);
    let text = stderr_of_failure(dir.path());
    let help = format!("walb ldev format --log {} --data {}", log.display(), data.display());
    assert!(text.contains(&help), "{text}");
    format_ldev(&log, &data, BlockSize::B512, DeviceName::EMPTY).await.unwrap();
    file(&data, 1 << 19);
    assert!(stderr_of_failure(dir.path()).contains("the data device has 524288"));
    file(&data, 1 << 20);
    let open_to_all = ["--nbd".to_owned(), "tcp:0.0.0.0:0".to_owned()];
    let output = command(dir.path(), &open_to_all).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("say --insecure"), "{output:?}");
    let held = File::options().read(true).write(true).open(&log).unwrap();
    held.try_lock().unwrap();
    assert!(stderr_of_failure(dir.path()).contains("is in use"));
    drop(held);
    let damaged = File::options().write(true).open(&log).unwrap();
    damaged.write_all_at(&[1], 4096 + 90).unwrap();
    assert!(stderr_of_failure(dir.path()).contains("checksum of the super sector"));
}

#[test]
fn wrong_flags_are_usage_errors() {
    for args in [
        &["serve", "--volume", "v0"][..],
        &["serve", "--volume", "v0=a,b", "--overflow", "explode"],
        &["serve", "--volume", "v0=a,b", "--max-pending", "1"],
        &["serve", "--volume", "v0=a,b", "--nbd", "nowhere"],
        &["dance"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_walb-device")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_walb-device")).args(["serve"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(BufReader::new(&output.stderr[..]).lines().count() > 0);
}
