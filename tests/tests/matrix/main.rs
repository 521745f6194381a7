//! Every failure of the recovery manual (semantics.md §7) on a real group: it is made, `walbc
//! doctor` names it, doctor's steps are followed, and then a restore is compared with the volume and
//! the volume is synchronizing again. `cargo nextest run -E 'test(matrix_)'` runs them.
//!
//! | rows | module |
//! |---|---|
//! | F1-F6, N1 | [`servers`] |
//! | G1, G2, G11, N3 | [`network`] |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

mod network;
mod servers;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::cluster::{Cluster, Layout};
use tests::poll::{DEADLINE, until};
use tests::skip::have_programs;
use tests::volume::Volume;

/// What doctor says of one failure.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    id: String,
    heals_itself: bool,
    /// Commands as typed; `(TEXT)` for what a person does.
    steps: Vec<String>,
    whole: Value,
}

impl Finding {
    fn parse(whole: &Value) -> Option<Self> {
        let step = |step: &Value| {
            let command = step["command"].as_str().map(str::to_owned);
            command.or_else(|| Some(format!("({})", step["person"].as_str()?)))
        };
        Some(Self {
            id: whole["id"].as_str()?.to_owned(),
            heals_itself: whole["heals_itself"].as_bool()?,
            steps: whole["steps"].as_array()?.iter().map(step).collect::<Option<_>>()?,
            whole: whole.clone(),
        })
    }
}

/// `walbc doctor --json`: exit code and findings.
pub(crate) fn doctor(cluster: &Cluster) -> Result<(i32, Vec<Finding>)> {
    parse(cluster.walbc(&["doctor", "--json"])?)
}

/// The same from a place of the network that reaches every server.
pub(crate) fn doctor_direct(cluster: &Cluster) -> Result<(i32, Vec<Finding>)> {
    parse(cluster.walbc_direct(&["doctor", "--json"])?)
}

fn parse((code, stdout, stderr): (i32, String, String)) -> Result<(i32, Vec<Finding>)> {
    let report: Value = serde_json::from_str(&stdout).with_context(|| stderr)?;
    let findings = report["findings"].as_array().context("findings")?;
    let findings = findings.iter().map(Finding::parse).collect::<Option<Vec<_>>>();
    Ok((code, findings.context("a finding lacks a key")?))
}

/// Waits until doctor names this row and no other; its finding.
pub(crate) fn named(cluster: &Cluster, id: &str) -> Result<Finding> {
    named_among(cluster, &[id])
}

/// Waits until doctor names exactly these rows; the finding of the first.
pub(crate) fn named_among(cluster: &Cluster, ids: &[&str]) -> Result<Finding> {
    let mut wanted: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
    wanted.sort();
    let mut last = Vec::new();
    let found = until("doctor names the row", DEADLINE, || {
        let (code, found) = doctor(cluster)?;
        let mut rows: Vec<_> = found.iter().map(|finding| finding.id.clone()).collect();
        rows.sort();
        rows.dedup();
        let servers_alone = rows.iter().all(|id| matches!(id.as_str(), "F1" | "F3" | "F4" | "F5"));
        last = found;
        if rows != wanted {
            return Ok(None);
        }
        let expected: &[i32] = if servers_alone { &[3, 4] } else { &[3] };
        ensure!(expected.contains(&code), "doctor exits with {code}: {last:#?}");
        Ok(last.iter().find(|finding| finding.id == ids[0]).cloned())
    });
    found.with_context(|| format!("wanted {ids:?}, doctor says {last:#?}"))
}

/// Runs the commands of a finding as a shell would; what a person does is for `person`.
pub(crate) fn follow(
    cluster: &mut Cluster,
    finding: &Finding,
    mut person: impl FnMut(&mut Cluster, &str) -> Result<()>,
) -> Result<()> {
    ensure!(!finding.heals_itself && !finding.steps.is_empty(), "no steps: {finding:#?}");
    for step in &finding.steps {
        match step.strip_prefix("walbc ") {
            Some(line) => cluster.vol().walbc(line).map(drop)?,
            None => person(cluster, step)?,
        }
    }
    Ok(())
}

/// Nothing for a person in these steps.
pub(crate) fn nobody(_: &mut Cluster, step: &str) -> Result<()> {
    bail!("doctor wants a person to {step}")
}

/// `walbc doctor --fix --yes`, which must end with everything well.
pub(crate) fn fix(cluster: &Cluster) -> Result<()> {
    let (code, stdout, stderr) = cluster.walbc(&["doctor", "--fix", "--yes"])?;
    ensure!(code == 0, "doctor --fix: exit {code}: {stdout}\n{stderr}");
    Ok(())
}

/// Doctor finds nothing, and what is written now can be restored from `archive`, which follows.
pub(crate) fn well_at(cluster: &Cluster, archive: &str) -> Result<()> {
    let vol = cluster.vol();
    let mut last = Vec::new();
    let well = until("doctor finds nothing", DEADLINE, || {
        let (code, found) = doctor(cluster)?;
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

/// The same at the usual primary.
pub(crate) fn well(cluster: &Cluster) -> Result<()> {
    well_at(cluster, "a0")
}

/// Two legs, two proxies, two archives; s0 the target, a0 synchronizing.
pub(crate) fn group() -> Result<Cluster> {
    base(Layout::scenario())
}

pub(crate) fn base(layout: Layout) -> Result<Cluster> {
    let cluster = Cluster::start(layout)?;
    cluster.vol().base_state()?;
    Ok(cluster)
}

/// Some writes that are at the archive, and doctor content.
pub(crate) fn busy_and_well(vol: Volume<'_>) -> Result<()> {
    vol.write(0, 0, 20)?;
    vol.gid("snapshot s0 VOL --wait a0").map(drop)
}

/// A test with its row in its name.
macro_rules! matrix {
    ($(#[$attr:meta])* $name:ident, $body:block) => {
        $(#[$attr])*
        #[test]
        fn $name() -> anyhow::Result<()> {
            let programs = ["qemu-io", "nbdcopy", "sha256sum"];
            if !crate::have_programs(stringify!($name), &programs) {
                return Ok(());
            }
            $body
            Ok(())
        }
    };
}
pub(crate) use matrix;
