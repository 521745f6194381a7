//! §8.6, the concurrent scenario: three volumes on the same servers, a thread each, random actions.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use tests::cluster::{Cluster, Layout};
use tests::volume::Volume;

use crate::scenario;

#[derive(Clone, Copy, Debug)]
enum Action {
    C1FullBackup,
    C2ContinuousBackup,
    C3HashBackup,
    C4Merge,
    C5Apply,
    C6StopAndStart,
}

const ACTIONS: [Action; 6] = [
    Action::C1FullBackup,
    Action::C2ContinuousBackup,
    Action::C3HashBackup,
    Action::C4Merge,
    Action::C5Apply,
    Action::C6StopAndStart,
];

fn write_somewhere(v: Volume<'_>, rng: &mut StdRng) -> Result<()> {
    v.write(0, rng.random_range(0..3000), rng.random_range(1..60))
}

fn perform(v: Volume<'_>, action: Action, rng: &mut StdRng) -> Result<()> {
    match action {
        Action::C1FullBackup => {
            if v.state("s0")? == "Clear" {
                v.init_storage(0)?;
            } else {
                v.walbc("stop s0 VOL")?;
                v.walbc("clear a0 VOL")?;
            }
            write_somewhere(v, rng)?;
            let gid = v.gid("full-backup s0 VOL")?;
            v.same(0, "a0", gid)
        }
        Action::C2ContinuousBackup => {
            write_somewhere(v, rng)?;
            let gid = v.gid("snapshot s0 VOL --wait a0")?;
            v.same(0, "a0", gid)
        }
        Action::C3HashBackup => {
            v.walbc("go-standby s0 VOL")?;
            write_somewhere(v, rng)?;
            let gid = v.gid("hash-backup s0 VOL")?;
            v.same(0, "a0", gid)
        }
        Action::C4Merge => merge(v),
        Action::C5Apply => {
            let writer = v.writer(0)?;
            let gid = v.gid("snapshot s0 VOL --wait a0")?;
            let before = v.rsha("a0", gid)?;
            v.walbc(&format!("apply a0 VOL {gid}"))?;
            ensure!(v.rsha("a0", gid)? == before);
            writer.finish().map(drop)
        }
        Action::C6StopAndStart => {
            let server = ["s0", "p0", "a0"].choose(rng).context("one of three")?;
            v.walbc(&format!("stop {server} VOL"))?;
            // Part of the scenario: a while in which others run into the stopped volume.
            std::thread::sleep(Duration::from_millis(500));
            v.walbc(&format!("start {server} VOL")).map(drop)
        }
    }
}

fn merge(v: Volume<'_>) -> Result<()> {
    let writer = v.writer(0)?;
    let mut gids = Vec::new();
    for _ in 0..3 {
        gids.push(v.gid("snapshot s0 VOL --wait a0")?);
    }
    let (begin, middle, end) = (gids[0], gids[1], gids[2]);
    v.walbc(&format!("disable-snapshot a0 VOL {middle}"))?;
    let all = v.restorable("a0", true)?;
    ensure!(all.iter().filter(|gid| (begin + 1..=end).contains(*gid)).count() >= 2, "{all:?}");
    let before = v.rsha("a0", end)?;
    v.walbc(&format!("merge a0 VOL {begin} {end}"))?;
    ensure!(v.rsha("a0", end)? == before);
    ensure!(!v.restorable("a0", true)?.contains(&middle));
    writer.finish().map(drop)
}

/// A full backup, then `count` random actions, on one volume.
fn one_volume(v: Volume<'_>, seed: u64, count: usize) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    perform(v, Action::C1FullBackup, &mut rng).context("c1")?;
    for _ in 0..count {
        let action = *ACTIONS.choose(&mut rng).context("not empty")?;
        eprintln!("{}: {action:?}", v.name);
        perform(v, action, &mut rng).with_context(|| format!("{}: {action:?}", v.name))?;
    }
    Ok(())
}

fn three_volumes(count: usize) -> Result<()> {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let volumes = ["vol0", "vol1", "vol2"];
    let layout = Layout {
        volumes: volumes.map(str::to_owned).into(),
        storages: 1,
        proxies: 1,
        archives: 1,
        ..Layout::scenario()
    };
    let c = Cluster::start(layout)?;
    std::thread::scope(|scope| {
        let run = |(index, name): (usize, &'static str)| {
            let v = c.volume(name);
            scope.spawn(move || one_volume(v, seed.wrapping_add(index as u64), count))
        };
        let threads: Vec<_> = volumes.into_iter().enumerate().map(run).collect();
        let results = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        results.collect::<Vec<_>>().into_iter().collect()
    })
}

scenario!(scenario_c1_to_c6_three_volumes_at_once, {
    three_volumes(4)?;
});

scenario!(
    #[ignore = "long: ten actions on each volume; cargo long-test"]
    scenario_c1_to_c6_ten_actions_on_each_of_three_volumes,
    {
        three_volumes(10)?;
    }
);

// Each action by itself, so that a failure has a name.
scenario!(scenario_c1_to_c6_one_after_the_other, {
    let layout = Layout { storages: 1, proxies: 1, archives: 1, ..Layout::scenario() };
    let c = Cluster::start(layout)?;
    let mut rng = StdRng::seed_from_u64(1);
    for action in ACTIONS.into_iter().chain([Action::C1FullBackup]) {
        perform(c.vol(), action, &mut rng).with_context(|| format!("{action:?}"))?;
    }
});
