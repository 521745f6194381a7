//! What was written but is not yet on the data device, by address: newer pieces cover older ones.
//!
//! Two uses: the map of all pending writes of a volume, which reads look into first (I3), and the
//! sum of one batch of the data writer, in which of several writes to a block only the last is
//! left. Payloads are slices of the buffers that the writers handed in; nothing is copied.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::Bytes;
use wlog_format::units::{Lb, Lsid, to_usize};

/// The content of a written range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Payload {
    /// These bytes.
    Data(Bytes),
    /// Discarded: reads as zeros.
    Zero,
}

impl Payload {
    /// `blocks` blocks of it, from block `skip` on. Asking for more than there is gives what is
    /// there.
    #[must_use]
    pub(crate) fn part(&self, skip: Lb, blocks: Lb) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Data(bytes) => {
                let start = to_usize(skip.bytes()).min(bytes.len());
                let end = to_usize((skip + blocks).bytes()).min(bytes.len());
                Self::Data(bytes.slice(start..end))
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Piece {
    end: Lb,
    lsid: Lsid,
    payload: Payload,
}

/// A run of blocks of the volume and its content, `None` where the overlay has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// First block.
    pub(crate) start: Lb,
    /// Blocks, at least one.
    pub(crate) blocks: Lb,
    /// What is there.
    pub(crate) payload: Option<Payload>,
}

/// Disjoint pieces of written content, by address.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overlay {
    pieces: BTreeMap<Lb, Piece>,
}

impl Overlay {
    /// Puts a write of the pack at `lsid` on top of everything that is there.
    pub(crate) fn insert(&mut self, start: Lb, blocks: Lb, lsid: Lsid, payload: Payload) {
        let end = start + blocks;
        self.cut_out(start..end, |_| true);
        if start < end {
            self.pieces.insert(start, Piece { end, lsid, payload });
        }
    }

    /// Forgets what packs before `lsid` wrote to this range; newer pieces stay.
    pub(crate) fn remove_older(&mut self, start: Lb, blocks: Lb, lsid: Lsid) {
        self.cut_out(start..start + blocks, |piece| piece.lsid < lsid);
    }

    /// Removes the chosen pieces from `range`; what lies outside of it stays.
    fn cut_out(&mut self, range: Range<Lb>, chosen: impl Fn(&Piece) -> bool) {
        let first = self.first_touching(range.start);
        let touched: Vec<Lb> = self
            .pieces
            .range(first..range.end)
            .filter(|(_, piece)| piece.end > range.start && chosen(piece))
            .map(|(start, _)| *start)
            .collect();
        for start in touched {
            let Some(piece) = self.pieces.remove(&start) else { continue };
            if start < range.start {
                let left = piece.payload.part(Lb(0), range.start - start);
                let left = Piece { end: range.start, lsid: piece.lsid, payload: left };
                self.pieces.insert(start, left);
            }
            if piece.end > range.end {
                let right = piece.payload.part(range.end - start, piece.end - range.end);
                let right = Piece { end: piece.end, lsid: piece.lsid, payload: right };
                self.pieces.insert(range.end, right);
            }
        }
    }

    /// The start of the last piece that begins at or before `at`, else `at`.
    fn first_touching(&self, at: Lb) -> Lb {
        self.pieces.range(..=at).next_back().map_or(at, |(start, _)| *start)
    }

    /// The range as runs in address order, without gaps between them.
    #[must_use]
    pub(crate) fn lookup(&self, start: Lb, blocks: Lb) -> Vec<Run> {
        let end = start + blocks;
        let mut runs = Vec::new();
        let mut at = start;
        for (piece_start, piece) in self.pieces.range(self.first_touching(start)..end) {
            if piece.end <= at {
                continue;
            }
            let from = (*piece_start).max(at);
            if at < from {
                runs.push(Run { start: at, blocks: from - at, payload: None });
            }
            let until = piece.end.min(end);
            let payload = piece.payload.part(from - *piece_start, until - from);
            runs.push(Run { start: from, blocks: until - from, payload: Some(payload) });
            at = until;
        }
        if at < end {
            runs.push(Run { start: at, blocks: end - at, payload: None });
        }
        runs
    }

    /// All pieces, in address order.
    pub(crate) fn into_pieces(self) -> impl Iterator<Item = (Lb, Lb, Payload)> {
        self.pieces.into_iter().map(|(start, piece)| (start, piece.end - start, piece.payload))
    }

    /// Is there nothing?
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: u64 = 64;

    #[derive(Clone, Debug)]
    enum Op {
        Insert {
            start: u64,
            blocks: u64,
            zero: bool,
        },
        /// Removes what is older than the n-th insert.
        Remove {
            start: u64,
            blocks: u64,
            before: u64,
        },
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let range = (0..SIZE).prop_flat_map(|start| (Just(start), 1..=(SIZE - start).min(20)));
        let op = prop_oneof![
            3 => (range.clone(), any::<bool>())
                .prop_map(|((start, blocks), zero)| Op::Insert { start, blocks, zero }),
            1 => (range, 0..40_u64)
                .prop_map(|((start, blocks), before)| Op::Remove { start, blocks, before }),
        ];
        proptest::collection::vec(op, 0..40)
    }

    /// Insert `n` at block `b` has bytes that tell both.
    fn content(n: u64, start: u64, blocks: u64) -> Bytes {
        let block = |b: u64| [n as u8, b as u8].repeat(256);
        (start..start + blocks).flat_map(block).collect()
    }

    proptest! {
        #[test]
        fn it_is_an_array_of_blocks_in_which_the_newest_counts(ops in ops()) {
            let mut overlay = Overlay::default();
            let mut model: Vec<Option<(u64, bool)>> = vec![None; SIZE as usize];
            for (n, op) in ops.into_iter().enumerate() {
                let n = n as u64;
                match op {
                    Op::Insert { start, blocks, zero } => {
                        let data = Payload::Data(content(n, start, blocks));
                        let payload = if zero { Payload::Zero } else { data };
                        overlay.insert(Lb(start), Lb(blocks), Lsid(n), payload);
                        model[start as usize..(start + blocks) as usize].fill(Some((n, zero)));
                    }
                    Op::Remove { start, blocks, before } => {
                        overlay.remove_older(Lb(start), Lb(blocks), Lsid(before));
                        for block in &mut model[start as usize..(start + blocks) as usize] {
                            *block = block.filter(|(n, _)| *n >= before);
                        }
                    }
                }
                check(&overlay, &model, 0, SIZE);
                check(&overlay, &model, n % SIZE, 1);
            }
            prop_assert_eq!(overlay.is_empty(), model.iter().all(Option::is_none));
        }
    }

    fn check(overlay: &Overlay, model: &[Option<(u64, bool)>], start: u64, blocks: u64) {
        let mut at = start;
        for run in overlay.lookup(Lb(start), Lb(blocks)) {
            assert_eq!(run.start, Lb(at), "runs follow each other");
            assert!(run.blocks.0 > 0);
            for i in 0..run.blocks.0 {
                let expected = model[(at + i) as usize].map(|(n, zero)| match zero {
                    true => Payload::Zero,
                    false => Payload::Data(content(n, at + i, 1)),
                });
                let found = run.payload.as_ref().map(|payload| payload.part(Lb(i), Lb(1)));
                assert_eq!(found, expected, "block {}", at + i);
            }
            at += run.blocks.0;
        }
        assert_eq!(at, start + blocks);
    }
}
