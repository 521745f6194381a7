//! The background task that keeps the indexes of all volumes: covers new diffs, merges runs of like
//! size, and writes those again of which half is gone.
//!
//! One volume at a time, one thread: it must not be felt by those who receive and restore. What it
//! cannot do now it tries again when something changes.

use super::build::{Source, commit};
use super::{BATCH_BYTES, Reading};
use crate::volume::Volume;
use parking_lot::Mutex;
use server_kit::blocking;
use server_kit::error::RoleError;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wdiff_format::diff_set::Order;
use wdiff_format::gid::Diff;
use wdiff_format::index_run::{Covered, Input, Run, merge};

/// Runs of like size that become one.
const FAN_OUT: usize = 8;
/// Entries of the smallest runs that are told apart by size.
const SMALLEST: u64 = 4096;
/// Diffs that are looked at in the catalogue at a time: who receives must not wait for long.
const LOOK: usize = 1024;

/// Asks for the index of a volume to be tended. Clones ask the same task.
#[derive(Clone)]
pub(crate) struct Wishes {
    queue: mpsc::UnboundedSender<Arc<Volume>>,
    /// Names of the volumes that wait already, which bounds the queue.
    waiting: Arc<Mutex<BTreeSet<String>>>,
    batch: usize,
}

impl Wishes {
    /// Something changed that the index should follow.
    pub(crate) fn tend(&self, volume: &Arc<Volume>) {
        if self.waiting.lock().insert(volume.name.to_string()) {
            // Nobody tends any more when the archive ends.
            let _ = self.queue.send(volume.clone());
        }
    }

    /// A diff came; often enough that is.
    pub(crate) fn came(&self, volume: &Arc<Volume>) {
        if volume.index.came() >= self.batch {
            self.tend(volume);
        }
    }
}

/// The background task.
pub(crate) struct Indexer {
    pub(crate) reading: Arc<Reading>,
    pub(crate) ending: CancellationToken,
}

impl Indexer {
    /// Begins to work.
    pub(crate) fn start(self) -> Wishes {
        let (queue, mut wishes) = mpsc::unbounded_channel::<Arc<Volume>>();
        let waiting = Arc::<Mutex<BTreeSet<String>>>::default();
        let (done, batch) = (waiting.clone(), self.reading.batch);
        tokio::spawn(async move {
            loop {
                let volume = tokio::select! {
                    () = self.ending.cancelled() => return,
                    volume = wishes.recv() => volume,
                };
                let Some(volume) = volume else { return };
                done.lock().remove(volume.name.as_str());
                if let Err(error) = self.tend(&volume).await {
                    let error = error.full_message();
                    tracing::warn!(volume = %volume.name, error, "the index is not kept up");
                }
            }
        });
        Wishes { queue, waiting, batch }
    }

    /// Brings the index of a volume up to date.
    async fn tend(&self, volume: &Arc<Volume>) -> Result<(), RoleError> {
        let _turn = volume.index.turn.lock().await;
        volume.index.came.store(0, Ordering::Relaxed);
        let (volume, reading) = (volume.clone(), self.reading.clone());
        let ending = self.ending.clone();
        blocking::run(move || {
            let going = || !ending.is_cancelled();
            cover(&volume, &reading, &going)?;
            while going() && shrink(&volume, &reading, &going)? {}
            Ok::<_, RoleError>(())
        })
        .await
    }
}

/// Calls `look` with every diff of the catalogue, ascending, in portions under its lock.
fn each_diff(volume: &Volume, mut look: impl FnMut(&Diff)) {
    let mut last: Option<Order> = None;
    loop {
        let before = last;
        volume.with(|c| {
            for diff in c.diffs.after(last).take(LOOK) {
                last = Some(Order::of(diff));
                look(diff);
            }
        });
        if last == before {
            return;
        }
    }
}

/// Covers what no run covers, if it is worth a run. Blocks.
fn cover(
    volume: &Arc<Volume>,
    reading: &Arc<Reading>,
    going: &dyn Fn() -> bool,
) -> Result<(), RoleError> {
    let runs = volume.index.runs(reading)?;
    let mut lists: Vec<_> = runs.iter().map(|run| run.covered().iter().peekable()).collect();
    let mut rest: Vec<Diff> = Vec::new();
    each_diff(volume, |diff| {
        let order = Order::of(diff);
        let covers = |list: &mut std::iter::Peekable<std::slice::Iter<'_, Covered>>| {
            while list.next_if(|covered| covered.order < order).is_some() {}
            list.peek().is_some_and(|covered| covered.is(diff))
        };
        // All of them move on.
        if lists.iter_mut().map(covers).filter(|found| *found).count() == 0 {
            rest.push(*diff);
        }
    });
    if rest.len() < reading.batch && rest.iter().map(|d| d.size).sum::<u64>() < BATCH_BYTES {
        return Ok(());
    }
    let lease = volume.with(|c| {
        rest.retain(|diff| c.diffs.get(diff).is_some_and(|now| Covered::new(now).is(diff)));
        volume.leases.take(rest)
    });
    let positions: Vec<u32> = (0..).zip(lease.diffs().iter()).map(|(number, _)| number).collect();
    Source { volume: volume.clone(), lease }.write_runs(&positions, going)
}

/// A run, and which of its diffs are still there.
struct Aged {
    run: Arc<Run>,
    kept: Vec<bool>,
}

impl Aged {
    fn records(&self, kept: bool) -> u64 {
        let rows = self.run.covered().iter().zip(&self.kept);
        rows.filter(|(_, is)| **is == kept).map(|(covered, _)| covered.records).sum()
    }

    fn is_waste(&self) -> bool {
        !self.kept.contains(&true)
    }

    fn is_half_gone(&self) -> bool {
        self.records(false) > self.records(true)
    }

    /// Runs of one tier are of like size.
    fn tier(&self) -> u32 {
        (self.run.len() / SMALLEST).max(1).ilog(FAN_OUT as u64)
    }
}

/// Does the one thing that makes the index smaller, if there is any. Blocks.
fn shrink(
    volume: &Arc<Volume>,
    reading: &Arc<Reading>,
    going: &dyn Fn() -> bool,
) -> Result<bool, RoleError> {
    let runs = volume.index.runs(reading)?;
    let mut aged: Vec<Aged> =
        runs.into_iter().map(|run| Aged { kept: vec![false; run.covered().len()], run }).collect();
    let mut next = vec![0; aged.len()];
    each_diff(volume, |diff| {
        let order = Order::of(diff);
        for (Aged { run, kept }, next) in aged.iter_mut().zip(&mut next) {
            let here = |at: usize| run.covered().get(at);
            while here(*next).is_some_and(|covered| covered.order < order) {
                *next += 1;
            }
            let is = here(*next).is_some_and(|covered| covered.is(diff));
            if let Some(kept) = kept.get_mut(*next).filter(|_| is) {
                *kept = true;
            }
        }
    });
    let waste: Vec<_> = aged.iter().filter(|a| a.is_waste()).map(|a| a.run.clone()).collect();
    if !waste.is_empty() {
        volume.index.remove(&waste)?;
        return Ok(true);
    }
    let tiers: BTreeSet<u32> = aged.iter().map(Aged::tier).collect();
    let of = |tier: &u32| aged.iter().filter(|a| a.tier() == *tier).count();
    if let Some(tier) = tiers.into_iter().find(|tier| of(tier) >= FAN_OUT) {
        aged.retain(|a| a.tier() == tier);
    } else {
        aged.retain(Aged::is_half_gone);
        aged.truncate(1);
    }
    if aged.is_empty() { Ok(false) } else { replace(volume, &aged, going) }
}

/// One run in the place of some. Blocks.
fn replace(
    volume: &Arc<Volume>,
    aged: &[Aged],
    going: &dyn Fn() -> bool,
) -> Result<bool, RoleError> {
    let inputs: Vec<_> = aged.iter().map(|a| Input { run: &a.run, kept: &a.kept }).collect();
    let written = commit(volume, |output| Ok(merge(&inputs, output, going)?.is_some()))?;
    if !written {
        return Ok(false);
    }
    let runs: Vec<_> = aged.iter().map(|a| a.run.clone()).collect();
    volume.index.remove(&runs)?;
    tracing::debug!(volume = %volume.name, runs = runs.len(), "index runs became one");
    Ok(true)
}
