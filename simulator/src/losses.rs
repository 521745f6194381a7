//! What is lost for good: disks of hosts; and what is read damaged for a while.

use crate::cluster::Cluster;
use crate::roles::VOLUME;
use controller::client::Controller;
use controller::ops::{archive, setup, sync};
use rand::RngExt;

/// A few reads of files return something else than what was written: noticed, and well again after.
pub(crate) fn damaged_reads(c: &mut Cluster) -> Result<(), String> {
    let index = c.rng.random_range(0..c.hosts.len());
    let count = c.rng.random_range(1..5);
    let name = c.hosts[index].name;
    c.note(&format!("{count} damaged reads at {name}"));
    c.hosts[index].fs.damage_reads(count);
    let ms = c.rng.random_range(100..3000);
    c.run_for(ms)?;
    c.hosts[index].fs.damage_reads(0);
    Ok(())
}

/// A proxy loses what it has staged, and its lists of archives.
pub(crate) fn proxy(c: &mut Cluster) -> Result<(), String> {
    let chosen = c.rng.random_range(0..c.plan.proxies.len());
    let index = c.index(c.plan.proxies[chosen]);
    c.past.lost_proxy = true;
    c.lose_disk(index);
    if c.rng.random() {
        // At once, or in the end.
        if let Err(why) = relist(c, 5000)? {
            c.note(&why);
        }
    }
    Ok(())
}

/// Puts the primary archive on the lists of all proxies again.
pub(crate) fn relist(c: &mut Cluster, limit_ms: u64) -> Result<Result<(), String>, String> {
    let primary = c.plan.archives[0];
    let put = async |ctl: Controller| sync::start_synchronizing(&ctl, primary, VOLUME).await;
    Ok(match c.control(limit_ms, put)? {
        Some(done) => done.map_err(|e| format!("{primary} cannot be listed: {e}")),
        None => Err(format!("{primary} is not listed yet")),
    })
}

/// The second archive loses what it has.
pub(crate) fn second_archive(c: &mut Cluster) -> Result<(), String> {
    let index = c.index(c.plan.archives[1]);
    c.lose_disk(index);
    Ok(())
}

/// The storage server loses what it knows; a person makes the volume known to it again.
pub(crate) fn storage(c: &mut Cluster) -> Result<(), String> {
    let primary = c.plan.archives[0];
    let list = async |ctl: Controller| archive::restorable(&ctl, primary, VOLUME, true).await;
    // Which gids have come to the archive can be asked before, or not at all.
    let Some(Ok(points)) = c.control(5000, list)? else { return Ok(()) };
    let arrived: Vec<u64> = points.iter().map(|p| p.gid).collect();
    c.machine.model.lock().only_arrived(&arrived);
    c.past.lost_storage = true;
    let index = c.index("s0");
    c.lose_disk(index);
    if c.rng.random() {
        let init = async |ctl: Controller| setup::init_storage(&ctl, "s0", VOLUME, "/sim/d0").await;
        let _ = c.control(5000, init)?;
    }
    Ok(())
}
