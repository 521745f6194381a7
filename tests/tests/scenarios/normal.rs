//! §8.2, normal operation: backup, snapshots, stops and starts, apply, merge, switching legs. Some
//! also over TCP, and on real block devices.

use anyhow::{Result, ensure};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use tests::cluster::{Cluster, Layout};

use crate::{base_state, scenario};

fn n1(layout: Layout) -> Result<()> {
    let c = Cluster::start(layout)?;
    let v = c.vol();
    v.init_storage(0)?;
    v.init_storage(1)?;
    v.write(0, 0, 1)?;
    let before = v.sha(0)?;
    let gid = v.gid("full-backup s0 VOL")?;
    ensure!(v.rsha("a0", gid)? == before);
    for (server, state) in [
        ("s0", "Target"),
        ("s1", "Standby"),
        ("p0", "Started"),
        ("p1", "Started"),
        ("a0", "Archived"),
    ] {
        // A proxy or an archive may be receiving at this very moment.
        v.until_state(server, state)?;
    }
    ensure!(v.ask("is-synchronizing a0 VOL")?);
    Ok(())
}

scenario!(scenario_n1_full_backup, {
    n1(Layout::scenario())?;
});

scenario!(scenario_n1_full_backup_over_tcp, {
    n1(Layout::scenario().over_tcp())?;
});

scenario!(scenario_n2_snapshot, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    v.write(0, 0, 1)?;
    let before = v.sha(0)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    ensure!(v.restorable("a0", false)?.contains(&gid));
    ensure!(v.rsha("a0", gid)? == before);
});

fn n3(layout: Layout) -> Result<()> {
    let c = base_state(layout)?;
    let v = c.vol();
    v.walbc("go-standby s0 VOL")?;
    v.write(0, 0, 1)?;
    let before = v.sha(0)?;
    let gid = v.gid("hash-backup s0 VOL")?;
    ensure!(v.rsha("a0", gid)? == before);
    // Typed again it is done already.
    ensure!(v.gid("hash-backup s0 VOL")? == gid);
    v.expect_state("s0", "Target")
}

scenario!(scenario_n3_hash_backup, {
    n3(Layout::scenario())?;
});

scenario!(scenario_n3_hash_backup_over_tcp, {
    n3(Layout::scenario().over_tcp())?;
});

scenario!(scenario_n3_hash_backup_on_loop_devices, {
    if !tests::skip::have_loop_devices("scenario_n3_hash_backup_on_loop_devices") {
        return Ok(());
    }
    n3(Layout::scenario().on_loop_devices())?;
});

/// All orders in which one to three of the servers can be stopped.
fn orders() -> Vec<Vec<&'static str>> {
    let [s, p, a] = ["s0", "p0", "a0"];
    let pairs = [vec![s, p], vec![p, s], vec![s, a], vec![a, s], vec![p, a], vec![a, p]];
    let triples =
        [vec![s, p, a], vec![s, a, p], vec![p, s, a], vec![p, a, s], vec![a, s, p], vec![a, p, s]];
    [vec![s], vec![p], vec![a]].into_iter().chain(pairs).chain(triples).collect()
}

/// Every (stop order, start order) over the same servers: 3 + 3 * 4 + 36 = 51.
fn stop_and_start_orders() -> Vec<(Vec<&'static str>, Vec<&'static str>)> {
    let same = |a: &[&str], b: &[&str]| a.len() == b.len() && a.iter().all(|name| b.contains(name));
    let all = orders();
    let starts = |stop: &Vec<&'static str>| {
        let stop = stop.clone();
        all.iter().filter(move |start| same(start, &stop)).cloned().collect::<Vec<_>>()
    };
    all.iter()
        .flat_map(|stop| starts(stop).into_iter().map(|start| (stop.clone(), start)))
        .collect()
}

fn stop_and_start(c: &Cluster, stop: &[&str], start: &[&str]) -> Result<()> {
    let v = c.vol();
    let writer = v.writer(0)?;
    for server in stop {
        v.walbc(&format!("stop {server} VOL"))?;
    }
    // Writes go on while all of them are stopped.
    let so_far = writer.written();
    let deadline = tests::poll::DEADLINE;
    tests::poll::until("writes go on", deadline, || {
        Ok((writer.written() > so_far + 3).then_some(()))
    })?;
    for server in start {
        v.walbc(&format!("start {server} VOL"))?;
    }
    writer.finish()?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)
}

scenario!(
    #[ignore = "long: all 51 orders of stops and starts; cargo long-test"]
    scenario_n4a_all_51_orders_of_stops_and_starts,
    {
        let c = base_state(Layout::scenario())?;
        let all = stop_and_start_orders();
        assert_eq!(all.len(), 51);
        for (stop, start) in all {
            eprintln!("stop {stop:?}, start {start:?}");
            stop_and_start(&c, &stop, &start)?;
        }
    }
);

scenario!(scenario_n4b_five_random_orders_of_stops_and_starts, {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut all = stop_and_start_orders();
    all.shuffle(&mut StdRng::seed_from_u64(seed));
    let c = base_state(Layout::scenario())?;
    for (stop, start) in all.into_iter().take(5) {
        eprintln!("stop {stop:?}, start {start:?}");
        stop_and_start(&c, &stop, &start)?;
    }
});

scenario!(scenario_n5_apply_under_writes, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    let writer = v.writer(0)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    let before = v.rsha("a0", gid)?;
    v.walbc(&format!("apply a0 VOL {gid}"))?;
    ensure!(v.rsha("a0", gid)? == before);
    ensure!(v.archive("a0")?.base.is_some_and(|base| base.end.is_none()));
    ensure!(v.restorable("a0", true)?.first() == Some(&gid), "older ones are gone");
    writer.finish()?;
});

scenario!(scenario_n6_merge_under_writes, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    let writer = v.writer(0)?;
    let begin = v.gid("snapshot s0 VOL --wait a0")?;
    v.walbc("stop s0 VOL")?;
    v.walbc("stop p0 VOL --mode empty")?;
    v.walbc("start s0 VOL")?;
    v.walbc("start p0 VOL")?;
    // At least two steps: one that was shipped before, one after the next second has begun.
    let steps = || {
        let all = v.restorable("a0", true)?;
        Ok((all.iter().filter(|gid| **gid > begin).count() >= 2).then_some(()))
    };
    tests::poll::until("implicit snapshots arrive", tests::poll::DEADLINE, steps)?;
    let end = v.gid("snapshot s0 VOL --wait a0")?;
    writer.finish()?;
    let between = |gid: &&u64| (begin..=end).contains(*gid);
    ensure!(v.restorable("a0", true)?.iter().filter(between).count() >= 3);
    let before = v.rsha("a0", end)?;
    v.walbc(&format!("merge a0 VOL {begin} {end}"))?;
    let diffs = controller::ops::archive::diffs(c.ctl(), "a0", "vol0");
    let exact = c.run(diffs)?.into_iter().filter_map(|entry| entry.diff).any(|diff| {
        let gid = |s: Option<proto::v1::Snapshot>| s.map(|s| (s.gid_begin, s.gid_end));
        gid(diff.begin) == Some((begin, begin)) && gid(diff.end) == Some((end, end))
    });
    ensure!(exact, "no diff from {begin} to {end}");
    ensure!(v.restorable("a0", true)?.iter().filter(between).count() == 2);
    ensure!(v.rsha("a0", end)? == before);
});

scenario!(scenario_n12_switching_legs, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    for (from, to) in [(0, 1), (1, 0)] {
        let writers = [v.writer(0)?, v.writer(1)?];
        v.walbc(&format!("go-standby s{from} VOL"))?;
        let gid = v.gid(&format!("hash-backup s{to} VOL"))?;
        v.until_restorable("a0", gid)?;
        for writer in writers {
            writer.finish()?;
        }
        let gid = v.gid(&format!("snapshot s{to} VOL --wait a0"))?;
        v.same(to, "a0", gid)?;
        v.expect_state(&format!("s{from}"), "Standby")?;
        v.expect_state(&format!("s{to}"), "Target")?;
    }
});

scenario!(scenario_n13_disabled_and_enabled_snapshots, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    let latest = v.gid("snapshot s0 VOL --wait a0")?;
    v.walbc(&format!("apply a0 VOL {latest}"))?;
    let mut gids = Vec::new();
    for block in 0..5 {
        v.write(0, block, 1)?;
        gids.push(v.gid("snapshot s0 VOL --wait a0")?.to_string());
    }
    let first = gids[..4].join(" ");
    v.walbc(&format!("disable-snapshot a0 VOL {first}"))?;
    ensure!(v.restorable("a0", false)?.len() == 2, "base and latest");
    v.walbc(&format!("enable-snapshot a0 VOL {first}"))?;
    ensure!(v.restorable("a0", false)?.len() == 6);
});
