//! Runs against a list of blocks: which record of which diff holds each of them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kept::Kept;
use proptest::prelude::*;
use wlog_format::units::Lb;

use super::layout::{ENTRIES_PER_BLOCK, KEYS_PER_BLOCK, Shape};
use super::*;
use crate::compression::CompressionKind;
use crate::gid::{Diff, Gid};
use crate::locate::{Location, StoredImage};
use crate::record::RecordKind;

mod kept {
    use super::*;
    use std::sync::Mutex;

    /// A cache that keeps everything.
    #[derive(Default)]
    pub(super) struct Kept(Mutex<BTreeMap<(u64, u64), Bytes>>);

    impl BlockCache for Kept {
        fn get(&self, run: u64, block: u64) -> Option<Bytes> {
            self.0.lock().unwrap().get(&(run, block)).cloned()
        }
        fn put(&self, run: u64, block: u64, bytes: &Bytes) {
            self.0.lock().unwrap().insert((run, block), bytes.clone());
        }
    }
}

const BLOCKS: u64 = 600;

fn diff(gid: u64) -> Diff {
    let mut diff = Diff::clean(Gid(gid), Gid(gid + 1)).unwrap();
    (diff.timestamp, diff.size) = (1000 + gid, 10 + gid);
    diff
}

/// A record; where its data lies tells which one it is.
fn record(gid: u64, address: u64, blocks: u32) -> Location {
    let kind = match address % 5 {
        0 => RecordKind::AllZero,
        1 => RecordKind::Discard,
        _ => RecordKind::Normal,
    };
    let offset = gid * 1_000_000 + address;
    let (size, checksum, compression) = (blocks, 7, CompressionKind::Lz4);
    let image = StoredImage { offset, size, checksum, blocks, compression };
    Location { address: Lb(address), blocks, kind, image, skip: 0 }
}

/// Disjoint ascending records from gaps and lengths.
fn records(gid: u64, shape: &[(u64, u32)]) -> Vec<Location> {
    let mut at = 0;
    let place = |&(gap, blocks): &(u64, u32)| {
        let found = record(gid, at + gap, blocks);
        at += gap + u64::from(blocks);
        found
    };
    shape.iter().map(place).filter(|r| r.end() <= Lb(BLOCKS)).collect()
}

type Diffs = BTreeMap<u64, Vec<Location>>;

fn bytes_of(diffs: &Diffs) -> Vec<u8> {
    let (mut entries, mut covered) = (Vec::new(), Vec::new());
    for (number, (gid, records)) in (0..).zip(diffs) {
        let mut row = Covered::new(&diff(*gid));
        for record in records {
            row.count(record);
            entries.extend(Entry::of(*record, number));
        }
        covered.push(row);
    }
    entries.sort_unstable_by_key(|e| e.key);
    let mut writer = RunWriter::new(Vec::new());
    entries.iter().for_each(|e| writer.push(e).unwrap());
    writer.finish(&covered).unwrap()
}

fn opened(bytes: Vec<u8>) -> Result<Run, RunError> {
    Run::open(Arc::new(Bytes::from(bytes)), "run", Arc::new(Kept::default()))
}

/// Data of the newest wanted diff that has a block: kind, file and offset of its block; `None`:
/// no diff has it.
type Seen = Option<(RecordKind, u64, u64)>;

fn model(diffs: &Diffs, wanted: &[u64]) -> Vec<Seen> {
    let mut blocks = vec![None; BLOCKS as usize];
    for gid in wanted {
        for record in diffs.get(gid).into_iter().flatten() {
            for at in record.address.0..record.end().0 {
                let data = match record.kind {
                    RecordKind::Normal => (*gid, record.image.offset + at - record.address.0),
                    _ => (0, 0),
                };
                blocks[at as usize] = Some((record.kind, data.0, data.1));
            }
        }
    }
    blocks
}

fn read(runs: &[Run], list: &[u64], from: u64, to: u64) -> Vec<Seen> {
    let diffs: Vec<Diff> = list.iter().map(|gid| diff(*gid)).collect();
    let wanted: Vec<_> = runs.iter().filter_map(|run| Some((run, run.wanted(&diffs)?))).collect();
    let pieces =
        overlay(wanted.iter().map(|(run, w)| (*run, w)), Lb(from), Lb(to), Reach::Disk).unwrap();
    let mut seen = vec![None; BLOCKS as usize];
    let mut end = Lb(from);
    for piece in pieces {
        assert!(piece.blocks > 0 && piece.start >= end && piece.end() <= Lb(to));
        end = piece.end();
        for at in 0..piece.blocks {
            let data = match piece.kind {
                RecordKind::Normal => {
                    (list[piece.position as usize], piece.image.offset + u64::from(piece.skip) + at)
                }
                _ => (0, 0),
            };
            seen[(piece.start.0 + at) as usize] = Some((piece.kind, data.0, data.1));
        }
    }
    seen
}

fn some_diffs() -> impl Strategy<Value = Diffs> {
    let long_and_short = prop_oneof![1_u32..12, 1_u32..12, 20_u32..300];
    let shape = prop::collection::vec((0_u64..40, long_and_short), 0..14);
    prop::collection::btree_map(0_u64..40, shape, 0..14)
        .prop_map(|shapes| shapes.iter().map(|(gid, shape)| (*gid, records(*gid, shape))).collect())
}

/// The diffs of each run: each diff is in one or more.
fn spread(diffs: &Diffs, runs: &[u64]) -> Vec<Diffs> {
    let runs: Vec<u64> = runs.iter().copied().chain([u64::MAX]).collect();
    let covers = |mask: &u64, gid: u64| mask >> (gid % 40) & 1 == 1;
    runs.iter()
        .map(|mask| {
            diffs.iter().filter(|(g, _)| covers(mask, **g)).map(|(g, r)| (*g, r.clone())).collect()
        })
        .collect()
}

proptest! {
    #[test]
    fn every_block_is_in_the_newest_diff_that_counts(
        diffs in some_diffs(), runs in prop::collection::vec(any::<u64>(), 0..4),
        counts in any::<u64>(), (from, len) in (0_u64..BLOCKS, 1_u64..200),
    ) {
        let runs: Vec<Run> =
            spread(&diffs, &runs).iter().map(|d| opened(bytes_of(d)).unwrap()).collect();
        let list: Vec<u64> = diffs.keys().copied().filter(|g| counts >> g & 1 == 1).collect();
        let expected = model(&diffs, &list);
        prop_assert_eq!(&read(&runs, &list, 0, BLOCKS), &expected);
        // A part is what it is in the whole, and there is nothing else.
        let to = (from + len).min(BLOCKS);
        let part = read(&runs, &list, from, to);
        for (at, block) in part.iter().enumerate() {
            let inside = (from..to).contains(&(at as u64));
            prop_assert_eq!(block, if inside { &expected[at] } else { &None });
        }
    }

    #[test]
    fn merged_runs_say_what_their_inputs_do_without_the_diffs_that_are_gone(
        diffs in some_diffs(), runs in prop::collection::vec(any::<u64>(), 1..4),
        kept in any::<u64>(),
    ) {
        let inputs: Vec<Run> =
            spread(&diffs, &runs).iter().map(|d| opened(bytes_of(d)).unwrap()).collect();
        let is_kept = |gid: u64| kept >> gid & 1 == 1;
        let kept: Vec<Vec<bool>> = inputs
            .iter()
            .map(|run| run.covered().iter().map(|c| is_kept(c.order.gids()[0].0)).collect())
            .collect();
        let inputs: Vec<_> =
            inputs.iter().zip(&kept).map(|(run, kept)| Input { run, kept }).collect();
        let (bytes, covered) = merge(&inputs, Vec::new(), || true).unwrap().unwrap();
        let left: Diffs =
            diffs.iter().filter(|(g, _)| is_kept(**g)).map(|(g, r)| (*g, r.clone())).collect();
        let bytes_left = bytes_of(&left);
        prop_assert!(bytes == bytes_left, "a run of those diffs alone is another one");
        let expected = opened(bytes_left).unwrap();
        let merged = opened(bytes).unwrap();
        prop_assert_eq!(&covered, expected.covered());
        let list: Vec<u64> = left.keys().copied().collect();
        prop_assert_eq!(read(&[merged], &list, 0, BLOCKS), model(&left, &list));
    }

    #[test]
    fn any_damage_is_an_error_and_never_another_answer(
        diffs in some_diffs(), at in any::<prop::sample::Index>(), bit in 0_u8..8,
        cut in any::<prop::sample::Index>(),
    ) {
        let bytes = bytes_of(&diffs);
        let list: Vec<Diff> = diffs.keys().map(|gid| diff(*gid)).collect();
        let look = |bytes: Vec<u8>| -> Result<Vec<Piece>, RunError> {
            let run = opened(bytes)?;
            let Some(wanted) = run.wanted(&list) else { return Ok(Vec::new()) };
            overlay([(&run, &wanted)], Lb(0), Lb(BLOCKS), Reach::Disk)
        };
        let expected = look(bytes.clone()).unwrap();
        let mut damaged = bytes.clone();
        damaged[at.index(bytes.len())] ^= 1 << bit;
        if let Ok(found) = look(damaged) {
            prop_assert_eq!(found, expected);
        }
        let short = bytes[..cut.index(bytes.len())].to_vec();
        prop_assert!(opened(short).is_err());
    }
}

#[test]
fn what_was_not_read_before_is_out_of_reach_without_the_disk() {
    let mut writer = RunWriter::new(Vec::new());
    for address in 0..2 * ENTRIES_PER_BLOCK as u64 {
        for entry in Entry::of(Location { address: Lb(address), ..record(1, 2, 1) }, 0) {
            writer.push(&entry).unwrap();
        }
    }
    let run = opened(writer.finish(&[Covered::new(&diff(1))]).unwrap()).unwrap();
    let wanted = run.wanted(&[diff(1)]).unwrap();
    let look = |at, reach| overlay([(&run, &wanted)], Lb(at), Lb(at + 1), reach);
    let far = ENTRIES_PER_BLOCK as u64 + 9;
    for at in [7, far] {
        assert!(matches!(look(at, Reach::Memory), Err(RunError::OutOfReach)), "block {at}");
        let found = look(at, Reach::Disk).unwrap();
        assert_eq!((found.len(), found[0].start), (1, Lb(at)));
        assert_eq!(look(at, Reach::Memory).unwrap(), found);
    }
}

/// Enough entries for three levels of keys, and many versions of each block.
#[test]
fn large_runs_are_searched_through_all_their_levels() {
    let versions = 40_u64;
    let blocks = (ENTRIES_PER_BLOCK * KEYS_PER_BLOCK) as u64 * 2 / versions;
    let mut writer = RunWriter::new(Vec::new());
    for address in 0..blocks {
        for gid in (0..versions).rev() {
            let record = record(gid, address * 8 + 2, 1);
            let place = Location { address: Lb(address), ..record };
            for entry in Entry::of(place, gid as u32) {
                writer.push(&entry).unwrap();
            }
        }
    }
    let covered: Vec<Covered> = (0..versions).map(|gid| Covered::new(&diff(gid))).collect();
    let run = opened(writer.finish(&covered).unwrap()).unwrap();
    assert_eq!(run.len(), blocks * versions);
    assert_eq!(Shape::new(run.len(), versions).levels.len(), 3);
    for count in [1, 7, versions] {
        let list: Vec<Diff> = (0..count).map(diff).collect();
        let wanted = run.wanted(&list).unwrap();
        for at in [0, 1, 101, 102, blocks / 2, blocks - 1] {
            let found = overlay([(&run, &wanted)], Lb(at), Lb(at + 1), Reach::Disk).unwrap();
            let offset = (count - 1) * 1_000_000 + at * 8 + 2;
            assert_eq!(found.iter().map(|p| p.image.offset).collect::<Vec<_>>(), [offset]);
        }
        assert!(
            overlay([(&run, &wanted)], Lb(blocks), Lb(blocks + 9), Reach::Disk).unwrap().is_empty()
        );
    }
}

#[test]
fn a_file_that_took_the_place_of_another_one_is_not_covered() {
    let run = opened(bytes_of(&[(1, records(1, &[(2, 3)])), (2, Vec::new())].into())).unwrap();
    let positions = |list: &[Diff]| run.wanted(list).map(|w| w.positions().collect::<Vec<_>>());
    assert_eq!(positions(&[diff(0), diff(1), diff(2)]), Some(vec![1, 2]));
    let renamed = diff(2).with_mergeable(true);
    let (mut larger, mut later) = (diff(1), diff(1));
    (larger.size, later.timestamp) = (12, 1002);
    assert_eq!(positions(&[larger, renamed]), Some(vec![1]));
    assert_eq!(positions(&[later]), None);
}

#[test]
fn entries_that_do_not_ascend_are_refused() {
    let mut writer = RunWriter::new(Vec::new());
    let entries: Vec<Entry> = Entry::of(record(1, 2, 7), 0).collect();
    assert_eq!(
        entries.iter().map(|e| (e.key.address.0, e.blocks())).collect::<Vec<_>>(),
        [(2, 2), (4, 4), (8, 1)]
    );
    writer.push(&entries[1]).unwrap();
    assert!(matches!(writer.push(&entries[0]), Err(RunError::Order(2))));
    assert!(matches!(writer.push(&entries[1]), Err(RunError::Order(4))));
}
