//! Writing a sorted wdiff (`formats.md` §6.3).

use std::io::Write;

use bytes::Bytes;
use wlog_format::units::{Lb, LogUuid};
use zerocopy::IntoBytes;

use crate::error::WdiffError;
use crate::gather::Gather;
use crate::header::{FileHeader, FileType};
use crate::layout::{
    PACK_END, PACK_HEADER_BYTES, PACK_RECORDS_MAX, RawPackHeader, RawRecord, own_checksum,
};
use crate::record::{Body, DATA_BLOCKS_MAX, EncodedRecord};

/// Data after which a pack is closed. The format allows 32 MiB; a pack waits in memory until its
/// header is known, and a smaller one costs nothing.
const PACK_DATA_BYTES: u64 = 4 << 20;

/// Writes a sorted wdiff, front to back. Without [`SortedWriter::finish`] the file has no end
/// pack, and readers say so.
#[derive(Debug)]
pub struct SortedWriter<W> {
    output: Gather<W>,
    /// Headers of the pack that is being filled, and its data.
    records: Vec<RawRecord>,
    data: Vec<Bytes>,
    data_bytes: u32,
    end: Lb,
}

impl<W: Write> SortedWriter<W> {
    /// Writes the file header. The output is written in large pieces.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn new(output: W, uuid: LogUuid) -> Result<Self, WdiffError> {
        let mut writer = Self {
            output: Gather::new(output),
            records: Vec::with_capacity(PACK_RECORDS_MAX),
            data: Vec::with_capacity(PACK_RECORDS_MAX),
            data_bytes: 0,
            end: Lb(0),
        };
        let header = FileHeader { file_type: FileType::Sorted, uuid }.encode();
        writer.output.put(Bytes::copy_from_slice(&header))?;
        Ok(writer)
    }

    /// Adds a record behind all others.
    ///
    /// # Errors
    /// The output cannot be written, or the record is out of order or too large.
    pub fn write(&mut self, record: &EncodedRecord) -> Result<(), WdiffError> {
        check(record, self.end)?;
        let mut raw = RawRecord {
            io_address: record.address.0.into(),
            io_blocks: record.blocks.into(),
            flags: record.kind().flags(),
            ..RawRecord::default()
        };
        let size = match &record.body {
            Body::AllZero | Body::Discard => 0,
            Body::Data(stored) => u32::try_from(stored.bytes.len()).unwrap_or(u32::MAX),
        };
        let full = u64::from(self.data_bytes) + u64::from(size) > PACK_DATA_BYTES;
        if self.records.len() == PACK_RECORDS_MAX || (full && !self.records.is_empty()) {
            self.flush_pack()?;
        }
        raw.data_offset = self.data_bytes.into();
        if let Body::Data(stored) = &record.body {
            raw.compression = stored.kind.code();
            raw.data_size = size.into();
            raw.checksum = stored.checksum.into();
            self.data.push(stored.bytes.clone());
        }
        self.records.push(raw);
        self.data_bytes += size;
        self.end = Lb(record.address.0 + u64::from(record.blocks));
        Ok(())
    }

    /// Writes the end pack, and gives back the flushed output.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(mut self) -> Result<W, WdiffError> {
        if !self.records.is_empty() {
            self.flush_pack()?;
        }
        self.put_header(PACK_END)?;
        self.output.finish()
    }

    fn flush_pack(&mut self) -> Result<(), WdiffError> {
        self.put_header(0)?;
        for bytes in self.data.drain(..) {
            self.output.put(bytes)?;
        }
        self.records.clear();
        self.data_bytes = 0;
        Ok(())
    }

    fn put_header(&mut self, flags: u8) -> Result<(), WdiffError> {
        let raw = RawPackHeader {
            n_records: u16::try_from(self.records.len()).unwrap_or(u16::MAX).into(),
            flags,
            total_size: self.data_bytes.into(),
            ..RawPackHeader::default()
        };
        let mut page = Vec::with_capacity(PACK_HEADER_BYTES);
        page.extend_from_slice(raw.as_bytes());
        page.extend_from_slice(self.records.as_bytes());
        page.resize(PACK_HEADER_BYTES, 0);
        let sum = own_checksum(&page);
        if let Some(field) = page.first_chunk_mut::<4>() {
            *field = sum.to_bytes();
        }
        self.output.put(page.into())
    }
}

/// The rules of both file types for one record that is to be written behind block `end`.
pub(crate) fn check(record: &EncodedRecord, end: Lb) -> Result<(), WdiffError> {
    let unwritable = |what| Err(WdiffError::Unwritable { address: record.address.0, what });
    if record.blocks == 0 {
        return unwritable("it has no blocks");
    }
    if record.address < end {
        return unwritable("records must ascend and be disjoint");
    }
    match &record.body {
        Body::Data(stored)
            if record.blocks > DATA_BLOCKS_MAX
                || stored.bytes.len() as u64 > Lb(record.blocks.into()).bytes() =>
        {
            unwritable("its data is too large")
        }
        Body::Data(_) | Body::AllZero | Body::Discard => Ok(()),
    }
}
