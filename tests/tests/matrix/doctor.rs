//! `walbc doctor --json`, as a program reads it.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::cluster::Cluster;
use tests::poll::{DEADLINE, until};

/// What doctor says of one failure.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) id: String,
    pub(crate) heals_itself: bool,
    /// Commands as typed; `(TEXT)` for what a person does.
    pub(crate) steps: Vec<String>,
}

impl Finding {
    fn parse(finding: &Value) -> Option<Self> {
        let step = |step: &Value| {
            let command = step["command"].as_str().map(str::to_owned);
            command.or_else(|| Some(format!("({})", step["person"].as_str()?)))
        };
        Some(Self {
            id: finding["id"].as_str()?.to_owned(),
            heals_itself: finding["heals_itself"].as_bool()?,
            steps: finding["steps"].as_array()?.iter().map(step).collect::<Option<_>>()?,
        })
    }

    /// The last word of the step with this verb that is a number.
    pub(crate) fn number(&self, verb: &str) -> Option<&str> {
        let step = self.steps.iter().find(|step| step.starts_with(&format!("walbc {verb} ")))?;
        step.split(' ').rfind(|word| word.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

/// Exit code and findings; `direct`: from a place of the network that reaches every server.
pub(crate) fn look(cluster: &Cluster, direct: bool) -> Result<(i32, Vec<Finding>)> {
    let args = ["doctor", "--json"];
    let output = if direct { cluster.walbc_direct(&args) } else { cluster.walbc(&args) };
    let (code, stdout, stderr) = output?;
    let report: Value = serde_json::from_str(&stdout).with_context(|| stderr)?;
    let findings = report["findings"].as_array().context("findings")?;
    let findings = findings.iter().map(Finding::parse).collect::<Option<Vec<_>>>();
    Ok((code, findings.context("a finding lacks a key")?))
}

/// Waits until doctor names exactly these rows; the finding of the first.
pub(crate) fn named(cluster: &Cluster, ids: &[&str], direct: bool) -> Result<Finding> {
    let mut wanted: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
    wanted.sort();
    let mut last = Vec::new();
    let found = until("doctor names the row", DEADLINE, || {
        let (code, found) = look(cluster, direct)?;
        let mut rows: Vec<_> = found.iter().map(|finding| finding.id.clone()).collect();
        rows.sort();
        rows.dedup();
        last = found;
        if rows != wanted {
            return Ok(None);
        }
        let silence = rows.iter().all(|id| matches!(id.as_str(), "F1" | "F3" | "F4" | "F5"));
        let expected: &[i32] = if silence { &[3, 4] } else { &[3] };
        ensure!(expected.contains(&code), "doctor exits with {code}: {last:#?}");
        Ok(last.iter().find(|finding| finding.id == ids[0]).cloned())
    });
    found.with_context(|| format!("wanted {ids:?}, doctor says {last:#?}"))
}
