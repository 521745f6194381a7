//! The documented steps of the recovery manual, typed again and again until they are done.

use crate::cluster::Cluster;
use crate::commands::{hash_backup_with, replicate_with, resize_to};
use crate::heal::HEAL_MS;
use crate::losses::relist;
use crate::roles::VOLUME;
use controller::client::Controller;
use controller::ops::hash::HashBackupOptions;
use controller::ops::replicate::ReplicateOptions;
use controller::ops::setup;
use proto::v1::StorageVolume;

/// What comes before everything else: F8a, F9, and a growth that was not ended.
pub(crate) fn first(c: &mut Cluster) -> Result<Result<(), String>, String> {
    if c.past.lost_storage {
        let known = c.storage_volume()?.is_some_and(|v| v.state != "Clear");
        if !known {
            let init =
                async |ctl: Controller| setup::init_storage(&ctl, "s0", VOLUME, "/sim/d0").await;
            if let Some(Err(e)) = c.control(30_000, init)? {
                return Ok(Err(e.to_string()));
            }
        }
    }
    if c.past.lost_proxy
        && let Err(why) = relist(c, 30_000)?
    {
        return Ok(Err(why));
    }
    start_proxies(c)?;
    let Some(bytes) = c.past.grown_to else { return Ok(Ok(())) };
    match resize_to(c, bytes, 30_000)? {
        Some(Ok(())) => Ok(Ok(())),
        Some(Err(e)) => Ok(Err(format!("the volume does not grow: {e}"))),
        None => Ok(Err("the volume does not grow yet".into())),
    }
}

/// A command that was cut off while it changed the lists of the proxies leaves one stopped. One
/// that runs refuses to start.
fn start_proxies(c: &mut Cluster) -> Result<(), String> {
    for proxy in c.plan.proxies {
        let start = async |ctl: Controller| setup::start(&ctl, proxy, VOLUME).await;
        if let Some(Ok(())) = c.control(30_000, start)? {
            c.note(&format!("start {proxy}"));
        }
    }
    Ok(())
}

/// A person has stopped the volume, or has to compare.
pub(crate) fn by_hand(c: &mut Cluster, volume: &StorageVolume) -> Result<(), String> {
    let said = if volume.state == "Stopped" && volume.gap_since_s == 0 {
        c.note("start s0");
        c.control(30_000, async |ctl: Controller| setup::start(&ctl, "s0", VOLUME).await)?
    } else if matches!(volume.state.as_str(), "Stopped" | "SyncReady" | "Standby" | "HashSync") {
        c.note("hash-backup");
        hash_backup_with(c, HashBackupOptions::default(), HEAL_MS)?
    } else {
        return Ok(());
    };
    if let Some(Err(e)) = said {
        c.note(&e.to_string());
    }
    Ok(())
}

/// The second archive follows the first. Only where logs were lost may it have to give up a history
/// of its own for that.
pub(crate) fn second_archive(c: &mut Cluster) -> Result<Result<(), String>, String> {
    let options = ReplicateOptions { synchronizing: true, ..Default::default() };
    c.note("replicate --synchronizing");
    let refused = match replicate_with(c, options, HEAL_MS)? {
        Some(Ok(())) => return Ok(Ok(())),
        Some(Err(e)) => e.to_string(),
        None => return Err("stuck: a replication to the second archive".into()),
    };
    if !refused.contains("--resync") {
        return Ok(Err(refused));
    }
    if !c.plan.has_gaps() {
        return Err(format!("two histories, though nothing was lost: {refused}"));
    }
    c.note(&format!("with --resync: {refused}"));
    let options = ReplicateOptions { resync: true, ..options };
    match replicate_with(c, options, HEAL_MS)? {
        Some(Ok(())) => Ok(Ok(())),
        Some(Err(e)) => Ok(Err(e.to_string())),
        None => Err("stuck: a resync of the second archive".into()),
    }
}
