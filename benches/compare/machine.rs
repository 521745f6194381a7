//! What the results were measured on.

use std::fs::read_to_string;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The machine, the moment and the code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) date: String,
    pub(crate) commit: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    /// The load average of the last minute before the row.
    pub(crate) load: String,
}

impl Machine {
    /// This one, now.
    pub(crate) fn now() -> Self {
        let load = read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            date: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M").to_string(),
            commit: said(&["git", "describe", "--always", "--dirty", "--exclude=*"]),
            cpu: cpu(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: said(&["uname", "-sr"]),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

fn said(command: &[&str]) -> String {
    let output = command.split_first().and_then(|(program, args)| {
        Command::new(program).args(args).output().ok().filter(|output| output.status.success())
    });
    output.map_or_else(|| "unknown".into(), |o| String::from_utf8_lossy(&o.stdout).trim().into())
}

fn cpu() -> String {
    let info = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name"));
    name.map_or_else(|| "unknown".into(), |name| name.trim_start_matches(['\t', ' ', ':']).into())
}

/// Seconds that all processors together have worked since the machine was started.
pub(crate) fn busy_seconds() -> f64 {
    /// The kernel counts in hundredths.
    const TICKS: f64 = 100.0;
    let stat = read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let ticks: Vec<f64> = fields.filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, (idle, iowait), irq, softirq
    let busy = ticks.iter().enumerate().filter(|(i, _)| matches!(i, 0 | 1 | 2 | 5 | 6));
    busy.map(|(_, ticks)| ticks).sum::<f64>() / TICKS
}
