//! Reading a run.

use std::cmp::Reverse;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use wlog_format::units::{Lb, to_usize};
use zerocopy::{FromBytes, Immutable, Unaligned};

use super::RunError;
use super::entry::{Covered, Entry, Key};
use super::found::Candidate;
use super::layout::{BLOCK_BYTES, DIFFS_PER_BLOCK, ENTRIES_PER_BLOCK, RawEntry, RawKey, Shape};
use super::layout::{MAGIC, RawCovered, RawEnd, VERSION, open};
use crate::gid::Diff;
use crate::io_at::{ReadAt, ReadObject};

/// Blocks that are read at once by [`Run::entries`].
const AHEAD_BLOCKS: u64 = 64;

/// Checked blocks that were read lately, of all runs. A run is known by a number of its own.
pub trait BlockCache: Send + Sync {
    /// A block, if it is here.
    fn get(&self, run: u64, block: u64) -> Option<Bytes>;
    /// Keeps a block for a while.
    fn put(&self, run: u64, block: u64, bytes: &Bytes);
}

/// What a lookup may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Blocks that were read lately: it waits for nothing.
    Memory,
    /// All blocks.
    Disk,
}

/// An open run.
pub struct Run {
    input: ReadObject,
    file: Arc<str>,
    cache: Arc<dyn BlockCache>,
    number: u64,
    shape: Shape,
    entries: u64,
    classes: u64,
    covered: Vec<Covered>,
}

/// Which diffs of a run count.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// By the number of a diff in the run: its position among those that are wanted.
    positions: Vec<Option<u32>>,
    /// The highest number that counts.
    top: u32,
    records: u64,
    end_block: Lb,
}

impl Wanted {
    /// The position of the diff that has this number in the run.
    fn position(&self, diff: u32) -> Option<u32> {
        self.positions.get(to_usize(diff.into())).copied().flatten()
    }

    /// The positions that are in here.
    pub fn positions(&self) -> impl Iterator<Item = u32> {
        self.positions.iter().filter_map(|position| *position)
    }

    /// Records of the diffs that count.
    #[must_use]
    pub const fn records(&self) -> u64 {
        self.records
    }

    /// The block after the last one that they have.
    #[must_use]
    pub const fn end_block(&self) -> Lb {
        self.end_block
    }
}

/// A sound block that holds rows of one kind.
struct Rows(Bytes);

impl Rows {
    fn all<T: FromBytes + Immutable + Unaligned>(&self, number: usize) -> &[T] {
        rows(&self.0, number)
    }
}

/// The first rows of a block.
fn rows<T: FromBytes + Immutable + Unaligned>(block: &[u8], number: usize) -> &[T] {
    <[T]>::ref_from_prefix_with_elems(block, number).map_or(&[], |(rows, _)| rows)
}

impl Run {
    /// Opens a run and reads which diffs it covers. `file` is the name that errors use.
    ///
    /// # Errors
    /// It cannot be read, or is no whole run of this version.
    pub fn open(
        input: ReadObject,
        file: impl Into<Arc<str>>,
        cache: Arc<dyn BlockCache>,
    ) -> Result<Self, RunError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let file = file.into();
        let bytes = input.size_bytes().map_err(|source| RunError::Io {
            file: file.clone(),
            block: 0,
            source,
        })?;
        let last = (bytes / BLOCK_BYTES as u64).saturating_sub(1);
        let unusable = |what| RunError::Unusable { file: file.clone(), block: last, what };
        if bytes % BLOCK_BYTES as u64 != 0 || bytes == 0 {
            return Err(unusable("the file is cut"));
        }
        let block = read_block(&input, &file, last)?;
        let (end, _) = RawEnd::ref_from_prefix(&block).map_err(|_| unusable("it has no end"))?;
        if end.magic != MAGIC || end.version.get() != VERSION {
            return Err(unusable("it is of another version"));
        }
        let (entries, diffs) = (end.entries.get(), end.diffs.get());
        if entries > bytes / size_of::<RawEntry>() as u64 || u64::from(diffs) > bytes {
            return Err(unusable("it has fewer entries than it says"));
        }
        let shape = Shape::new(entries, diffs.into());
        if shape.end != last {
            return Err(unusable("it has other blocks than its end says"));
        }
        let classes = end.classes.get();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let covered = Vec::new();
        let mut run = Self { input, file, cache, number, shape, entries, classes, covered };
        run.covered = run.read_covered(to_usize(diffs.into()))?;
        Ok(run)
    }

    fn read_covered(&self, diffs: usize) -> Result<Vec<Covered>, RunError> {
        let mut covered: Vec<Covered> = Vec::with_capacity(diffs);
        let Shape { table, end, .. } = self.shape;
        for first in (table..end).step_by(to_usize(AHEAD_BLOCKS)) {
            self.read_ahead(first, AHEAD_BLOCKS.min(end - first), |block, payload| {
                for raw in rows::<RawCovered>(payload, DIFFS_PER_BLOCK.min(diffs - covered.len())) {
                    let next = Covered::from_raw(raw);
                    let next =
                        next.ok_or_else(|| self.unusable(block, "the table has no diffs"))?;
                    if covered.last().is_some_and(|last| last.order >= next.order) {
                        return Err(self.unusable(block, "the diffs do not ascend"));
                    }
                    covered.push(next);
                }
                Ok(())
            })?;
        }
        Ok(covered)
    }

    /// Reads some blocks at once; each is checked, and taken with its number.
    fn read_ahead(
        &self,
        first: u64,
        blocks: u64,
        mut take: impl FnMut(u64, &[u8]) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let mut bytes = vec![0; to_usize(blocks) * BLOCK_BYTES];
        let failed = |source| RunError::Io { file: self.file.clone(), block: first, source };
        self.input.read_exact_at(&mut bytes, first * BLOCK_BYTES as u64).map_err(failed)?;
        for (number, block) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
            let payload = open(block, number);
            take(number, payload.ok_or_else(|| self.unusable(number, CONTRADICTS))?)?;
        }
        Ok(())
    }

    fn unusable(&self, block: u64, what: &'static str) -> RunError {
        RunError::Unusable { file: self.file.clone(), block, what }
    }

    /// The name that it was opened under.
    #[must_use]
    pub fn file(&self) -> &str {
        &self.file
    }

    /// The diffs that it covers, by their numbers.
    #[must_use]
    pub fn covered(&self) -> &[Covered] {
        &self.covered
    }

    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.entries
    }

    /// Whether its diffs have no records.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Which of its diffs are in `list`, which ascends; `None` when there is none.
    #[must_use]
    pub fn wanted(&self, list: &[Diff]) -> Option<Wanted> {
        let mut list = (0_u32..).zip(list).map(|(at, d)| (at, d, crate::diff_set::Order::of(d)));
        let mut next = list.next();
        let (mut top, mut records, mut end_block) = (None, 0, Lb(0));
        let position = |(number, covered): (u32, &Covered)| {
            while next.as_ref().is_some_and(|(_, _, order)| *order < covered.order) {
                next = list.next();
            }
            let (at, ..) = next.as_ref().filter(|(_, diff, _)| covered.is(diff))?;
            top = Some(number);
            records += covered.records;
            end_block = end_block.max(covered.end_block);
            Some(*at)
        };
        let positions = (0..).zip(&self.covered).map(position).collect();
        Some(Wanted { positions, top: top?, records, end_block })
    }

    /// For each piece of `from..to` that entries of wanted diffs hold, the newest of them of each
    /// class.
    ///
    /// # Errors
    /// The run cannot be read, is damaged, or out of `reach`.
    pub(super) fn find(
        &self,
        wanted: &Wanted,
        (from, to): (Lb, Lb),
        reach: Reach,
        found: &mut Vec<Candidate>,
    ) -> Result<(), RunError> {
        for class in (0_u8..32).filter(|class| self.classes >> class & 1 == 1) {
            let blocks = 1_u64 << class;
            let newest = |address| Key { class, address, diff: Reverse(wanted.top) };
            let mut cursor = Cursor { run: self, reach, leaf: None };
            let mut at = cursor.seek(newest(Lb(from.0 & !(blocks - 1))))?;
            while let Some(entry) = cursor.get(at)? {
                let Key { address, diff: Reverse(diff), .. } = entry.key;
                if entry.key.class != class || address >= to {
                    break;
                }
                if let Some(position) = wanted.position(diff) {
                    found.push(Candidate { position, entry });
                    at = cursor.seek_from(at, newest(Lb(address.0 + blocks)))?;
                } else if diff > wanted.top {
                    at = cursor.seek_from(at, newest(address))?;
                } else {
                    at += 1;
                }
            }
        }
        Ok(())
    }

    /// All entries in their order.
    pub fn entries(&self) -> impl Iterator<Item = Result<Entry, RunError>> {
        let leaves = self.shape.levels.first().map_or(0, |(_, blocks)| *blocks);
        let portions = (0..leaves).step_by(to_usize(AHEAD_BLOCKS));
        portions.flat_map(move |first| {
            let blocks = AHEAD_BLOCKS.min(leaves - first);
            let (entries, error) = match self.read_leaves(first, blocks) {
                Ok(entries) => (entries, None),
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            entries.into_iter().map(Ok).chain(error)
        })
    }

    fn read_leaves(&self, first: u64, blocks: u64) -> Result<Vec<Entry>, RunError> {
        let mut found = Vec::with_capacity(to_usize(blocks) * ENTRIES_PER_BLOCK);
        self.read_ahead(first, blocks, |number, payload| {
            for raw in rows::<RawEntry>(payload, self.entries_in(number)) {
                found.push(self.entry(raw, number)?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn entry(&self, raw: &RawEntry, block: u64) -> Result<Entry, RunError> {
        let known = to_usize(raw.diff.get().into()) < self.covered.len();
        let entry = Entry::from_raw(raw).filter(|_| known);
        entry.ok_or_else(|| self.unusable(block, "an entry makes no sense"))
    }

    /// Entries in a leaf.
    fn entries_in(&self, leaf: u64) -> usize {
        let before = leaf * ENTRIES_PER_BLOCK as u64;
        ENTRIES_PER_BLOCK.min(to_usize(self.entries.saturating_sub(before)))
    }

    fn block(&self, number: u64, reach: Reach) -> Result<Rows, RunError> {
        if let Some(block) = self.cache.get(self.number, number) {
            return Ok(Rows(block));
        }
        if reach == Reach::Memory {
            return Err(RunError::OutOfReach);
        }
        let block = read_block(&self.input, &self.file, number)?;
        self.cache.put(self.number, number, &block);
        Ok(Rows(block))
    }

    /// The leaf in which `key` is, if anywhere.
    fn leaf_of(&self, key: Key, reach: Reach) -> Result<u64, RunError> {
        let mut child = 0;
        // The root first.
        let pairs = self.shape.levels.windows(2).rev();
        for pair in pairs {
            let [(_, below), (start, _)] = pair else { continue };
            let first = child * super::layout::KEYS_PER_BLOCK as u64;
            let keys = super::layout::KEYS_PER_BLOCK.min(to_usize(below.saturating_sub(first)));
            let rows = self.block(start + child, reach)?;
            let keys = rows.all::<RawKey>(keys);
            let behind = keys.partition_point(|raw| Key::from_raw(raw) <= key);
            child = first + behind.saturating_sub(1) as u64;
        }
        Ok(child)
    }
}

const CONTRADICTS: &str = "it contradicts its checksum";

fn read_block(input: &ReadObject, file: &Arc<str>, number: u64) -> Result<Bytes, RunError> {
    let mut block = vec![0; BLOCK_BYTES];
    let failed = |source| RunError::Io { file: file.clone(), block: number, source };
    input.read_exact_at(&mut block, number * BLOCK_BYTES as u64).map_err(failed)?;
    let block = Bytes::from(block);
    match open(&block, number) {
        Some(_) => Ok(block),
        None => Err(RunError::Unusable { file: file.clone(), block: number, what: CONTRADICTS }),
    }
}

/// Goes through the entries of a run, with the leaf that it is in at hand.
struct Cursor<'a> {
    run: &'a Run,
    reach: Reach,
    leaf: Option<(u64, Rows)>,
}

impl Cursor<'_> {
    fn leaf(&mut self, number: u64) -> Result<&[RawEntry], RunError> {
        let rows = match self.leaf.take() {
            Some((at, rows)) if at == number => rows,
            _ => self.run.block(number, self.reach)?,
        };
        let (_, rows) = self.leaf.insert((number, rows));
        Ok(rows.all(self.run.entries_in(number)))
    }

    /// The first entry at or behind `key`, by its number.
    fn seek(&mut self, key: Key) -> Result<u64, RunError> {
        if self.run.entries == 0 {
            return Ok(0);
        }
        let number = self.run.leaf_of(key, self.reach)?;
        let leaf = self.leaf(number)?;
        let before = leaf.partition_point(|raw| raw_key(raw) < key);
        Ok(number * ENTRIES_PER_BLOCK as u64 + before as u64)
    }

    /// As [`Self::seek`], for a key behind the entry `at`.
    fn seek_from(&mut self, at: u64, key: Key) -> Result<u64, RunError> {
        let number = at / ENTRIES_PER_BLOCK as u64;
        let leaf = self.leaf(number)?;
        if leaf.last().is_none_or(|last| raw_key(last) < key) {
            return self.seek(key);
        }
        let before = leaf.partition_point(|raw| raw_key(raw) < key);
        Ok(number * ENTRIES_PER_BLOCK as u64 + before as u64)
    }

    fn get(&mut self, at: u64) -> Result<Option<Entry>, RunError> {
        if at >= self.run.entries {
            return Ok(None);
        }
        let number = at / ENTRIES_PER_BLOCK as u64;
        let run = self.run;
        let raw = self.leaf(number)?.get(to_usize(at % ENTRIES_PER_BLOCK as u64));
        raw.map(|raw| run.entry(raw, number)).transpose()
    }
}

fn raw_key(raw: &RawEntry) -> Key {
    let (address, diff) = (Lb(raw.address.get()), Reverse(raw.diff.get()));
    Key { class: raw.class, address, diff }
}
