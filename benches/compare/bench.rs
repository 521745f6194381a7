//! What a row works with: programs, places, and the rounds of a case.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use crate::Args;
use crate::child::{self, Usage};
use crate::machine::Machine;
use crate::results::{CaseResult, RowResult, SideResult, Spread, Unit};

/// A row of the table.
pub(crate) trait Row {
    /// Such as `P1`.
    fn id(&self) -> &'static str;
    /// What is measured, against what.
    fn title(&self) -> &'static str;
    /// Makes the inputs and measures all cases.
    fn run(&self, bench: &mut Bench) -> anyhow::Result<()>;
}

/// What one run of one side gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) figure: f64,
    /// Of a side that is a process of its own.
    pub(crate) usage: Option<Usage>,
}

/// One run of a side.
pub(crate) type Run<'a> = Box<dyn FnMut() -> anyhow::Result<Sample> + 'a>;

/// One side of a case. The first one is ours.
pub(crate) struct Side<'a> {
    name: &'static str,
    /// How many times better than this side ours has to be.
    at_least: Option<f64>,
    run: Option<Run<'a>>,
}

impl Sample {
    /// Of a side that is more than one process.
    pub(crate) const fn of(figure: f64) -> Self {
        Self { figure, usage: None }
    }

    /// So many bytes were worked through since `start`.
    pub(crate) fn throughput(bytes: u64, start: Instant) -> Self {
        Self::of(megabytes(bytes) / start.elapsed().as_secs_f64())
    }
}

impl<'a> Side<'a> {
    pub(crate) fn ours(run: Run<'a>) -> Self {
        Self { name: "walb", at_least: None, run: Some(run) }
    }

    /// What ours is compared with; `None` when it is not on this machine.
    pub(crate) const fn peer(name: &'static str, at_least: f64, run: Option<Run<'a>>) -> Self {
        Self { name, at_least: Some(at_least), run }
    }

    /// Something that shows a limit of the machine.
    pub(crate) fn limit(name: &'static str, run: Run<'a>) -> Self {
        Self { name, at_least: None, run: Some(run) }
    }
}

/// A side's name, how many times better ours has to be, its rounds.
type Samples = (&'static str, Option<f64>, Vec<Sample>);

/// What a case is.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    /// The worst figure that ours may have.
    pub(crate) limit: Option<f64>,
    pub(crate) peak_limit_bytes: Option<u64>,
}

impl Case {
    /// Without limits of its own.
    pub(crate) fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit, limit: None, peak_limit_bytes: None }
    }

    /// The worst figure that ours may have.
    pub(crate) fn limit(self, limit: f64) -> Self {
        Self { limit: Some(limit), ..self }
    }
}

/// The figures of a side, of rounds that were measured together with something else.
pub(crate) struct Figures {
    name: &'static str,
    at_least: Option<f64>,
    figures: Vec<f64>,
}

impl Figures {
    pub(crate) const fn ours(figures: Vec<f64>) -> Self {
        Self { name: "walb", at_least: None, figures }
    }

    pub(crate) const fn peer(name: &'static str, at_least: f64, figures: Vec<f64>) -> Self {
        Self { name, at_least: Some(at_least), figures }
    }

    pub(crate) const fn limit(name: &'static str, figures: Vec<f64>) -> Self {
        Self { name, at_least: None, figures }
    }
}

/// The surroundings of one row, and what it found out.
pub(crate) struct Bench {
    quick: bool,
    rounds: usize,
    only: Option<String>,
    peer_tools: Option<PathBuf>,
    walb: PathBuf,
    scratch: TempDir,
    disk: PathBuf,
    machine: Machine,
    cases: Vec<CaseResult>,
    skipped: BTreeSet<String>,
}

impl Bench {
    pub(crate) fn new(args: &Args) -> anyhow::Result<Self> {
        let walb = tests::process::binary("walb")?;
        let scratch = TempDir::with_prefix_in("walb-compare.", &args.scratch)
            .with_context(|| format!("cannot use {}", args.scratch.display()))?;
        Ok(Self {
            quick: args.quick,
            rounds: if args.quick { 1 } else { args.rounds.max(1) },
            only: args.case.clone(),
            peer_tools: args.peer_tools.clone(),
            walb,
            scratch,
            disk: args.disk.clone(),
            machine: Machine::now(),
            cases: Vec::new(),
            skipped: BTreeSet::new(),
        })
    }

    /// Counted rounds.
    pub(crate) const fn rounds(&self) -> usize {
        self.rounds
    }

    /// Only to see that it runs?
    pub(crate) const fn quick(&self) -> bool {
        self.quick
    }

    /// `full`, or little of it.
    pub(crate) const fn sized(&self, full: u64) -> u64 {
        if self.quick { full / 128 } else { full }
    }

    /// Is a case of this name wanted? Asked before its inputs are made.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.only.as_ref().is_none_or(|part| name.contains(part.as_str()))
    }

    /// A file of the row on the tmpfs; all are gone after the row.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Removes all files of the row.
    pub(crate) fn clear(&self) -> anyhow::Result<()> {
        for entry in self.scratch.path().read_dir()? {
            std::fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// A directory on a real disk, gone when dropped.
    pub(crate) fn disk(&self) -> anyhow::Result<TempDir> {
        TempDir::with_prefix_in("walb-compare.", &self.disk)
            .with_context(|| format!("cannot use {}", self.disk.display()))
    }

    /// [`Bench::disk`], which has room for so many bytes.
    pub(crate) fn disk_with(&self, bytes: u64) -> anyhow::Result<TempDir> {
        let dir = self.disk()?;
        let free = statvfs(dir.path())?;
        let free = free.blocks_available() * free.fragment_size();
        let at = self.disk.display();
        ensure!(free >= bytes, "{at} has {free} bytes free, {bytes} are needed: see --disk");
        Ok(dir)
    }

    /// Something that could not be measured, and why.
    pub(crate) fn skip(&mut self, what: &str) {
        self.skipped.insert(what.to_owned());
    }

    /// A command line of our program.
    pub(crate) fn walb(&self, args: &[&str]) -> Vec<OsString> {
        command(&self.walb, args)
    }

    /// What our program prints.
    pub(crate) fn output(&self, args: &[&str]) -> anyhow::Result<String> {
        tests::outside::run(&self.walb.to_string_lossy(), args)
    }

    /// A command line of a tool of the original; `None` when it is missing.
    pub(crate) fn peer(&self, tool: &str, args: &[&str]) -> Option<Vec<OsString>> {
        let path = self.peer_tools.as_ref()?.join(tool);
        path.is_file().then(|| command(&path, args))
    }

    /// Runs the sides in turns; the first round is not counted.
    pub(crate) fn measure(&mut self, case: Case, sides: Vec<Side<'_>>) -> anyhow::Result<()> {
        if !self.wants(&case.name) {
            return Ok(());
        }
        eprintln!("  {}", case.name);
        let mut runs = Vec::new();
        for Side { name, at_least, run } in sides {
            match run {
                Some(run) => runs.push((name, at_least, run, Vec::new())),
                None => self.skip(&format!("{name}: not on this machine")),
            }
        }
        let warm_up = usize::from(!self.quick);
        for round in 0..self.rounds + warm_up {
            for (name, _, run, samples) in &mut runs {
                let sample = run().with_context(|| format!("{}: {name}", case.name))?;
                if round >= warm_up {
                    samples.push(sample);
                }
            }
        }
        let sides = runs.into_iter().map(|(name, at_least, _, samples)| (name, at_least, samples));
        self.keep(case, sides.collect())
    }

    /// Keeps what was measured together with something else; the first side is ours.
    pub(crate) fn record(&mut self, case: Case, sides: Vec<Figures>) -> anyhow::Result<()> {
        if !self.wants(&case.name) {
            return Ok(());
        }
        let samples = |side: Figures| side.figures.into_iter().map(Sample::of).collect();
        let sides = sides.into_iter().map(|side| (side.name, side.at_least, samples(side)));
        self.keep(case, sides.collect())
    }

    fn keep(&mut self, case: Case, sides: Vec<Samples>) -> anyhow::Result<()> {
        let mut results = Vec::new();
        let ours: Vec<f64> = sides.first().map(|side| figures(&side.2)).unwrap_or_default();
        for (index, (name, at_least, samples)) in sides.iter().enumerate() {
            let compare = (index > 0).then_some(ours.as_slice());
            let result = side_result(name, *at_least, case.unit, samples, compare);
            results.push(result.context("a side without rounds")?);
        }
        let Case { name, unit, limit, peak_limit_bytes } = case;
        self.cases.push(CaseResult { name, unit, sides: results, limit, peak_limit_bytes });
        Ok(())
    }

    /// All that the row found out.
    pub(crate) fn finish(self, id: &str, title: &str) -> RowResult {
        RowResult {
            id: id.to_owned(),
            title: title.to_owned(),
            machine: self.machine,
            cases: self.cases,
            skipped: self.skipped.into_iter().collect(),
        }
    }
}

fn command(program: &Path, args: &[&str]) -> Vec<OsString> {
    std::iter::once(program.into()).chain(args.iter().map(OsString::from)).collect()
}

/// A run that is one command which works through `bytes` bytes; `output` is removed before it.
pub(crate) fn throughput<'a>(command: Vec<OsString>, bytes: u64, output: &'a Path) -> Run<'a> {
    Box::new(move || {
        if output.exists() {
            std::fs::remove_file(output)?;
        }
        measured(&command, bytes)
    })
}

/// A shell script as a command; `args` are its `$1`, `$2`...
pub(crate) fn shell(script: &str, args: Vec<OsString>) -> Vec<OsString> {
    let shell = ["sh", "-ec", script, "sh"].map(OsString::from);
    shell.into_iter().chain(args).collect()
}

/// A run that is one command which works through `bytes` bytes and changes a file that stays.
pub(crate) fn in_place<'a>(command: Vec<OsString>, bytes: u64) -> Run<'a> {
    Box::new(move || measured(&command, bytes))
}

fn measured(command: &[OsString], bytes: u64) -> anyhow::Result<Sample> {
    let usage = child::measure(command)?;
    let figure = megabytes(bytes) / usage.wall_seconds;
    Ok(Sample { figure, usage: Some(usage) })
}

/// Millions of bytes.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn figures(samples: &[Sample]) -> Vec<f64> {
    samples.iter().map(|sample| sample.figure).collect()
}

fn side_result(
    name: &str,
    at_least: Option<f64>,
    unit: Unit,
    samples: &[Sample],
    ours: Option<&[f64]>,
) -> Option<SideResult> {
    let rounds = figures(samples);
    let usages = || samples.iter().filter_map(|sample| sample.usage);
    let better = |(ours, theirs): (&f64, &f64)| {
        if unit.higher_is_better() { ours / theirs } else { theirs / ours }
    };
    Some(SideResult {
        name: name.to_owned(),
        figure: Spread::of(rounds.iter().copied())?,
        peak_bytes: usages().map(|usage| usage.peak_bytes).max(),
        cpu_seconds: Spread::of(usages().map(|usage| usage.cpu_seconds)).map(|s| s.median),
        others: Spread::of(usages().map(|usage| usage.others)).map(|s| s.median),
        ratio: ours.and_then(|ours| Spread::of(ours.iter().zip(&rounds).map(better))),
        at_least,
        rounds,
    })
}
