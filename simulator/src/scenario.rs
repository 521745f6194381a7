//! One seed: set up, write while things break, then see that all is well.

use crate::cluster::Cluster;
use crate::commands;
use crate::defect::Canary;
use crate::heal::{HEAL_MS, check, heal};
use crate::roles::VOLUME;
use controller::client::Controller;
use controller::ops::{backup, setup};
use rand::RngExt;
use server_kit::simulation::Simulation;

/// What becomes of a seed: the fingerprint of its run, or what is wrong.
pub(crate) fn run(seed: u64, canary: Option<Canary>) -> Result<u64, String> {
    let simulation = Simulation::default();
    let _simulated = simulation.enter();
    let mut cluster = Cluster::new(seed, &simulation, canary)?;
    let done = play(&mut cluster);
    let fingerprint = cluster.fingerprint();
    for index in 0..cluster.hosts.len() {
        cluster.kill(index, false);
    }
    done.map(|()| fingerprint)
}

fn play(c: &mut Cluster) -> Result<(), String> {
    set_up(c)?;
    let actions = c.rng.random_range(3..12);
    for _ in 0..actions {
        c.resume_writes();
        let ms = c.rng.random_range(20..2500);
        c.run_for(ms)?;
        act(c)?;
    }
    heal(c)?;
    check(c)
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
    match c.rng.random_range(0..16) {
        0..=2 => return commands::snapshot(c),
        12 | 13 if c.plan.overflows => return outage(c),
        12..=14 => return commands::at_archive(c),
        3 | 4 => {
            let power_cut = c.rng.random();
            c.kill(index, power_cut);
            let ms = c.rng.random_range(1..1500);
            c.run_for(ms)?;
            c.start(index);
        }
        5 | 6 => {
            let steps = c.rng.random_range(0..40);
            c.note(&format!("{a} dies in {steps} changes"));
            c.hosts[index].fs.die_in(Some(steps));
            c.run_for(3000)?;
            c.hosts[index].fs.die_in(None);
            c.start(index);
        }
        7 => {
            c.note(&format!("cut {a} {b}"));
            c.net.cut(a, b);
        }
        8 => {
            c.note(&format!("silence {a} {b}"));
            c.net.silence(a, b);
        }
        9 => {
            c.note(&format!("part {a} {b}"));
            c.net.part(a, b);
            let ms = c.rng.random_range(1..5000);
            c.run_for(ms)?;
            c.net.heal();
        }
        10 => {
            let ms = c.rng.random_range(1..200);
            c.note(&format!("delay {ms}"));
            c.net.set_delay_ms(ms);
        }
        _ => {
            c.note(&format!("full {a}"));
            c.hosts[index].fs.set_full(true);
            let ms = c.rng.random_range(1..4000);
            c.run_for(ms)?;
            c.hosts[index].fs.set_full(false);
        }
    }
    Ok(())
}

/// Nothing is shipped until the ring is written over.
fn outage(c: &mut Cluster) -> Result<(), String> {
    let down: Vec<usize> = match c.rng.random() {
        true => vec![c.index("s0")],
        false => c.proxies.iter().map(|p| c.index(p)).collect(),
    };
    for index in &down {
        c.kill(*index, false);
    }
    let ms = c.rng.random_range(500..6000);
    c.run_for(ms)?;
    down.into_iter().for_each(|index| c.start(index));
    Ok(())
}
