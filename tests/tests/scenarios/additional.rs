//! §8.7, the tests that a re-implementation should have, as far as they need whole clusters, and
//! §9.3, what went wrong in the original and must not come back.
//!
//! | §8.7 | where |
//! |---|---|
//! | tables of §2.10 | `test:worked_example_of_a_resting_base`, `test:worked_example_of_an_applying_base`, `test:worked_example_of_a_merge`, `test:worked_example_of_a_hash_backup` |
//! | crash at every persist point | storage: `test:shipping_survives_a_kill_at_every_step_to_the_disk`, `test:a_full_backup_survives_a_kill_at_every_step_to_the_disk`; proxy: `test:a_log_that_comes_again_after_a_kill_makes_one_wdiff`; archive: `test:what_was_acknowledged_survives_every_kill`, `test:an_interrupted_apply_is_finished_after_a_restart`, `test:inputs_that_a_kill_left_beside_the_merged_diff_are_removed_at_start`, `test:a_restore_that_is_killed_leaves_nothing_wherever_it_went` |
//! | the others | here |
//!
//! | §9.3 | where |
//! |---|---|
//! | 1.0.19 open files of scans | `test:more_diffs_than_may_be_open_are_merged_in_passes` |
//! | 1.0.18 diff lists of an applying base | `test:worked_example_of_an_applying_base` |
//! | 1.0.15 kick refused by a busy proxy | `test:scenario_x_stop_empty_with_an_unreachable_archive`, `test:scenario_x_kick_while_a_wlog_arrives` |
//! | 1.0.14 replication to a dirty snapshot | `test:scenario_x_secondary_after_a_hash_backup` |
//! | 1.0.13 "bad state: WlogRecv" | `test:scenario_m1_full_backup_of_a_target`, `test:a_wlog_is_refused_while_stopped_and_while_another_arrives` |
//! | 1.0.13 spare proxy not used | `test:a_proxy_that_refuses_or_is_dead_is_passed_over` |
//! | 1.0.12 a server that refuses everything | `test:bad_requests_are_typed_and_the_server_goes_on`, `test:at_most_so_many_wlogs_are_received_at_a_time` |
//! | 1.0.11 data lost in a full backup | `test:writes_during_the_backup_are_in_the_image_or_in_the_log` |
//! | 1.0.10 resume threw data away | `test:a_full_backup_goes_on_where_it_was_durable`, `test:scenario_e14_cut_in_the_middle_of_a_full_replication` |
//! | 1.0.9 a silent first proxy | `test:scenario_x_a_silent_proxy_is_passed_over` |
//! | 1.0.7 metadata without its file | `test:a_damaged_wdiff_is_named_and_kept_until_it_is_mended`, `test:a_deletion_that_was_cut_short_before_its_record_went_did_not_happen` |
//! | 1.0.6 applicable diffs not found | `test:relation_looks_at_the_start_of_the_snapshot`, `test:a_snapshot_inside_a_merged_diff_is_unreachable` |
//! | 1.0.5 very many wdiffs | `test:a_hundred_thousand_diffs_are_asked_quickly` |
//! | 1.0.3 gzip | `test:every_merge_gives_the_records_of_the_original` |
//! | 1.0.2 state transactions | `test:the_stopper_may_change_the_state_and_others_may_not` |

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use proto::v1;
use tests::cluster::{Cluster, Layout, size};
use tests::fault_proxy::Fault;
use tests::poll::{DEADLINE, until};
use tests::volume::Volume;

use crate::{archives, base_state, scenario};

fn queue(v: Volume<'_>, proxy: &str) -> Result<v1::ProxyQueue> {
    v.proxy(proxy)?.queues.into_iter().next().context("a queue")
}

/// Waits until the archive has a newer snapshot; which.
fn until_newer(v: Volume<'_>, than: u64) -> Result<u64> {
    let arrived = || Ok(Some(v.latest("a0")?).filter(|gid| *gid > than));
    until("the write arrives", DEADLINE, arrived)
}

fn until_empty(v: Volume<'_>, proxy: &str) -> Result<()> {
    until("the queue is empty", DEADLINE, || Ok((queue(v, proxy)?.wdiffs == 0).then_some(())))
}

// The first proxy has the log, its answer is lost, the same range goes to the second one.
scenario!(scenario_x_lost_answer_to_a_wlog, {
    let c = base_state(Layout { fronts: vec!["p0".to_owned()], ..Layout::scenario() })?;
    let v = c.vol();
    let before = v.latest("a0")?;
    c.front("p0")?.set(Fault::LostReplies);
    v.write(0, 0, 8)?;
    let gid = until_newer(v, before)?;
    // It may have given the first one up already; who has told it is what counts.
    let leg = v.storage("s0")?;
    let told = leg.done_gid >= gid && !leg.last_proxy.contains("p1.sock");
    ensure!(!told, "nobody has told the storage server");
    c.front("p0")?.set(Fault::Cut);
    let done = || Ok((v.storage("s0")?.done_gid >= gid).then_some(()));
    until("the other proxy takes it", DEADLINE, done)?;
    ensure!(v.storage("s0")?.last_proxy.contains("p1.sock"));
    // The archive has it already; the copy goes, and the history goes on behind it.
    until_empty(v, "p1")?;
    v.same(0, "a0", gid)?;
    ensure!(v.restorable("a0", true)?.iter().filter(|other| **other == gid).count() == 1);
    v.write(0, 1, 8)?;
    let next = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", next)?;
});

// The archive has the wdiff, its answer is lost: the proxy sends again and hears that it is old.
scenario!(scenario_x_lost_answer_to_a_wdiff, {
    let c = base_state(Layout::behind_fault_proxy("a0"))?;
    let v = c.vol();
    let before = v.latest("a0")?;
    c.front("a0")?.set(Fault::LostReplies);
    v.write(0, 0, 8)?;
    let gid = until_newer(v, before)?;
    ensure!(queue(v, "p0")?.wdiffs > 0, "nobody has told the proxy");
    c.front("a0")?.set(Fault::None);
    until_empty(v, "p0")?;
    ensure!(!queue(v, "p0")?.send_error);
    v.same(0, "a0", gid)?;
    v.write(0, 1, 8)?;
    let next = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", next)?;
});

/// Restores these snapshots again and again; every image must be right.
fn restore_again_and_again(
    v: Volume<'_>,
    points: &[(u64, String)],
    end: &AtomicBool,
) -> Result<usize> {
    let mut restored = 0;
    while !end.load(Ordering::SeqCst) {
        for (gid, sum) in points {
            ensure!(v.rsha("a0", *gid)? == *sum, "snapshot {gid} is not what it was");
            restored += 1;
        }
    }
    Ok(restored)
}

/// Merges and applies reach the archive between the restores of the others.
fn merge_and_apply(v: Volume<'_>, gids: &[u64]) -> Result<()> {
    v.walbc(&format!("merge a0 VOL {} {}", gids[0], gids[2]))?;
    v.walbc(&format!("apply a0 VOL {}", gids[0]))?;
    v.walbc(&format!("merge a0 VOL {} {}", gids[3], gids[5]))?;
    v.walbc(&format!("apply a0 VOL {}", gids[3])).map(drop)
}

scenario!(scenario_x_restores_beside_merges_and_applies, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    let mut points = Vec::new();
    for block in 0..8 {
        v.write(0, block * 20, 100)?;
        points.push((v.gid("snapshot s0 VOL --wait a0")?, v.sha(0)?));
    }
    let gids: Vec<_> = points.iter().map(|(gid, _)| *gid).collect();
    v.walbc(&format!("disable-snapshot a0 VOL {} {}", gids[1], gids[4]))?;
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let restores = scope.spawn(|| restore_again_and_again(v, &points[6..], &end));
        let changed = merge_and_apply(v, &gids);
        end.store(true, Ordering::SeqCst);
        ensure!(restores.join().expect("no panic")? > 0);
        changed
    })?;
    for (gid, sum) in [&points[3], &points[5], &points[6], &points[7]] {
        ensure!(v.rsha("a0", *gid)? == *sum, "snapshot {gid}");
    }
    ensure!(v.restorable("a0", true)?.first() == Some(&gids[3]));
});

// The original's standby forgets log above the last checkpoint until the next notification.
scenario!(scenario_x_a_standby_under_continuous_writes, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    let writer = v.writer(1)?;
    let before = writer.written();
    // Three times the log, in pieces of a quarter: each has to be gone before the ring is full.
    for _ in 0..12 {
        v.fill(1, 4096, size("3M"))?;
        let used = || {
            let leg = v.storage("s1")?;
            Ok((leg.log_usage_pb * 2 < leg.log_capacity_pb).then_some(()))
        };
        until("the log is given back", DEADLINE, used)?;
    }
    ensure!(writer.finish()? > before);
    let empty = || Ok((v.storage("s1")?.log_usage_pb == 0).then_some(()));
    until("the rest goes without a further write", DEADLINE, empty)?;
    ensure!(!v.ask("is-overflow s1 VOL")?);
    v.expect_state("s1", "Standby")?;
});

// The original does not carry the log uuid along with diffs: the secondary refuses what comes then.
scenario!(scenario_x_secondary_after_a_hash_backup, {
    let c = archives::replicated(Layout::scenario())?;
    let v = c.vol();
    v.walbc("go-standby s0 VOL")?;
    v.write(0, 0, 30)?;
    v.gid("hash-backup s0 VOL")?;
    v.walbc("replicate a0 VOL a1 --synchronizing")?;
    ensure!(v.archive("a0")?.log_uuid == v.archive("a1")?.log_uuid);
    v.write(0, 3, 30)?;
    let gid = v.gid("snapshot s0 VOL --wait a0,a1")?;
    v.same(0, "a0", gid)?;
    v.same(0, "a1", gid)?;
});

// It is down while the backup ends, and the storage server dies before it is back.
scenario!(scenario_x_a_secondary_comes_along_after_a_hash_backup, {
    let mut c = archives::replicated(Layout::scenario())?;
    c.vol().walbc("replicate a0 VOL a1 --synchronizing")?;
    c.shutdown("a1")?;
    let v = c.vol();
    v.walbc("go-standby s0 VOL")?;
    v.write(0, 0, 30)?;
    v.gid("hash-backup s0 VOL")?;
    v.write(0, 40, 30)?;
    v.gid("snapshot s0 VOL --wait a0")?;
    c.kill_and_restart("s0")?;
    c.startup("a1")?;
    let v = c.vol();
    ensure!(v.ask("is-synchronizing a1 VOL")?);
    v.write(0, 3, 30)?;
    let gid = v.gid("snapshot s0 VOL --wait a0,a1")?;
    ensure!(v.archive("a0")?.log_uuid == v.archive("a1")?.log_uuid);
    v.same(0, "a0", gid)?;
    v.same(0, "a1", gid)?;
});

// The original fails after 60 s; ours waits, can be kicked meanwhile, and the other proxy works.
scenario!(scenario_x_stop_empty_with_an_unreachable_archive, {
    let mut c = base_state(Layout::scenario())?;
    c.shutdown("a0")?;
    let v = c.vol();
    v.write(0, 0, 1)?;
    v.gid("snapshot s0 VOL")?;
    v.until_sending_fails("p0", "a0")?;
    let stop = v.begin("stop p0 VOL --mode empty")?;
    v.until_state("p0", "WaitForEmpty")?;
    v.write(0, 1, 1)?;
    let gid = v.gid("snapshot s0 VOL")?;
    let taken = || Ok((v.storage("s0")?.done_gid >= gid).then_some(()));
    until("the other proxy takes the log", DEADLINE, taken)?;
    ensure!(v.storage("s0")?.last_proxy.contains("p1.sock"));
    v.walbc("kick p0 VOL a0")?;
    v.expect_state("p0", "WaitForEmpty")?;
    c.startup("a0")?;
    let v = c.vol();
    stop.finish(DEADLINE)?;
    v.expect_state("p0", "Stopped")?;
    v.until_restorable("a0", gid)?;
    v.same(0, "a0", gid)?;
    v.walbc("start p0 VOL")?;
});

scenario!(scenario_x_kick_while_a_wlog_arrives, {
    let c = base_state(Layout::behind_fault_proxy("p0"))?;
    let v = c.vol();
    // Slow enough that the transfer is seen while it runs.
    c.front("p0")?.set(Fault::Rate(50_000));
    v.fill(0, 0, size("1M"))?;
    v.until_state("p0", "WlogRecv")?;
    v.walbc_direct("kick p0 VOL a0")?;
    v.walbc_direct("kick-all s0")?;
    c.front("p0")?.set(Fault::None);
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)?;
});

// It accepts connections and says nothing: the time limit of the connection, then the other one.
scenario!(scenario_x_a_silent_proxy_is_passed_over, {
    let c = base_state(Layout { fronts: vec!["p0".to_owned()], ..Layout::scenario() })?;
    let v = c.vol();
    c.front("p0")?.set(Fault::HalfOpen);
    v.write(0, 0, 1)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    ensure!(v.storage("s0")?.last_proxy.contains("p1.sock"));
    v.same(0, "a0", gid)?;
    c.front("p0")?.set(Fault::None);
    v.walbc("kick-all")?;
    v.write(0, 1, 1)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)?;
});

// A slow network delays everything and breaks nothing.
fn slow_network(layout: Layout) -> Result<()> {
    let c = Cluster::start(layout)?;
    let v = c.vol();
    c.front("a0")?.set(Fault::Delay(std::time::Duration::from_millis(20)));
    v.fill(0, 0, size("2M"))?;
    v.base_state()?;
    v.write(0, 0, 1)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)
}

scenario!(scenario_x_a_slow_network, {
    slow_network(Layout::behind_fault_proxy("a0"))?;
});

scenario!(scenario_x_a_slow_network_over_tcp, {
    slow_network(Layout::behind_fault_proxy("a0").over_tcp())?;
});
