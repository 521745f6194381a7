//! The map against a naive model: a list of all writes.

use proptest::prelude::*;

use super::file::{decode, encode};
use super::*;
use wlog_format::superblock::DeviceName;
use wlog_format::units::{BlockSize, to_usize};

const BLOCKS: u64 = 128 * 40 + 17;

fn super_block(size: Lb) -> SuperBlock {
    SuperBlock::for_format(16 << 20, BlockSize::B512, size, DeviceName::EMPTY).unwrap()
}

#[derive(Clone, Debug)]
enum Op {
    Write { start: u64, blocks: u64, pack: u64 },
    Reset,
    Store,
    Restart,
    Grow { more: u64 },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let write = (0..BLOCKS, 1..700_u64, 1..50_u64).prop_map(|(start, blocks, pack)| Op::Write {
        start,
        blocks,
        pack,
    });
    let op = prop_oneof![
        12 => write, 2 => Just(Op::Reset), 1 => Just(Op::Store), 1 => Just(Op::Restart),
        1 => (1..9000_u64).prop_map(|more| Op::Grow { more }),
    ];
    proptest::collection::vec(op, 1..60)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sure {
    Written,
    Perhaps,
}

/// The volume as the model sees it.
struct Model {
    super_block: SuperBlock,
    latest: u64,
    /// Every range of blocks written, in order. A restart repeats a growth that was not stored;
    /// that may count as written then, but need not.
    writes: Vec<(u64, u64, Sure)>,
    /// Points of time: writes before it, log, lsid, blocks logged in all.
    points: Vec<(usize, LogUuid, u64, u64)>,
    logged: u64,
    resets: usize,
}

impl Model {
    fn point(&mut self) {
        let uuid = self.super_block.uuid;
        self.points.push((self.writes.len(), uuid, self.latest, self.logged));
    }

    /// The region of every block that was written since, by counting.
    fn expected(&self, from: usize, region: u64, counts: &[Sure]) -> Vec<bool> {
        let size = self.super_block.device_size.0;
        let mut expected = vec![false; usize::try_from(size.div_ceil(region)).unwrap()];
        for (start, end, _) in self.writes[from..].iter().filter(|write| counts.contains(&write.2))
        {
            (*start..*end).for_each(|block| expected[to_usize(block / region)] = true);
        }
        expected
    }
}

fn told(ranges: &[Range<u64>], region_bytes: u64, size: Lb) -> Vec<bool> {
    let mut told = vec![false; usize::try_from(size.bytes().div_ceil(region_bytes)).unwrap()];
    let mut before = None;
    for range in ranges {
        assert!(range.start < range.end && range.start.is_multiple_of(region_bytes));
        assert!(range.end.is_multiple_of(region_bytes) || range.end == size.bytes());
        assert!(before.is_none_or(|end| end < range.start), "ascending, not touching");
        before = Some(range.end);
        let regions = range.start / region_bytes..range.end.div_ceil(region_bytes);
        regions.for_each(|region| told[to_usize(region)] = true);
    }
    told
}

fn run(ops: Vec<Op>) {
    let first = super_block(Lb(BLOCKS));
    let mut regions = Regions::begin(&first, String::new());
    let mut model = Model {
        super_block: first,
        latest: 0,
        writes: vec![],
        points: vec![],
        logged: 0,
        resets: 0,
    };
    let mut disk = encode("v", &regions, Position(0));
    // What the file does not cover, redo marks again.
    let mut logged: Vec<(Lb, Lb, Lsid)> = Vec::new();
    for op in ops {
        model.point();
        let size = model.super_block.device_size;
        match op {
            Op::Write { start, blocks, pack } => {
                let blocks = blocks.min(size.0 - start);
                model.latest += pack;
                model.logged += pack;
                logged.push((Lb(start), Lb(blocks), Lsid(model.latest)));
                regions.mark(Lb(start), Lb(blocks), Lsid(model.latest));
                model.writes.push((start, start + blocks, Sure::Written));
            }
            Op::Reset => {
                model.super_block.reset(16 << 20).unwrap();
                regions.begin_log(model.super_block.uuid, Lsid(model.latest));
                disk = encode("v", &regions, regions.history.position(Lsid(0)));
                logged.clear();
                model.latest = 0;
                model.resets += 1;
            }
            Op::Store => {
                disk = encode("v", &regions, regions.history.position(Lsid(model.latest)));
                model.super_block.written = Lsid(model.latest);
                logged.clear();
            }
            Op::Restart => {
                let stored = decode("v", &disk).unwrap();
                model.writes.push((stored.map.size().0, size.0, Sure::Perhaps));
                regions = Regions::resume(stored, &model.super_block);
                logged.iter().for_each(|(start, blocks, end)| regions.mark(*start, *blocks, *end));
                regions.settle(size, Lsid(model.latest), Position(0));
            }
            Op::Grow { more } => {
                let grown = Lb(size.0 + more);
                model.super_block.device_size = grown;
                regions.grow(grown, Lsid(model.latest));
                model.writes.push((size.0, grown.0, Sure::Written));
            }
        }
    }
    check(&regions, &model);
}

/// What the map tells for every point is what the model knows.
fn check(regions: &Regions, model: &Model) {
    let size = model.super_block.device_size;
    for (index, (from, uuid, since, logged)) in model.points.iter().enumerate() {
        let answer = regions.since(*uuid, Lsid(*since), Lsid(model.latest), size);
        if model.resets >= history::MAX_EPOCHS && answer.is_err() {
            continue;
        }
        let WrittenRegions { region_bytes, ranges } = answer.unwrap();
        let least = model.expected(*from, region_bytes / 512, &[Sure::Written]);
        // Growth logs nothing, so no lsid tells before from after it.
        let mut points = model.points.iter();
        let same = points.find(|point| point.3 == *logged).map_or(*from, |point| point.0);
        let most = model.expected(same, region_bytes / 512, &[Sure::Written, Sure::Perhaps]);
        let told = told(&ranges, region_bytes, size);
        let more = told.iter().zip(&most).filter(|(told, most)| told > most).count();
        let less = told.iter().zip(&least).filter(|(told, least)| told < least).count();
        assert_eq!(less, 0, "point {index}: less than was written");
        assert_eq!(more, 0, "point {index}: more than was written");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]
    #[test]
    fn the_map_tells_what_a_list_of_all_writes_tells(ops in ops()) {
        run(ops);
    }

    #[test]
    fn a_file_with_a_changed_byte_or_cut_short_is_refused(
        at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<bool>(),
    ) {
        let regions = Regions::begin(&super_block(Lb(BLOCKS)), String::new());
        regions.mark(Lb(5), Lb(1000), Lsid(77));
        let mut file = encode("v", &regions, Position(77));
        let stored = decode("v", &file).unwrap();
        prop_assert_eq!(encode("v", &Regions { map: Arc::new(stored.map), history: stored.history },
            stored.covered), file.clone());
        prop_assert!(decode("w", &file).unwrap_err().contains("volume v"));
        let at = at.index(file.len());
        if cut { file.truncate(at) } else { file[at] ^= flip }
        prop_assert!(decode("v", &file).is_err());
    }
}

#[test]
fn regions_are_few_whatever_the_size() {
    for (size, region_bytes) in [
        (1, 64 << 10),
        (8 << 20, 64 << 10),
        ((8 << 20) + 1, 128 << 10),
        (1 << 31, 16 << 20),
        (1 << 41, 16 << 30),
    ] {
        let map = RegionMap::new(Lb(size));
        assert_eq!(map.region_bytes(), region_bytes, "{size} blocks");
        assert!(map.marks().len() as u64 <= map::MAX_REGIONS);
    }
}

#[test]
fn after_many_resets_old_logs_are_unknown_and_sixteen_are_not() {
    let mut super_block = super_block(Lb(BLOCKS));
    let mut regions = Regions::begin(&super_block, String::new());
    let mut logs = vec![super_block.uuid];
    for _ in 0..20 {
        super_block.reset(16 << 20).unwrap();
        regions.begin_log(super_block.uuid, Lsid(10));
        logs.push(super_block.uuid);
    }
    regions.mark(Lb(0), Lb(1), Lsid(3));
    let known: Vec<_> = logs
        .iter()
        .map(|log| regions.since(*log, Lsid(10), Lsid(10), Lb(BLOCKS)).is_ok())
        .collect();
    let expected: Vec<_> = (0..21).map(|log| log >= 5).collect();
    assert_eq!(known, expected);
}

#[test]
fn what_the_map_cannot_know_is_unknown() {
    let fresh = super_block(Lb(BLOCKS));
    let (log, size) = (fresh.uuid, fresh.device_size);
    let stored = |covered| {
        let regions = Regions::begin(&fresh, String::new());
        decode("v", &encode("v", &regions, Position(covered))).unwrap()
    };
    let at = |written| SuperBlock { written: Lsid(written), ..fresh.clone() };
    // Somebody else wrote 50..80, and moved the super block.
    let regions = Regions::resume(stored(50), &at(80));
    assert!(matches!(regions.since(log, Lsid(79), Lsid(90), size), Err(Unknown::BeforeMap(_))));
    assert!(regions.since(log, Lsid(80), Lsid(90), size).is_ok());
    let behind = regions.since(log, Lsid(91), Lsid(90), size);
    assert_eq!(behind, Err(Unknown::BehindEnd { since: Lsid(91), end: Lsid(90) }));
    // Formatted anew, or reset by another program.
    let other = super_block(Lb(BLOCKS));
    let regions = Regions::resume(stored(50), &other);
    assert_eq!(regions.since(log, Lsid(50), Lsid(0), size), Err(Unknown::UnknownLog(log)));
    assert!(regions.since(other.uuid, Lsid(0), Lsid(0), size).is_ok());
    // A reset that was announced and never happened, and one that happened and is gone.
    for (lived, known) in [(50, true), (51, false)] {
        let mut regions = Regions::begin(&fresh, String::new());
        regions.begin_log(other.uuid, Lsid(50));
        let stored = decode("v", &encode("v", &regions, Position(lived))).unwrap();
        let regions = Regions::resume(stored, &at(50));
        assert_eq!(regions.since(log, Lsid(20), Lsid(60), size).is_ok(), known);
    }
}
