//! What the person at the controller does while things break. Everything may be refused.

use crate::cluster::Cluster;
use crate::model::{BLOCK, BLOCKS, BLOCKS_MAX};
use crate::roles::VOLUME;
use controller::client::Controller;
use controller::error::ControlError;
use controller::ops::archive::RestorePoint;
use controller::ops::hash::HashBackupOptions;
use controller::ops::replicate::ReplicateOptions;
use controller::ops::{archive, backup, hash, replicate, resize, setup};
use rand::RngExt;

/// How long a person waits for the application before a snapshot.
const WRITES_MS: u64 = 3000;

/// Takes a snapshot of a volume that is not written; it may fail.
pub(crate) fn snapshot(c: &mut Cluster) -> Result<(), String> {
    if !c.is_up(c.index("d0")) {
        return Ok(());
    }
    if !c.pause_writes(WRITES_MS)? {
        c.note("the application's writes hang");
        return Ok(());
    }
    let take = async |ctl: Controller| backup::snapshot(&ctl, "s0", VOLUME).await;
    let taken = c.control(5000, take)?;
    if let Some(Ok(taken)) = taken {
        c.note(&format!("snapshot {} lsid {}", taken.gid, taken.lsid));
        c.machine.model.lock().note_snapshot(taken.gid)?;
    }
    Ok(())
}

/// One of the commands at an archive, beside everything else.
pub(crate) fn at_archive(c: &mut Cluster) -> Result<(), String> {
    let archives = if c.past.replicated { c.plan.archives } else { &c.plan.archives[..1] };
    let name = archives[c.rng.random_range(0..archives.len())];
    let list = async |ctl: Controller| archive::restorable(&ctl, name, VOLUME, true).await;
    let Some(Ok(points)) = c.control(5000, list)? else { return Ok(()) };
    let gids: Vec<u64> = points.iter().map(|p| p.gid).collect();
    if gids.is_empty() {
        return Ok(());
    }
    let (first, last) = (c.rng.random_range(0..gids.len()), c.rng.random_range(0..gids.len()));
    let (begin, end) = (gids[first.min(last)], gids[first.max(last)]);
    // Short ones go on by themselves, without anybody who waits for them.
    let limit_ms = c.rng.random_range(20..5000);
    let done = match c.rng.random_range(0..5) {
        0 => apply(c, name, begin, limit_ms)?,
        1 => merge(c, name, (begin, end), limit_ms)?,
        2 => {
            c.note(&format!("{name}: disable-snapshot {begin}"));
            c.control(limit_ms, async |ctl: Controller| {
                archive::set_explicit(&ctl, name, VOLUME, &[begin], false).await.map(drop)
            })?
        }
        3 => {
            let _ = apply(c, name, begin, 20)?;
            merge(c, name, (begin, end), limit_ms)?
        }
        _ => {
            c.note(&format!("{name}: restore {end} beside apply"));
            let point = RestorePoint::Gid(end);
            let _ = c.control(20, async |ctl: Controller| {
                archive::restore(&ctl, name, VOLUME, point, None, &mut |_| {}).await
            })?;
            apply(c, name, begin, limit_ms)?
        }
    };
    say(c, &done);
    Ok(())
}

/// What came of a command; `None`: nobody has waited for its end.
type Done = Option<Result<(), ControlError>>;

fn say(c: &mut Cluster, done: &Done) {
    match done {
        Some(Ok(())) => c.note("done"),
        Some(Err(e)) => c.note(&e.to_string()),
        None => c.note("goes on"),
    }
}

fn apply(c: &mut Cluster, name: &str, gid: u64, limit_ms: u64) -> Result<Done, String> {
    c.note(&format!("{name}: apply {gid}"));
    c.control(limit_ms, async |ctl: Controller| {
        let point = RestorePoint::Gid(gid);
        archive::apply(&ctl, name, VOLUME, point, 0, &mut |_| {}).await.map(drop)
    })
}

fn merge(c: &mut Cluster, name: &str, gids: (u64, u64), limit_ms: u64) -> Result<Done, String> {
    c.note(&format!("{name}: merge {gids:?}"));
    c.control(limit_ms, async |ctl: Controller| {
        archive::merge(&ctl, name, VOLUME, gids, 0, &mut |_| {}).await
    })
}

/// Fills the second archive from the first.
pub(crate) fn replicate(c: &mut Cluster) -> Result<(), String> {
    let options = ReplicateOptions {
        synchronizing: c.rng.random(),
        resync: c.rng.random_ratio(1, 6),
        dont_merge: c.rng.random_ratio(1, 4),
        ..Default::default()
    };
    // Where nobody waits for it, it goes on beside what breaks.
    let limit_ms = c.rng.random_range(20..6000);
    c.note(&format!("replicate {options:?}"));
    let done = replicate_with(c, options, limit_ms)?;
    say(c, &done);
    Ok(())
}

pub(crate) fn replicate_with(
    c: &mut Cluster,
    options: ReplicateOptions,
    limit_ms: u64,
) -> Result<Done, String> {
    let &[from, to] = c.plan.archives else { return Err("one archive alone".into()) };
    c.past.replicated = true;
    c.control(limit_ms, async |ctl: Controller| {
        replicate::replicate(&ctl, from, VOLUME, to, options, &mut |_| {}).await.map(drop)
    })
}

/// A person compares, whatever it is good for.
pub(crate) fn hash_backup(c: &mut Cluster) -> Result<(), String> {
    c.note("stop and hash-backup");
    let stop = async |ctl: Controller| {
        setup::stop(&ctl, "s0", VOLUME, proto::v1::StopMode::Graceful).await
    };
    let stopped = c.control(3000, stop)?;
    say(c, &stopped);
    let options = HashBackupOptions { everything: c.rng.random(), ..Default::default() };
    let limit_ms = c.rng.random_range(20..8000);
    let done = hash_backup_with(c, options, limit_ms)?;
    say(c, &done);
    Ok(())
}

pub(crate) fn hash_backup_with(
    c: &mut Cluster,
    options: HashBackupOptions,
    limit_ms: u64,
) -> Result<Done, String> {
    c.control(limit_ms, async |ctl: Controller| {
        hash::hash_backup(&ctl, "s0", VOLUME, options, &mut |_| {}).await.map(drop)
    })
}

/// The data device has grown, and the volume shall grow, too.
pub(crate) fn resize(c: &mut Cluster) -> Result<(), String> {
    let blocks = c.rng.random_range(BLOCKS + 1..=BLOCKS_MAX) as u64;
    let bytes = c.past.grown_to.unwrap_or(0).max(blocks * BLOCK as u64);
    c.note(&format!("resize {bytes}"));
    c.machine.data.grow(usize::try_from(bytes).unwrap());
    c.past.grown_to = Some(bytes);
    let limit_ms = c.rng.random_range(20..4000);
    let done = resize_to(c, bytes, limit_ms)?;
    say(c, &done);
    Ok(())
}

pub(crate) fn resize_to(c: &mut Cluster, bytes: u64, limit_ms: u64) -> Result<Done, String> {
    c.control(limit_ms, async |ctl: Controller| resize::resize(&ctl, VOLUME, bytes).await.map(drop))
}
