//! What archives lose, and what broke off between them: F10, G5-G10.

use anyhow::{Context, Result, ensure};
use proto::v1::storage_client::StorageClient;
use tests::cluster::{Cluster, Layout, size};
use tests::outside::run;
use tests::poll::{DEADLINE, until};

use crate::losses::cut_during;
use crate::servers::start_again;
use crate::{Row, base, group, lose_data, matrix, synchronizing_group};

const F10_1: Row = Row::new("F10-1", || {
    let mut cluster = synchronizing_group()?;
    lose_data(&mut cluster, "a1")?;
    cluster.vol().write(0, 0, 20)?;
    Ok(cluster)
});

const F10_2: Row = Row {
    archive: "a1",
    ..Row::new("F10-2", || {
        let mut cluster = synchronizing_group()?;
        lose_data(&mut cluster, "a0")?;
        cluster.vol().write(0, 0, 20)?;
        Ok(cluster)
    })
};

const F10_3: Row = Row::new("F10-3", || {
    let mut cluster = group()?;
    lose_data(&mut cluster, "a0")?;
    cluster.vol().write(0, 0, 20)?;
    Ok(cluster)
});

const G5: Row = Row::new("G5", || {
    // A log that takes the whole device at once.
    let layout = Layout { log_bytes: size("32M"), ..Layout::behind_fault_proxy("a1") };
    let cluster = base(layout)?;
    let vol = cluster.vol();
    vol.fill(0, 0, cluster.layout().data_bytes)?;
    let gid = vol.gid("snapshot s0 VOL --wait a0")?;
    vol.walbc(&format!("apply a0 VOL {gid}"))?;
    cut_during(&cluster, "replicate a0 VOL a1", "a1", cluster.layout().data_bytes / 3)?;
    vol.until_idle("a0")?;
    vol.until_state("a1", "SyncReady")?;
    Ok(cluster)
});

const G6: Row = Row::new("G6", || {
    let cluster = base(Layout::behind_fault_proxy("a1"))?;
    let vol = cluster.vol();
    vol.walbc("replicate a0 VOL a1")?;
    vol.fill(0, 0, cluster.layout().data_bytes / 3)?;
    vol.gid("snapshot s0 VOL --wait a0")?;
    cut_during(&cluster, "replicate a0 VOL a1", "a1", cluster.layout().data_bytes / 6)?;
    vol.until_idle("a0")?;
    vol.until_state("a1", "Archived")?;
    Ok(cluster)
});

const G7: Row = Row::new("G7", || {
    let cluster = base(Layout::behind_fault_proxy("a1"))?;
    let vol = cluster.vol();
    vol.walbc("replicate a0 VOL a1")?;
    vol.fill(0, 0, cluster.layout().data_bytes / 3)?;
    let gid = vol.gid("snapshot s0 VOL --wait a0")?;
    vol.walbc(&format!("apply a0 VOL {gid}"))?;
    let after = cluster.layout().data_bytes / 6;
    cut_during(&cluster, "replicate a0 VOL a1 --resync", "a1", after)?;
    vol.until_idle("a0")?;
    vol.until_state("a1", "SyncReady")?;
    Ok(cluster)
});

const G8: Row = Row::new("G8", || {
    let cluster = group()?;
    let vol = cluster.vol();
    let (old, new) = (cluster.layout().data_bytes, cluster.layout().data_bytes + size("4M"));
    for (leg, storage) in [(0, "s0"), (1, "s1")] {
        vol.grow_data_device(leg, new)?;
        let mut client = StorageClient::new(cluster.channel(storage)?);
        let request = proto::v1::ResizeRequest { volume: "vol0".to_owned(), size_lb: new / 512 };
        cluster.run(client.resize(request))?;
    }
    vol.fill(0, old, 4096)?;
    vol.gid("snapshot s0 VOL")?;
    Ok(cluster)
});

/// The wdiffs of vol0 at a0, and where they are when somebody has taken them away.
fn wdiffs(cluster: &Cluster) -> Result<Vec<(std::path::PathBuf, std::path::PathBuf)>> {
    let away = cluster.path("away");
    std::fs::create_dir_all(&away)?;
    let entries = [cluster.path("a0/vol0"), away.clone()].map(std::fs::read_dir);
    let mut all = Vec::new();
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry?.file_name();
        if name.to_string_lossy().ends_with(".wdiff") {
            all.push((cluster.path("a0/vol0").join(&name), away.join(&name)));
        }
    }
    Ok(all)
}

/// Killed in the middle of an apply whose wdiffs are not there at the start: it cannot go on.
const G9: Row = Row::new("G9", || {
    let layout = Layout { log_bytes: size("32M"), ..Layout::scenario() };
    let mut cluster = base(layout)?;
    let applying = |cluster: &Cluster| -> Result<bool> {
        let base = cluster.vol().archive("a0")?.base.context("a base image")?;
        Ok(base.end.is_some())
    };
    until("an apply is killed in the middle", DEADLINE, || {
        let vol = cluster.vol();
        vol.fill(0, 0, cluster.layout().data_bytes)?;
        let gid = vol.gid("snapshot s0 VOL --wait a0")?;
        let command = vol.begin(&format!("apply a0 VOL {gid}"))?;
        let caught = until("the apply has begun or ended", DEADLINE, || {
            let applied = vol.archive("a0")?.base.and_then(|base| base.begin);
            let ended = applied.is_some_and(|at| at.gid_begin >= gid);
            Ok(if applying(&cluster)? { Some(true) } else { ended.then_some(false) })
        })?;
        if !caught {
            return Ok(None);
        }
        cluster.kill("a0")?;
        drop(command);
        for (here, away) in wdiffs(&cluster)? {
            run("mv", &[&here.to_string_lossy(), &away.to_string_lossy()])?;
        }
        cluster.start_all()?;
        if applying(&cluster)? {
            return Ok(Some(()));
        }
        bring_back(&mut cluster, "")?;
        Ok(None)
    })?;
    Ok(cluster)
});

fn bring_back(cluster: &mut Cluster, _: &str) -> Result<()> {
    cluster.kill("a0")?;
    for (here, away) in wdiffs(cluster)? {
        if away.exists() {
            run("mv", &[&away.to_string_lossy(), &here.to_string_lossy()])?;
        }
    }
    cluster.start_all()
}

impl Row {
    /// The wdiffs are found again; the apply goes on by itself.
    fn when_the_wdiffs_are_back(&self) -> Result<()> {
        let (mut cluster, finding) = self.named()?;
        ensure!(finding.number("apply").is_some(), "{finding:#?}");
        bring_back(&mut cluster, "")?;
        crate::well_at(&cluster, self.archive)
    }
}

/// Whether a restored image is half-made at a0.
fn is_restoring(cluster: &Cluster) -> bool {
    let entries = std::fs::read_dir(cluster.path("a0/vol0/restored"));
    let half_made = |e: std::fs::DirEntry| e.file_name().to_string_lossy().ends_with(".tmp");
    entries.into_iter().flatten().flatten().any(half_made)
}

/// Killed while it restores.
const G10: Row = Row {
    section: "G10",
    ..Row::new("F5", || {
        let mut cluster = group()?;
        let gid = cluster.vol().gid("snapshot s0 VOL --wait a0")?;
        until("a restore is killed in the middle", DEADLINE, || {
            let command = cluster.vol().begin(&format!("restore a0 VOL {gid}"))?;
            let done = cluster.path(&format!("a0/vol0/restored/{gid}.img"));
            while !is_restoring(&cluster) && !done.exists() {
                std::thread::yield_now();
            }
            cluster.kill("a0")?;
            drop(command);
            if is_restoring(&cluster) {
                return Ok(Some(()));
            }
            cluster.start_all()?;
            // Neither: the first of two attempts at a half-made file was just given up.
            if done.exists() {
                cluster.vol().walbc(&format!("del-restored a0 VOL {gid}"))?;
            }
            Ok(None)
        })?;
        Ok(cluster)
    })
    .with(start_again)
};

impl Row {
    /// What was half-made is gone when the archive is back, and doctor tells of it.
    fn told_afterwards(&self) -> Result<()> {
        let (mut cluster, _) = self.named()?;
        start_again(&mut cluster, "start a0 again")?;
        ensure!(!is_restoring(&cluster), "what was half-made is still there");
        let (code, found) = crate::look(&cluster, false)?;
        let told: Vec<_> = found.iter().map(|finding| finding.id.as_str()).collect();
        ensure!(code == 0 && told == ["G10"], "exit {code}: {found:#?}");
        crate::well_at(&cluster, self.archive)
    }
}

/// A byte of the primary's largest wdiff has flipped, and somebody has verified.
const N8: Row = Row::new("N8", || {
    let cluster = synchronizing_group()?;
    cluster.vol().write(0, 0, 20)?;
    cluster.vol().gid("snapshot s0 VOL --wait a0,a1")?;
    let here = wdiffs(&cluster)?.into_iter().map(|(here, _)| here);
    let size = |path: &std::path::PathBuf| path.metadata().map_or(0, |found| found.len());
    let largest = here.max_by_key(size).context("a wdiff")?;
    let mut data = std::fs::read(&largest)?;
    let middle = data.len() / 2;
    data[middle] ^= 0x20;
    std::fs::write(&largest, data)?;
    let (code, stdout, stderr) = cluster.walbc(&["verify", "a0", "vol0"])?;
    ensure!(code == 1 && stdout.contains("is damaged"), "exit {code}: {stdout}{stderr}");
    Ok(cluster)
});

/// The primary finds its state gone when it starts; what is written meanwhile waits.
const N9: Row = Row::new("N9", || {
    let mut cluster = group()?;
    cluster.vol().gid("snapshot s0 VOL --wait a0")?;
    cluster.kill("a0")?;
    std::fs::remove_file(cluster.path("a0/vol0/state"))?;
    cluster.start_all()?;
    cluster.vol().write(0, 0, 20)?;
    Ok(cluster)
});

matrix! {
    matrix_f10_1_a_secondary_that_lost_its_data: F10_1.by_fix;
    matrix_f10_2_a_primary_that_lost_its_data_is_followed_by_its_heir: F10_2.by_fix;
    matrix_f10_3_a_primary_that_lost_its_data_begins_anew: F10_3.by_fix;
    matrix_g5_a_full_replication_that_was_cut: G5.by_fix;
    matrix_g6_a_diff_replication_that_was_cut: G6.by_fix;
    matrix_g7_a_resync_that_was_cut: G7.by_fix;
    matrix_g8_a_device_that_grew: G8.by_fix;
    matrix_g9_an_apply_that_was_killed: G9.when_the_wdiffs_are_back;
    matrix_g10_a_restore_that_was_killed: G10.told_afterwards;
    matrix_n8_a_wdiff_that_is_damaged: N8.by_fix;
    matrix_page_n8: N8.by_page;
    matrix_n9_a_state_that_is_lost: N9.by_fix;
    matrix_page_n9: N9.by_page;
    matrix_page_f10_1: F10_1.by_page;
    matrix_page_f10_2: F10_2.by_page;
    matrix_page_f10_3: F10_3.by_page;
    matrix_page_g5: G5.by_page;
    matrix_page_g6: G6.by_page;
    matrix_page_g7: G7.by_page;
    matrix_page_g8: G8.by_page;
    matrix_page_g10: G10.by_page;
}
