//! One seed: set up, write while things break, then see that all is well.

use crate::cluster::Cluster;
use crate::defect::Canary;
use crate::model::values;
use crate::roles::VOLUME;
use controller::client::Controller;
use controller::ops::archive::RestorePoint;
use controller::ops::{archive, backup, recover, setup, sync};
use rand::RngExt;
use server_kit::simulation::Simulation;
use std::path::PathBuf;

/// How long the documented steps and healing may take in all, in simulated time.
const HEAL_MS: u64 = 600_000;
/// Restores of one archive that are checked.
const CHECKED_MAX: usize = 12;

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

fn failed(what: &str, error: &dyn std::fmt::Display) -> String {
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
    Ok(())
}

fn act(c: &mut Cluster) -> Result<(), String> {
    let index = c.rng.random_range(0..c.hosts.len());
    let other = c.rng.random_range(0..c.hosts.len());
    let (a, b) = (c.hosts[index].name, c.hosts[other].name);
    match c.rng.random_range(0..12) {
        0..=2 => return snapshot(c),
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

/// Takes a snapshot of a volume that is not written; it may fail.
fn snapshot(c: &mut Cluster) -> Result<(), String> {
    if !c.is_up(c.index("d0")) {
        return Ok(());
    }
    c.pause_writes()?;
    let take = async |ctl: Controller| backup::snapshot(&ctl, "s0", VOLUME).await;
    let taken = c.control(5000, take)?;
    if let Some(Ok(taken)) = taken {
        c.note(&format!("snapshot {} lsid {}", taken.gid, taken.lsid));
        c.machine.model.lock().note_snapshot(taken.gid)?;
    }
    Ok(())
}

/// Faults stop; everything must be well again by itself, after the documented kick.
fn heal(c: &mut Cluster) -> Result<(), String> {
    c.note("faults stop");
    c.net.heal();
    for index in 0..c.hosts.len() {
        c.hosts[index].fs.set_full(false);
        c.hosts[index].fs.die_in(None);
        c.start(index);
    }
    let end = c.now_ms + HEAL_MS;
    c.pause_writes()?;
    c.run_for(500)?;
    let gid = loop {
        let kick = async |ctl: Controller| recover::kick_all(&ctl, &[]).await;
        let _ = c.control(30_000, kick)?;
        let volume = c.storage_volume()?;
        if let Some(v) = volume.filter(|v| v.gap_since_s > 0) {
            return Err(format!("a gap, though nothing was overwritten: {}", v.error));
        }
        let take = async |ctl: Controller| backup::snapshot(&ctl, "s0", VOLUME).await;
        match c.control(30_000, take)? {
            Some(Ok(taken)) => break taken.gid,
            other => {
                let said = other.map(|done| done.map(drop).map_err(|e| e.to_string()));
                if c.now_ms >= end {
                    return Err(format!("stuck: no last snapshot: {said:?}"));
                }
            }
        }
        c.run_for(500)?;
    };
    c.note(&format!("last snapshot {gid}"));
    c.machine.model.lock().note_snapshot(gid)?;
    for name in listed(c)? {
        let wait = async |ctl: Controller| backup::wait_restorable(&ctl, name, VOLUME, gid).await;
        match c.control(HEAL_MS, wait)? {
            Some(Ok(())) => {}
            Some(Err(e)) => return Err(failed("stuck: the last snapshot does not arrive", &e)),
            None => return Err(format!("stuck: the last snapshot does not arrive at {name}")),
        }
    }
    Ok(())
}

/// The archives that the proxies feed.
fn listed(c: &mut Cluster) -> Result<Vec<&'static str>, String> {
    let proxy = c.proxies[0];
    let ask = async |ctl: Controller| sync::archive_infos(&ctl, proxy, VOLUME).await;
    let infos = match c.control(30_000, ask)? {
        Some(Ok(infos)) => infos,
        _ => return Err("a healthy proxy does not answer".into()),
    };
    let known = |name: &&&str| infos.iter().any(|info| info.name == **name);
    Ok(c.archives.iter().filter(known).copied().collect())
}

/// Every snapshot that an archive says it can restore is what it was.
fn check(c: &mut Cluster) -> Result<(), String> {
    for name in listed(c)? {
        let list = async |ctl: Controller| archive::restorable(&ctl, name, VOLUME, true).await;
        let points = match c.control(60_000, list)? {
            Some(Ok(points)) => points,
            _ => return Err(format!("{name} does not list its snapshots")),
        };
        let gids: Vec<u64> = points.iter().map(|p| p.gid).collect();
        c.note(&format!("{name} has {gids:?}"));
        let mut chosen: Vec<u64> = Vec::new();
        let known = c.machine.model.lock().snapshots();
        for (index, gid) in gids.iter().enumerate() {
            let every = gids.len().div_ceil(CHECKED_MAX);
            if known.contains(gid) || index % every == 0 || index + 1 == gids.len() {
                chosen.push(*gid);
            }
        }
        let mut from = 0;
        for gid in chosen {
            let restore = async |ctl: Controller| {
                let point = RestorePoint::Gid(gid);
                archive::restore(&ctl, name, VOLUME, point, None, &mut |_| {}).await
            };
            let plan = match c.control(HEAL_MS, restore)? {
                Some(Ok(plan)) => plan,
                Some(Err(e)) => return Err(failed(&format!("{name} cannot restore {gid}"), &e)),
                None => return Err(format!("stuck: {name} restores {gid}")),
            };
            let index = c.index(name);
            let bytes = c.hosts[index].fs.read(&PathBuf::from(&plan.path));
            let bytes = bytes.map_err(|e| format!("{}: {e}", plan.path))?;
            let image = values(&bytes).map_err(|e| format!("{name}, snapshot {gid}: {e}"))?;
            let model = c.machine.model.lock();
            from = model.check(gid, &image, from).map_err(|e| format!("{name}: {e}"))?;
        }
    }
    Ok(())
}
