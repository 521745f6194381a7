//! The whole pipeline in one process and one seed: device, storage, proxies, archives and the
//! controller's operations, the real servers on simulated seams.
//!
//! ```text
//!  scenario: set up -> actions and faults (commands) -> heal -> check against the model
//!      |
//!  cluster: one runtime for each host, ticks, kills          model: writes, snapshots
//!      |-- roles: the servers as processes
//!      |-- net: connections that are cut, delayed, silent
//!      |-- fs:  names and contents that are lost unless synced
//!      '-- disks: the log and data device
//! ```
//!
//! Everything random comes from the seed: the plan, the faults, and (getrandom is replaced in the
//! test programs) what the servers, tokio and the hash maps draw. Each seed has a process of its
//! own. So a seed repeats its run; a seed that fails says how.
//!
//! What is real: everything from gRPC upwards. What is not here: NBD, the io_uring engine, real
//! file systems; compression on several threads.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test tool: what is unexpected here ends the run"
)]

mod cluster;
mod commands;
mod defect;
mod disks;
mod fs;
mod heal;
mod life;
mod model;
mod net;
mod roles;
mod scenario;

pub use defect::{Canary, Defect};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// What the line with the fingerprint of a run begins with.
pub const FINGERPRINT: &str = "the run's fingerprint: ";
/// What the line with the reason of a failure begins with.
pub const FAILED: &str = "this seed fails: ";
/// Set, the program tells what it does.
pub const VERBOSE: &str = "WALB_SIM_VERBOSE";
/// Set, the program shows the logs of the roles; the value is a filter (`info`, `debug` ...).
pub const LOG: &str = "WALB_SIM_LOG";

/// Runs a seed in this process, which must run no other; the answer is the fingerprint of the run.
///
/// # Errors
/// What is wrong.
pub fn run(seed: u64, canary: Option<Canary>) -> Result<u64, String> {
    // A new thread: what this one has drawn already is not of the seed.
    let run = std::thread::spawn(move || scenario::run(seed, canary));
    run.join().unwrap_or_else(|_| Err("a panic".to_owned()))
}

/// Runs seeds by the program `simulator`, each in a process of its own, for tokio and others count
/// in statics.
pub struct Seeds {
    /// The program.
    pub program: PathBuf,
}

impl Seeds {
    /// Runs one; the answer is the fingerprint of the run.
    ///
    /// # Errors
    /// What is wrong.
    pub fn run(&self, seed: u64, canary: Option<Canary>) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.arg(seed.to_string()).args(canary.map(|c| c.to_string()));
        command.stdin(Stdio::null()).env_remove(VERBOSE).env_remove(LOG);
        let output = command.output().expect("the program starts");
        let text = String::from_utf8_lossy(&output.stderr);
        let told = |what: &str| text.lines().find_map(|l| Some(l.strip_prefix(what)?.to_owned()));
        match told(FINGERPRINT) {
            Some(fingerprint) if output.status.success() => Ok(fingerprint),
            _ => Err(told(FAILED).unwrap_or_else(|| text.into_owned())),
        }
    }

    /// Runs many; a panic names all that failed, and how to repeat the first.
    ///
    /// # Panics
    /// When a seed fails.
    pub fn run_all(&self, seeds: impl Iterator<Item = u64>) {
        let fails = |seed| self.run(seed, None).err().map(|why| (seed, why));
        let failed: Vec<_> = seeds.filter_map(fails).collect();
        let Some((first, _)) = failed.first() else { return };
        let list: String =
            failed.iter().map(|(seed, why)| format!("\n  seed {seed}: {why}")).collect();
        panic!(
            "{} seeds failed:{list}\nrepeat: {VERBOSE}=1 {LOG}=info cargo run -p simulator {first}",
            failed.len()
        );
    }

    /// The first of these seeds that finds the canary.
    #[must_use]
    pub fn finds(&self, canary: Canary, mut seeds: impl Iterator<Item = u64>) -> Option<u64> {
        seeds.find(|seed| self.run(*seed, Some(canary)).is_err())
    }
}
