//! §8.4, errors: servers that go down, data that is lost.

use anyhow::ensure;
use tests::cluster::Layout;

use crate::{base_state, scenario};

scenario!(scenario_e1_a_proxy_is_down, {
    let mut c = base_state(Layout::scenario())?;
    c.shutdown("p0")?;
    c.vol().write_a_log(0, false)?;
    c.startup("p0")?;
    let v = c.vol();
    v.walbc("kick-all")?;
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    ensure!(!v.ask("is-overflow s0 VOL")?);
    v.same(0, "a0", gid)?;
});

scenario!(scenario_e2_the_archive_is_down, {
    let mut c = base_state(Layout::scenario())?;
    c.shutdown("a0")?;
    c.vol().write_a_log(0, false)?;
    let missed = c.vol().gid("snapshot s0 VOL")?;
    c.vol().until_sending_fails("p0", "a0")?;
    ensure!(!c.vol().ask("is-overflow s0 VOL")?);
    c.startup("a0")?;
    let v = c.vol();
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)?;
    ensure!(v.restorable("a0", true)?.contains(&missed), "what waited at the proxy arrives, too");
});

scenario!(scenario_e3_the_storage_server_is_down, {
    let mut c = base_state(Layout::scenario())?;
    c.shutdown("s0")?;
    c.vol().write(0, 0, 1)?;
    c.startup("s0")?;
    let v = c.vol();
    let gid = v.gid("snapshot s0 VOL --wait a0")?;
    v.same(0, "a0", gid)?;
});
