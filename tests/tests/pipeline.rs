//! A snapshot that is restored equals the device at that snapshot, driven by foreign clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use tests::cluster::{Cluster, Layout, sha256};
use tests::outside::run;
use tests::skip::have_programs;

/// Writes a pattern to the first half of the volume through qemu's NBD client.
fn write_pattern(cluster: &Cluster, pattern: u8) {
    let write = format!("write -P {pattern} 1M 8M");
    let trim = "discard 4M 1M".to_owned();
    let zeros = "write -z 6M 512k".to_owned();
    let uri = cluster.nbd_uri("vol0");
    let args = ["-f", "raw", "-c", &write, "-c", &trim, "-c", &zeros, "-c", "flush", &uri];
    run("qemu-io", &args).unwrap();
}

fn every_snapshot_restores_what_was_there(test: &str, block_bytes: u32) {
    if !have_programs(test, &["qemu-io", "nbdcopy"]) {
        return;
    }
    let cluster = Cluster::start(Layout { block_bytes, ..Layout::default() }).unwrap();
    // Data that was there before the product came: adopted, and part of the full backup.
    write_pattern(&cluster, 1);
    let mut history = vec![(cluster.full_backup("vol0").unwrap(), None)];
    history[0].1 = Some(cluster.volume_sha256("vol0").unwrap());
    for pattern in 2..6 {
        write_pattern(&cluster, pattern);
        let sum = cluster.volume_sha256("vol0").unwrap();
        history.push((cluster.snapshot("vol0").unwrap(), Some(sum)));
    }
    for (gid, sum) in history {
        let image = cluster.restore("a0", "vol0", gid).unwrap();
        assert_eq!(Some(sha256(&image).unwrap()), sum, "gid {gid}");
    }
}

#[test]
fn every_snapshot_restores_what_was_there_512() {
    every_snapshot_restores_what_was_there("every_snapshot_restores_what_was_there_512", 512);
}

#[test]
fn every_snapshot_restores_what_was_there_4096() {
    every_snapshot_restores_what_was_there("every_snapshot_restores_what_was_there_4096", 4096);
}

#[test]
fn an_applied_base_still_restores_what_is_left() {
    if !have_programs("an_applied_base_still_restores_what_is_left", &["qemu-io", "nbdcopy"]) {
        return;
    }
    let cluster = Cluster::start(Layout::default()).unwrap();
    write_pattern(&cluster, 1);
    cluster.full_backup("vol0").unwrap();
    write_pattern(&cluster, 2);
    let middle = cluster.snapshot("vol0").unwrap();
    write_pattern(&cluster, 3);
    let sum = cluster.volume_sha256("vol0").unwrap();
    let last = cluster.snapshot("vol0").unwrap();
    let (code, _, stderr) = cluster.walbc(&["apply", "a0", "vol0", &middle.to_string()]).unwrap();
    assert_eq!(code, 0, "{stderr}");
    let image = cluster.restore("a0", "vol0", last).unwrap();
    assert_eq!(sha256(&image).unwrap(), sum);
}

#[test]
fn a_write_is_restorable_within_seconds_without_a_snapshot_command() {
    let test = "a_write_is_restorable_within_seconds_without_a_snapshot_command";
    if !have_programs(test, &["qemu-io", "nbdcopy"]) {
        return;
    }
    let cluster = Cluster::start(Layout::default()).unwrap();
    let first = cluster.full_backup("vol0").unwrap();
    write_pattern(&cluster, 7);
    let sum = cluster.volume_sha256("vol0").unwrap();
    let newest = tests::poll::until("the write arrives", tests::poll::DEADLINE, || {
        let list = controller::ops::archive::restorable(cluster.ctl(), "a0", "vol0", true);
        let newest = cluster.run(list)?.last().map_or(0, |snapshot| snapshot.gid);
        if newest <= first {
            return Ok(None);
        }
        let image = cluster.restore("a0", "vol0", newest)?;
        let same = sha256(&image)? == sum;
        std::fs::remove_file(&image)?;
        Ok(same.then_some(newest))
    });
    newest.unwrap();
}

#[test]
fn all_roles_go_on_where_they_were_after_a_restart() {
    let test = "all_roles_go_on_where_they_were_after_a_restart";
    if !have_programs(test, &["qemu-io", "nbdcopy"]) {
        return;
    }
    let mut cluster = Cluster::start(Layout::default()).unwrap();
    write_pattern(&cluster, 1);
    cluster.full_backup("vol0").unwrap();
    for (_, process) in &mut cluster.roles {
        assert_eq!(process.terminate().unwrap(), Some(0), "{}", process.log());
    }
    cluster.start_all().unwrap();
    write_pattern(&cluster, 2);
    cluster.verify_restore("vol0").unwrap();
}
