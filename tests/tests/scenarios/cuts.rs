//! §8.4, errors of the network: a fault proxy between the roles.

use anyhow::{Result, ensure};
use tests::cluster::{Cluster, Layout, size};
use tests::fault_proxy::Fault;
use tests::poll::{DEADLINE, until};

use crate::{archives, base_state, scenario};

scenario!(scenario_e9_storage_is_cut_off_from_its_proxy, {
    let c = base_state(Layout::behind_fault_proxy("p0"))?;
    let v = c.vol();
    c.front("p0")?.set(Fault::Cut);
    v.write(0, 0, 1)?;
    let before = v.sha(0)?;
    let missed = v.gid("snapshot s0 VOL")?;
    v.until_shipping_fails("s0")?;
    v.stays_unrestorable("a0", missed)?;
    c.front("p0")?.set(Fault::None);
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    ensure!(v.rsha("a0", gid)? == before);
});

fn e11(layout: Layout) -> Result<()> {
    let c = base_state(layout)?;
    let v = c.vol();
    let writer = v.writer(0)?;
    // Somewhere in the middle of what is sent next.
    c.front("a0")?.set(Fault::CutAfter(4000));
    c.front("a0")?.wait_cut()?;
    let missed = v.gid("snapshot s0 VOL")?;
    v.until_sending_fails("p0", "a0")?;
    v.stays_unrestorable("a0", missed)?;
    c.front("a0")?.set(Fault::None);
    v.walbc("kick p0 VOL a0")?;
    v.until_restorable("a0", missed)?;
    writer.finish()?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)
}

scenario!(scenario_e11_a_proxy_is_cut_off_from_the_archive, {
    e11(Layout::behind_fault_proxy("a0"))?;
});

scenario!(scenario_e11_a_proxy_is_cut_off_from_the_archive_over_tcp, {
    e11(Layout::behind_fault_proxy("a0").over_tcp())?;
});

// With `--resync manual`, as the original: the operator starts the hash backup.
scenario!(scenario_e10_the_log_overflows_while_the_proxy_is_cut_off, {
    let layout = Layout::behind_fault_proxy("p0").with_flags("s0", &["--resync", "manual"]);
    let c = base_state(layout)?;
    let v = c.vol();
    c.front("p0")?.set(Fault::Cut);
    v.write_a_log(0, true)?;
    until("the overflow is seen", DEADLINE, || Ok(v.ask("is-overflow s0 VOL")?.then_some(())))?;
    // It has stopped the target by itself.
    v.until_state("s0", "Stopped")?;
    c.front("p0")?.set(Fault::None);
    let gid = v.gid("hash-backup s0 VOL")?;
    v.same(0, "a0", gid)?;
});

// The same with the default: nobody does anything, the history before the gap stays, and who
// followed before follows.
scenario!(scenario_e10_an_overflow_heals_itself, {
    let c = base_state(Layout { archives: 2, ..Layout::behind_fault_proxy("p0") })?;
    let v = c.vol();
    v.walbc("replicate a0 VOL a1 --synchronizing")?;
    let before = v.gid("snapshot s0 VOL --wait a0")?;
    let content = v.sha(0)?;
    c.front("p0")?.set(Fault::Cut);
    v.write_a_log(0, true)?;
    until("the gap is marked", DEADLINE, || Ok((v.storage("s0")?.gap_since_s > 0).then_some(())))?;
    c.front("p0")?.set(Fault::None);
    until("the gap is healed", DEADLINE, || {
        let leg = v.storage("s0")?;
        Ok((leg.gap_since_s == 0 && leg.state == "Target").then_some(()))
    })?;
    let gid = v.gid("snapshot s0 VOL --wait a0,a1")?;
    for archive in ["a0", "a1"] {
        v.same(0, archive, gid)?;
        ensure!(v.rsha(archive, before)? == content);
        ensure!(v.ask(&format!("is-synchronizing {archive} VOL"))?);
    }
});

/// A command that a cut in the middle must make fail.
fn fails_by_a_cut(c: &Cluster, line: &str, front: &str, after: u64) -> Result<()> {
    let front = c.front(front)?;
    front.set(Fault::CutAfter(after));
    let command = c.vol().begin(line)?;
    front.wait_cut()?;
    let (success, output) = command.ended(DEADLINE)?;
    ensure!(!success, "{line} succeeded over a connection that was cut: {output}");
    Ok(())
}

// The original starts from block 0 again; ours goes on where the archive has its last block.
scenario!(scenario_e12_cut_in_the_middle_of_a_full_backup, {
    let c = base_state(Layout::behind_fault_proxy("a0"))?;
    let v = c.vol();
    v.walbc("stop s0 VOL")?;
    v.fill(0, 0, c.layout().data_bytes)?;
    v.walbc("reset s0 VOL")?;
    v.walbc("stop a0 VOL")?;
    v.walbc("reset a0 VOL")?;
    v.write(0, 0, 1)?;
    let before = v.sha(0)?;
    fails_by_a_cut(&c, "full-backup s0 VOL", "a0", c.layout().data_bytes / 3)?;
    v.until_state("s0", "SyncReady")?;
    v.until_state("a0", "SyncReady")?;
    c.front("a0")?.set(Fault::None);
    let gid = v.gid("full-backup s0 VOL")?;
    ensure!(v.rsha("a0", gid)? == before);
});

scenario!(scenario_e13_cut_in_the_middle_of_a_hash_backup, {
    let c = base_state(Layout::behind_fault_proxy("a0"))?;
    let v = c.vol();
    v.walbc("stop s0 VOL")?;
    v.walbc("reset s0 VOL")?;
    v.fill(0, 0, c.layout().data_bytes / 3)?;
    let list = v.restorable("a0", true)?;
    fails_by_a_cut(&c, "hash-backup s0 VOL", "a0", c.layout().data_bytes / 6)?;
    v.until_state("s0", "SyncReady")?;
    v.until_state("a0", "Archived")?;
    ensure!(v.restorable("a0", true)? == list);
    c.front("a0")?.set(Fault::None);
    let gid = v.gid("hash-backup s0 VOL")?;
    v.same(0, "a0", gid)?;
});

scenario!(scenario_e14_cut_in_the_middle_of_a_full_replication, {
    // A log that takes the whole device at once.
    let layout = Layout { log_bytes: size("32M"), ..Layout::behind_fault_proxy("a1") };
    let c = base_state(layout)?;
    let v = c.vol();
    v.fill(0, 0, c.layout().data_bytes)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.walbc(&format!("apply a0 VOL {gid}"))?;
    fails_by_a_cut(&c, "replicate a0 VOL a1", "a1", c.layout().data_bytes / 3)?;
    v.until_idle("a0")?;
    v.until_state("a1", "SyncReady")?;
    c.front("a1")?.set(Fault::None);
    v.walbc("replicate a0 VOL a1")?;
    archives::equal(&c)?;
    v.same(0, "a1", gid)?;
});

scenario!(scenario_e15_cut_in_the_middle_of_a_hash_replication, {
    let c = archives::replicated(Layout::behind_fault_proxy("a1"))?;
    let v = c.vol();
    v.fill(0, 0, c.layout().data_bytes / 3)?;
    let base = v.gid("snapshot s0 VOL --wait a0")?;
    v.walbc(&format!("apply a0 VOL {base}"))?;
    v.fill(0, c.layout().data_bytes / 3, c.layout().data_bytes / 3)?;
    let last = v.gid("snapshot s0 VOL --wait a0")?;
    let list = v.restorable("a1", true)?;
    fails_by_a_cut(&c, "replicate a0 VOL a1", "a1", c.layout().data_bytes / 6)?;
    v.until_idle("a0")?;
    v.until_state("a1", "Archived")?;
    ensure!(v.restorable("a1", true)? == list);
    c.front("a1")?.set(Fault::None);
    ensure!(v.gid("replicate a0 VOL a1")? == last);
    ensure!(archives::equal_latest(&c)? == last);
    v.same(0, "a1", last)?;
});

scenario!(scenario_e16_cut_in_the_middle_of_a_diff_replication, {
    let c = archives::replicated(Layout::behind_fault_proxy("a1"))?;
    let v = c.vol();
    v.fill(0, 0, c.layout().data_bytes / 3)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    fails_by_a_cut(&c, "replicate a0 VOL a1", "a1", c.layout().data_bytes / 6)?;
    v.until_idle("a0")?;
    v.until_state("a1", "Archived")?;
    ensure!(v.latest("a1")? != gid);
    c.front("a1")?.set(Fault::None);
    ensure!(v.gid("replicate a0 VOL a1")? == gid);
    ensure!(archives::equal_latest(&c)? == gid);
    v.same(0, "a1", gid)?;
});
