//! One command, measured as a whole process: wall time, processor time, peak memory.
//!
//! The kernel tells a process the peak memory of all its children together. So each measured
//! command is the only child of a process of its own: this program once more, with `RUN` set.

use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context as _, bail};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

use crate::machine;

/// The variable that makes this program the parent of one measured command.
const RUN: &str = "WALB_COMPARE_RUN";

/// What a command took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Seconds from start to exit.
    pub(crate) wall_seconds: f64,
    /// Seconds of all processors, user and system.
    pub(crate) cpu_seconds: f64,
    /// Largest resident memory.
    pub(crate) peak_bytes: u64,
    /// Processors that the rest of the machine used meanwhile.
    pub(crate) others: f64,
}

/// Runs `command` to its end, with its output to nowhere; it must succeed.
pub(crate) fn measure(command: &[OsString]) -> anyhow::Result<Usage> {
    let what = || format!("{command:?}");
    let this = std::env::current_exe().context("cannot find this program")?;
    let busy = machine::busy_seconds();
    let output = Command::new(this)
        .args(command)
        .env(RUN, "1")
        .stdin(Stdio::null())
        .output()
        .with_context(what)?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let mut usage: Usage = serde_json::from_slice(&output.stdout).with_context(what)?;
    let machine = machine::busy_seconds() - busy;
    usage.others = ((machine - usage.cpu_seconds) / usage.wall_seconds).max(0.0);
    Ok(usage)
}

/// The parent of one command: runs it, and says on stdout what it took. `None` in other lives.
pub(crate) fn run_if_asked() -> Option<ExitCode> {
    std::env::var_os(RUN)?;
    let command: Vec<OsString> = std::env::args_os().skip(1).collect();
    match run(&command) {
        Ok(()) => Some(ExitCode::SUCCESS),
        Err(error) => {
            eprintln!("{error:#}");
            Some(ExitCode::FAILURE)
        }
    }
}

fn run(command: &[OsString]) -> anyhow::Result<()> {
    let (program, args) = command.split_first().context("no command")?;
    let start = Instant::now();
    // stderr goes through, for the case that it fails.
    let mut command = Command::new(program);
    let status = command.args(args).env_remove(RUN).stdout(Stdio::null()).status()?;
    let wall_seconds = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{status}");
    }
    let used = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let seconds = |t: nix::sys::time::TimeVal| {
        std::time::Duration::from_micros(
            u64::try_from(t.tv_sec() * 1_000_000 + t.tv_usec()).unwrap_or(0),
        )
        .as_secs_f64()
    };
    let usage = Usage {
        wall_seconds,
        cpu_seconds: seconds(used.user_time()) + seconds(used.system_time()),
        peak_bytes: u64::try_from(used.max_rss()).unwrap_or(0) << 10,
        others: 0.0,
    };
    serde_json::to_writer(std::io::stdout(), &usage)?;
    Ok(())
}
