//! Writing an indexed wdiff (`formats.md` §6.4, §6.6): data in the order of arrival, the index
//! last. Memory grows with the index only.

use std::io::Write;

use bytes::Bytes;
use wlog_format::units::{Lb, LogUuid};
use zerocopy::IntoBytes;

use crate::compression::CompressionKind;
use crate::error::WdiffError;
use crate::gather::Gather;
use crate::header::{FileHeader, FileType};
use crate::layout::{RawIndexRecord, RawIndexSuper, own_checksum};
use crate::record::{Body, EncodedRecord, RecordKind};
use crate::sorted_writer::check;
use crate::split::{CutRule, MaxIo, Overlay, Span};

/// I/Os that come into the index at once.
const FRESH_IOS: usize = 8192;
/// Index records that are written at once.
const INDEX_CHUNK_RECORDS: usize = 1024;

/// Writes an indexed wdiff. I/Os may overlap: the later one wins. Without
/// [`IndexedWriter::finish`] the file has no index, and readers refuse it.
#[derive(Debug)]
pub struct IndexedWriter<W> {
    output: Gather<W>,
    index: Overlay<Piece>,
    /// I/Os that are not in `index` yet, in the order of the log.
    fresh: Vec<(Lb, Piece)>,
    max_io: MaxIo,
    n_data: u32,
}

/// A piece of an I/O, as the index holds it.
#[derive(Clone, Copy, Debug)]
struct Piece {
    blocks: u32,
    io_offset: u32,
    kind: RecordKind,
    compression: CompressionKind,
    data_offset: u64,
    data_size: u32,
    orig_blocks: u32,
    checksum: u32,
}

impl Span for Piece {
    fn blocks(&self) -> u32 {
        self.blocks
    }

    fn cut(&self, skip: u32, blocks: u32) -> Self {
        Self { blocks, io_offset: self.io_offset + skip, ..*self }
    }
}

impl<W: Write> IndexedWriter<W> {
    /// Writes the file header. The output is written in large pieces.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn new(output: W, uuid: LogUuid, max_io: MaxIo) -> Result<Self, WdiffError> {
        let mut output = Gather::new(output);
        let header = FileHeader { file_type: FileType::Indexed, uuid }.encode();
        output.put(Bytes::copy_from_slice(&header))?;
        let fresh = Vec::with_capacity(FRESH_IOS);
        Ok(Self { output, index: Overlay::new(), fresh, max_io, n_data: 0 })
    }

    /// Adds an I/O, over everything that was added before.
    ///
    /// # Errors
    /// The output cannot be written, or the I/O is too large.
    pub fn add(&mut self, io: &EncodedRecord) -> Result<(), WdiffError> {
        check(io, Lb(0))?;
        let mut piece = Piece {
            blocks: io.blocks,
            io_offset: 0,
            kind: io.kind(),
            compression: CompressionKind::None,
            data_offset: self.output.offset(),
            data_size: 0,
            orig_blocks: 0,
            checksum: 0,
        };
        if let Body::Data(stored) = &io.body {
            piece.compression = stored.kind;
            piece.data_size = u32::try_from(stored.bytes.len()).unwrap_or(u32::MAX);
            piece.orig_blocks = io.blocks;
            piece.checksum = stored.checksum;
            self.output.put(stored.bytes.clone())?;
        }
        self.fresh.push((io.address, piece));
        if self.fresh.len() == FRESH_IOS {
            self.index.insert_all(&self.fresh);
            self.fresh.clear();
        }
        self.n_data = self.n_data.saturating_add(1);
        Ok(())
    }

    /// Writes the index, and gives back the flushed output.
    ///
    /// # Errors
    /// The output cannot be written, or the index has more records than a file can have.
    pub fn finish(mut self) -> Result<W, WdiffError> {
        self.index.insert_all(&self.fresh);
        let data_end = self.output.offset();
        let index_offset = data_end.next_multiple_of(8);
        let pad = wlog_format::units::to_usize(index_offset - data_end);
        self.output.put(Bytes::from_static([0; 8].split_at(pad).0))?;
        let index = std::mem::replace(&mut self.index, Overlay::new());
        let mut n_records = 0_u32;
        let mut chunk = Vec::with_capacity(INDEX_CHUNK_RECORDS);
        for (address, piece) in index.into_records(CutRule::Aligned(self.max_io)) {
            let what = "an indexed wdiff has 2^32 records at most";
            let unwritable = WdiffError::Unwritable { address, what };
            n_records = n_records.checked_add(1).ok_or(unwritable)?;
            chunk.push(raw(address, &piece));
            if chunk.len() == INDEX_CHUNK_RECORDS {
                self.output.put(Bytes::copy_from_slice(chunk.as_bytes()))?;
                chunk.clear();
            }
        }
        self.output.put(Bytes::copy_from_slice(chunk.as_bytes()))?;
        let mut end = RawIndexSuper {
            index_offset: index_offset.into(),
            n_records: n_records.into(),
            n_data: self.n_data.into(),
            ..RawIndexSuper::default()
        };
        end.checksum = own_checksum(end.as_bytes());
        self.output.put(Bytes::copy_from_slice(end.as_bytes()))?;
        self.output.finish()
    }
}

fn raw(address: u64, piece: &Piece) -> RawIndexRecord {
    let mut raw = RawIndexRecord {
        io_address: address.into(),
        io_blocks: piece.blocks.into(),
        flags: piece.kind.flags(),
        compression: piece.compression.code(),
        data_offset: piece.data_offset.into(),
        data_size: piece.data_size.into(),
        io_offset: piece.io_offset.into(),
        orig_blocks: piece.orig_blocks.into(),
        io_checksum: piece.checksum.into(),
        ..RawIndexRecord::default()
    };
    raw.rec_checksum = own_checksum(raw.as_bytes());
    raw
}
