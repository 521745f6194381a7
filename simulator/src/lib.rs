//! The whole pipeline in one process and one seed: device, storage, proxies, archives and the
//! controller's operations, the real servers on simulated seams.
//!
//! ```text
//!  scenario: set up -> actions and faults (commands, losses) or a directed plan (stories)
//!            -> heal (by the steps of the manual) -> check against the model
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

mod archive_model;
mod cluster;
mod commands;
mod defect;
mod devices;
mod disks;
mod fs;
mod heal;
mod images;
mod life;
mod losses;
mod model;
mod net;
mod plan;
mod roles;
mod scenario;
mod steps;
mod stories;

pub use archive_model::{Done, Portion, Portions};
pub use defect::{Canary, Defect};
pub use plan::Story;
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

/// What is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Case {
    /// Where everything random comes from.
    pub seed: u64,
    /// A directed plan; `None`: the plan is random, too.
    pub story: Option<Story>,
    /// A deliberate defect.
    pub canary: Option<Canary>,
}

impl Case {
    /// A random plan.
    #[must_use]
    pub fn seed(seed: u64) -> Self {
        Self { seed, ..Self::default() }
    }

    /// From the arguments `SEED [STORY] [CANARY]`.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let seed = args.next().and_then(|text| text.parse().ok()).ok_or("a seed is a number")?;
        args.try_fold(Self::seed(seed), |case, text| match text.contains(':') {
            true => Ok(Self { canary: Some(text.parse()?), ..case }),
            false => Ok(Self { story: Some(text.parse()?), ..case }),
        })
    }

    fn args(self) -> Vec<String> {
        let (story, canary) =
            (self.story.map(|s| s.to_string()), self.canary.map(|c| c.to_string()));
        std::iter::once(self.seed.to_string()).chain(story).chain(canary).collect()
    }
}

/// Runs a case in this process, which must run no other; the answer is the fingerprint of the run.
///
/// # Errors
/// What is wrong.
pub fn run(case: Case) -> Result<u64, String> {
    // A new thread: what this one has drawn already is not of the seed.
    let run = std::thread::spawn(move || scenario::run(case));
    run.join().unwrap_or_else(|_| Err("a panic".to_owned()))
}

/// Runs cases by the program `simulator`, each in a process of its own, for tokio and others count
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
    pub fn run(&self, case: Case) -> Result<String, String> {
        let mut command = Command::new(&self.program);
        command.args(case.args());
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
    /// When one fails.
    pub fn run_all(&self, cases: impl Iterator<Item = Case>) {
        let fails = |case| self.run(case).err().map(|why| (case, why));
        let failed: Vec<_> = cases.filter_map(fails).collect();
        let Some((first, _)) = failed.first() else { return };
        let shown = |case: &Case| case.args().join(" ");
        let list: String =
            failed.iter().map(|(case, why)| format!("\n  seed {}: {why}", shown(case))).collect();
        panic!(
            "{} seeds failed:{list}\nrepeat: {VERBOSE}=1 {LOG}=info cargo run -p simulator {}",
            failed.len(),
            shown(first)
        );
    }

    /// What the first of these cases that finds something says.
    #[must_use]
    pub fn finds(&self, mut cases: impl Iterator<Item = Case>) -> Option<(Case, String)> {
        cases.find_map(|case| self.run(case).err().map(|why| (case, why)))
    }
}
