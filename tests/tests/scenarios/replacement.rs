//! §8.5, replacement of a host of each role, there and back again.

use anyhow::{Result, ensure};
use tests::cluster::{Cluster, Layout};

use crate::{archives, base_state, scenario};

fn spares() -> Layout {
    Layout { spares: true, ..Layout::scenario() }
}

/// Moves the volume from one leg to another by a hash backup, and clears the old one.
fn move_leg(c: &Cluster, from: usize, to: usize) -> Result<()> {
    let v = c.vol();
    v.init_storage(to)?;
    v.walbc(&format!("go-standby s{from} VOL"))?;
    v.write(to, 5, 3)?;
    let gid = v.gid(&format!("hash-backup s{to} VOL"))?;
    v.same(to, "a0", gid)?;
    v.walbc(&format!("clear s{from} VOL"))?;
    v.expect_state(&format!("s{from}"), "Clear")
}

scenario!(scenario_r1_another_storage_host, {
    let mut c = base_state(spares())?;
    c.set_group(&["s0", "s1", "s2", "p0", "p1", "a0", "a1"])?;
    c.startup("s2")?;
    move_leg(&c, 0, 2)?;
    move_leg(&c, 2, 0)?;
    c.shutdown("s2")?;
    c.set_group(&["s0", "s1", "p0", "p1", "a0", "a1"])?;
    let gid = c.vol().gid("snapshot s0 VOL --wait a0")?;
    c.vol().same(0, "a0", gid)?;
});

/// Replaces the first proxy. The original restarts the storage servers with another list; ours are
/// told at run time (`set-peers`).
fn replace_proxy(c: &mut Cluster, old: &str, new: &str) -> Result<()> {
    c.set_group(&["s0", "s1", old, "p1", new, "a0", "a1"])?;
    c.startup(new)?;
    let v = c.vol();
    v.walbc(&format!("copy-archive-info {old} VOL {new}"))?;
    v.walbc(&format!("stop {old} VOL --mode empty"))?;
    v.until_state(old, "Stopped")?;
    v.walbc(&format!("clear {old} VOL"))?;
    c.shutdown(old)?;
    c.set_group(&["s0", "s1", new, "p1", "a0", "a1"])?;
    let v = c.vol();
    v.walbc("set-peers s0 s1")?;
    v.write(0, 0, 1)?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)?;
    let last = v.storage("s0")?.last_proxy;
    ensure!(last.contains(&format!("{new}.sock")), "{new} takes the logs, not {last}");
    Ok(())
}

scenario!(scenario_r2_another_proxy_host, {
    let mut c = base_state(spares())?;
    replace_proxy(&mut c, "p0", "p2")?;
    replace_proxy(&mut c, "p2", "p0")?;
});

/// Replaces the primary. The original restarts the storage servers; ours are told by `promote`.
fn replace_primary(c: &mut Cluster, old: &str, new: &str) -> Result<()> {
    c.set_group(&["s0", "s1", "p0", "p1", old, "a1", new])?;
    c.startup(new)?;
    let v = c.vol();
    v.walbc(&format!("replicate {old} VOL {new} --synchronizing"))?;
    v.walbc(&format!("promote {new}"))?;
    v.walbc(&format!("stop-synchronizing {old} VOL"))?;
    v.walbc(&format!("clear {old} VOL"))?;
    c.shutdown(old)?;
    c.set_group(&["s0", "s1", "p0", "p1", new, "a1"])?;
    let v = c.vol();
    v.write(0, 0, 1)?;
    let gid = v.gid(&format!("snapshot s0 VOL --wait {new}"))?;
    v.same(0, new, gid)?;
    // It is what the storage server backs up to from now on.
    v.walbc("stop s0 VOL")?;
    v.write(0, 1, 1)?;
    let gid = v.gid("hash-backup s0 VOL")?;
    v.same(0, new, gid)
}

scenario!(scenario_r3_another_primary, {
    let mut c = base_state(spares())?;
    replace_primary(&mut c, "a0", "a2")?;
    replace_primary(&mut c, "a2", "a0")?;
});

scenario!(scenario_r4_another_secondary, {
    let mut c = archives::replicated(spares())?;
    for (old, new) in [("a1", "a2"), ("a2", "a1")] {
        let latest = c.vol().latest(old)?;
        let before = c.vol().rsha(old, latest)?;
        c.set_group(&["s0", "s1", "p0", "p1", "a0", old, new])?;
        c.startup(new)?;
        let v = c.vol();
        v.walbc(&format!("replicate {old} VOL {new}"))?;
        v.walbc(&format!("clear {old} VOL"))?;
        c.shutdown(old)?;
        c.set_group(&["s0", "s1", "p0", "p1", "a0", new])?;
        let v = c.vol();
        ensure!(v.rsha(new, latest)? == before);
        ensure!(!v.ask(&format!("is-synchronizing {new} VOL"))?);
    }
});
