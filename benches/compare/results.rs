//! The results as data: what the JSON file holds.

use serde::{Deserialize, Serialize};

use crate::machine::Machine;

/// What the figures of a case are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Unit {
    /// Millions of bytes in a second.
    #[serde(rename = "MB/s")]
    MegabytesPerSecond,
    /// Reads and writes in a second.
    #[serde(rename = "IO/s")]
    OperationsPerSecond,
    /// Thousandths of a second.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Millions of bytes.
    #[serde(rename = "MB")]
    Megabytes,
    /// Of 2^20 bytes.
    #[serde(rename = "MiB")]
    Mebibytes,
    /// Hundredths of one processor.
    #[serde(rename = "% of a core")]
    PercentOfCore,
}

impl Unit {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::MegabytesPerSecond => "MB/s",
            Self::OperationsPerSecond => "IO/s",
            Self::Milliseconds => "ms",
            Self::Megabytes => "MB",
            Self::Mebibytes => "MiB",
            Self::PercentOfCore => "% of a core",
        }
    }

    pub(crate) const fn higher_is_better(self) -> bool {
        match self {
            Self::MegabytesPerSecond | Self::OperationsPerSecond => true,
            Self::Milliseconds | Self::Megabytes | Self::Mebibytes | Self::PercentOfCore => false,
        }
    }
}

/// The middle and the ends of some figures.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get((sorted.len() - 1) / 2)?;
        let median = f64::midpoint(*lower, *upper);
        Some(Self { median, min: *sorted.first()?, max: *sorted.last()? })
    }
}

/// What one side of a case reached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SideResult {
    pub(crate) name: String,
    pub(crate) figure: Spread,
    pub(crate) rounds: Vec<f64>,
    pub(crate) peak_bytes: Option<u64>,
    pub(crate) cpu_seconds: Option<f64>,
    /// Processors that the rest of the machine used meanwhile.
    pub(crate) others: Option<f64>,
    /// How many times better ours is, round by round, and how many it has to be.
    pub(crate) ratio: Option<Spread>,
    pub(crate) at_least: Option<f64>,
}

/// One case of a row: the first side is ours.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CaseResult {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) sides: Vec<SideResult>,
    /// The worst figure that ours may have.
    pub(crate) limit: Option<f64>,
    pub(crate) peak_limit_bytes: Option<u64>,
}

/// One row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RowResult {
    pub(crate) id: String,
    pub(crate) title: String,
    pub(crate) machine: Machine,
    pub(crate) cases: Vec<CaseResult>,
    /// Sides that could not be measured, and why.
    pub(crate) skipped: Vec<String>,
}
