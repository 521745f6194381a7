//! I3: a read sees every write that was acknowledged before it, whatever is in flight.
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

use block_io::device::Operation;
use block_io::sim::{Fault, Gate, When};
use common::{Kind, Numbers, SECTOR, Step, bench_with, payload, quiet, read, sector_content};
use device_server::{Volume, VolumeOptions};
use futures::stream::{FuturesUnordered, StreamExt};
use proptest::prelude::*;
use wlog_format::units::BlockSize;

const SECTORS: u64 = 48;

/// For each sector, the contents that it may have: what was acknowledged last, and everything
/// newer.
struct Versions {
    /// Steps that touch each sector, in their order.
    history: Vec<Vec<Step>>,
    /// How many of these are acknowledged for sure.
    floor: Vec<usize>,
}

impl Versions {
    fn queued(&mut self, step: Step) {
        for sector in step.sector..step.sector + step.sectors {
            self.history[sector as usize].push(step);
        }
    }

    fn acknowledged(&mut self, step: Step) {
        for sector in (step.sector..step.sector + step.sectors).map(|s| s as usize) {
            let place = self.history[sector].iter().position(|s| s.stamp == step.stamp).unwrap();
            self.floor[sector] = self.floor[sector].max(place + 1);
        }
    }

    /// Is this what the sector may read as, when `floor` was what counted at the start of the read?
    fn allows(&self, sector: usize, floor: usize, found: &[u8]) -> bool {
        let content = |step: &Step| match step.kind {
            Kind::Write { .. } => sector_content(step.stamp, sector as u64),
            Kind::Trim | Kind::WriteZeroes => vec![0; SECTOR],
        };
        let untouched = floor == 0 && found.iter().all(|byte| *byte == 0);
        let newer = self.history[sector][floor.saturating_sub(1)..].iter();
        untouched || newer.map(content).any(|content| content == found)
    }
}

async fn check_reads(volume: &Volume, versions: &Versions, sector: u64, sectors: u64) {
    let floor = versions.floor.clone();
    let found = read(volume, sector * SECTOR as u64, sectors as usize * SECTOR).await;
    for (index, content) in found.chunks(SECTOR).enumerate() {
        let sector = sector as usize + index;
        assert!(versions.allows(sector, floor[sector], content), "sector {sector} is out of date");
    }
}

async fn overlapping_writes(seed: u64, steps: Vec<Step>, block_size: BlockSize) {
    let options = VolumeOptions {
        checkpoint_interval: Duration::from_millis(20),
        log_flush_interval: Duration::from_millis(2),
        ..VolumeOptions::default()
    };
    let bench = bench_with(400 << 10, SECTORS as usize * SECTOR, block_size, options).await;
    bench.log.set_latency(seed, Duration::ZERO..Duration::from_millis(2));
    bench.data.set_latency(seed + 1, Duration::ZERO..Duration::from_millis(3));
    let mut versions =
        Versions { history: vec![Vec::new(); SECTORS as usize], floor: vec![0; SECTORS as usize] };
    let mut numbers = Numbers(seed);
    let mut in_flight = FuturesUnordered::new();
    for step in steps {
        let volume = Arc::clone(&bench.volume);
        let mut write = Box::pin(async move {
            step.run(&volume).await.unwrap();
            step
        });
        versions.queued(step);
        match futures::poll!(&mut write) {
            std::task::Poll::Ready(step) => versions.acknowledged(step),
            std::task::Poll::Pending => in_flight.push(write),
        }
        while in_flight.len() > numbers.below(10) as usize {
            versions.acknowledged(in_flight.next().await.unwrap());
        }
        let sector = numbers.below(SECTORS);
        check_reads(&bench.volume, &versions, sector, SECTORS - sector).await;
    }
    while let Some(step) = in_flight.next().await {
        versions.acknowledged(step);
    }
    check_reads(&bench.volume, &versions, 0, SECTORS).await;
    let last = read(&bench.volume, 0, SECTORS as usize * SECTOR).await;
    bench.volume.close().await.unwrap();
    assert!(bench.data.image() == last, "the data device ends up with what was read");
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..SECTORS).prop_flat_map(|sector| {
        let kind = prop_oneof![
            6 => any::<bool>().prop_map(|fua| Kind::Write { fua }),
            1 => Just(Kind::Trim),
            1 => Just(Kind::WriteZeroes),
        ];
        (Just(sector), 1..=(SECTORS - sector).min(16), kind)
    });
    proptest::collection::vec(step, 1..60).prop_map(|steps| {
        let numbered = steps.into_iter().enumerate();
        let step =
            |(stamp, (sector, sectors, kind))| Step { stamp: stamp as u32, sector, sectors, kind };
        numbered.map(step).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn reads_see_what_was_acknowledged(
        seed in any::<u64>(),
        steps in steps(),
        big in any::<bool>(),
    ) {
        let block_size = if big { BlockSize::B4096 } else { BlockSize::B512 };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all().start_paused(true).build().unwrap();
        runtime.block_on(overlapping_writes(seed >> 1, steps, block_size));
    }
}

#[tokio::test]
async fn a_logged_write_is_read_while_the_data_device_hangs() {
    let bench = bench_with(400 << 10, 64 << 10, BlockSize::B512, quiet()).await;
    let gate = Gate::new();
    bench.data.inject(Operation::Write, When::From(0), Fault::Hang(gate.clone()));
    bench.volume.write(0, payload(1, 0, 16), true).await.unwrap();
    bench.volume.write(4096, payload(2, 8, 1), true).await.unwrap();
    let expected =
        [&payload(1, 0, 8)[..], &payload(2, 8, 1), &payload(1, 9, 7), &[0; 512]].concat();
    assert_eq!(read(&bench.volume, 0, 17 * SECTOR).await, expected);
    assert!(bench.data.image().iter().all(|byte| *byte == 0), "it came from the overlay");
    gate.open();
    bench.volume.close().await.unwrap();
    assert_eq!(bench.data.image()[..17 * SECTOR], expected);
}

#[tokio::test]
async fn discarded_blocks_read_as_zeros_before_and_after_they_reach_the_data_device() {
    let bench = bench_with(400 << 10, 64 << 10, BlockSize::B512, quiet()).await;
    bench.volume.write(0, payload(1, 0, 32), true).await.unwrap();
    bench.volume.trim(8 * 512, 8 * 512, false).await.unwrap();
    let expected = [&payload(1, 0, 8)[..], &[0; 8 * 512], &payload(1, 16, 16)].concat();
    assert_eq!(read(&bench.volume, 0, 32 * SECTOR).await, expected);
    bench.volume.take_checkpoint().await.unwrap();
    assert_eq!(read(&bench.volume, 0, 32 * SECTOR).await, expected);
    assert_eq!(bench.data.image()[..32 * SECTOR], expected);
}

#[tokio::test]
async fn wrong_ranges_are_refused_and_change_nothing() {
    let bench = bench_with(400 << 10, 64 << 10, BlockSize::B512, quiet()).await;
    for (offset, len) in [(64 << 10, 512), (100, 512), (0, 100), (u64::MAX - 511, 512)] {
        assert!(bench.volume.read(offset, len as usize).await.is_err());
        assert!(bench.volume.write(offset, vec![1; len as usize].into(), false).await.is_err());
        assert!(bench.volume.trim(offset, len, false).await.is_err());
        assert!(bench.volume.write_zeroes(offset, len, false, true).await.is_err());
    }
    assert_eq!(bench.volume.status().positions.latest.0, 0);
}
