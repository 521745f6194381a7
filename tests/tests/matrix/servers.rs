//! Servers that are down: F1, F3, F4, F5, F6, N1; and a group that is well.

use anyhow::{Result, ensure};
use tests::cluster::Cluster;

use crate::doctor::look;
use crate::{Row, group, matrix, synchronizing_group, well_at};

/// What a person does when told to start a server again.
pub(crate) fn start_again(cluster: &mut Cluster, step: &str) -> Result<()> {
    ensure!(step.contains("start "), "{step}");
    cluster.start_all()
}

fn killed(names: &[&str]) -> Result<Cluster> {
    let mut cluster = group()?;
    for name in names {
        cluster.kill(name)?;
    }
    if !names.contains(&"d0") {
        cluster.vol().write(0, 0, 20)?;
    }
    Ok(cluster)
}

const F1: Row = Row::new("F1", || killed(&["s0"])).with(start_again);
const F3: Row = Row::new("F3", || killed(&["p0"])).with(start_again);
const F4: Row = Row::new("F4", || {
    let cluster = killed(&["p0", "p1"])?;
    cluster.vol().until_shipping_fails("s0")?;
    Ok(cluster)
})
.with(start_again);
const F5: Row = Row::new("F5", || killed(&["a0"])).with(start_again);
const N1: Row = Row::new("N1", || killed(&["d0"])).with(start_again);

/// A proxy that must keep more free than there is has no room for anything.
const F6: Row = Row::new("F6", || {
    let mut cluster = group()?;
    for proxy in ["p0", "p1"] {
        cluster.set_flags(proxy, &["--keep-free", "4096T"])?;
    }
    cluster.shutdown("a0")?;
    cluster.vol().write(0, 0, 20)?;
    cluster.vol().until_shipping_fails("s0")?;
    Ok(cluster)
})
.with(|cluster, step| {
    ensure!(step.contains("start a0 again"), "{step}");
    for proxy in ["p0", "p1"] {
        cluster.set_flags(proxy, &[])?;
    }
    cluster.startup("a0")
});

matrix! {
    matrix_f1_a_storage_server_that_was_down_goes_on: F1.by_steps;
    matrix_f3_a_proxy_that_was_down_delivers_what_it_has: F3.by_steps;
    matrix_f4_with_all_proxies_down_the_log_is_kept: F4.by_steps;
    matrix_f5_an_archive_that_was_down_gets_what_waits: F5.by_steps;
    matrix_f6_proxies_that_are_full_go_on_when_the_archive_is_back: F6.by_steps;
    matrix_n1_a_device_role_that_was_down: N1.by_steps;
    matrix_page_f1: F1.by_page;
    matrix_page_f3: F3.by_page;
    matrix_page_f4: F4.by_page;
    matrix_page_f5: F5.by_page;
    matrix_page_f6: F6.by_page;
    matrix_page_n1: N1.by_page;
    matrix_a_group_that_is_well_and_busy_gives_nothing: WELL.busy;
}

struct Well;
const WELL: Well = Well;

impl Well {
    fn busy(&self) -> Result<()> {
        let cluster = synchronizing_group()?;
        let writer = cluster.vol().writer(0)?;
        for _ in 0..5 {
            let (code, found) = look(&cluster, false)?;
            ensure!(code == 0 && found.is_empty(), "{code} {found:#?}");
        }
        writer.finish()?;
        well_at(&cluster, "a0")?;
        well_at(&cluster, "a1")
    }
}
