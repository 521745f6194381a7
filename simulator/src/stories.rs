//! Directed plans: each reaches its state by itself, and fails when it does not.

use crate::cluster::Cluster;
use crate::commands::{hash_backup_with, replicate_with, snapshot};
use crate::defect::Defect;
use crate::losses::relist;
use crate::plan::Story;
use crate::roles::VOLUME;
use crate::scenario::failed;
use controller::client::Controller;
use controller::error::ControlError;
use controller::ops::archive::RestorePoint;
use controller::ops::hash::HashBackupOptions;
use controller::ops::replicate::ReplicateOptions;
use controller::ops::{archive, look, setup};
use proto::v1::{ArchiveVolume, StopMode};
use rand::RngExt;

/// How long one step of a story may take.
const STEP_MS: u64 = 60_000;

pub(crate) fn play(c: &mut Cluster, story: Story) -> Result<(), String> {
    match story {
        Story::ForkedHistory => forked_history(c),
        Story::ReadersBesideApply => readers_beside_apply(c),
        Story::GapWhileFull => gap_while_full(c),
        Story::LostSnapshots => lost_snapshots(c),
        Story::ToldSnapshot => told_snapshot(c),
        Story::SlowComparison => slow_comparison(c),
    }
}

/// A step that has to succeed.
fn done<T>(what: &str, done: Option<Result<T, ControlError>>) -> Result<T, String> {
    match done {
        Some(Ok(done)) => Ok(done),
        Some(Err(e)) => Err(failed(what, &e)),
        None => Err(format!("{what}: not within {STEP_MS} ms")),
    }
}

fn write_for(c: &mut Cluster, ms: std::ops::Range<u64>) -> Result<(), String> {
    c.resume_writes();
    let ms = c.rng.random_range(ms);
    c.run_for(ms)
}

fn at_archive(c: &mut Cluster, name: &str) -> Result<ArchiveVolume, String> {
    let look = async |ctl: Controller| look::archive_volume(&ctl, name, VOLUME).await;
    let asked = c.control(STEP_MS, look)?;
    done(name, asked)
}

fn latest(c: &mut Cluster, name: &str) -> Result<u64, String> {
    Ok(at_archive(c, name)?.latest.map_or(0, |latest| latest.gid_begin))
}

fn replicate(c: &mut Cluster, options: ReplicateOptions) -> Result<(), String> {
    let told = replicate_with(c, options, STEP_MS)?;
    done("replicate", told)
}

fn stop(c: &mut Cluster) -> Result<(), String> {
    let stop = async |ctl: Controller| setup::stop(&ctl, "s0", VOLUME, StopMode::Graceful).await;
    let told = c.control(STEP_MS, stop)?;
    done("stop", told)
}

fn hash_backup(c: &mut Cluster) -> Result<(), String> {
    let told = hash_backup_with(c, HashBackupOptions::default(), STEP_MS)?;
    done("hash-backup", told)
}

/// A proxy that has lost its disk is up again, and gets its list.
fn until_relisted(c: &mut Cluster) -> Result<(), String> {
    c.until("a0 is listed", STEP_MS, |c| Ok(relist(c, STEP_MS)?.is_ok()))
}

/// a1 goes ahead of a0; what a0 did not get is lost, with all that the storage server knew. A hash
/// backup gives the same gids to other content, and a0 comes to the gid that a1 is at.
fn forked_history(c: &mut Cluster) -> Result<(), String> {
    replicate(c, ReplicateOptions { synchronizing: true, ..Default::default() })?;
    let primary = c.index("a0");
    c.kill(primary, false);
    let from = latest(c, "a1")?;
    c.resume_writes();
    c.until("a1 goes ahead", STEP_MS, |c| {
        snapshot(c)?;
        c.resume_writes();
        Ok(latest(c, "a1")? >= from + 8)
    })?;
    for name in ["p0", "s0"] {
        let index = c.index(name);
        c.lose_disk(index);
    }
    (c.past.lost_proxy, c.past.lost_storage) = (true, true);
    c.start(primary);
    c.machine.model.lock().only_arrived(&[]);
    let forked = at_archive(c, "a1")?;
    until_relisted(c)?;
    let init = async |ctl: Controller| setup::init_storage(&ctl, "s0", VOLUME, "/sim/d0").await;
    let told = c.control(STEP_MS, init)?;
    done("init-storage", told)?;
    write_for(c, 1000..2000)?;
    hash_backup(c)?;
    let at = forked.latest.map_or(0, |latest| latest.gid_begin);
    if latest(c, "a0")? >= at {
        return Err("not reached: the new history begins beyond the old one".into());
    }
    c.until("a0 comes to the gid that a1 is at", STEP_MS, |c| {
        c.resume_writes();
        c.run_for(200)?;
        snapshot(c)?;
        Ok(latest(c, "a0")? > at)
    })?;
    let (now, other) = (at_archive(c, "a0")?, at_archive(c, "a1")?);
    if other.latest != forked.latest || other.log_uuid == now.log_uuid {
        return Err("not reached: a1 has gone on".into());
    }
    let second = c.index("a1");
    if c.has(second, Defect::SameLog) {
        c.net.replace("a1", &other.log_uuid, &now.log_uuid);
    }
    Ok(())
}

/// A restore opens its wdiffs one after the other; an apply and a merge make them needless
/// meanwhile.
fn readers_beside_apply(c: &mut Cluster) -> Result<(), String> {
    write_for(c, 8000..12_000)?;
    snapshot(c)?;
    let list = async |ctl: Controller| archive::restorable(&ctl, "a0", VOLUME, true).await;
    let listed = c.control(STEP_MS, list)?;
    let gids: Vec<u64> = done("restorable", listed)?.iter().map(|p| p.gid).collect();
    let (Some(&middle), Some(&last)) = (gids.get(gids.len() * 2 / 3), gids.last()) else {
        return Err("not reached: no snapshots".into());
    };
    let index = c.index("a0");
    c.hosts[index].fs.slow_restores(true);
    let ctl = c.ctl.clone();
    let both = async |_: Controller| {
        let restore = async {
            let point = RestorePoint::Gid(last);
            archive::restore(&ctl, "a0", VOLUME, point, None, &mut |_| {}).await
        };
        let delete = async {
            let point = RestorePoint::Gid(middle);
            archive::apply(&ctl, "a0", VOLUME, point, 0, &mut |_| {}).await?;
            archive::merge(&ctl, "a0", VOLUME, (middle, last), 0, &mut |_| {}).await
        };
        let (restored, deleted) = tokio::join!(restore, delete);
        restored.and(deleted)
    };
    let told = c.control(STEP_MS, both)?;
    done("a restore beside an apply and a merge", told)
}

/// The ring is written over while the storage server is down; when it finds that, its disk is full.
fn gap_while_full(c: &mut Cluster) -> Result<(), String> {
    let storage = c.index("s0");
    write_for(c, 500..2000)?;
    snapshot(c)?;
    c.resume_writes();
    let before = at_archive(c, "a0")?.log_uuid;
    c.kill(storage, false);
    c.run_for(15_000)?;
    c.set_full(storage, true);
    c.start(storage);
    c.until("the gap is noticed", STEP_MS, |c| Ok(c.hosts[storage].fs.refused() > 1))?;
    let ms = c.rng.random_range(1..3000);
    c.run_for(ms)?;
    if at_archive(c, "a0")?.log_uuid != before {
        return Err("not reached: the gap was healed while the disk was full".into());
    }
    c.set_full(storage, false);
    c.until("the gap heals by itself", STEP_MS, |c| Ok(at_archive(c, "a0")?.log_uuid != before))
}

/// a0 is down, snapshots wait at the proxy, and the proxy loses them. The gap heals by itself; what
/// is taken then are other snapshots.
fn lost_snapshots(c: &mut Cluster) -> Result<(), String> {
    let archive = c.index("a0");
    write_for(c, 500..1500)?;
    snapshot(c)?;
    c.run_for(2000)?;
    let before = at_archive(c, "a0")?;
    c.kill(archive, false);
    let lost = c.rng.random_range(2..6);
    for _ in 0..lost {
        write_for(c, 100..600)?;
        snapshot(c)?;
    }
    c.resume_writes();
    c.run_for(500)?;
    let proxy = c.index("p0");
    c.lose_disk(proxy);
    c.past.lost_proxy = true;
    c.start(archive);
    until_relisted(c)?;
    if at_archive(c, "a0")?.latest != before.latest {
        return Err("not reached: a0 has got some of it".into());
    }
    c.until("the gap heals by itself", STEP_MS, |c| {
        Ok(at_archive(c, "a0")?.log_uuid != before.log_uuid)
    })?;
    for _ in 0..lost + 4 {
        write_for(c, 100..600)?;
        snapshot(c)?;
    }
    Ok(())
}

/// A snapshot is told while nothing can be shipped; then the storage server dies, and takes
/// another.
fn told_snapshot(c: &mut Cluster) -> Result<(), String> {
    let storage = c.index("s0");
    write_for(c, 500..1500)?;
    c.net.part("s0", "p0");
    write_for(c, 100..600)?;
    let before = c.machine.model.lock().snapshots().len();
    snapshot(c)?;
    if c.machine.model.lock().snapshots().len() == before {
        return Err("not reached: no snapshot".into());
    }
    let power_cut = c.rng.random();
    c.kill(storage, power_cut);
    write_for(c, 100..600)?;
    c.start(storage);
    for _ in 0..3 {
        write_for(c, 300..900)?;
        snapshot(c)?;
    }
    c.net.heal();
    Ok(())
}

/// Both kinds of comparison, whose data and end come much later than they are waited for.
fn slow_comparison(c: &mut Cluster) -> Result<(), String> {
    replicate(c, ReplicateOptions::default())?;
    write_for(c, 500..2000)?;
    stop(c)?;
    write_for(c, 500..2000)?;
    let delay_ms = c.rng.random_range(100..400);
    c.net.set_delay_ms(delay_ms);
    hash_backup(c)?;
    replicate(c, ReplicateOptions { resync: true, ..Default::default() })?;
    match at_archive(c, "a1")?.log_uuid == at_archive(c, "a0")?.log_uuid {
        true => Ok(()),
        false => Err("not reached: a1 is behind the hash backup".into()),
    }
}
