//! How long I/Os are cut into records (`formats.md` §6.5, §6.6), and a map of disjoint ranges in
//! which newer ones replace older ones.

use std::collections::BTreeMap;

use wlog_format::units::Lb;

use crate::record::DiffRecord;

/// The largest piece of an I/O that becomes one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxIo(u32);

impl MaxIo {
    /// No limit.
    pub const NONE: Self = Self(0);

    /// A limit in logical blocks; 0 is no limit.
    #[must_use]
    pub const fn from_blocks(blocks: u32) -> Self {
        Self(blocks)
    }

    /// `blocks`, or the limit if that is less.
    pub(crate) const fn clamp(self, blocks: u32) -> u32 {
        if self.0 == 0 || blocks < self.0 { blocks } else { self.0 }
    }
}

impl Default for MaxIo {
    /// 1 MiB, as the original.
    fn default() -> Self {
        Self(2048)
    }
}

/// The two ways to cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CutRule {
    /// Pieces of the largest size from the start on; what is left of an older record stays whole.
    Sequential(MaxIo),
    /// Powers of two, at multiples of their size; what is left of an older record, too.
    Aligned(MaxIo),
}

/// The pieces of a range, as (address, blocks).
struct Pieces {
    rule: CutRule,
    address: u64,
    left: u32,
}

impl Iterator for Pieces {
    type Item = (u64, u32);

    fn next(&mut self) -> Option<(u64, u32)> {
        if self.left == 0 {
            return None;
        }
        let blocks = match self.rule {
            CutRule::Sequential(max) => max.clamp(self.left),
            CutRule::Aligned(max) => {
                let aligned = 1 << self.address.trailing_zeros().min(31);
                max_power(max.clamp(self.left)).min(aligned)
            }
        };
        let piece = (self.address, blocks);
        self.address += u64::from(blocks);
        self.left -= blocks;
        Some(piece)
    }
}

/// The largest power of two that is not larger than `n`, which is not 0.
const fn max_power(n: u32) -> u32 {
    1 << n.ilog2()
}

/// Something that covers a range of blocks and can be cut.
pub(crate) trait Span {
    fn blocks(&self) -> u32;
    /// The `blocks` blocks from `skip` on, both inside.
    fn cut(&self, skip: u32, blocks: u32) -> Self;
}

impl Span for DiffRecord {
    fn blocks(&self) -> u32 {
        self.blocks
    }

    fn cut(&self, skip: u32, blocks: u32) -> Self {
        Self::cut(self, skip, blocks)
    }
}

/// Disjoint ranges by address; what is inserted replaces what lay there.
#[derive(Debug)]
pub(crate) struct Overlay<T> {
    rule: CutRule,
    spans: BTreeMap<u64, T>,
}

impl<T: Span> Overlay<T> {
    pub(crate) const fn new(rule: CutRule) -> Self {
        Self { rule, spans: BTreeMap::new() }
    }

    /// Puts `span` at `address`, in pieces, over everything that lies there. The caller has checked
    /// that the end is an address.
    pub(crate) fn insert(&mut self, address: Lb, span: &T) {
        let start = address.0;
        self.punch(start, start + u64::from(span.blocks()));
        self.put(start, span, start, span.blocks());
    }

    /// Puts the part of `span` (which begins at `origin`) from `from` on, in pieces.
    fn put(&mut self, origin: u64, span: &T, from: u64, blocks: u32) {
        for (address, blocks) in (Pieces { rule: self.rule, address: from, left: blocks }) {
            // Lies inside the span, whose length is a u32.
            let skip = u32::try_from(address - origin).unwrap_or(u32::MAX);
            self.spans.insert(address, span.cut(skip, blocks));
        }
    }

    /// What is left of an older span, from block `from` to before `to`.
    fn put_rest(&mut self, origin: u64, span: &T, from: u64, to: u64) {
        let skip = u32::try_from(from.saturating_sub(origin)).unwrap_or(u32::MAX);
        let blocks = u32::try_from(to.saturating_sub(from)).unwrap_or(u32::MAX);
        match self.rule {
            _ if blocks == 0 => {}
            CutRule::Sequential(_) => {
                self.spans.insert(from, span.cut(skip, blocks));
            }
            CutRule::Aligned(_) => self.put(origin, span, from, blocks),
        }
    }

    /// Removes everything from `start` to before `end`.
    fn punch(&mut self, start: u64, end: u64) {
        let before = self.spans.range(..start).next_back();
        if let Some((&at, span)) = before
            && at + u64::from(span.blocks()) > start
        {
            self.punch_one(at, start, end);
        }
        while let Some((&at, _)) = self.spans.range(start..end).next() {
            self.punch_one(at, start, end);
        }
    }

    /// Takes the span at `at` out, and puts back what of it lies outside of `start` to `end`.
    fn punch_one(&mut self, at: u64, start: u64, end: u64) {
        let Some(span) = self.spans.remove(&at) else { return };
        let span_end = at + u64::from(span.blocks());
        self.put_rest(at, &span, at, start.max(at));
        self.put_rest(at, &span, end.min(span_end), span_end);
    }

    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }
}

impl<T> IntoIterator for Overlay<T> {
    type Item = (u64, T);
    type IntoIter = std::collections::btree_map::IntoIter<u64, T>;

    /// In the order of the addresses.
    fn into_iter(self) -> Self::IntoIter {
        self.spans.into_iter()
    }
}
