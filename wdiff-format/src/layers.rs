//! What many diffs say of an image, as one index: which record of which file holds each block.
//!
//! The base image is below all files; of the files, later ones hide earlier ones. Only where the
//! data lies is kept, not the data, so an image can be read anywhere without reading the diffs
//! from front to back. Invariants: the pieces ascend and are disjoint; an index under construction
//! never holds more than twice as many pieces as its limit (two indexes and what they become).

use std::sync::atomic::{AtomicUsize, Ordering};

use wlog_format::units::Lb;

use crate::error::WdiffError;
use crate::locate::Location;

/// A run of blocks that one record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First logical block.
    pub start: Lb,
    /// Logical blocks, at least 1.
    pub blocks: u32,
    /// Number of the file, in the order of the diffs.
    pub file: u32,
    /// The record, which begins at or before the piece.
    pub record: Location,
}

impl Piece {
    /// The block after the last one.
    #[must_use]
    pub const fn end(&self) -> Lb {
        Lb(self.start.0 + self.blocks as u64)
    }

    /// What lies before `at`.
    fn before(&self, at: Lb) -> Option<Self> {
        let blocks = u32::try_from(at.0.checked_sub(self.start.0)?).map_or(self.blocks, |b| b);
        let blocks = blocks.min(self.blocks);
        (blocks > 0).then_some(Self { blocks, ..*self })
    }

    /// What lies at or behind `at`.
    fn behind(&self, at: Lb) -> Option<Self> {
        let start = self.start.max(at);
        let blocks = u32::try_from(self.end().0.checked_sub(start.0)?).ok()?;
        (blocks > 0).then_some(Self { start, blocks, ..*self })
    }
}

/// Why there is no index.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// A file cannot be read.
    #[error(transparent)]
    Wdiff(#[from] WdiffError),
    /// The diffs have more records than the index may hold.
    #[error("the diffs have more than {0} records")]
    TooMany(usize),
    /// A thread died: a bug of ours.
    #[error("a thread that read an index died; please report this with the log above")]
    Died,
}

/// The index of some diffs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layers(Vec<Piece>);

impl Layers {
    /// The index of one file from its records.
    #[must_use]
    pub fn of_file(file: u32, records: Vec<Location>) -> Self {
        let piece =
            |record: Location| Piece { start: record.address, blocks: record.blocks, file, record };
        Self(records.into_iter().map(piece).collect())
    }

    /// The index of `files` files, which `locate` reads, oldest first, on `threads` threads.
    ///
    /// # Errors
    /// A file cannot be read, or there are more than `max` records.
    pub fn build(
        files: u32,
        threads: usize,
        max: usize,
        locate: impl Fn(u32) -> Result<Vec<Location>, WdiffError> + Sync,
    ) -> Result<Self, LayersError> {
        let held = Held { pieces: AtomicUsize::new(0), max };
        let share = (files as usize).div_ceil(threads.max(1)).max(1);
        let share = u32::try_from(share).unwrap_or(u32::MAX);
        let starts = (0..files).step_by(share as usize);
        let part = |from: u32| {
            let to = from.saturating_add(share).min(files);
            held.stack((from..to).map(|file| {
                let layers = Self::of_file(file, locate(file)?);
                held.add(layers.len())?;
                Ok(layers)
            }))
        };
        let parts: Vec<_> = std::thread::scope(|scope| {
            let part = &part;
            let threads: Vec<_> = starts.map(|from| scope.spawn(move || part(from))).collect();
            threads.into_iter().map(|t| t.join().unwrap_or(Err(LayersError::Died))).collect()
        });
        held.stack(parts.into_iter())
    }

    /// Number of pieces.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether all of the image is the base's.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// This index with a newer one over it.
    #[must_use]
    pub fn under(self, newer: Self) -> Self {
        let mut pieces = Vec::with_capacity(self.len() + newer.len());
        let mut older = self.0.into_iter();
        let mut head = older.next();
        for new in newer.0 {
            while let Some(old) = head.filter(|old| old.start < new.start) {
                pieces.extend(old.before(new.start));
                head = old.behind(new.start).or_else(|| older.next());
            }
            while let Some(old) = head.filter(|old| old.start < new.end()) {
                head = old.behind(new.end()).or_else(|| older.next());
            }
            pieces.push(new);
        }
        pieces.extend(head);
        pieces.extend(older);
        Self(pieces)
    }

    /// The pieces of `[from, to)`, cut to it; what lies between them is the base's.
    pub fn within(&self, from: Lb, to: Lb) -> impl Iterator<Item = Piece> {
        let first = self.0.partition_point(|piece| piece.end() <= from);
        let rest = self.0.get(first..).unwrap_or_default().iter();
        let touching = rest.take_while(move |piece| piece.start < to);
        touching.filter_map(move |piece| piece.behind(from)?.before(to))
    }
}

/// How many pieces there are under construction.
struct Held {
    pieces: AtomicUsize,
    max: usize,
}

impl Held {
    fn add(&self, pieces: usize) -> Result<(), LayersError> {
        let held = self.pieces.fetch_add(pieces, Ordering::Relaxed).saturating_add(pieces);
        if held > self.max { Err(LayersError::TooMany(self.max)) } else { Ok(()) }
    }

    /// All of them, each over those before it. Neighbours of like weight are joined first, so that
    /// each piece is moved a few times only.
    fn stack(
        &self,
        layers: impl Iterator<Item = Result<Layers, LayersError>>,
    ) -> Result<Layers, LayersError> {
        let mut waiting: Vec<Layers> = Vec::new();
        for newer in layers {
            let mut newer = newer?;
            while let Some(older) = waiting.pop_if(|older| older.len() <= newer.len().max(1) * 2) {
                newer = self.join(older, newer);
            }
            waiting.push(newer);
        }
        let mut all = Layers::default();
        while let Some(older) = waiting.pop() {
            all = self.join(older, all);
        }
        Ok(all)
    }

    fn join(&self, older: Layers, newer: Layers) -> Layers {
        let before = older.len() + newer.len();
        let joined = older.under(newer);
        // A piece that is cut in two by a newer one adds one; what is hidden goes.
        let after = joined.len();
        if after > before {
            self.pieces.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.pieces.fetch_sub(before - after, Ordering::Relaxed);
        }
        joined
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]
mod tests {
    use super::*;
    use crate::compression::CompressionKind;
    use crate::record::RecordKind;
    use proptest::prelude::*;

    fn location(address: u64, blocks: u32) -> Location {
        let (kind, compression) = (RecordKind::Normal, CompressionKind::None);
        let (address, offset) = (Lb(address), address * 7);
        Location { address, blocks, kind, compression, offset, size: 1, checksum: 0 }
    }

    /// Disjoint ascending records from gaps and lengths.
    fn records(shape: &[(u64, u32)]) -> Vec<Location> {
        let mut at = 0;
        let record = |&(gap, blocks): &(u64, u32)| {
            let found = location(at + gap, blocks);
            at += gap + u64::from(blocks);
            found
        };
        shape.iter().map(record).collect()
    }

    /// Which file and record hold each block.
    fn model(files: &[Vec<Location>]) -> Vec<Option<(u32, Location)>> {
        let mut blocks = vec![None; 400];
        for (file, records) in files.iter().enumerate() {
            for record in records {
                for at in record.address.0..record.address.0 + u64::from(record.blocks) {
                    blocks[at as usize] = Some((file as u32, *record));
                }
            }
        }
        blocks
    }

    proptest! {
        #[test]
        fn every_block_is_in_the_newest_file_that_has_it(
            shapes in prop::collection::vec(
                prop::collection::vec((0_u64..9, 1_u32..12), 0..12), 0..20),
            threads in 1_usize..4,
            (from, len) in (0_u64..300, 0_u64..90),
        ) {
            let files: Vec<_> = shapes.iter().map(|s| records(s)).collect();
            let layers = Layers::build(
                files.len() as u32, threads, 10_000, |f| Ok(files[f as usize].clone()));
            let layers = layers.unwrap();
            let wanted = model(&files);
            let mut found = vec![None; 400];
            let mut end = Lb(0);
            for piece in layers.within(Lb(0), Lb(400)) {
                prop_assert!(piece.blocks > 0 && piece.start >= end);
                end = piece.end();
                for at in piece.start.0..end.0 {
                    found[at as usize] = Some((piece.file, piece.record));
                }
            }
            prop_assert_eq!(&found, &wanted);
            // A part is what it is in the whole.
            let mut part = vec![None; 400];
            for piece in layers.within(Lb(from), Lb(from + len)) {
                prop_assert!(piece.start.0 >= from && piece.end().0 <= from + len);
                for at in piece.start.0..piece.end().0 {
                    part[at as usize] = Some((piece.file, piece.record));
                }
            }
            let range = from as usize..(from + len) as usize;
            prop_assert_eq!(&part[range.clone()], &wanted[range]);
            prop_assert_eq!(part.iter().flatten().count(), wanted
                [from as usize..(from + len) as usize].iter().flatten().count());
        }
    }

    #[test]
    fn too_many_records_are_refused_and_hidden_ones_do_not_count() {
        let all = |_| Ok(vec![location(0, 1), location(1, 1)]);
        assert_eq!(Layers::build(50, 1, 8, all).unwrap().len(), 2);
        let apart = |file: u32| Ok(vec![location(u64::from(file) * 2, 1)]);
        assert_eq!(Layers::build(8, 2, 8, apart).unwrap().len(), 8);
        let error = Layers::build(9, 2, 8, apart).unwrap_err();
        assert!(matches!(error, LayersError::TooMany(8)), "{error}");
    }
}
