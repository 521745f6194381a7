//! The end of a seed: faults stop, everything gets well by itself after the documented steps, and
//! whatever can be restored is what it was.
//!
//! Lost logs may make snapshots disappear; they never make one differ.

use crate::cluster::Cluster;
use crate::model::values;
use crate::roles::VOLUME;
use crate::scenario::failed;
use crate::steps;
use controller::client::Controller;
use controller::ops::archive::RestorePoint;
use controller::ops::{archive, backup, recover};
use rand::RngExt;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// How long the documented steps and healing may take in all, in simulated time.
pub(crate) const HEAL_MS: u64 = 600_000;
/// How long a snapshot may take to the archives when a gap may be in its way.
const ARRIVE_MS: u64 = 60_000;
/// How long the application's last writes may take when everything is well.
const WRITES_MS: u64 = 60_000;
/// Restores of one archive that are checked.
const CHECKED_MAX: usize = 12;

/// Faults stop; everything must be well again by itself, after the documented steps.
pub(crate) fn heal(c: &mut Cluster) -> Result<(), String> {
    // The last of them, now and then: the power of the whole house.
    let dark = c.rng.random_ratio(1, 3);
    c.note("faults stop");
    c.net.heal();
    for index in 0..c.hosts.len() {
        if dark {
            c.kill(index, true);
        }
    }
    for index in 0..c.hosts.len() {
        c.set_full(index, false);
        c.hosts[index].fs.die_in(None);
        c.hosts[index].fs.damage_reads(0);
        c.hosts[index].fs.slow_restores(false);
        c.start(index);
    }
    c.machine.writing.store(false, Ordering::Relaxed);
    let end = c.now_ms + HEAL_MS;
    loop {
        c.run_for(500)?;
        match attempt(c)? {
            Ok(()) => return Ok(()),
            Err(why) if c.now_ms >= end => return Err(format!("stuck: {why}")),
            Err(why) => c.note(&format!("not yet: {why}")),
        }
        c.run_for(1500)?;
    }
}

/// What the person at the controller does; the inner error may pass.
fn attempt(c: &mut Cluster) -> Result<Result<(), String>, String> {
    let kick = async |ctl: Controller| recover::kick_all(&ctl, &[]).await;
    let _ = c.control(30_000, kick)?;
    if let Err(why) = steps::first(c)? {
        return Ok(Err(why));
    }
    let Some(volume) = c.storage_volume()? else { return Ok(Err("no storage server".into())) };
    if volume.gap_since_s > 0 && !c.plan.has_gaps() {
        return Err(format!("a gap, though nothing was overwritten: {}", volume.error));
    }
    if volume.gap_since_s > 0 || volume.state != "Target" {
        if c.plan.needs_hand() {
            steps::by_hand(c, &volume)?;
        }
        return Ok(Err(format!("the volume is {}: {}", volume.state, volume.error)));
    }
    let primary = c.plan.archives[0];
    if let Err(why) = last_snapshot(c, &[primary])? {
        return Ok(Err(why));
    }
    if !c.past.replicated {
        return Ok(Ok(()));
    }
    if let Err(why) = steps::second_archive(c)? {
        return Ok(Err(why));
    }
    last_snapshot(c, c.plan.archives)
}

/// Takes a snapshot and waits until the archives have it.
fn last_snapshot(c: &mut Cluster, archives: &[&'static str]) -> Result<Result<(), String>, String> {
    if !c.pause_writes(WRITES_MS)? {
        return Err("stuck: the application's writes do not end".into());
    }
    let take = async |ctl: Controller| backup::snapshot(&ctl, "s0", VOLUME).await;
    let gid = match c.control(30_000, take)? {
        Some(Ok(taken)) => taken.gid,
        Some(Err(e)) => return Ok(Err(failed("no last snapshot", &e))),
        None => return Ok(Err("no last snapshot".into())),
    };
    c.note(&format!("last snapshot {gid}"));
    c.machine.model.lock().note_snapshot(gid)?;
    let limit = if c.plan.has_gaps() { ARRIVE_MS } else { HEAL_MS };
    for name in archives {
        let wait = async |ctl: Controller| backup::wait_restorable(&ctl, name, VOLUME, gid).await;
        match c.control(limit, wait)? {
            Some(Ok(())) => {}
            Some(Err(e)) => return Ok(Err(failed("the last snapshot does not arrive", &e))),
            None => return Ok(Err(format!("the last snapshot does not arrive at {name}"))),
        }
    }
    Ok(Ok(()))
}

/// Every snapshot that an archive says it can restore is what it was.
pub(crate) fn check(c: &mut Cluster) -> Result<(), String> {
    let archives = if c.past.replicated { c.plan.archives } else { &c.plan.archives[..1] };
    for name in archives.iter().copied() {
        check_restored(c, name)?;
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
            from = compare(c, name, gid, &plan.path, from)?;
        }
    }
    Ok(())
}

/// What was restored while things broke; it is deleted after that.
fn check_restored(c: &mut Cluster, name: &'static str) -> Result<(), String> {
    let list = async |ctl: Controller| archive::restored(&ctl, name, VOLUME).await;
    let Some(Ok(all)) = c.control(60_000, list)? else {
        return Err(format!("{name} does not list what it has restored"));
    };
    for one in all {
        compare(c, name, one.gid, &one.path, 0)?;
        let delete =
            async |ctl: Controller| archive::delete_restored(&ctl, name, VOLUME, one.gid).await;
        match c.control(60_000, delete)? {
            Some(Ok(())) => {}
            other => return Err(format!("{name} does not delete {}: {other:?}", one.path)),
        }
    }
    Ok(())
}

/// Whether a restored image is what the snapshot was.
fn compare(
    c: &mut Cluster,
    name: &str,
    gid: u64,
    path: &str,
    from: usize,
) -> Result<usize, String> {
    let index = c.index(name);
    let bytes = c.hosts[index].fs.read(&PathBuf::from(path));
    let bytes = bytes.map_err(|e| format!("{path}: {e}"))?;
    let image = values(&bytes).map_err(|e| format!("{name}, snapshot {gid}: {e}"))?;
    let model = c.machine.model.lock();
    model.check(gid, &image, from).map_err(|e| format!("{name}: {e}"))
}
