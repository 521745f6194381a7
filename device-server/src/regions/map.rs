//! The marks themselves: one position per region, moved forward by writers without a lock.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use wlog_format::units::{LOGICAL_BLOCK_BYTES, Lb, to_usize};

use super::Position;

/// Regions of a volume at most; larger volumes have larger regions.
pub(super) const MAX_REGIONS: u64 = 65_536;
/// The smallest region, in logical blocks: 64 KiB.
const MIN_REGION: Lb = Lb(128);

/// The position behind the last write to each region; 0 is never.
#[derive(Debug)]
pub(super) struct RegionMap {
    size: Lb,
    /// Logical blocks of a region, a power of two.
    region: Lb,
    marks: Box<[AtomicU64]>,
}

/// The size of a region of a volume of `size` blocks.
fn region_of(size: Lb) -> Lb {
    let least = size.0.div_ceil(MAX_REGIONS).max(MIN_REGION.0);
    Lb(least.next_power_of_two())
}

impl RegionMap {
    /// Nothing was ever written.
    pub(super) fn new(size: Lb) -> Self {
        let region = region_of(size);
        let count = to_usize(size.0.div_ceil(region.0));
        Self { size, region, marks: (0..count).map(|_| AtomicU64::new(0)).collect() }
    }

    /// From what [`RegionMap::marks`] told; `None` when these are not the marks of such a volume.
    pub(super) fn from_marks(size: Lb, marks: &[u64]) -> Option<Self> {
        let region = region_of(size);
        let fits = marks.len() as u64 == size.0.div_ceil(region.0);
        let marks = || marks.iter().map(|mark| AtomicU64::new(*mark)).collect();
        fits.then(|| Self { size, region, marks: marks() })
    }

    pub(super) const fn size(&self) -> Lb {
        self.size
    }

    pub(super) const fn region_bytes(&self) -> u64 {
        self.region.0 * LOGICAL_BLOCK_BYTES
    }

    /// All marks, in order of address.
    pub(super) fn marks(&self) -> impl ExactSizeIterator<Item = u64> {
        self.marks.iter().map(|mark| mark.load(Ordering::Relaxed))
    }

    /// The regions that hold some of these blocks; those behind the end are none.
    fn touched(&self, start: Lb, blocks: Lb) -> &[AtomicU64] {
        let first = to_usize(start.0 / self.region.0);
        let end = to_usize(start.0.saturating_add(blocks.0).div_ceil(self.region.0));
        let end = end.min(self.marks.len());
        self.marks.get(first..end).unwrap_or_default()
    }

    pub(super) fn mark(&self, start: Lb, blocks: Lb, position: Position) {
        for mark in self.touched(start, blocks) {
            mark.fetch_max(position.0, Ordering::Relaxed);
        }
    }

    pub(super) fn mark_all(&self, position: Position) {
        self.mark(Lb(0), self.size, position);
    }

    /// The map of the volume after it grew to `size`; what is new is marked with `position`.
    pub(super) fn grown(&self, size: Lb, position: Position) -> Self {
        let grown = Self::new(size);
        for (index, mark) in (0..).zip(self.marks()) {
            let start = Lb(index * self.region.0);
            grown.mark(start, self.region.min(Lb(self.size.0 - start.0)), Position(mark));
        }
        grown.mark(self.size, Lb(size.0 - self.size.0), position);
        grown
    }

    /// The regions marked behind `position`, as ranges of bytes below `end`.
    pub(super) fn since(&self, position: Position, end: u64) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for (index, mark) in (0..).zip(self.marks()) {
            let region = index * self.region_bytes()..((index + 1) * self.region_bytes()).min(end);
            if mark <= position.0 || region.is_empty() {
                continue;
            }
            match ranges.last_mut() {
                Some(last) if last.end == region.start => last.end = region.end,
                _ => ranges.push(region),
            }
        }
        ranges
    }
}
