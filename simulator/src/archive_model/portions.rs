//! Portions of operations: each has a seed and a process of its own, for tokio and others count in
//! statics; as many run at a time as there are cores.

use super::{Done, run};
use crate::defect::Canary;
use crate::{FAILED, FINGERPRINT, VERBOSE};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};

/// What the lines that count what was done begin with.
const COUNTED: &str = "done: ";

/// So many operations from a seed.
#[derive(Clone, Copy, Debug)]
pub struct Portion {
    /// Where everything random comes from.
    pub seed: u64,
    /// How many.
    pub operations: u64,
    /// A deliberate defect.
    pub canary: Option<Canary>,
}

impl fmt::Display for Portion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.seed, self.operations)?;
        self.canary.map_or(Ok(()), |canary| write!(f, " {canary}"))
    }
}

impl Portion {
    /// From the arguments `SEED OPERATIONS [CANARY]`.
    ///
    /// # Errors
    /// What cannot be understood.
    pub fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut number = |what: &str| {
            let found = args.next().and_then(|text| text.parse().ok());
            found.ok_or_else(|| format!("{what} is a number"))
        };
        let (seed, operations) = (number("a seed")?, number("how many operations")?);
        let canary = args.next().map(|text| text.parse()).transpose()?;
        Ok(Self { seed, operations, canary })
    }

    /// Does them in this process, which must do no others.
    ///
    /// # Errors
    /// What is wrong.
    pub fn run(self) -> Result<Done, String> {
        // A new thread: what this one has drawn already is not of the seed.
        let run = std::thread::spawn(move || run(self));
        run.join().unwrap_or_else(|_| Err("a panic".to_owned()))
    }

    /// Does them, and tells what came of it, as [`Portions`] reads it; whether all was well.
    #[must_use]
    pub fn tell(self) -> bool {
        match self.run() {
            Ok(Done { fingerprint, counts }) => {
                for (what, count) in counts {
                    eprintln!("{COUNTED}{count} {what}");
                }
                eprintln!("{FINGERPRINT}{fingerprint:016x}");
                true
            }
            Err(why) => {
                eprintln!("{FAILED}{why}");
                eprintln!("repeat: {}", self.repeat());
                false
            }
        }
    }

    fn repeat(self) -> String {
        format!("{VERBOSE}=1 cargo run --release -p simulator --bin archive-model -- {self}")
    }
}

/// Runs portions by the program `archive-model`.
pub struct Portions {
    /// The program.
    pub program: PathBuf,
}

impl Portions {
    /// Runs one; its fingerprint, and what was done how often.
    ///
    /// # Errors
    /// What is wrong.
    pub fn run(&self, portion: Portion) -> Result<(String, BTreeMap<String, u64>), String> {
        let mut command = Command::new(&self.program);
        command.args(portion.to_string().split(' '));
        command.stdin(Stdio::null()).env_remove(VERBOSE).env_remove(crate::LOG);
        let output = command.output().map_err(|e| format!("the program does not start: {e}"))?;
        let text = String::from_utf8_lossy(&output.stderr);
        let told = |what: &str| text.lines().find_map(|l| Some(l.strip_prefix(what)?.to_owned()));
        let Some(fingerprint) = told(FINGERPRINT).filter(|_| output.status.success()) else {
            return Err(told(FAILED).unwrap_or_else(|| text.into_owned()));
        };
        let counted = text.lines().filter_map(|line| {
            let (count, what) = line.strip_prefix(COUNTED)?.split_once(' ')?;
            Some((what.to_owned(), count.parse().ok()?))
        });
        Ok((fingerprint, counted.collect()))
    }

    /// Runs all of them, on so many cores; what was done how often.
    ///
    /// # Errors
    /// Which ones fail, why, and how to repeat the first.
    pub fn run_all(
        &self,
        portions: &[Portion],
        cores: usize,
    ) -> Result<BTreeMap<String, u64>, String> {
        let next = AtomicU64::new(0);
        let worker = || {
            let mut results = Vec::new();
            loop {
                let number = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
                let Some(portion) = portions.get(number) else { return results };
                results.push((*portion, self.run(*portion)));
            }
        };
        let results: Vec<_> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..cores.max(1)).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().flat_map(|w| w.join().expect("a worker does not panic")).collect()
        });
        let (mut counts, mut failed) = (BTreeMap::new(), Vec::new());
        for (portion, result) in results {
            match result {
                Ok((_, counted)) => {
                    for (what, count) in counted {
                        *counts.entry(what).or_default() += count;
                    }
                }
                Err(why) => failed.push((portion, why)),
            }
        }
        let Some((first, _)) = failed.first() else { return Ok(counts) };
        let list: String =
            failed.iter().map(|(portion, why)| format!("\n  {portion}: {why}")).collect();
        Err(format!("{} portions failed:{list}\nrepeat: {}", failed.len(), first.repeat()))
    }
}
