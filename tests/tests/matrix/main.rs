//! Every failure of the recovery manual (semantics.md §7) on a real group: it is made, `walbc
//! doctor` names it, the way back is taken, and then a restore is compared with the volume and the
//! volume is synchronizing again. `cargo nextest run -E 'test(matrix_)'` runs them.
//!
//! A [`Row`] makes one failure. It is healed by the steps that doctor prints, by `doctor --fix`, or
//! (`matrix_page_*`) by the commands of its section in docs/operating/recovering.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

mod archives;
mod doctor;
mod losses;
mod network;
mod page;
mod servers;

use anyhow::{Context, Result, bail, ensure};
use doctor::{Finding, look};
use tests::cluster::{Cluster, Layout};
use tests::poll::{DEADLINE, until};
use tests::skip::have_programs;

/// One failure.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    /// As doctor and the manual call it.
    id: &'static str,
    /// Its section in the manual.
    section: &'static str,
    /// What doctor must name beside it.
    also: &'static [&'static str],
    /// A group that has it.
    make: fn() -> Result<Cluster>,
    /// Does what a person has to do.
    person: fn(&mut Cluster, &str) -> Result<()>,
    /// The archive that follows afterwards.
    archive: &'static str,
    /// Doctor looks from a place of the network that reaches every server.
    direct: bool,
}

impl Row {
    /// A row that needs no person.
    const fn new(id: &'static str, make: fn() -> Result<Cluster>) -> Self {
        Self { id, section: id, also: &[], make, person: nobody, archive: "a0", direct: false }
    }

    /// With what a person does.
    const fn with(self, person: fn(&mut Cluster, &str) -> Result<()>) -> Self {
        Self { person, ..self }
    }

    /// Makes it and waits until doctor names it.
    fn named(&self) -> Result<(Cluster, Finding)> {
        let cluster = (self.make)()?;
        let ids: Vec<_> = std::iter::once(self.id).chain(self.also.iter().copied()).collect();
        let finding = doctor::named(&cluster, &ids, self.direct)?;
        Ok((cluster, finding))
    }

    /// Healed by the steps, as doctor prints them.
    fn by_steps(&self) -> Result<()> {
        let (mut cluster, finding) = self.named()?;
        ensure!(!finding.heals_itself && !finding.steps.is_empty(), "no steps: {finding:#?}");
        for step in &finding.steps {
            match step.strip_prefix("walbc ") {
                Some(line) => cluster.vol().walbc(line).map(drop)?,
                None => (self.person)(&mut cluster, step)?,
            }
        }
        well_at(&cluster, self.archive)
    }

    /// Healed by `walbc doctor --fix --yes`.
    fn by_fix(&self) -> Result<()> {
        let (cluster, _) = self.named()?;
        let (code, stdout, stderr) = cluster.walbc(&["doctor", "--fix", "--yes"])?;
        ensure!(code == 0, "doctor --fix: exit {code}: {stdout}\n{stderr}");
        well_at(&cluster, self.archive)
    }

    /// Healed by the commands of the manual.
    fn by_page(&self) -> Result<()> {
        let (mut cluster, finding) = self.named()?;
        page::run_section(&mut cluster, self, &finding)?;
        well_at(&cluster, self.archive)
    }
}

/// Nothing is for a person in this row.
pub(crate) fn nobody(_: &mut Cluster, step: &str) -> Result<()> {
    bail!("a person is asked to {step}")
}

/// Doctor finds nothing, and what is written now can be restored from `archive`, which follows.
pub(crate) fn well_at(cluster: &Cluster, archive: &str) -> Result<()> {
    let vol = cluster.vol();
    let mut last = Vec::new();
    let well = until("doctor finds nothing", DEADLINE, || {
        let (code, found) = look(cluster, false)?;
        last = found;
        Ok((code == 0).then_some(()))
    });
    well.with_context(|| format!("doctor says {last:#?}"))?;
    vol.write(0, 7, 3)?;
    let gid = vol.gid(&format!("snapshot s0 VOL --wait {archive}"))?;
    vol.same(0, archive, gid)?;
    ensure!(vol.ask(&format!("is-synchronizing {archive} VOL"))?, "{archive} does not follow");
    vol.expect_state("s0", "Target")
}

/// In the base state T (semantics.md §8.1): s0 the target, a0 synchronizing.
pub(crate) fn base(layout: Layout) -> Result<Cluster> {
    let cluster = Cluster::start(layout)?;
    cluster.vol().base_state()?;
    Ok(cluster)
}

/// Two legs, two proxies, two archives.
pub(crate) fn group() -> Result<Cluster> {
    base(Layout::scenario())
}

/// The same, and a gap waits for a person.
pub(crate) fn manual_group() -> Result<Cluster> {
    base(Layout::scenario().with_flags("s0", &["--resync", "manual"]))
}

/// The same, and a1 follows, too.
pub(crate) fn synchronizing_group() -> Result<Cluster> {
    let cluster = group()?;
    cluster.vol().walbc("replicate a0 VOL a1 --synchronizing")?;
    Ok(cluster)
}

/// The disk of a server that is down has died, and a new one is in its place.
pub(crate) fn lose_data(cluster: &mut Cluster, name: &str) -> Result<()> {
    cluster.shutdown(name)?;
    cluster.delete_data(name)?;
    cluster.startup(name)
}

/// Tests of rows, each with its row in its name: `name: ROW.way`.
macro_rules! matrix {
    ($($(#[$attr:meta])* $name:ident: $row:ident.$way:ident;)*) => { $(
        $(#[$attr])*
        #[test]
        fn $name() -> anyhow::Result<()> {
            let programs = ["qemu-io", "nbdcopy", "sha256sum"];
            if !crate::have_programs(stringify!($name), &programs) {
                return Ok(());
            }
            $row.$way()
        }
    )* };
}
pub(crate) use matrix;
