//! §8.4, errors of the network: a fault proxy between the roles.

use anyhow::ensure;
use tests::cluster::Layout;
use tests::fault_proxy::Fault;

use crate::{base_state, scenario};

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

scenario!(scenario_e11_a_proxy_is_cut_off_from_the_archive, {
    let c = base_state(Layout::behind_fault_proxy("a0"))?;
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
    v.same(0, "a0", gid)?;
});
