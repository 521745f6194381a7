//! The network, and commands between servers that all run: G1, G2, G11, N3, N4, N7.

use anyhow::{Result, ensure};
use tests::cluster::{Cluster, Layout};
use tests::fault_proxy::Fault;

use crate::{Row, base, group, matrix, synchronizing_group};

fn cut(front: &str) -> Result<Cluster> {
    let cluster = base(Layout::behind_fault_proxy(front))?;
    cluster.front(front)?.set(Fault::Cut);
    cluster.vol().write(0, 0, 20)?;
    Ok(cluster)
}

fn repair(cluster: &mut Cluster, step: &str, front: &str) -> Result<()> {
    ensure!(step.contains("repair the network"), "{step}");
    cluster.front(front)?.set(Fault::None);
    Ok(())
}

const G1: Row = Row {
    direct: true,
    ..Row::new("G1", || {
        let cluster = cut("p0")?;
        cluster.vol().until_shipping_fails("s0")?;
        Ok(cluster)
    })
    .with(|cluster, step| repair(cluster, step, "p0"))
};

const G2: Row = Row {
    direct: true,
    ..Row::new("G2", || {
        let cluster = cut("a0")?;
        cluster.vol().until_sending_fails("p0", "a0")?;
        Ok(cluster)
    })
    .with(|cluster, step| repair(cluster, step, "a0"))
};

/// A stop waits for an archive that does not answer its proxy.
const G11: Row = Row {
    direct: true,
    also: &["G2"],
    ..Row::new("G11", || {
        let cluster = cut("a0")?;
        cluster.vol().until_sending_fails("p0", "a0")?;
        let stop = cluster.walbc_command(&["stop", "p0", "vol0", "--mode", "empty"])?.spawn()?;
        // Ends when it is overtaken, or with the cluster.
        std::thread::spawn(move || stop.wait_with_output());
        cluster.vol().until_state("p0", "WaitForEmpty")?;
        Ok(cluster)
    })
};

const N3: Row = Row::new("N3", || {
    let cluster = group()?;
    cluster.vol().walbc("stop s0 VOL")?;
    Ok(cluster)
});
const N3_PROXY: Row = Row::new("N3", || {
    let cluster = group()?;
    cluster.vol().walbc("stop p0 VOL")?;
    Ok(cluster)
});
const N3_ARCHIVE: Row = Row::new("N3", || {
    let cluster = group()?;
    cluster.vol().walbc("stop a0 VOL")?;
    Ok(cluster)
});

const N7: Row = Row::new("N7", || {
    let cluster = group()?;
    cluster.vol().walbc("go-standby s0 VOL")?;
    Ok(cluster)
});

const N4: Row = Row::new("N4", || {
    let cluster = synchronizing_group()?;
    cluster.vol().walbc("archive-info p1 VOL delete a1")?;
    Ok(cluster)
});

impl Row {
    /// The network is repaired once the stop was given up.
    fn and_repair(&self) -> Result<()> {
        let (mut cluster, finding) = self.named()?;
        crate::page::run_section(&mut cluster, self, &finding)?;
        cluster.vol().expect_state("p0", "Started")?;
        repair(&mut cluster, "repair the network", "a0")?;
        crate::well_at(&cluster, self.archive)
    }
}

matrix! {
    matrix_g1_a_cut_between_storage_and_proxies: G1.by_steps;
    matrix_g2_a_cut_between_proxy_and_archive: G2.by_steps;
    matrix_page_g11_a_stop_that_cannot_empty_its_queues_is_given_up: G11.and_repair;
    matrix_n3_a_leg_that_is_stopped_is_started: N3.by_fix;
    matrix_n3_a_proxy_that_is_stopped_is_started: N3_PROXY.by_fix;
    matrix_n3_an_archive_that_is_stopped_is_started: N3_ARCHIVE.by_fix;
    matrix_n4_lists_that_differ_are_made_one: N4.by_fix;
    matrix_page_g1: G1.by_page;
    matrix_page_g2: G2.by_page;
    matrix_page_n3: N3.by_page;
    matrix_page_n4: N4.by_page;
    matrix_n7_a_group_without_a_target_gets_one: N7.by_fix;
    matrix_page_n7: N7.by_page;
}
