//! The map of regions written since, and the replacing of the content: what the volume says after
//! any stop is a superset of what changed, or "unknown".
//!
//! The judge is the content: whatever differs between the image at some point of the log and the
//! image after the stop must be in the answer for that point.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::single_range_in_vec_init,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use block_io::sim::{Event, SimDisk, Survival};
use common::state_dir::{DIR_STEP, Files, StateDir};
use common::{Numbers, SECTOR, Step, formatted, payload, quiet, random_steps, read, traced};
use device_server::{Unknown, Volume, VolumeError, VolumeOptions, WrittenRegions};
use futures::stream::{FuturesOrdered, StreamExt};
use server_kit::durable::DurableDir;
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid};

const VOLUME_BYTES: usize = 768 << 10;
const LOG_BYTES: usize = 1 << 20;
const REGION: u64 = 64 << 10;

/// A point of the log that everything before is durable at, and what the volume held then.
#[derive(Clone)]
struct Point {
    log: LogUuid,
    lsid: Lsid,
    image: Vec<u8>,
    /// Steps run before.
    steps: usize,
}

/// A volume with a state directory; `model` is what it holds.
struct Machine {
    volume: Volume,
    log: Arc<SimDisk>,
    data: Arc<SimDisk>,
    dir: Arc<StateDir>,
    model: Vec<u8>,
    points: Vec<Point>,
    steps: Vec<Step>,
}

fn options() -> VolumeOptions {
    VolumeOptions {
        checkpoint_interval: Duration::from_millis(15),
        log_flush_interval: Duration::from_millis(3),
        ..VolumeOptions::default()
    }
}

async fn open(log: &Arc<SimDisk>, data: &Arc<SimDisk>, dir: Option<&Arc<StateDir>>) -> Volume {
    let dir = dir.map(|dir| Arc::clone(dir) as Arc<dyn DurableDir>);
    let opened = Volume::open_with_state("v", log.clone(), data.clone(), options(), dir);
    opened.await.unwrap().0
}

impl Machine {
    async fn start(log: Arc<SimDisk>, data: Arc<SimDisk>, dir: Arc<StateDir>) -> Self {
        let volume = open(&log, &data, Some(&dir)).await;
        let model = data.image();
        Self { volume, log, data, dir, model, points: Vec::new(), steps: Vec::new() }
    }

    /// Runs the steps with some in flight together, queued in their order.
    async fn run(&mut self, steps: &[Step]) {
        let mut in_flight = FuturesOrdered::new();
        for step in steps {
            in_flight.push_back(step.run(&self.volume));
            if in_flight.len() > 3 {
                in_flight.next().await.unwrap().unwrap();
            }
            step.apply(&mut self.model);
        }
        while let Some(done) = in_flight.next().await {
            done.unwrap();
        }
        drop(in_flight);
        self.steps.extend_from_slice(steps);
    }

    async fn point(&mut self) {
        self.volume.flush().await.unwrap();
        let status = self.volume.status();
        let (log, lsid) = (status.uuid, status.positions.permanent);
        assert_eq!(lsid, status.positions.latest);
        self.points.push(Point { log, lsid, image: self.model.clone(), steps: self.steps.len() });
    }

    /// What a step does besides writing.
    async fn act(&mut self, numbers: &mut Numbers) {
        match numbers.below(8) {
            0 => self.volume.reset_log().await.unwrap(),
            1 => self.volume.take_checkpoint().await.unwrap(),
            2 => tokio::time::sleep(Duration::from_millis(40)).await,
            3 if self.model.len() < 2 * VOLUME_BYTES => {
                let size = self.model.len() + 5 * SECTOR;
                self.data.grow(size);
                self.volume.resize(Lb(0)).await.unwrap();
                self.model.resize(size, 0);
            }
            _ => {}
        }
    }
}

/// The regions of a range of bytes.
fn regions(start: u64, end: u64) -> std::ops::Range<usize> {
    (start / REGION) as usize..end.div_ceil(REGION) as usize
}

/// Which regions an answer names.
fn told(answer: &WrittenRegions, size: usize) -> Vec<bool> {
    assert_eq!(answer.region_bytes, REGION);
    let mut told = vec![false; size.div_ceil(REGION as usize)];
    for range in &answer.ranges {
        assert!(range.end <= size as u64, "cut at the end");
        told[regions(range.start, range.end)].fill(true);
    }
    told
}

/// The regions in which the image now differs from what it was at the point.
fn changed(point: &Point, now: &[u8]) -> Vec<bool> {
    let mut before = point.image.clone();
    // Where there was no volume yet, everything has changed.
    before.resize(now.len(), 1);
    let pairs = before.chunks(REGION as usize).zip(now.chunks(REGION as usize));
    pairs.map(|(before, now)| before != now).collect()
}

/// The regions of all steps since the point, and of what has grown.
fn touched(point: &Point, steps: &[Step], size: usize) -> Vec<bool> {
    let mut touched = vec![false; size.div_ceil(REGION as usize)];
    let of = |step: &Step| (step.sector * 512, (step.sector + step.sectors) * 512);
    let grown = (VOLUME_BYTES as u64, size as u64);
    for (start, end) in steps[point.steps..].iter().map(of).chain([grown]) {
        if start < end {
            touched[regions(start, end.min(size as u64))].fill(true);
        }
    }
    touched
}

fn check(point: &Point, answer: &WrittenRegions, now: &[u8], steps: &[Step], at: &str) {
    let (told, changed) = (told(answer, now.len()), changed(point, now));
    let touched = touched(point, steps, now.len());
    for region in 0..told.len() {
        assert!(told[region] >= changed[region], "{at}: region {region} has changed, not told");
        assert!(told[region] <= touched[region], "{at}: region {region} was never touched");
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// Some steps, and now and then a point, a reset, a growth, a checkpoint, or some idle time.
async fn live(machine: &mut Machine, seed: u64, rounds: usize, mut at_point: impl FnMut(usize)) {
    let mut numbers = Numbers(seed);
    for round in 0..rounds {
        let sectors = machine.model.len() as u64 / 512;
        let count = 1 + numbers.below(5) as u32;
        let mut steps = random_steps(seed * 1000 + round as u64, count, sectors, 20);
        // Most writes go to few places, so that not everything is written at once.
        for step in &mut steps {
            if numbers.below(3) > 0 {
                step.sector %= 128;
            }
        }
        machine.run(&steps).await;
        if numbers.below(3) > 0 {
            machine.point().await;
            at_point(machine.points.len());
        }
        machine.act(&mut numbers).await;
    }
}

/// The order canary: were the map stored behind the super block, or the new log announced behind
/// it, some cut would leave a map that does not reach.
#[test]
fn a_cut_at_every_event_leaves_a_map_that_knows_all_that_changed() {
    for seed in 0..3 {
        runtime().block_on(cut_everywhere(seed));
    }
}

async fn cut_everywhere(seed: u64) {
    let (log, data) = formatted(LOG_BYTES, VOLUME_BYTES, BlockSize::B512).await;
    let disks = traced(log, data);
    for disk in [&disks.log, &disks.data] {
        disk.set_latency(seed, Duration::ZERO..Duration::from_millis(2));
    }
    let dir = StateDir::new(&Files::new(), Some(&disks.trace));
    let mut machine = Machine::start(disks.log.clone(), disks.data.clone(), Arc::clone(&dir)).await;
    let (trace, begun) = (disks.trace.clone(), disks.trace.position());
    live(&mut machine, seed, 14, |points| trace.mark(points as u64)).await;
    machine.volume.close().await.unwrap();
    let mut cut = disks.trace.replay();
    let (mut points, mut step) = (0, 0);
    while let Some(event) = cut.step() {
        match event {
            Event::Mark(mark) if *mark >= DIR_STEP => step = (mark - DIR_STEP) as usize,
            Event::Mark(mark) => points = *mark as usize,
            _ => {}
        }
        if cut.position() < begun {
            continue;
        }
        for survival in [Survival::Nothing, Survival::Random(cut.position() as u64)] {
            let at = format!("seed {seed}, event {}, {survival:?}", cut.position());
            let log = SimDisk::from_image("log", cut.crash_image(disks.log.id(), survival), 512);
            let data = SimDisk::from_image("data", cut.crash_image(disks.data.id(), survival), 512);
            let files = dir.after_cut(Some(step), survival);
            let volume = open(&log, &data, Some(&StateDir::new(&files, None))).await;
            let now = &data.image()[..volume.size_bytes() as usize];
            for point in &machine.points[..points] {
                let answer = volume.regions_since(point.log, point.lsid);
                let answer = answer.unwrap_or_else(|why| panic!("{at}: {why}"));
                check(point, &answer, now, &machine.steps, &at);
            }
        }
    }
}

/// Many lives on the same devices: closed, killed, cut; with a directory that fails now and then,
/// and programs that do not keep the map. Known or unknown, but never wrong.
#[test]
fn many_lives_never_make_the_map_forget_a_write() {
    let mut known = 0;
    for seed in 0..12 {
        known += runtime().block_on(lives(seed));
    }
    assert!(known > 200, "only {known} answers were known");
}

async fn lives(seed: u64) -> usize {
    let (log, data) = formatted(LOG_BYTES, VOLUME_BYTES, BlockSize::B512).await;
    let (mut log, mut data, mut files) = (log, data, Files::new());
    let mut numbers = Numbers(seed);
    let (mut points, mut steps, mut known) = (Vec::<Point>::new(), Vec::new(), 0);
    for life in 0..8 {
        let dir = StateDir::new(&files, None);
        let (sim_log, sim_data) =
            (SimDisk::from_image("log", log, 512), SimDisk::from_image("data", data, 512));
        let mut machine = Machine::start(sim_log, sim_data, Arc::clone(&dir)).await;
        machine.model.truncate(machine.volume.size_bytes() as usize);
        for point in &points {
            if let Ok(answer) = machine.volume.regions_since(point.log, point.lsid) {
                known += 1;
                let at = format!("seed {seed}, life {life}");
                check(point, &answer, &machine.model, &steps, &at);
            }
        }
        (machine.points, machine.steps) = (points, steps);
        let failing = numbers.below(4) == 0;
        dir.fail_from(failing.then(|| numbers.below(40) as usize));
        live(&mut machine, seed * 100 + life, 5, |_| {}).await;
        machine.point().await;
        if numbers.below(3) == 0 {
            machine.volume.close().await.unwrap();
        }
        let survival = Survival::Random(seed * 100 + life);
        files = dir.after_cut(None, survival);
        (points, steps) = (std::mem::take(&mut machine.points), machine.steps.clone());
        (log, data) = (machine.log.power_cut(survival), machine.data.power_cut(survival));
        drop(machine);
        if numbers.below(4) == 0 {
            (log, data) = without_the_map(log, data, &mut steps, &mut numbers).await;
        }
    }
    known
}

/// A life of a program that keeps no map.
async fn without_the_map(
    log: Vec<u8>,
    data: Vec<u8>,
    steps: &mut Vec<Step>,
    numbers: &mut Numbers,
) -> (Vec<u8>, Vec<u8>) {
    let (log, data) =
        (SimDisk::from_image("log", log, 512), SimDisk::from_image("data", data, 512));
    let volume = open(&log, &data, None).await;
    let more = random_steps(numbers.below(1 << 40), 3, volume.size_bytes() / 512, 30);
    for step in &more {
        step.run(&volume).await.unwrap();
    }
    steps.extend_from_slice(&more);
    match numbers.below(3) {
        0 => volume.reset_log().await.unwrap(),
        1 => volume.close().await.unwrap(),
        _ => volume.flush().await.unwrap(),
    }
    (log.power_cut(Survival::Nothing), data.power_cut(Survival::Nothing))
}

async fn usual() -> Machine {
    let (log, data) = formatted(LOG_BYTES, VOLUME_BYTES, BlockSize::B512).await;
    let log = SimDisk::from_image("log", log, 512);
    let data = SimDisk::from_image("data", data, 512);
    Machine::start(log, data, StateDir::new(&Files::new(), None)).await
}

/// The same devices and directory after a kill.
async fn killed(machine: Machine) -> Machine {
    let dir = StateDir::new(&machine.dir.after_cut(None, Survival::Everything), None);
    let log = SimDisk::from_image("log", machine.log.power_cut(Survival::Everything), 512);
    let data = SimDisk::from_image("data", machine.data.power_cut(Survival::Everything), 512);
    drop(machine);
    Machine::start(log, data, dir).await
}

async fn write(volume: &Volume, stamp: u32, sector: u64) -> Result<(), VolumeError> {
    volume.write(sector * 512, payload(stamp, sector, 8), true).await
}

#[tokio::test]
async fn the_answer_is_the_regions_written_since() {
    let machine = usual().await;
    let volume = &machine.volume;
    let log = volume.status().uuid;
    write(volume, 1, 0).await.unwrap();
    let since = volume.status().positions.permanent;
    write(volume, 2, 128 * 3 + 124).await.unwrap();
    volume.trim(700 << 10, 4096, false).await.unwrap();
    volume.reset_log().await.unwrap();
    write(volume, 3, 128 * 7).await.unwrap();
    let answer = volume.regions_since(log, since).unwrap();
    assert_eq!(
        answer.ranges,
        [3 * REGION..5 * REGION, 7 * REGION..8 * REGION, 10 * REGION..11 * REGION]
    );
    let answer = volume.regions_since(volume.status().uuid, Lsid(0)).unwrap();
    assert_eq!(answer.ranges, [7 * REGION..8 * REGION]);
    let nobody = volume.regions_since(LogUuid([7; 16]), Lsid(0));
    assert_eq!(nobody, Err(Unknown::UnknownLog(LogUuid([7; 16]))));
    let plain = common::bench(400 << 10, 1 << 20, quiet()).await.volume;
    assert_eq!(plain.regions_since(plain.status().uuid, Lsid(0)), Err(Unknown::NoStateDir));
}

#[tokio::test]
async fn a_damaged_or_foreign_map_is_unknown_and_a_new_one_begins() {
    let machine = usual().await;
    write(&machine.volume, 1, 0).await.unwrap();
    let status = machine.volume.status();
    machine.volume.close().await.unwrap();
    let good = machine.dir.after_cut(None, Survival::Nothing);
    let (log, data) = (machine.log.image(), machine.data.image());
    let mut damaged = good.clone();
    damaged.get_mut("regions").unwrap()[100] ^= 1;
    for (files, why) in
        [(damaged, Some("checksum")), (Files::new(), Some("there was no")), (good, None)]
    {
        let dir = StateDir::new(&files, None);
        let log = SimDisk::from_image("log", log.clone(), 512);
        let data = SimDisk::from_image("data", data.clone(), 512);
        let volume = open(&log, &data, Some(&dir)).await;
        let answer = volume.regions_since(status.uuid, Lsid(0));
        match why {
            None => assert_eq!(answer.unwrap().ranges, [0..REGION]),
            Some(why) => assert!(answer.unwrap_err().to_string().contains(why)),
        }
        let since = volume.regions_since(status.uuid, status.positions.permanent).unwrap();
        assert_eq!(since.ranges, []);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_volume_does_not_touch_its_state_directory() {
    let machine = usual().await;
    write(&machine.volume, 1, 0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let steps = machine.dir.steps();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(machine.dir.steps(), steps);
}

#[tokio::test]
async fn while_the_content_is_replaced_nobody_reads_or_writes_whatever_happens() {
    let mut machine = usual().await;
    write(&machine.volume, 1, 0).await.unwrap();
    let before = machine.volume.status();
    assert!(matches!(machine.volume.end_overwrite().await, Err(VolumeError::NotOverwriting)));
    machine.volume.begin_overwrite().await.unwrap();
    assert_eq!(machine.data.image()[..4096], payload(1, 0, 8), "what was pending is written");
    for round in 0..2 {
        let volume = &machine.volume;
        assert!(volume.status().overwriting, "round {round}");
        assert!(matches!(volume.read(0, 512).await, Err(VolumeError::Overwriting)));
        assert!(matches!(volume.extents(0, 512).await, Err(VolumeError::Overwriting)));
        assert!(matches!(write(volume, 2, 0).await, Err(VolumeError::Overwriting)));
        assert!(matches!(volume.trim(0, 512, false).await, Err(VolumeError::Overwriting)));
        assert!(matches!(volume.reset_log().await, Err(VolumeError::Overwriting)));
        assert!(matches!(volume.freeze().await, Err(VolumeError::Overwriting)));
        volume.begin_overwrite().await.unwrap();
        assert_eq!(volume.status().uuid, before.uuid);
        machine = killed(machine).await;
    }
    machine.volume.end_overwrite().await.unwrap();
    let after = machine.volume.status();
    assert!(!after.overwriting && after.uuid != before.uuid);
    write(&machine.volume, 3, 0).await.unwrap();
    let everything = 0..VOLUME_BYTES as u64;
    for (log, since) in [(before.uuid, before.positions.permanent), (after.uuid, Lsid(0))] {
        let answer = machine.volume.regions_since(log, since).unwrap();
        assert_eq!(answer.ranges, std::slice::from_ref(&everything));
    }
    let machine = killed(machine).await;
    assert!(!machine.volume.status().overwriting);
    assert_eq!(read(&machine.volume, 0, 4096).await, payload(3, 0, 8));
}

/// Each step of the directory fails once: the volume is in service with the old log, or out of it,
/// or in service with a new one; and what it says now it says after a kill.
#[tokio::test]
async fn an_overwrite_whose_state_cannot_be_kept_is_refused_or_stays() {
    for step in 0..24 {
        let machine = usual().await;
        write(&machine.volume, 1, 0).await.unwrap();
        machine.volume.take_checkpoint().await.unwrap();
        let log = machine.volume.status().uuid;
        machine.dir.fail_from(Some(step));
        let begun = machine.volume.begin_overwrite().await;
        assert_eq!(machine.volume.status().overwriting, begun.is_ok());
        let ended = match begun {
            Ok(()) => machine.volume.end_overwrite().await,
            Err(error) => Err(error),
        };
        let status = machine.volume.status();
        assert!(ended.is_err() || (status.uuid != log && !status.overwriting));
        let again = killed(machine).await;
        // Only a volume with a new log may forget, for every backup of it starts anew. A mark that
        // was not durably removed may still be there: that is safe.
        let forgotten = status.overwriting && !again.volume.status().overwriting;
        assert!(!forgotten || status.uuid != log);
        if again.volume.status().overwriting {
            again.volume.end_overwrite().await.unwrap();
        }
        write(&again.volume, 2, 0).await.unwrap();
    }
}

#[tokio::test]
async fn without_a_state_directory_the_content_is_not_replaced() {
    let bench = common::bench(400 << 10, 1 << 20, quiet()).await;
    assert!(matches!(bench.volume.begin_overwrite().await, Err(VolumeError::NoStateDir)));
    bench.volume.write(0, payload(1, 0, 8), true).await.unwrap();
}
