//! Many diffs as one: where they overlap the newest wins (`formats.md` §6.5).
//!
//! The merge is a stream: it holds one record of each input, or two. Each record of the result is
//! what newer diffs leave visible of one input record, so its data is never copied, and a record
//! that nothing covers comes out as it went in, compressed data and all. An index cuts an I/O into
//! pieces, each of which would have to be compressed anew: see [`Pieces`].

use std::iter::Fuse;

use wlog_format::units::Lb;

use crate::error::WdiffError;
use crate::open::Records;
use crate::record::DiffRecord;
use crate::split::MaxIo;

/// What becomes of the pieces of one I/O in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pieces {
    /// Those that follow each other in it and on the device are one record again.
    Joined,
    /// Each stays a record, as in a merge of the original (`formats.md` §6.5).
    Kept,
}

/// Start of an input that has no more records.
const NO_MORE: u64 = u64::MAX;

/// The overlay of diffs: an iterator over its records, which ends after the first error.
pub struct Merger {
    inputs: Vec<Input>,
    /// Where the head of each input begins; apart, since every step looks at all of them.
    starts: Vec<u64>,
    max_io: MaxIo,
    finished: bool,
}

struct Input {
    records: Ahead,
    /// The next piece, and what follows it of the same record.
    head: Option<DiffRecord>,
    rest: Option<DiffRecord>,
}

/// The records of an input.
struct Ahead {
    records: Fuse<Records>,
    pieces: Pieces,
    /// What was read to see that it does not continue the record before it.
    ahead: Option<Result<DiffRecord, WdiffError>>,
}

impl Ahead {
    fn next(&mut self) -> Result<Option<DiffRecord>, WdiffError> {
        let next = self.ahead.take().or_else(|| self.records.next());
        let Some(mut record) = next.transpose()? else { return Ok(None) };
        while self.pieces == Pieces::Joined && record.may_continue() {
            let Some(next) = self.records.next() else { break };
            if !next.as_ref().is_ok_and(|next| record.join(next)) {
                self.ahead = Some(next);
                break;
            }
        }
        Ok(Some(record))
    }
}

impl Input {
    /// Makes the next piece the head.
    fn advance(&mut self, max_io: MaxIo) -> Result<(), WdiffError> {
        let next = match self.rest.take() {
            Some(rest) => Some(rest),
            None => self.records.next()?,
        };
        self.head = next.map(|record| {
            let blocks = max_io.clamp(record.blocks);
            if blocks == record.blocks {
                return record;
            }
            self.rest = Some(record.cut(blocks, record.blocks - blocks));
            record.cut(0, blocks)
        });
        Ok(())
    }

    /// Drops everything before block `end`, and says where the head begins then.
    fn skip_to(&mut self, end: u64, max_io: MaxIo) -> Result<u64, WdiffError> {
        loop {
            let Some(head) = &self.head else { return Ok(NO_MORE) };
            let start = head.address.0;
            if start >= end {
                return Ok(start);
            }
            // The head begins before `end`; what lies behind `end` is shorter than the head.
            match u32::try_from(end - start) {
                Ok(covered) if covered < head.blocks => {
                    self.head = Some(head.cut(covered, head.blocks - covered));
                }
                _ => self.advance(max_io)?,
            }
        }
    }
}

impl Merger {
    /// Merges `inputs`, oldest first. Records longer than `max_io` are cut.
    ///
    /// # Errors
    /// The first record of an input cannot be read.
    pub fn new(inputs: Vec<Records>, max_io: MaxIo, pieces: Pieces) -> Result<Self, WdiffError> {
        let mut merger = Self {
            inputs: Vec::with_capacity(inputs.len()),
            starts: Vec::with_capacity(inputs.len()),
            max_io,
            finished: false,
        };
        for records in inputs {
            let records = Ahead { records: records.fuse(), pieces, ahead: None };
            let mut input = Input { records, head: None, rest: None };
            input.advance(max_io)?;
            merger.starts.push(input.skip_to(0, max_io)?);
            merger.inputs.push(input);
        }
        Ok(merger)
    }

    /// The first block that any input still has a record for, for progress; `None` at the end.
    #[must_use]
    pub fn position(&self) -> Option<Lb> {
        self.starts.iter().copied().min().filter(|&start| start != NO_MORE).map(Lb)
    }

    fn next_record(&mut self) -> Result<Option<DiffRecord>, WdiffError> {
        // The first block that any head covers; of heads that begin there, the newest wins. What
        // is newer than the winner begins later, and ends the winner's visible part.
        let (mut winner, mut start, mut end) = (0, NO_MORE, NO_MORE);
        for (index, &head) in self.starts.iter().enumerate() {
            if head <= start {
                (winner, start, end) = (index, head, NO_MORE);
            } else {
                end = end.min(head);
            }
        }
        let head = self.inputs.get(winner).and_then(|input| input.head.as_ref());
        let Some(head) = head else { return Ok(None) };
        let visible = end.min(head.end().0);
        let record = match u32::try_from(visible - start) {
            Ok(blocks) if blocks < head.blocks => head.cut(0, blocks),
            _ => head.clone(),
        };
        let older = self.inputs.iter_mut().zip(&mut self.starts).take(winner + 1);
        for (input, start) in older {
            if *start < visible {
                *start = input.skip_to(visible, self.max_io)?;
            }
        }
        Ok(Some(record))
    }
}

impl Iterator for Merger {
    type Item = Result<DiffRecord, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.next_record().transpose();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}
