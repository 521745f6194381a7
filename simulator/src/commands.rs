//! What the person at the controller does while things break. Everything may be refused.

use crate::cluster::Cluster;
use crate::roles::VOLUME;
use controller::client::Controller;
use controller::ops::archive::RestorePoint;
use controller::ops::{archive, backup};
use rand::RngExt;

/// Takes a snapshot of a volume that is not written; it may fail.
pub(crate) fn snapshot(c: &mut Cluster) -> Result<(), String> {
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

/// One of the commands at an archive, beside everything else.
pub(crate) fn at_archive(c: &mut Cluster) -> Result<(), String> {
    let name = c.archives[0];
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
    let done = match c.rng.random_range(0..4) {
        0 => {
            c.note(&format!("apply {begin}"));
            c.control(limit_ms, async |ctl: Controller| {
                archive::apply(&ctl, name, VOLUME, RestorePoint::Gid(begin), 0, &mut |_| {})
                    .await
                    .map(drop)
            })?
        }
        1 => {
            c.note(&format!("merge {begin} {end}"));
            c.control(limit_ms, async |ctl: Controller| {
                archive::merge(&ctl, name, VOLUME, (begin, end), 0, &mut |_| {}).await
            })?
        }
        2 => {
            c.note(&format!("disable-snapshot {begin}"));
            c.control(limit_ms, async |ctl: Controller| {
                archive::set_explicit(&ctl, name, VOLUME, &[begin], false).await.map(drop)
            })?
        }
        _ => {
            c.note(&format!("restore {end} beside apply {begin}"));
            let point = RestorePoint::Gid(end);
            let _ = c.control(20, async |ctl: Controller| {
                archive::restore(&ctl, name, VOLUME, point, None, &mut |_| {}).await
            })?;
            c.control(limit_ms, async |ctl: Controller| {
                archive::apply(&ctl, name, VOLUME, RestorePoint::Gid(begin), 0, &mut |_| {})
                    .await
                    .map(drop)
            })?
        }
    };
    let said = match done {
        Some(Ok(())) => "done".to_owned(),
        Some(Err(e)) => e.to_string(),
        None => "goes on".to_owned(),
    };
    c.note(&said);
    Ok(())
}
