//! One seed: set up, write while things break, then see that all is well.

use crate::Case;
use crate::cluster::Cluster;
use crate::heal::{HEAL_MS, check, heal};
use crate::plan::Story;
use crate::roles::VOLUME;
use crate::{commands, losses, stories};
use controller::client::Controller;
use controller::ops::{backup, setup};
use rand::RngExt;
use server_kit::simulation::Simulation;

/// Actions of a seed.
const ACTIONS_MAX: u32 = 11;

/// What becomes of a run: its fingerprint, or what is wrong.
pub(crate) fn run(case: Case) -> Result<u64, String> {
    let simulation = Simulation::default();
    let _simulated = simulation.enter();
    let mut cluster = Cluster::new(case, &simulation)?;
    let done = play(&mut cluster, case.story);
    let fingerprint = cluster.fingerprint();
    for index in 0..cluster.hosts.len() {
        cluster.kill(index, false);
    }
    done.map(|()| fingerprint)
}

fn play(c: &mut Cluster, story: Option<Story>) -> Result<(), String> {
    c.note(&format!("{:?}", c.plan));
    set_up(c)?;
    match story {
        Some(story) => stories::play(c, story)?,
        None => disasters(c)?,
    }
    heal(c)?;
    check(c)
}

/// One thing after the other, beside each other.
fn disasters(c: &mut Cluster) -> Result<(), String> {
    let actions = c.rng.random_range(3..ACTIONS_MAX);
    for _ in 0..actions {
        c.resume_writes();
        let ms = c.rng.random_range(20..2000);
        c.run_for(ms)?;
        act(c)?;
    }
    Ok(())
}

pub(crate) fn failed(what: &str, error: &dyn std::fmt::Display) -> String {
    format!("{what}: {error}")
}

fn set_up(c: &mut Cluster) -> Result<(), String> {
    c.run_for(100)?;
    c.resume_writes();
    let all = async |ctl: Controller| {
        setup::init_storage(&ctl, "s0", VOLUME, "/sim/d0").await?;
        let options = backup::FullBackupOptions { bulk_bytes: 0 };
        backup::full_backup(&ctl, "s0", VOLUME, options, &mut |_| {}).await
    };
    match c.control(HEAL_MS, all)? {
        Some(Ok(gid)) => c.note(&format!("full backup {gid}")),
        Some(Err(e)) => return Err(failed("cannot set up", &e)),
        None => return Err("stuck: the first full backup".into()),
    }
    c.arm();
    Ok(())
}

fn act(c: &mut Cluster) -> Result<(), String> {
    let index = c.rng.random_range(0..c.hosts.len());
    let other = c.rng.random_range(0..c.hosts.len());
    let (a, b) = (c.hosts[index].name, c.hosts[other].name);
    match c.rng.random_range(0..24) {
        0..=2 => return commands::snapshot(c),
        3..=5 => return kill(c, index),
        6 | 7 => {
            let steps = c.rng.random_range(0..40);
            c.note(&format!("{a} dies in {steps} changes"));
            c.hosts[index].fs.die_in(Some(steps));
            c.run_for(3000)?;
            c.hosts[index].fs.die_in(None);
            c.start(index);
        }
        8 => {
            c.note(&format!("cut {a} {b}"));
            c.net.cut(a, b);
        }
        9 => {
            c.note(&format!("silence {a} {b}"));
            c.net.silence(a, b);
        }
        10 => {
            c.note(&format!("part {a} {b}"));
            c.net.part(a, b);
            let ms = c.rng.random_range(1..5000);
            c.run_for(ms)?;
            c.net.heal();
        }
        11 => {
            let ms = c.rng.random_range(1..200);
            c.note(&format!("delay {ms}"));
            c.net.set_delay_ms(ms);
        }
        12 | 13 => return full(c, index),
        14 => return losses::damaged_reads(c),
        15 | 16 if c.plan.overflows => return outage(c),
        17 | 18 if c.plan.archives.len() > 1 => return commands::replicate(c),
        19 if c.past.replicated => return losses::second_archive(c),
        20 if c.plan.loses_proxies => return losses::proxy(c),
        20 | 21 if c.plan.by_hand => return commands::hash_backup(c),
        22 if c.plan.grows => return commands::resize(c),
        23 if c.plan.loses_storage => return losses::storage(c),
        _ => return commands::at_archive(c),
    }
    Ok(())
}

fn kill(c: &mut Cluster, index: usize) -> Result<(), String> {
    let power_cut = c.rng.random();
    c.kill(index, power_cut);
    let ms = c.rng.random_range(1..1500);
    c.run_for(ms)?;
    c.start(index);
    Ok(())
}

fn full(c: &mut Cluster, index: usize) -> Result<(), String> {
    let name = c.hosts[index].name;
    c.note(&format!("full {name}"));
    c.set_full(index, true);
    let ms = c.rng.random_range(1..4000);
    c.run_for(ms)?;
    c.set_full(index, false);
    Ok(())
}

/// Nothing is shipped until the ring is written over.
fn outage(c: &mut Cluster) -> Result<(), String> {
    let down: Vec<usize> = match c.rng.random() {
        true => vec![c.index("s0")],
        false => c.plan.proxies.iter().map(|p| c.index(p)).collect(),
    };
    for index in &down {
        c.kill(*index, false);
    }
    let ms = c.rng.random_range(500..6000);
    c.run_for(ms)?;
    down.into_iter().for_each(|index| c.start(index));
    Ok(())
}
