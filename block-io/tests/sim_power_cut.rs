//! The simulated disk keeps exactly what a disk has to keep, loses the rest, and is reproducible.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use block_io::device::{BlockDevice, Operation, os_error};
use block_io::sim::{Event, Fault, Gate, SimDisk, Survival, Trace, When};
use bytes::Bytes;
use nix::errno::Errno;
use proptest::prelude::*;

const SECTORS: usize = 16;
const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Step {
    Write { sector: usize, count: usize },
    Zero { sector: usize, count: usize },
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = (0..SECTORS).prop_flat_map(|at| (Just(at), 1..=SECTORS - at));
    let step = prop_oneof![
        4 => range.clone().prop_map(|(sector, count)| Step::Write { sector, count }),
        1 => range.prop_map(|(sector, count)| Step::Zero { sector, count }),
        2 => Just(Step::Flush),
    ];
    proptest::collection::vec(step, 1..40)
}

/// A sector that is full of `tag`s.
fn tagged(tag: u32, count: usize) -> Bytes {
    tag.to_le_bytes().repeat(count * SECTOR / 4).into()
}

/// The tag of each sector; fails when one is torn inside.
fn tags(image: &[u8]) -> Vec<u32> {
    let tag_of = |sector: &[u8]| {
        let tag = u32::from_le_bytes(sector[..4].try_into().unwrap());
        assert_eq!(sector, tagged(tag, 1), "a sector is atomic");
        tag
    };
    image.chunks(SECTOR).map(tag_of).collect()
}

fn run<F: Future>(future: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(future)
}

/// What each sector may hold at a cut: an oracle that knows nothing of the implementation.
#[derive(Clone)]
struct Oracle {
    allowed: Vec<BTreeSet<u32>>,
    newest: Vec<u32>,
}

impl Oracle {
    fn new() -> Self {
        Self { allowed: vec![BTreeSet::from([0]); SECTORS], newest: vec![0; SECTORS] }
    }

    fn changed(&mut self, sector: usize, count: usize, tag: u32) {
        for at in sector..sector + count {
            self.allowed[at].insert(tag);
            self.newest[at] = tag;
        }
    }

    fn flushed(&mut self) {
        for (allowed, newest) in self.allowed.iter_mut().zip(&self.newest) {
            *allowed = BTreeSet::from([*newest]);
        }
    }

    fn check(&self, image: &[u8]) {
        for (at, tag) in tags(image).into_iter().enumerate() {
            assert!(self.allowed[at].contains(&tag), "sector {at} holds {tag}");
        }
    }
}

proptest! {
    /// At every event and for every fate: a sector holds what was flushed or something newer that
    /// was written to it; reads see the newest; nothing else appears.
    #[test]
    fn what_was_flushed_survives_every_cut(steps in steps(), seed: u64) {
        let trace = Trace::new();
        let disk = SimDisk::traced(&trace, "d", vec![0; SECTORS * SECTOR], 512);
        let mut oracles = vec![(0, Oracle::new())];
        run(async {
            let mut oracle = Oracle::new();
            for (step, tag) in steps.iter().zip(1..) {
                let bytes = |sectors: usize| (sectors * SECTOR) as u64;
                match *step {
                    Step::Write { sector, count } => {
                        // Pieces that end inside a sector must not matter.
                        let all = tagged(tag, count);
                        let pieces = vec![all.slice(..100), all.slice(100..)];
                        disk.write(bytes(sector), pieces).await.unwrap();
                        oracle.changed(sector, count, tag);
                    }
                    Step::Zero { sector, count } => {
                        disk.discard(bytes(sector), bytes(count)).await.unwrap();
                        oracle.changed(sector, count, 0);
                    }
                    Step::Flush => {
                        disk.flush().await.unwrap();
                        oracle.flushed();
                    }
                }
                oracles.push((trace.position(), oracle.clone()));
            }
            let seen = disk.read(0, SECTORS * SECTOR).await.unwrap();
            prop_assert_eq!(tags(&seen), oracle.newest.clone());
            prop_assert_eq!(&disk.image(), &seen);
            Ok(())
        })?;
        let mut replay = trace.replay();
        loop {
            // Inside of a step: what held before it, or what holds after it.
            let (_, oracle) = oracles.iter().find(|(at, _)| *at >= replay.position()).unwrap();
            let (_, before) = oracles.iter().rfind(|(at, _)| *at <= replay.position()).unwrap();
            let mut either = before.clone();
            for (a, b) in either.allowed.iter_mut().zip(&oracle.allowed) {
                a.extend(b);
            }
            let fates = [Survival::Nothing, Survival::Everything, Survival::Random(seed)];
            for survival in fates {
                either.check(&replay.crash_image(disk.id(), survival));
            }
            if replay.step().is_none() {
                break;
            }
        }
        let (_, last) = oracles.last().unwrap();
        let everything = disk.power_cut(Survival::Everything);
        prop_assert_eq!(tags(&everything), last.newest.clone());
        last.check(&disk.power_cut(Survival::Random(seed)));
    }
}

#[test]
fn unflushed_writes_are_kept_lost_torn_and_reordered() {
    let trace = Trace::new();
    let disk = SimDisk::traced(&trace, "d", vec![0; SECTORS * SECTOR], 512);
    run(async {
        disk.write(0, vec![tagged(1, 8)]).await.unwrap();
        disk.write(8 * 512, vec![tagged(2, 8)]).await.unwrap();
    });
    let at = trace.position();
    let outcomes: BTreeSet<Vec<u32>> = (0..200)
        .map(|seed| tags(&trace.crash_image(disk.id(), at, Survival::Random(seed))))
        .collect();
    let both = |a, b| [[a; 8], [b; 8]].concat();
    for (name, outcome) in
        [("lost", both(0, 0)), ("kept", both(1, 2)), ("first", both(1, 0)), ("second", both(0, 2))]
    {
        assert!(outcomes.contains(&outcome), "{name} never happened");
    }
    let torn = |outcome: &&Vec<u32>| outcome[..8].contains(&0) && outcome[..8].contains(&1);
    assert!(outcomes.iter().filter(torn).count() > 20, "hardly ever torn");
    for seed in 0..20 {
        let cut = || trace.crash_image(disk.id(), at, Survival::Random(seed));
        assert_eq!(cut(), cut(), "reproducible");
    }
}

#[test]
fn a_flush_does_not_cover_what_completes_while_it_runs() {
    run(async {
        let trace = Trace::new();
        let disk = SimDisk::traced(&trace, "d", vec![0; SECTORS * SECTOR], 512);
        let gate = Gate::new();
        disk.inject(Operation::Flush, When::Nth(0), Fault::Hang(gate.clone()));
        disk.write(0, vec![tagged(1, 1)]).await.unwrap();
        let flush = tokio::spawn({
            let disk = Arc::clone(&disk);
            async move { disk.flush().await }
        });
        while disk.calls(Operation::Flush) == 0 {
            tokio::task::yield_now().await;
        }
        disk.write(512, vec![tagged(2, 1)]).await.unwrap();
        assert!(!flush.is_finished());
        assert_eq!(tags(&trace.crash_image(disk.id(), trace.position(), Survival::Nothing))[0], 0);
        gate.open();
        flush.await.unwrap().unwrap();
        let left = tags(&disk.power_cut(Survival::Nothing));
        assert_eq!((left[0], left[1]), (1, 0));
    });
}

#[test]
fn two_disks_are_cut_at_the_same_instant() {
    run(async {
        let trace = Trace::new();
        let log = SimDisk::traced(&trace, "log", vec![0; SECTOR], 512);
        let data = SimDisk::traced(&trace, "data", vec![0; SECTOR], 512);
        for tag in 1..5 {
            log.write(0, vec![tagged(tag, 1)]).await.unwrap();
            log.flush().await.unwrap();
            trace.mark(u64::from(tag));
            data.write(0, vec![tagged(tag, 1)]).await.unwrap();
            data.flush().await.unwrap();
        }
        let mut replay = trace.replay();
        let mut acknowledged = 0;
        loop {
            let log_tag = tags(&replay.crash_image(log.id(), Survival::Nothing))[0];
            let data_tag = tags(&replay.crash_image(data.id(), Survival::Everything))[0];
            assert!(data_tag <= log_tag, "log before data");
            assert!(u64::from(log_tag) >= acknowledged);
            match replay.step() {
                Some(Event::Mark(mark)) => acknowledged = *mark,
                Some(_) => {}
                None => break,
            }
        }
        assert_eq!(acknowledged, 4);
    });
}

#[test]
fn faults_hit_the_operation_that_they_were_meant_for() {
    run(async {
        let disk = SimDisk::new("d", SECTORS * SECTOR, 512);
        disk.inject(Operation::Write, When::Nth(1), Fault::Error(Errno::ENOSPC));
        disk.inject(Operation::Read, When::From(1), Fault::Error(Errno::EIO));
        disk.write(0, vec![tagged(1, 1)]).await.unwrap();
        let full = disk.write(512, vec![tagged(2, 1)]).await.unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        assert!(full.to_string().contains("sim:d") && full.to_string().contains("offset 512"));
        disk.write(1024, vec![tagged(3, 1)]).await.unwrap();
        disk.read(0, 512).await.unwrap();
        for _ in 0..3 {
            let error = disk.read(0, 512).await.unwrap_err();
            assert_eq!(os_error(&error), Some(Errno::EIO as i32));
        }
        disk.clear_faults();
        assert_eq!(tags(&disk.read(0, 2048).await.unwrap()), [1, 0, 3, 0]);

        let delay = Duration::from_secs(7);
        disk.inject(Operation::Discard, When::Nth(0), Fault::Delay(delay));
        let start = tokio::time::Instant::now();
        disk.discard(0, 512).await.unwrap();
        assert_eq!(start.elapsed(), delay);
        assert_eq!(disk.calls(Operation::Read), 5);

        disk.inject(Operation::Flush, When::Nth(0), Fault::Error(Errno::EIO));
        disk.flush().await.unwrap_err();
        assert!(disk.flush().await.unwrap_err().to_string().contains("earlier flush"));
    });
}

#[test]
fn a_failed_write_is_over_and_does_not_come_back_after_a_flush() {
    run(async {
        let disk = SimDisk::new("d", SECTOR, 512);
        disk.inject(Operation::Write, When::Nth(0), Fault::Error(Errno::EIO));
        disk.write(0, vec![tagged(1, 1)]).await.unwrap_err();
        let left: BTreeSet<u32> =
            (0..50).map(|seed| tags(&disk.power_cut(Survival::Random(seed)))[0]).collect();
        assert_eq!(left, BTreeSet::from([0, 1]));

        let disk = SimDisk::new("d", SECTOR, 512);
        disk.inject(Operation::Write, When::Nth(0), Fault::Error(Errno::EIO));
        disk.write(0, vec![tagged(1, 1)]).await.unwrap_err();
        disk.write(0, vec![tagged(2, 1)]).await.unwrap();
        disk.flush().await.unwrap();
        assert_eq!(tags(&disk.power_cut(Survival::Everything)), [2]);
    });
}

#[test]
fn after_a_power_cut_nothing_works() {
    run(async {
        let trace = Trace::new();
        let disk = SimDisk::traced(&trace, "d", vec![0; SECTOR], 512);
        let left = disk.power_cut(Survival::Nothing);
        let events = trace.position();
        assert!(disk.read(0, 512).await.is_err());
        assert!(disk.write(0, vec![tagged(1, 1)]).await.is_err());
        assert!(disk.flush().await.is_err());
        assert_eq!(trace.position(), events);
        let again = SimDisk::from_image("d", left, 512);
        assert_eq!(tags(&again.read(0, 512).await.unwrap()), [0]);
    });
}

#[test]
fn with_latency_requests_overtake_each_other_reproducibly() {
    let order = |seed| {
        run(async {
            let trace = Trace::new();
            let disk = SimDisk::traced(&trace, "d", vec![0; SECTORS * SECTOR], 512);
            disk.set_latency(seed, Duration::from_millis(1)..Duration::from_millis(20));
            let writes = (0..SECTORS as u64).map(|at| disk.write(at * 512, vec![tagged(9, 1)]));
            futures::future::try_join_all(writes).await.unwrap();
            disk.grow(2 * SECTORS * SECTOR);
            assert_eq!(disk.size_bytes(), 2 * (SECTORS * SECTOR) as u64);
            let completed = |event| match event {
                Event::Completed { request, .. } => Some(request),
                _ => None,
            };
            trace.events().into_iter().filter_map(completed).collect::<Vec<_>>()
        })
    };
    let one = order(1);
    assert_eq!(one, order(1));
    assert!(!one.is_sorted(), "nobody was overtaken");
    assert_ne!(one, order(2));
}
