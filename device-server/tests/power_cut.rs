//! A power cut at any moment: redo gives a state that I2 allows.
//!
//! A run with many writes in flight, on disks that are late and answer out of order, is recorded.
//! Then the power is cut at every single event of the recording, in several ways, and redo runs.
//! What the data device then holds must be what the first `k` writes made of it, for some `k` that
//! is not smaller than what had been promised: writes covered by a flush or by FUA survive a power
//! cut; a kill of the process (the disks keep everything) loses no acknowledged write.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use block_io::device::BlockDevice;
use block_io::sim::{Event, Replay, SimDisk, Survival, Trace};
use common::{SECTOR, Step, TracedDisks, formatted, random_steps, traced};
use device_server::{OverflowPolicy, RedoOptions, Volume, VolumeOptions, redo};
use futures::stream::{FuturesUnordered, StreamExt};
use wlog_format::units::BlockSize;

const VOLUME_SECTORS: u64 = 64;
const IN_FLIGHT: usize = 12;
/// Marks of the recording: writes that a flush covers, and (from here on) acknowledged writes.
const ACKNOWLEDGED: u64 = 1 << 32;

#[derive(Clone, Copy, Debug)]
struct Setup {
    seed: u64,
    block_size: BlockSize,
    log_bytes: usize,
    /// Releases logs as a storage role would; else the log overflows.
    release: bool,
    /// Resets the log now and then, with writes waiting.
    reset: bool,
}

fn options(setup: Setup) -> VolumeOptions {
    VolumeOptions {
        policy: if setup.release { OverflowPolicy::Stall } else { OverflowPolicy::Overwrite },
        checkpoint_interval: Duration::from_millis(15),
        log_flush_interval: Duration::from_millis(3),
        ..VolumeOptions::default()
    }
}

/// Runs the steps, many at a time but queued in their order, and records it all.
async fn record(disks: &TracedDisks, setup: Setup, steps: &[Step]) {
    let (log, data) = (disks.log.clone(), disks.data.clone());
    for (disk, seed) in [(&log, 1), (&data, 2)] {
        disk.set_latency(setup.seed + seed, Duration::ZERO..Duration::from_millis(2));
    }
    let (volume, _) = Volume::open("v", log, data, options(setup)).await.unwrap();
    let volume = Arc::new(volume);
    let mut in_flight = FuturesUnordered::new();
    let mut acknowledged = 0_u64;
    for (index, step) in steps.iter().enumerate() {
        let (volume_of_step, step, trace) = (volume.clone(), *step, disks.trace.clone());
        let mut write = Box::pin(async move {
            step.run(&volume_of_step).await.unwrap();
            let done = index as u64 + 1;
            if step.kind == (common::Kind::Write { fua: true }) {
                trace.mark(done);
            }
            trace.mark(ACKNOWLEDGED + done);
            done
        });
        // The first poll queues it: this fixes the order of the writes.
        if let std::task::Poll::Ready(done) = futures::poll!(&mut write) {
            acknowledged = acknowledged.max(done);
            continue;
        }
        in_flight.push(write);
        if index % 9 == 8 {
            let covered = acknowledged;
            volume.flush().await.unwrap();
            disks.trace.mark(covered);
        }
        if setup.release && index % 5 == 0 {
            let released = volume.status().positions.prev_written;
            volume.set_oldest(released).await.unwrap();
        }
        if setup.reset && index % 20 == 19 {
            volume.reset_log().await.unwrap();
        }
        while in_flight.len() >= IN_FLIGHT {
            acknowledged = acknowledged.max(next(&volume, setup, &mut in_flight).await);
        }
    }
    while !in_flight.is_empty() {
        next(&volume, setup, &mut in_flight).await;
    }
    volume.close().await.unwrap();
}

/// The next acknowledgement; while writers stall, logs are released.
async fn next<F: Future<Output = u64> + Unpin>(
    volume: &Volume,
    setup: Setup,
    in_flight: &mut FuturesUnordered<F>,
) -> u64 {
    loop {
        let patience = tokio::time::sleep(Duration::from_millis(30));
        tokio::select! {
            Some(done) = in_flight.next() => return done,
            () = patience => if setup.release {
                let released = volume.status().positions.prev_written;
                volume.set_oldest(released).await.unwrap();
            }
        }
    }
}

/// What the volume holds after 0, 1, 2 ... of the steps.
fn states(start: &[u8], steps: &[Step]) -> Vec<Vec<u8>> {
    let mut states = vec![start.to_vec()];
    for step in steps {
        let mut next = states.last().unwrap().clone();
        step.apply(&mut next);
        states.push(next);
    }
    states
}

/// Redo of what a cut has left; which state it gives. `None` when it is none of them.
async fn redone(log: Vec<u8>, data: Vec<u8>, states: &[Vec<u8>], promised: u64) -> Option<usize> {
    let log: Arc<dyn BlockDevice> = SimDisk::from_image("log", log, 512);
    let data_disk = SimDisk::from_image("data", data, 512);
    let data: Arc<dyn BlockDevice> = data_disk.clone();
    redo(&log, &data, RedoOptions::default()).await.unwrap();
    // Redo has flushed: a cut after it changes nothing.
    let image = data_disk.power_cut(Survival::Nothing);
    (promised as usize..states.len()).rev().find(|k| states[*k] == image)
}

#[derive(Default)]
struct Promises {
    flushed: u64,
    acknowledged: u64,
}

impl Promises {
    fn see(&mut self, event: &Event) {
        match event {
            Event::Mark(mark) if *mark >= ACKNOWLEDGED => {
                self.acknowledged = self.acknowledged.max(mark - ACKNOWLEDGED);
            }
            Event::Mark(mark) => self.flushed = self.flushed.max(*mark),
            _ => {}
        }
    }

    fn after(&self, survival: Survival) -> u64 {
        if survival == Survival::Everything { self.acknowledged } else { self.flushed }
    }
}

fn images(disks: &TracedDisks, cut: &Replay, survival: Survival) -> (Vec<u8>, Vec<u8>) {
    let image = |disk: &SimDisk| cut.crash_image(disk.id(), survival);
    (image(&disks.log), image(&disks.data))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Records a run and cuts the power at every event.
fn cut_everywhere(setup: Setup, steps: u32) {
    runtime().block_on(async {
        let steps = random_steps(setup.seed, steps, VOLUME_SECTORS, 12);
        let size = VOLUME_SECTORS as usize * SECTOR;
        let (log, data) = formatted(setup.log_bytes, size, setup.block_size).await;
        let states = states(&data, &steps);
        let disks = traced(log, data);
        record(&disks, setup, &steps).await;
        assert_eq!(disks.data.image(), *states.last().unwrap(), "closed in order: {setup:?}");
        let mut cut = disks.trace.replay();
        let mut promises = Promises::default();
        let mut reached = vec![false; states.len()];
        while let Some(event) = cut.step() {
            promises.see(event);
            let seed = cut.position() as u64 * 2;
            let survivals = [Survival::Nothing, Survival::Everything];
            let random = [Survival::Random(seed), Survival::Random(seed + 1)];
            for survival in survivals.into_iter().chain(random) {
                let (log, data) = images(&disks, &cut, survival);
                let promised = promises.after(survival);
                let found = redone(log, data, &states, promised).await;
                let at = cut.position();
                let found = found.unwrap_or_else(|| {
                    panic!("{setup:?}: no state from {promised} on after event {at}, {survival:?}")
                });
                reached[found] = true;
            }
        }
        let seen = reached.iter().filter(|reached| **reached).count();
        assert!(seen > states.len() / 10, "the cuts hit only {seen} of {} states", states.len());
    });
}

const SMALL: Setup = Setup {
    seed: 0,
    block_size: BlockSize::B512,
    log_bytes: 80 << 10,
    release: true,
    reset: false,
};
const SMALL_4K: Setup = Setup {
    seed: 0,
    block_size: BlockSize::B4096,
    log_bytes: 400 << 10,
    release: true,
    reset: false,
};

#[test]
fn a_cut_at_every_event_leaves_a_prefix_of_the_writes() {
    for seed in 0..3 {
        cut_everywhere(Setup { seed, ..SMALL }, 90);
    }
}

#[test]
fn a_cut_at_every_event_leaves_a_prefix_of_the_writes_with_blocks_of_4096() {
    for seed in 10..12 {
        cut_everywhere(Setup { seed, ..SMALL_4K }, 90);
    }
}

#[test]
fn a_cut_at_every_event_leaves_a_prefix_of_the_writes_after_an_overflow_too() {
    cut_everywhere(Setup { seed: 20, release: false, ..SMALL }, 90);
    cut_everywhere(Setup { seed: 21, release: false, ..SMALL_4K }, 90);
}

#[test]
fn a_cut_at_every_event_leaves_a_prefix_of_the_writes_across_log_resets() {
    cut_everywhere(Setup { seed: 30, reset: true, ..SMALL }, 90);
    cut_everywhere(Setup { seed: 31, reset: true, ..SMALL_4K }, 90);
}

#[test]
#[ignore = "long"]
fn long_cuts_of_many_runs() {
    for seed in 100..160 {
        let small = if seed & 1 == 0 { SMALL } else { SMALL_4K };
        cut_everywhere(Setup { seed, release: seed % 3 != 0, reset: seed % 5 == 0, ..small }, 120);
    }
}

/// Redo is itself cut at every event, and done again.
#[test]
fn a_cut_during_redo_changes_nothing() {
    runtime().block_on(async {
        let setup = Setup { seed: 5, ..SMALL };
        let steps = random_steps(setup.seed, 60, VOLUME_SECTORS, 12);
        let size = VOLUME_SECTORS as usize * SECTOR;
        let (log, data) = formatted(setup.log_bytes, size, setup.block_size).await;
        let states = states(&data, &steps);
        let disks = traced(log, data);
        record(&disks, setup, &steps).await;
        let mut cut = disks.trace.replay();
        let mut promises = Promises::default();
        while let Some(event) = cut.step() {
            promises.see(event);
            if !cut.position().is_multiple_of(11) {
                continue;
            }
            let survival = Survival::Random(cut.position() as u64);
            let (log, data) = images(&disks, &cut, survival);
            cut_redo(log, data, &states, promises.flushed).await;
        }
    });
}

async fn cut_redo(log: Vec<u8>, data: Vec<u8>, states: &[Vec<u8>], promised: u64) {
    let disks = traced(log, data);
    let (log, data): (Arc<dyn BlockDevice>, Arc<dyn BlockDevice>) =
        (disks.log.clone(), disks.data.clone());
    redo(&log, &data, RedoOptions::default()).await.unwrap();
    let mut cut = disks.trace.replay();
    while cut.step().is_some() {
        for survival in [Survival::Nothing, Survival::Random(cut.position() as u64)] {
            let (log, data) = images(&disks, &cut, survival);
            let found = redone(log, data, states, promised).await;
            assert!(found.is_some(), "redo cut at event {}, {survival:?}", cut.position());
        }
    }
}

/// Cut, redo, write on, cut again, many times over on the same two disks.
#[test]
fn generations_of_cuts_never_bring_back_an_old_write() {
    for seed in 0..12 {
        runtime().block_on(generations(seed));
    }
}

async fn generations(seed: u64) {
    let small = if seed.is_multiple_of(2) { SMALL } else { SMALL_4K };
    let Setup { block_size, log_bytes, .. } = small;
    let size = VOLUME_SECTORS as usize * SECTOR;
    let (mut log, mut data) = formatted(log_bytes, size, block_size).await;
    let mut model = data.clone();
    for generation in 0..12 {
        let seed = seed * 1000 + generation;
        // Writes of few sizes: packs of one generation often end where old ones began.
        let steps = random_steps(seed, 40, VOLUME_SECTORS, 2);
        let states = states(&model, &steps);
        let disks = traced(log, data);
        let setup = Setup { seed, ..small };
        record(&disks, setup, &steps).await;
        let events = disks.trace.position() as u64;
        let mut cut = disks.trace.replay();
        let mut promises = Promises::default();
        let at = common::Numbers(seed).below(events);
        while (cut.position() as u64) < at {
            promises.see(cut.step().unwrap());
        }
        (log, data) = images(&disks, &cut, Survival::Random(seed));
        let found = redone(log.clone(), data.clone(), &states, promises.flushed).await;
        let found = found.unwrap_or_else(|| panic!("seed {seed}: no allowed state, cut at {at}"));
        model = states[found].clone();
    }
}

#[test]
fn a_trace_has_marks_in_order() {
    // The checks above rely on it.
    let trace = Trace::new();
    trace.mark(1);
    let mut promises = Promises::default();
    let mut replay = trace.replay();
    promises.see(replay.step().unwrap());
    assert_eq!(promises.after(Survival::Nothing), 1);
}
