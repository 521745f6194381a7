//! A snapshot that is restored equals the device at that snapshot, driven by foreign clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use controller::ops::archive::{self, RestorePoint};
use tests::cluster::{Cluster, Layout, sha256};
use tests::outside::run;
use tests::skip::have_programs;
use tests::writer::Writer;

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

/// With the settings that everybody has, a volume that is written to has a restorable point in
/// every second.
#[test]
fn a_busy_volume_can_be_restored_to_any_second() {
    const SECONDS: usize = 10;
    if !have_programs("a_busy_volume_can_be_restored_to_any_second", &["qemu-io", "nbdcopy"]) {
        return;
    }
    let cluster = Cluster::start(Layout::default()).unwrap();
    cluster.full_backup("vol0").unwrap();
    let writer = Writer::start(&cluster.nbd_uri("vol0"), 4096).unwrap();
    let run = tests::poll::until("a point in each second", 2 * tests::poll::DEADLINE, || {
        let list = cluster.run(archive::restorable(cluster.ctl(), "a0", "vol0", true))?;
        let mut times: Vec<u64> = list.iter().map(|s| s.timestamp_s).collect();
        times.dedup();
        let every = |run: &&[u64]| run.windows(2).all(|pair| pair[0] + 1 == pair[1]);
        Ok(times.windows(SECONDS).find(every).map(<[u64]>::to_vec))
    });
    let run = run.unwrap();
    writer.finish().unwrap();
    // Each of them by its time.
    for second in [run[0], run[SECONDS / 2], run[SECONDS - 1]] {
        let at = RestorePoint::At(second);
        let plan = archive::plan_restore(cluster.ctl(), "a0", "vol0", at, None);
        assert_eq!(cluster.run(plan).unwrap().timestamp_s, second);
    }
}

fn json(cluster: &Cluster, args: &[&str]) -> serde_json::Value {
    let (code, out, stderr) = cluster.walbc(&[args, &["--json"]].concat()).unwrap();
    assert_eq!(code, 0, "{args:?}: {stderr}");
    serde_json::from_str(&out).unwrap()
}

#[test]
fn an_idle_volume_stays_fresh_and_what_an_archive_shall_do_by_itself_is_kept() {
    let test = "an_idle_volume_stays_fresh_and_what_an_archive_shall_do_by_itself_is_kept";
    if !have_programs(test, &["qemu-io"]) {
        return;
    }
    let mut cluster = Cluster::start(Layout::default()).unwrap();
    cluster.full_backup("vol0").unwrap();
    write_pattern(&cluster, 1);
    cluster.snapshot("vol0").unwrap();
    let policy = "all 1h, every 1m 1d";
    let dry = json(&cluster, &["retention", "a0", "vol0", policy, "--dry-run"]);
    assert_eq!((&dry["apply"], &dry["dry_run"]), (&serde_json::Value::Null, &true.into()));
    assert!(json(&cluster, &["retention", "a0", "vol0"])["retention"].is_null());
    json(&cluster, &["retention", "a0", "vol0", policy, "--rate", "50M", "--apply-every", "1h"]);
    json(&cluster, &["freshness", "a0", "vol0", "1h"]);
    cluster.kill_and_restart("a0").unwrap();
    let kept = json(&cluster, &["retention", "a0", "vol0"]);
    assert_eq!(kept["retention"]["policy"], "keep all 1h, every 1m 1d");
    assert_eq!(kept["retention"]["bytes_per_s"], 50 << 20);
    assert_eq!(
        (&kept["retention"]["apply_every_s"], &kept["age_limit_s"]),
        (&3600.into(), &3600.into())
    );
    assert_eq!(kept["run"]["done"], "nothing was due");
    json(&cluster, &["retention", "a0", "vol0", "off"]);
    assert!(json(&cluster, &["retention", "a0", "vol0"])["retention"].is_null());
    // Nobody writes: there is no new snapshot, and still nothing is missing.
    let fresh = tests::poll::until("the archive to hear", tests::poll::DEADLINE, || {
        let list = archive::restorable(cluster.ctl(), "a0", "vol0", true);
        let newest = cluster.run(list)?.last().map_or(0, |s| s.timestamp_s);
        let seen = controller::ops::look::archive_volume(cluster.ctl(), "a0", "vol0");
        let seen = cluster.run(seen)?;
        Ok((seen.complete_s > newest).then_some(seen))
    });
    assert_eq!(fresh.unwrap().stale_since_s, 0);
}

#[test]
fn an_archive_that_only_proxies_feed_hears_that_nobody_writes() {
    let test = "an_archive_that_only_proxies_feed_hears_that_nobody_writes";
    if !have_programs(test, &["qemu-io"]) {
        return;
    }
    let cluster = Cluster::start(Layout::scenario()).unwrap();
    cluster.vol().base_state().unwrap();
    cluster.vol().walbc("replicate a0 VOL a1 --synchronizing").unwrap();
    json(&cluster, &["snapshot", "s0", "vol0", "--wait", "a0,a1"]);
    // The replication has told it, too: what counts came after that.
    let since_s = controller::ops::look::now_s() + 1;
    for archive in ["a0", "a1"] {
        let heard = tests::poll::until("the archive to hear", tests::poll::DEADLINE, || {
            let seen = controller::ops::look::archive_volume(cluster.ctl(), archive, "vol0");
            let seen = cluster.run(seen)?;
            Ok((seen.complete_s >= since_s).then_some(seen))
        });
        let heard = heard.unwrap();
        assert!(heard.newest_restorable_s < since_s, "{archive} got a snapshot: {heard:?}");
    }
}
