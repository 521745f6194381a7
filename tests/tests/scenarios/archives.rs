//! §8.2, normal operation with a second archive (n7-n10, n14), and growing (n11).

use anyhow::{Result, ensure};
use tests::cluster::{Cluster, Layout, size};

use crate::{base_state, scenario};

/// The first step of n8-n10, n14 and some errors: what n7 does, without its looks.
pub(crate) fn replicated(layout: Layout) -> Result<Cluster> {
    let c = base_state(layout)?;
    let v = c.vol();
    v.gid("snapshot s0 VOL --wait a0")?;
    v.walbc("replicate a0 VOL a1")?;
    Ok(c)
}

/// Both archives restore the same newest snapshot and list the same explicit ones.
pub(crate) fn equal(c: &Cluster) -> Result<u64> {
    let v = c.vol();
    let lists = (v.restorable("a0", false)?, v.restorable("a1", false)?);
    ensure!(lists.0 == lists.1, "a0 and a1 list {lists:?}");
    equal_latest(c)
}

/// Both archives restore the same newest snapshot.
pub(crate) fn equal_latest(c: &Cluster) -> Result<u64> {
    let v = c.vol();
    let gids = (v.latest("a0")?, v.latest("a1")?);
    ensure!(gids.0 == gids.1, "the latest gids are {gids:?}");
    let sums = (v.rsha("a0", gids.0)?, v.rsha("a1", gids.0)?);
    ensure!(sums.0 == sums.1, "snapshot {} differs", gids.0);
    Ok(gids.0)
}

scenario!(scenario_n7_full_replication, {
    let c = replicated(Layout::scenario())?;
    let gid = equal(&c)?;
    c.vol().same(0, "a1", gid)?;
    ensure!(!c.vol().ask("is-synchronizing a1 VOL")?);
});

scenario!(scenario_n8_diff_replication, {
    let c = replicated(Layout::scenario())?;
    let v = c.vol();
    v.write(0, 0, 1)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    ensure!(v.latest("a0")? == gid && v.latest("a1")? < gid);
    v.walbc("replicate a0 VOL a1")?;
    equal(&c)?;
    v.same(0, "a1", gid)?;
});

scenario!(scenario_n9_hash_replication_after_an_apply, {
    let c = replicated(Layout::scenario())?;
    let v = c.vol();
    v.write(0, 0, 1)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.walbc(&format!("apply a0 VOL {gid}"))?;
    ensure!(v.restorable("a0", false)? == [gid]);
    v.write(0, 1, 1)?;
    let last = v.gid("snapshot s0 VOL --wait a0")?;
    v.walbc("replicate a0 VOL a1")?;
    ensure!(equal_latest(&c)? == last);
    v.same(0, "a1", last)?;
});

scenario!(scenario_n10_synchronizing_secondary, {
    let c = replicated(Layout::scenario())?;
    let v = c.vol();
    let writer = v.writer(0)?;
    v.walbc("replicate a0 VOL a1 --synchronizing")?;
    ensure!(v.ask("is-synchronizing a1 VOL")?);
    let gid = v.gid("snapshot s0 VOL")?;
    v.until_restorable("a0", gid)?;
    v.until_restorable("a1", gid)?;
    ensure!(v.rsha("a0", gid)? == v.rsha("a1", gid)?);
    v.walbc("stop-synchronizing a1 VOL")?;
    writer.finish()?;
    v.write(0, 1, 1)?;
    let later = v.gid("snapshot s0 VOL --wait a0")?;
    ensure!(v.latest("a1")? < later);
    v.same(0, "a0", later)?;
});

fn grow(c: &Cluster) -> Result<()> {
    let v = c.vol();
    let old = c.layout().data_bytes;
    for leg in [0, 1] {
        v.grow_data_device(leg, old + size("4M"))?;
    }
    v.walbc(&format!("resize VOL {}", old + size("4M")))?;
    for leg in [0, 1] {
        ensure!(v.visible_bytes(leg)? == old + size("4M"));
    }
    ensure!(v.archive("a0")?.size_lb * 512 == old + size("4M"));
    // Across the old end.
    v.fill(0, old - 8192, 16384)
}

scenario!(scenario_n11a_growing_under_writes, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    let writer = v.writer(0)?;
    let before = v.gid("snapshot s0 VOL --wait a0")?;
    grow(&c)?;
    writer.finish()?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)?;
    ensure!(v.restorable("a0", false)?.contains(&before));
});

scenario!(scenario_n11b_growing_then_hash_backup, {
    let c = base_state(Layout::scenario())?;
    let v = c.vol();
    grow(&c)?;
    v.walbc("go-standby s0 VOL")?;
    v.fill(0, c.layout().data_bytes + size("1M"), 4096)?;
    let gid = v.gid("hash-backup s0 VOL")?;
    v.same(0, "a0", gid)?;
});

scenario!(scenario_n14_resync_after_a_new_history, {
    let c = replicated(Layout::scenario())?;
    let v = c.vol();
    v.walbc("stop a0 VOL")?;
    v.walbc("clear a0 VOL")?;
    v.walbc("stop s0 VOL")?;
    v.write(0, 0, 1)?;
    v.write(0, 1, 2)?;
    let before = v.sha(0)?;
    let gid = v.gid("full-backup s0 VOL")?;
    v.refused("replicate a0 VOL a1", "--resync")?;
    v.walbc("replicate a0 VOL a1 --resync")?;
    ensure!(v.rsha("a0", gid)? == before && v.rsha("a1", gid)? == before);
});
