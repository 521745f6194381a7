//! Writing a run, from front to back.

use std::io::Write;

use zerocopy::IntoBytes;

use super::RunError;
use super::entry::{Covered, Entry, Key};
use super::layout::{DIFFS_PER_BLOCK, KEYS_PER_BLOCK, PAYLOAD_BYTES, seal};
use super::layout::{MAGIC, RawEnd, RawEntry, VERSION};

/// Writes a run. Without [`RunWriter::finish`] nobody takes the file for one.
#[derive(Debug)]
pub struct RunWriter<W> {
    output: W,
    /// Payload of the block that is being filled.
    block: Vec<u8>,
    /// Blocks written.
    blocks: u64,
    /// The first key of each leaf.
    first: Vec<Key>,
    last: Option<Key>,
    entries: u64,
    classes: u64,
}

impl<W: Write> RunWriter<W> {
    /// Begins. Hand in a buffered output.
    #[must_use]
    pub fn new(output: W) -> Self {
        let (block, first) = (Vec::with_capacity(PAYLOAD_BYTES), Vec::new());
        Self { output, block, blocks: 0, first, last: None, entries: 0, classes: 0 }
    }

    /// Adds an entry behind all others.
    ///
    /// # Errors
    /// The output cannot be written; the entry does not come behind the last one.
    pub fn push(&mut self, entry: &Entry) -> Result<(), RunError> {
        if self.last.is_some_and(|last| last >= entry.key) {
            return Err(RunError::Order(entry.key.address.0));
        }
        if self.block.is_empty() {
            self.first.push(entry.key);
        }
        self.block.extend_from_slice(entry.raw().as_bytes());
        self.last = Some(entry.key);
        self.entries += 1;
        self.classes |= 1_u64.checked_shl(entry.key.class.into()).unwrap_or(0);
        if self.block.len() + size_of::<RawEntry>() > PAYLOAD_BYTES {
            self.seal()?;
        }
        Ok(())
    }

    /// Writes the rest, and gives back the flushed output. `covered` are the diffs by their
    /// numbers.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(mut self, covered: &[Covered]) -> Result<W, RunError> {
        if !self.block.is_empty() {
            self.seal()?;
        }
        let mut level = std::mem::take(&mut self.first);
        while level.len() > 1 {
            let above = level.chunks(KEYS_PER_BLOCK).filter_map(|c| c.first().copied()).collect();
            self.table(&level, KEYS_PER_BLOCK, |key| key.raw())?;
            level = above;
        }
        self.table(covered, DIFFS_PER_BLOCK, Covered::raw)?;
        let end = RawEnd {
            magic: MAGIC,
            version: VERSION.into(),
            reserved: 0.into(),
            entries: self.entries.into(),
            classes: self.classes.into(),
            diffs: u32::try_from(covered.len()).unwrap_or(u32::MAX).into(),
        };
        self.block.extend_from_slice(end.as_bytes());
        self.seal()?;
        self.output.flush().map_err(RunError::Write)?;
        Ok(self.output)
    }

    fn table<T, R: IntoBytes + zerocopy::Immutable>(
        &mut self,
        rows: &[T],
        per_block: usize,
        raw: impl Fn(&T) -> R,
    ) -> Result<(), RunError> {
        for rows in rows.chunks(per_block) {
            rows.iter().for_each(|row| self.block.extend_from_slice(raw(row).as_bytes()));
            self.seal()?;
        }
        Ok(())
    }

    fn seal(&mut self) -> Result<(), RunError> {
        let block = seal(&self.block, self.blocks);
        self.output.write_all(&block).map_err(RunError::Write)?;
        self.blocks += 1;
        self.block.clear();
        Ok(())
    }
}
