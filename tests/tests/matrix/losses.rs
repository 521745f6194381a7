//! What storage servers, devices and proxies lose, and backups that broke off: F2, F7, F8, F9, G3,
//! G4, G12.

use anyhow::{Result, ensure};
use tests::cluster::{Cluster, Layout};
use tests::fault_proxy::Fault;
use tests::poll::{DEADLINE, until};

use crate::{Row, base, group, lose_data, manual_group, matrix};

fn overflown(mut cluster: Cluster) -> Result<Cluster> {
    cluster.kill("s0")?;
    cluster.vol().write_a_log(0, true)?;
    cluster.start_all()?;
    Ok(cluster)
}

const F2: Row = Row::new("F2", || overflown(manual_group()?));

/// The archive is down, so that the gap is still there when doctor looks.
const F2_AUTO: Row = Row {
    also: &["F5"],
    ..Row::new("F2", || {
        let mut cluster = group()?;
        cluster.shutdown("a0")?;
        overflown(cluster)
    })
};

/// The files of the devices are gone; the device role serves what is left.
const F7: Row = Row::new("F7", || {
    let volumes = vec!["vol0".to_owned(), "vol1".to_owned()];
    let mut cluster = base(Layout { volumes, ..Layout::scenario() })?;
    cluster.vol().gid("snapshot s0 VOL --wait a0")?;
    cluster.kill("d0")?;
    std::fs::remove_file(cluster.data_path(0, "vol0"))?;
    std::fs::remove_file(cluster.log_path(0, "vol0"))?;
    cluster.start_all()?;
    Ok(cluster)
})
.with(|cluster, step| {
    ensure!(step.contains("replace the devices") || step.contains("make new data"), "{step}");
    cluster.kill("d0")?;
    cluster.make_leg(0, "vol0")?;
    cluster.start_all()
});

const F8A: Row = Row::new("F8a", || {
    let mut cluster = group()?;
    lose_data(&mut cluster, "s0")?;
    cluster.vol().write(0, 3, 3)?;
    Ok(cluster)
});

const F8B: Row = Row::new("F8b", || {
    let mut cluster = group()?;
    lose_data(&mut cluster, "s1")?;
    Ok(cluster)
});

/// A proxy loses what the archive, being down, has not got.
fn undelivered(mut cluster: Cluster) -> Result<Cluster> {
    cluster.shutdown("a0")?;
    cluster.vol().write(0, 0, 20)?;
    cluster.vol().until_sending_fails("p0", "a0")?;
    lose_data(&mut cluster, "p0")?;
    cluster.startup("a0")?;
    Ok(cluster)
}

const F9A: Row = Row::new("F9a", || undelivered(manual_group()?));

const F9B: Row = Row::new("F9b", || {
    let mut cluster = group()?;
    cluster.vol().gid("snapshot s0 VOL --wait a0")?;
    lose_data(&mut cluster, "p1")?;
    Ok(cluster)
});

/// A command that a cut in the middle makes fail; the network is well again afterwards.
pub(crate) fn cut_during(cluster: &Cluster, line: &str, front: &str, after: u64) -> Result<()> {
    let front = cluster.front(front)?;
    front.set(Fault::CutAfter(after));
    let command = cluster.vol().begin(line)?;
    front.wait_cut()?;
    let (success, output) = command.ended(DEADLINE)?;
    ensure!(!success, "{line} succeeded over a connection that was cut: {output}");
    front.set(Fault::None);
    Ok(())
}

fn cuttable() -> Result<Cluster> {
    base(Layout::behind_fault_proxy("a0").with_flags("s0", &["--resync", "manual"]))
}

const G3: Row = Row::new("G3", || {
    let cluster = cuttable()?;
    let vol = cluster.vol();
    vol.walbc("stop s0 VOL")?;
    vol.fill(0, 0, cluster.layout().data_bytes)?;
    for line in ["reset s0 VOL", "stop a0 VOL", "reset a0 VOL"] {
        vol.walbc(line)?;
    }
    cut_during(&cluster, "full-backup s0 VOL", "a0", cluster.layout().data_bytes / 3)?;
    vol.until_state("s0", "SyncReady")?;
    vol.until_state("a0", "SyncReady")?;
    Ok(cluster)
});

const G4: Row = Row::new("G4", || {
    let cluster = cuttable()?;
    let vol = cluster.vol();
    vol.walbc("stop s0 VOL")?;
    vol.fill(0, 0, cluster.layout().data_bytes / 3)?;
    cut_during(&cluster, "hash-backup s0 VOL", "a0", cluster.layout().data_bytes / 6)?;
    vol.until_state("s0", "SyncReady")?;
    vol.until_state("a0", "Archived")?;
    Ok(cluster)
});

/// The storage server dies in the middle of a hash backup, after the log was reset.
const G12: Row = Row::new("G12", || {
    let mut cluster = cuttable()?;
    cluster.vol().walbc("stop s0 VOL")?;
    cluster.vol().fill(0, 0, cluster.layout().data_bytes / 3)?;
    // Slow enough that it dies in the middle.
    cluster.front("a0")?.set(Fault::Rate(1 << 17));
    let command = cluster.vol().begin("hash-backup s0 VOL")?;
    cluster.vol().until_state("a0", "HashSync")?;
    let reset = || Ok((cluster.vol().storage("s0")?.gap_since_s > 0).then_some(()));
    until("the log was reset", DEADLINE, reset)?;
    cluster.kill("s0")?;
    drop(command);
    cluster.front("a0")?.set(Fault::None);
    cluster.start_all()?;
    Ok(cluster)
});

matrix! {
    matrix_f2_an_overflow_is_healed_by_a_hash_backup: F2.by_fix;
    matrix_f2_an_overflow_heals_itself: F2_AUTO.when_the_archive_is_back;
    matrix_f7_a_lost_device_is_restored: F7.by_steps;
    matrix_f8a_a_storage_server_that_lost_its_target: F8A.by_fix;
    matrix_f8b_a_storage_server_that_lost_its_standby: F8B.by_fix;
    matrix_f9a_a_proxy_that_lost_undelivered_wdiffs: F9A.by_fix;
    matrix_f9b_a_proxy_that_lost_nothing_but_its_state: F9B.by_steps;
    matrix_g3_a_full_backup_that_was_cut: G3.by_steps;
    matrix_g4_a_hash_backup_that_was_cut: G4.by_fix;
    matrix_g12_a_hash_backup_that_died_half_way: G12.by_fix;
    matrix_page_f2: F2.by_page;
    matrix_page_f7: F7.by_page;
    matrix_page_f8a: F8A.by_page;
    matrix_page_f8b: F8B.by_page;
    matrix_page_f9a: F9A.by_page;
    matrix_page_f9b: F9B.by_page;
    matrix_page_g3: G3.by_page;
    matrix_page_g4: G4.by_page;
    matrix_page_g12: G12.by_page;
}

impl Row {
    /// Nobody does anything but start the archive.
    fn when_the_archive_is_back(&self) -> Result<()> {
        let (mut cluster, finding) = self.named()?;
        ensure!(finding.heals_itself && finding.steps.is_empty(), "{finding:#?}");
        cluster.startup("a0")?;
        crate::well_at(&cluster, self.archive)
    }
}
