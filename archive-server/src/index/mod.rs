//! The index of a volume: which record of which wdiff holds a block, so that a snapshot is read
//! anywhere without reading the wdiffs that lead to it.
//!
//! ```text
//!  receive, merge, apply ... --"something changed"--> Indexer (one task) --tend--> index/*.run
//!                                                                                    |
//!  mount, hash sync, read --Index::layers (lists *.run, indexes the rest in memory)--+
//! ```
//! A run (`wdiff_format::index_run`) covers some wdiffs, each of which it knows by its gids, time
//! and size. Nothing else says what the index has: whoever needs it lists the directory and picks
//! the runs that cover wanted diffs. So receiving and deleting wdiffs never waits for the index:
//! diffs that no run covers yet are indexed in memory by those who read, less than a batch of them
//! ([`Settings`](crate::Settings)), and diffs that are gone are passed over. A background task
//! ([`tend`]) covers what is new, a batch at a time, and keeps the runs few: eight of like size
//! become one, and a run of which half is gone is written again without that.
//!
//! Invariants: a run is derived: one that is missing, damaged or of another version is taken away,
//! said in the log, and made again from the wdiffs (I8); a run takes its name when it is whole and
//! durable, and goes only when what it covers is covered by another one or gone, so a kill at any
//! instant leaves an index that is right (I9); who reads a run holds it open (I12).

mod build;
mod cache;
mod tend;

pub(crate) use cache::Reading;
pub(crate) use tend::{Indexer, Wishes};

use crate::faults;
use crate::leases::Lease;
use crate::volume::Volume;
pub(crate) use build::Source;
use parking_lot::Mutex;
use server_kit::blocking;
use server_kit::durable::DurableDir;
use server_kit::error::RoleError;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use wdiff_format::gid::Diff;
use wdiff_format::index_run::{Piece, Reach, Run, RunError, Wanted, overlay};
use wlog_format::units::Lb;

/// Directory of the runs in a volume's directory.
pub(crate) const INDEX_DIR: &str = "index";
/// How the names of runs end.
const SUFFIX: &str = ".run";
/// Bytes of diffs that no run covers before they are worth one.
const BATCH_BYTES: u64 = 64 << 20;

/// The index of one volume.
pub(crate) struct Index {
    dir: Arc<dyn DurableDir>,
    /// Runs that somebody has open, by their names.
    open: Mutex<BTreeMap<String, Weak<Run>>>,
    /// One at a time makes runs and takes them away.
    turn: tokio::sync::Mutex<()>,
    /// Diffs that came since the index was tended, more or less.
    came: AtomicUsize,
    next: AtomicU64,
}

impl Index {
    /// That of the volume in `dir`.
    pub(crate) fn new(dir: Arc<dyn DurableDir>) -> Self {
        let (open, turn) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { dir, open, turn, came: AtomicUsize::new(0), next: AtomicU64::new(0) }
    }

    /// A diff was added; how many since the index was tended.
    fn came(&self) -> usize {
        self.came.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The runs that are there, newest first. What is damaged or not for us is taken away. Blocks.
    fn runs(&self, reading: &Arc<Reading>) -> Result<Vec<Arc<Run>>, RoleError> {
        if !self.dir.has_dir(INDEX_DIR) {
            return Ok(Vec::new());
        }
        let dir = self.dir.open_dir(INDEX_DIR)?;
        let mut names = dir.list()?;
        names.retain(|name| name.ends_with(SUFFIX));
        let mut runs = Vec::with_capacity(names.len());
        for name in names.into_iter().rev() {
            runs.extend(self.run(&*dir, name, reading)?);
        }
        self.open.lock().retain(|_, run| run.strong_count() > 0);
        Ok(runs)
    }

    fn run(
        &self,
        dir: &dyn DurableDir,
        name: String,
        reading: &Arc<Reading>,
    ) -> Result<Option<Arc<Run>>, RoleError> {
        if let Some(run) = self.open.lock().get(&name).and_then(Weak::upgrade) {
            return Ok(Some(run));
        }
        let path = dir.path().join(&name).display().to_string();
        let opened = match dir.open_file(&name) {
            Ok(input) => Run::open(input, path, reading.clone()),
            // Merged into another one, which is newer: the caller has it, or does without.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(RoleError::io("open", path, e)),
        };
        match opened {
            Ok(run) => {
                let run = Arc::new(run);
                self.open.lock().insert(name, Arc::downgrade(&run));
                Ok(Some(run))
            }
            Err(error) => {
                self.discard(&name, &error)?;
                Ok(None)
            }
        }
    }

    /// Takes a run away that cannot be used; it is made again from the wdiffs. Blocks.
    fn discard(&self, name: &str, why: &dyn std::error::Error) -> Result<(), RoleError> {
        let why = format!("{why}{}", why.source().map(|s| format!(": {s}")).unwrap_or_default());
        tracing::warn!(why, "an index run cannot be used; it is made again from the wdiffs");
        self.open.lock().remove(name);
        Ok(self.dir.open_dir(INDEX_DIR)?.remove(name)?)
    }

    /// Removes runs that somebody else has replaced. Blocks.
    fn remove(&self, runs: &[Arc<Run>]) -> Result<(), RoleError> {
        let names: Vec<String> = runs.iter().map(|run| run_name(run.file()).to_owned()).collect();
        Ok(self.dir.open_dir(INDEX_DIR)?.remove_all(&names)?)
    }

    /// The name of the next run, behind all others. Blocks.
    fn next_name(&self, dir: &dyn DurableDir) -> Result<String, RoleError> {
        let number = |name: &String| u64::from_str_radix(name.strip_suffix(SUFFIX)?, 16).ok();
        let last = dir.list()?.iter().filter_map(number).max().unwrap_or(0);
        let next = last.max(self.next.load(Ordering::Relaxed)).saturating_add(1);
        self.next.store(next, Ordering::Relaxed);
        Ok(format!("{next:016x}{SUFFIX}"))
    }

    /// What is needed to read the snapshot that the leased diffs lead to. Many diffs that no run
    /// covers are covered first.
    pub(crate) async fn layers(
        volume: &Arc<Volume>,
        reading: &Arc<Reading>,
        lease: &Lease,
    ) -> Result<Layers, RoleError> {
        let look = || {
            let (volume, reading, lease) = (volume.clone(), reading.clone(), lease.clone());
            blocking::run(move || Covering::look(&volume.index, &reading, lease.diffs()))
        };
        let mut found = look().await?;
        if found.is_worth_a_run(reading, lease.diffs()) {
            // Others wait here while one does it; it is done for them, too.
            let turn = volume.index.turn.lock().await;
            found = look().await?;
            if found.is_worth_a_run(reading, lease.diffs()) {
                let source = Source { volume: volume.clone(), lease: lease.clone() };
                let rest = found.uncovered;
                blocking::run(move || source.write_runs(&rest, &|| true)).await?;
                found = look().await?;
            }
            drop(turn);
        }
        let source = Source { volume: volume.clone(), lease: lease.clone() };
        let reading = reading.clone();
        blocking::run(move || found.finish(&source, reading)).await
    }

    /// What was read of a run was damaged: without it the index is right again. Blocks.
    pub(crate) fn heal(&self, error: &RunError) -> Result<(), RoleError> {
        match error_file(error) {
            Some(file) => self.discard(run_name(file), error),
            None => Ok(()),
        }
    }

    /// Takes away all runs that cover a diff: they do not say what its file has. Blocks.
    pub(crate) fn forget(&self, reading: &Arc<Reading>, diff: &Diff) -> Result<(), RoleError> {
        let covers = |run: &Arc<Run>| run.wanted(std::slice::from_ref(diff)).is_some();
        let runs: Vec<_> = self.runs(reading)?.into_iter().filter(covers).collect();
        for run in &runs {
            tracing::warn!(run = run.file(), %diff, "the index says otherwise than the wdiff");
        }
        self.open.lock().retain(|name, _| runs.iter().all(|r| run_name(r.file()) != name));
        if runs.is_empty() { Ok(()) } else { self.remove(&runs) }
    }
}

/// The name of a run's file.
fn run_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn error_file(error: &RunError) -> Option<&str> {
    match error {
        RunError::Io { file, .. } | RunError::Unusable { file, .. } => Some(file),
        RunError::Write(_) | RunError::Order(_) | RunError::OutOfReach => None,
    }
}

/// Which runs cover some diffs, and which of the diffs no run does.
struct Covering {
    runs: Vec<(Arc<Run>, Wanted)>,
    uncovered: Vec<u32>,
}

impl Covering {
    /// Blocks.
    fn look(index: &Index, reading: &Arc<Reading>, list: &[Diff]) -> Result<Self, RoleError> {
        let runs: Vec<_> = index
            .runs(reading)?
            .into_iter()
            .filter_map(|run| run.wanted(list).map(|wanted| (run, wanted)))
            .collect();
        let mut covered = vec![false; list.len()];
        for position in runs.iter().flat_map(|(_, wanted)| wanted.positions()) {
            if let Some(covered) = covered.get_mut(wlog_format::units::to_usize(position.into())) {
                *covered = true;
            }
        }
        let uncovered = (0..).zip(covered).filter(|(_, covered)| !covered);
        Ok(Self { runs, uncovered: uncovered.map(|(position, _)| position).collect() })
    }

    fn is_worth_a_run(&self, reading: &Reading, list: &[Diff]) -> bool {
        let at = |position: &u32| list.get(wlog_format::units::to_usize((*position).into()));
        let bytes: u64 = self.uncovered.iter().filter_map(at).map(|d| d.size).sum();
        self.uncovered.len() >= reading.batch || bytes >= BATCH_BYTES
    }

    /// Covers the rest in memory. Blocks.
    fn finish(mut self, source: &Source, reading: Arc<Reading>) -> Result<Layers, RoleError> {
        let volume = source.volume.name.as_str();
        if !self.uncovered.is_empty() {
            let bytes = bytes::Bytes::from(source.in_memory(&self.uncovered)?);
            let run = Run::open(Arc::new(bytes), "index of the newest wdiffs", reading);
            let run = run.map_err(|e| failed(volume, e))?;
            let wanted = run.wanted(source.lease.diffs());
            self.runs.extend(wanted.map(|wanted| (Arc::new(run), wanted)));
        }
        Ok(Layers { runs: self.runs })
    }
}

/// What the wdiffs of a snapshot say of its image.
pub(crate) struct Layers {
    runs: Vec<(Arc<Run>, Wanted)>,
}

impl Layers {
    /// The pieces of `from..to` that wdiffs have, ascending. Blocks when it may use the disk.
    pub(crate) fn pieces(&self, from: Lb, to: Lb, reach: Reach) -> Result<Vec<Piece>, RunError> {
        overlay(self.runs.iter().map(|(run, wanted)| (&**run, wanted)), from, to, reach)
    }

    /// Records of the wdiffs.
    pub(crate) fn records(&self) -> u64 {
        self.runs.iter().map(|(_, wanted)| wanted.records()).sum()
    }

    /// The block after the last one that a wdiff has.
    pub(crate) fn end(&self) -> Lb {
        self.runs.iter().map(|(_, wanted)| wanted.end_block()).max().unwrap_or(Lb(0))
    }
}

/// A failure of the index that is not mended by making it again.
fn failed(volume: &str, error: RunError) -> RoleError {
    RoleError::new(server_kit::error::Reason::Io, format!("the index of volume {volume} fails"))
        .with_volume(volume)
        .with_source(error)
        .with_next_step("see the log; the directory `index` of the volume can be removed")
}

/// As [`faults::wdiff`], for one of some leased diffs.
fn wdiff_failed(volume: &Volume, error: wdiff_format::error::WdiffError) -> RoleError {
    faults::wdiff(volume.name.as_str(), error)
}
