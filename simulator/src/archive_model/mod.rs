//! One archive against a plain model, thousands of operations a second: everything that is done to
//! a volume, in random order, with kills and power cuts in the middle of it; after every step the
//! snapshots that can be restored are exactly those that should be, and each of them, and each
//! mount, reads as what it was.
//!
//! ```text
//!  operations (what is done) --messages--> process: the real archive, on a simulated disk (`fs`)
//!       |                                     ^
//!       '--> history: what must be there -----' compared after every step
//! ```
//! Invariant: all that is random comes from the seed, so a seed repeats its run. A portion of the
//! operations has a process and a seed of its own; it is small, so a failure repeats in seconds.

mod hash_backup;
mod history;
mod operations;
mod portions;
mod process;
mod requests;
mod wdiffs;

pub use portions::{Portion, Portions};

use crate::defect::Defects;
use crate::fs::Fs;
use history::{History, Image, Line, Steps, compare, left};
use process::{Mount, Process, read};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use server_kit::simulation::Simulation;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The wall clock when a run begins.
const EPOCH_S: u64 = 1_700_000_000;
/// One in so many changes is broken off.
const BROKEN_OFF: u32 = 5;
/// One in so many is followed by a kill at once.
const KILLED_BEHIND: u32 = 10;
/// Changes to files that an operation may make before it is.
const CHANGES_MAX: u32 = 32;

/// The same of a start.
const CHANGES_AT_START: u32 = 8;

/// What was done, and how often.
type Counts = BTreeMap<String, u64>;

/// What a run has come to.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Equal for equal seeds.
    pub fingerprint: u64,
    /// What was done, and how often.
    pub counts: BTreeMap<String, u64>,
}

/// A run that is under way.
struct Run {
    rng: StdRng,
    simulation: Simulation,
    fs: Fs,
    defects: Defects,
    process: Option<Process>,
    history: History,
    /// What restored images have that may be there, by gid: until it is acknowledged that one is
    /// deleted, a power cut may bring it back.
    restored: BTreeMap<u64, (Image, usize)>,
    now_s: u64,
    next_gid: u64,
    next_value: u64,
    events: DefaultHasher,
    counts: Counts,
    what: String,
    verbose: bool,
}

/// Does `operations` of them from a seed.
///
/// # Errors
/// What is wrong, and after which operation.
fn run(portion: Portion) -> Result<Done, String> {
    let simulation = Simulation::default();
    let _simulated = simulation.enter();
    let armed = Arc::new(AtomicBool::new(false));
    let mut run = Run::new(portion, &simulation, Defects::of(portion.canary, "a0", &armed))?;
    armed.store(true, Ordering::Relaxed);
    for number in 0..portion.operations {
        let at = |why: String, what: &str| format!("operation {number}, {what}: {why}");
        run.step().map_err(|why| at(why, &run.what))?;
        run.check().map_err(|why| at(why, &run.what))?;
    }
    run.end();
    Ok(Done { fingerprint: run.events.finish(), counts: run.counts })
}

impl Run {
    fn new(portion: Portion, simulation: &Simulation, defects: Defects) -> Result<Self, String> {
        simulation.set_unix_seconds(EPOCH_S);
        let mut rng = StdRng::seed_from_u64(portion.seed);
        let mut run = Self {
            fs: Fs::new(rng.random()),
            rng,
            simulation: simulation.clone(),
            defects,
            process: None,
            history: History::full(0, vec![0; history::BLOCKS_MAX], EPOCH_S),
            restored: BTreeMap::new(),
            now_s: EPOCH_S,
            next_gid: 1,
            next_value: 0,
            events: DefaultHasher::new(),
            counts: Counts::new(),
            what: "set up".into(),
            verbose: std::env::var_os(crate::VERBOSE).is_some(),
        };
        run.start()?;
        run.fill()?;
        run.fs.settle();
        Ok(run)
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the archive runs between the operations")
    }

    fn count(&mut self, what: &str) {
        *self.counts.entry(what.to_owned()).or_default() += 1;
    }

    /// Says what is done now.
    fn note(&mut self, kind: &str, what: &str) {
        self.count(kind);
        self.what = format!("{kind} {what}");
        self.what.hash(&mut self.events);
        if self.verbose {
            eprintln!("{}", self.what);
        }
    }

    /// One of the snapshots that can be restored.
    fn any(&mut self) -> u64 {
        let gids = self.history.gids();
        gids[self.rng.random_range(0..gids.len())]
    }

    fn start(&mut self) -> Result<(), String> {
        for attempt in 0.. {
            // It may die again while it comes up.
            let again =
                attempt < 3 && self.history.lines().len() > 1 && self.rng.random_ratio(1, 6);
            let changes = again.then(|| self.rng.random_range(0..CHANGES_AT_START));
            self.fs.die_in(changes);
            self.process = Process::start(&self.fs, &self.defects)?;
            let Some(process) = &self.process else {
                self.count("killed at start");
                self.cut();
                continue;
            };
            // What was begun goes on by itself.
            let idle = process.block_on(process.idle());
            self.fs.die_in(None);
            if !self.process().is_dead() {
                idle?;
                return self.check_restored();
            }
            self.count("killed while it mends");
            self.stop();
        }
        Ok(())
    }

    /// The power may be cut, too; what is not reachable any more is forgotten.
    fn cut(&mut self) {
        let power = self.rng.random();
        if power {
            self.fs.power_cut();
            self.count("power cut");
        }
        power.hash(&mut self.events);
        self.fs.forget_unreachable();
    }

    fn stop(&mut self) {
        self.fs.die_in(None);
        if let Some(process) = self.process.take() {
            process.kill();
        }
        self.cut();
    }

    /// Does something to the archive after which `after` must be there. It may be broken off by a
    /// kill; then it may have come as far as `steps` allow, and if it was acknowledged to its end.
    fn act<T>(
        &mut self,
        after: History,
        steps: Steps,
        work: impl AsyncFnOnce(&Process) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let broken_off = self.rng.random_ratio(1, BROKEN_OFF);
        let changes = broken_off.then(|| self.rng.random_range(0..CHANGES_MAX));
        self.fs.die_in(changes);
        let process = self.process();
        let done = process.block_on(work(process));
        self.fs.die_in(None);
        if !self.process().is_dead() {
            let done = done?;
            self.history = after;
            if self.rng.random_ratio(1, KILLED_BEHIND) {
                // What was acknowledged lasts.
                self.count("killed right behind");
                self.what.push_str(", killed behind it");
                self.stop();
                self.start()?;
            }
            return Ok(Some(done));
        }
        self.count("killed in the middle");
        self.what.push_str(", killed");
        self.stop();
        self.start()?;
        let process = self.process();
        let settle = async {
            process.leave_alone().await?;
            let volume = process.get().await?;
            Ok::<_, String>((process.list().await?, usize::try_from(volume.size_lb).unwrap()))
        };
        let (found, blocks) = process.block_on(settle)?;
        if done.is_ok() && (found != after.lines() || blocks != after.blocks) {
            return Err(format!("acknowledged was {:?}, there is {found:?}", after.lines()));
        }
        self.history = left(&self.history, &after, steps, (&found, blocks))?;
        Ok(None)
    }

    /// Restored images that are there after a start are whole; they go.
    fn check_restored(&mut self) -> Result<(), String> {
        if self.restored.is_empty() {
            return Ok(());
        }
        let process = self.process();
        let found = process.block_on(process.restored())?;
        for (gid, path) in found {
            let known = self.restored.get(&gid);
            let (image, blocks) = known.ok_or_else(|| format!("who has restored {gid}?"))?;
            let found = self.fs.read(path.as_ref()).map_err(|e| format!("{path}: {e}"))?;
            compare(&found, image, *blocks).map_err(|e| format!("restored {gid}: {e}"))?;
            let process = self.process();
            process.block_on(process.delete_restored(gid))?;
            self.restored.remove(&gid);
        }
        Ok(())
    }

    /// Everything that can be restored is what it must be, and nothing else can.
    fn check(&mut self) -> Result<(), String> {
        let process = self.process();
        let lines: Vec<Line> = process.block_on(process.list())?;
        if lines != self.history.lines() {
            return Err(format!("listed is {lines:?}, wanted {:?}", self.history.lines()));
        }
        // No diff is missing, and none counts twice.
        let diffs = process.block_on(process.diffs())?.into_iter().filter_map(|d| d.diff);
        let diffs = diffs.filter_map(|d| Some((d.begin?.gid_begin, d.end?.gid_begin)));
        let (diffs, gids) = (diffs.collect::<Vec<_>>(), self.history.gids());
        if !diffs.iter().copied().eq(gids.windows(2).map(|pair| (pair[0], pair[1]))) {
            return Err(format!(
                "the diffs {diffs:?} do not lead from one to the next of {gids:?}"
            ));
        }
        for (gid, snapshot) in &self.history.snapshots {
            let look = async {
                let inside = process.open(*gid).await?;
                let data = read(&inside).await;
                inside.end().await;
                compare(&data?, &snapshot.image, self.history.blocks)
            };
            process.block_on(look).map_err(|why| format!("snapshot {gid}: {why}"))?;
        }
        for Mount { inside, gid, image, blocks } in &process.mounts {
            let data = process.block_on(read(inside));
            let compared = data.and_then(|data| compare(&data, image, *blocks));
            compared.map_err(|why| format!("mount of {gid}: {why}"))?;
        }
        let read = self.history.snapshots.len() + process.mounts.len();
        lines.hash(&mut self.events);
        *self.counts.entry("(images compared)".into()).or_default() += read as u64;
        Ok(())
    }

    fn end(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }
}
