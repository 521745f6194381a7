//! A base image and diffs, read as the image that they make together, without making it.

use std::io::{self, Read};

use wlog_format::units::{LOGICAL_BLOCK_BYTES, Lb, to_usize};

use crate::error::WdiffError;
use crate::io_at::ReadAt;
use crate::pool::CodecPool;
use crate::record::DiffRecord;
use crate::redo::{BeyondEnd, Content, DecodedRecord, beyond_end, decode};

/// The image, front to back. Discarded blocks read as zeros.
///
/// Reading fails with an [`io::Error`] around the [`WdiffError`] when a diff cannot be read.
pub struct VirtualImage<B, I: Iterator> {
    base: B,
    size_bytes: u64,
    position: u64,
    records: CodecPool<I, DecodedRecord>,
    /// The record that the position lies in or before.
    current: Option<DecodedRecord>,
    begun: bool,
    beyond_end: BeyondEnd,
    dropped: u64,
}

impl<B: ReadAt, I> VirtualImage<B, I>
where
    I: Iterator<Item = Result<DiffRecord, WdiffError>>,
{
    /// The image of `size_bytes` bytes that `records` (ascending and disjoint, such as those of a
    /// [`Merger`](crate::merge::Merger)) make of `base`, decompressed on `threads` threads.
    pub fn new(
        base: B,
        size_bytes: u64,
        records: I,
        beyond_end: BeyondEnd,
        threads: usize,
    ) -> Self {
        let records = decode(records, threads);
        Self {
            base,
            size_bytes,
            position: 0,
            records,
            current: None,
            begun: false,
            beyond_end,
            dropped: 0,
        }
    }

    /// Bytes of the image.
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Records dropped so far since they reach beyond the end.
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Makes the next record that lies inside the image the current one.
    fn advance(&mut self) -> Result<(), WdiffError> {
        let image_blocks = Lb(self.size_bytes / LOGICAL_BLOCK_BYTES);
        loop {
            self.current = self.records.next().transpose()?;
            match &self.current {
                Some(record) if record.end() > image_blocks => match self.beyond_end {
                    BeyondEnd::Fail => return Err(beyond_end(record, image_blocks)),
                    BeyondEnd::Drop => self.dropped += 1,
                },
                _ => return Ok(()),
            }
        }
    }

    /// Fills the start of `buf`, which ends at the image's end at the latest, from one record or
    /// from the base up to the next record.
    fn read_part(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let (start, end) = match &self.current {
            Some(record) => (record.address.bytes(), record.end().bytes()),
            None => (self.size_bytes, self.size_bytes),
        };
        if self.position < start {
            let len = buf.len().min(to_usize(start - self.position));
            let (part, _) = buf.split_at_mut(len);
            self.base.read_exact_at(part, self.position)?;
            self.position += len as u64;
            return Ok(len);
        }
        let len = buf.len().min(to_usize(end - self.position));
        let (part, _) = buf.split_at_mut(len);
        match self.current.as_ref().map(|record| &record.content) {
            Some(Content::Data(data)) => {
                let from = to_usize(self.position - start);
                let data = data.get(from..from + len).ok_or(io::ErrorKind::InvalidData)?;
                part.copy_from_slice(data);
            }
            Some(Content::AllZero | Content::Discard) | None => part.fill(0),
        }
        self.position += len as u64;
        if self.position == end {
            self.advance().map_err(io::Error::other)?;
        }
        Ok(len)
    }
}

impl<B: ReadAt, I> Read for VirtualImage<B, I>
where
    I: Iterator<Item = Result<DiffRecord, WdiffError>>,
{
    /// Fills `buf` unless the image ends.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.begun {
            self.begun = true;
            self.advance().map_err(io::Error::other)?;
        }
        let left = usize::try_from(self.size_bytes - self.position).unwrap_or(usize::MAX);
        let wanted = buf.len().min(left);
        let mut filled = 0;
        while filled < wanted {
            let (_, rest) = buf.split_at_mut(filled);
            let (rest, _) = rest.split_at_mut(wanted - filled);
            filled += self.read_part(rest)?;
        }
        Ok(filled)
    }
}
