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

/// The two ways to cut an I/O into records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CutRule {
    /// At multiples of the largest size, counted from the start of the I/O.
    Sequential(MaxIo),
    /// Into powers of two, at multiples of their size.
    Aligned(MaxIo),
}

/// The records of what is visible of one I/O, as (blocks before it in the span, blocks).
struct Pieces {
    rule: CutRule,
    address: u64,
    /// Blocks of the I/O before the span.
    hidden: u32,
    done: u32,
    left: u32,
}

impl Iterator for Pieces {
    type Item = (u32, u32);

    fn next(&mut self) -> Option<(u32, u32)> {
        if self.left == 0 {
            return None;
        }
        let blocks = match self.rule {
            CutRule::Sequential(MaxIo::NONE) => self.left,
            CutRule::Sequential(MaxIo(max)) => {
                let into_piece = (self.hidden % max + self.done % max) % max;
                self.left.min(max - into_piece)
            }
            CutRule::Aligned(max) => {
                let address = self.address + u64::from(self.done);
                let aligned = 1 << address.trailing_zeros().min(31);
                max_power(max.clamp(self.left)).min(aligned)
            }
        };
        let piece = (self.done, blocks);
        self.done += blocks;
        self.left -= blocks;
        Some(piece)
    }
}

/// A range cut into powers of two at multiples of their size, as (blocks before it, blocks). The
/// range ends at an address.
pub(crate) fn aligned(address: Lb, blocks: u32) -> impl Iterator<Item = (u32, u32)> {
    let rule = CutRule::Aligned(MaxIo::NONE);
    Pieces { rule, address: address.0, hidden: 0, done: 0, left: blocks }
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
///
/// Spans are cut into records only when they are taken out, which gives the same records as cutting
/// them at once: a cut depends on the I/O and on what is visible of it, not on when it is made. So
/// memory grows with the I/Os, not with their length.
#[derive(Debug)]
pub(crate) struct Overlay<T> {
    spans: BTreeMap<u64, Visible<T>>,
}

/// What is visible of an I/O in one place.
#[derive(Debug)]
struct Visible<T> {
    span: T,
    /// Blocks of the I/O before it.
    hidden: u32,
}

/// A span that is inserted together with others.
struct Ordered<T> {
    address: Lb,
    /// How far it, and what begins before it, reaches.
    reach: u64,
    /// Its place in the order of arrival.
    number: usize,
    span: T,
}

impl<T: Span> Overlay<T> {
    pub(crate) const fn new() -> Self {
        Self { spans: BTreeMap::new() }
    }

    /// Puts `span` at `address`, over everything that lies there. The caller has checked that the
    /// end is an address.
    pub(crate) fn insert(&mut self, address: Lb, span: T) {
        let start = address.0;
        let end = start + u64::from(span.blocks());
        // Mostly nothing lies there, or something that lies wholly below.
        let last = self.spans.range(..end).next_back();
        let is_below = last.is_none_or(|(&at, older)| {
            let older_end = at + u64::from(older.span.blocks());
            older_end <= start || (at == start && older_end <= end)
        });
        if is_below {
            self.spans.insert(start, Visible { span, hidden: 0 });
            return;
        }
        let before = self.spans.range(..start).next_back();
        if let Some((&at, older)) = before
            && at + u64::from(older.span.blocks()) > start
        {
            self.punch(at, start, end);
        }
        while let Some((&at, _)) = self.spans.range(start..end).next() {
            self.punch(at, start, end);
        }
        self.spans.insert(start, Visible { span, hidden: 0 });
    }

    /// Inserts all `spans`, later ones over earlier ones. They go in by address, since neighbours
    /// lie in one part of a large map; only those that overlap have to keep their order.
    pub(crate) fn insert_all(&mut self, spans: &[(Lb, T)])
    where
        T: Copy,
    {
        let order = |(number, (address, span)): (usize, &(Lb, T))| {
            let end = address.0 + u64::from(span.blocks());
            Ordered { address: *address, reach: end, number, span: *span }
        };
        let mut ordered: Vec<_> = spans.iter().enumerate().map(order).collect();
        ordered.sort_unstable_by_key(|next| next.address);
        let mut reach = 0;
        for next in &mut ordered {
            reach = next.reach.max(reach);
            next.reach = reach;
        }
        for overlapping in ordered.chunk_by_mut(|before, next| next.address.0 < before.reach) {
            overlapping.sort_unstable_by_key(|next| next.number);
            overlapping.iter().for_each(|next| self.insert(next.address, next.span));
        }
    }

    /// Takes the span at `at` out, and puts back what of it lies outside of `start` to `end`.
    fn punch(&mut self, at: u64, start: u64, end: u64) {
        let Some(Visible { span, hidden }) = self.spans.remove(&at) else { return };
        let blocks = span.blocks();
        // Both lie inside the span unless nothing is left on that side.
        let before = u32::try_from(start.saturating_sub(at)).unwrap_or(u32::MAX);
        let covered_end = u32::try_from(end.saturating_sub(at)).unwrap_or(u32::MAX);
        if before > 0 {
            self.spans.insert(at, Visible { span: span.cut(0, before), hidden });
        }
        if covered_end < blocks {
            let rest = span.cut(covered_end, blocks - covered_end);
            self.spans.insert(end, Visible { span: rest, hidden: hidden + covered_end });
        }
    }

    /// All records by address, as (address, record).
    pub(crate) fn into_records(self, rule: CutRule) -> impl Iterator<Item = (u64, T)> {
        self.spans.into_iter().flat_map(move |(address, Visible { span, hidden })| {
            let pieces = Pieces { rule, address, hidden, done: 0, left: span.blocks() };
            pieces.map(move |(skip, blocks)| (address + u64::from(skip), span.cut(skip, blocks)))
        })
    }
}
