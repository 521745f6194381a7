//! The network and the commands between servers that all run: G1, G2, G11, N3.

use anyhow::ensure;
use tests::cluster::{Cluster, Layout};
use tests::fault_proxy::Fault;

use crate::{base, fix, follow, group, matrix, named, nobody, well};

/// The controller answers for all servers past the fault, as one does from another network.
fn repair(front: &'static str) -> impl FnMut(&mut Cluster, &str) -> anyhow::Result<()> {
    move |cluster, step| {
        ensure!(step.contains("repair the network"), "{step}");
        cluster.front(front)?.set(Fault::None);
        Ok(())
    }
}

matrix!(matrix_g11_a_stop_that_cannot_empty_its_queues_is_given_up, {
    let mut cluster = group()?;
    cluster.kill("a0")?;
    cluster.vol().write(0, 0, 20)?;
    cluster.vol().until_sending_fails("p0", "a0")?;
    let mut stop = cluster.walbc_command(&["stop", "p0", "vol0", "--mode", "empty"])?.spawn()?;
    cluster.vol().until_state("p0", "WaitForEmpty")?;
    let finding = crate::named_among(&cluster, &["G11", "F5"])?;
    follow(&mut cluster, &finding, nobody)?;
    let ended = stop.wait()?;
    ensure!(!ended.success(), "the stop was overtaken");
    cluster.start_all()?;
    well(&cluster)?;
});

matrix!(matrix_n3_what_is_stopped_is_started, {
    let cluster = group()?;
    for server in ["s0", "p0", "a0"] {
        cluster.vol().walbc(&format!("stop {server} VOL"))?;
        named(&cluster, "N3")?;
        fix(&cluster)?;
    }
    well(&cluster)?;
});

matrix!(matrix_g2_a_cut_between_proxy_and_archive, {
    let mut cluster = base(Layout::behind_fault_proxy("a0"))?;
    cluster.front("a0")?.set(Fault::Cut);
    cluster.vol().write(0, 0, 20)?;
    cluster.vol().until_sending_fails("p0", "a0")?;
    let (_, found) = crate::doctor_direct(&cluster)?;
    let finding = found.into_iter().find(|f| f.id == "G2").expect("G2 is named");
    follow(&mut cluster, &finding, repair("a0"))?;
    well(&cluster)?;
});

matrix!(matrix_g1_a_cut_between_storage_and_proxies, {
    let mut cluster = base(Layout::behind_fault_proxy("p0"))?;
    cluster.front("p0")?.set(Fault::Cut);
    cluster.vol().write(0, 0, 20)?;
    cluster.vol().until_shipping_fails("s0")?;
    let (_, found) = crate::doctor_direct(&cluster)?;
    let finding = found.into_iter().find(|f| f.id == "G1").expect("G1 is named");
    follow(&mut cluster, &finding, repair("p0"))?;
    well(&cluster)?;
});
