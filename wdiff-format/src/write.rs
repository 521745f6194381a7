//! Writing a stream of records as a wdiff of either kind, compressed by all cores.

use std::io::Write;

use wlog_format::units::LogUuid;

use crate::compression::Compression;
use crate::error::WdiffError;
use crate::header::FileType;
use crate::indexed_writer::IndexedWriter;
use crate::pool::CodecPool;
use crate::record::{DiffRecord, EncodedRecord};
use crate::sorted_writer::SortedWriter;
use crate::split::MaxIo;

/// How a wdiff is written.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// The kind of file.
    pub file_type: FileType,
    /// What goes into its header; [`LogUuid::ZERO`] when the data comes from several logs.
    pub uuid: LogUuid,
    /// How data is compressed.
    pub compression: Compression,
    /// The longest record.
    pub max_io: MaxIo,
    /// Threads that compress.
    pub threads: usize,
}

/// A writer of either kind.
#[derive(Debug)]
pub enum WdiffWriter<W> {
    /// Of a sorted file.
    Sorted(SortedWriter<W>),
    /// Of an indexed file.
    Indexed(IndexedWriter<W>),
}

impl<W: Write> WdiffWriter<W> {
    /// Writes the file header.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn new(output: W, options: &WriteOptions) -> Result<Self, WdiffError> {
        match options.file_type {
            FileType::Sorted => SortedWriter::new(output, options.uuid).map(Self::Sorted),
            FileType::Indexed => {
                IndexedWriter::new(output, options.uuid, options.max_io).map(Self::Indexed)
            }
        }
    }

    /// Adds a record; to a sorted file in the order of the addresses.
    ///
    /// # Errors
    /// The output cannot be written, or no such file can hold the record.
    pub fn write(&mut self, record: &EncodedRecord) -> Result<(), WdiffError> {
        match self {
            Self::Sorted(writer) => writer.write(record),
            Self::Indexed(writer) => writer.add(record),
        }
    }

    /// Completes the file, and gives back the flushed output.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn finish(self) -> Result<W, WdiffError> {
        match self {
            Self::Sorted(writer) => writer.finish(),
            Self::Indexed(writer) => writer.finish(),
        }
    }
}

/// Writes all `records` (ascending for a sorted file, in log order for an indexed one), and gives
/// back the flushed output. Data that is stored in the wanted compression already is copied.
///
/// # Errors
/// A record cannot be read, or the output cannot be written; the output is not complete then.
pub fn write_records<W: Write>(
    records: impl Iterator<Item = Result<DiffRecord, WdiffError>>,
    output: W,
    options: &WriteOptions,
) -> Result<W, WdiffError> {
    let mut writer = WdiffWriter::new(output, options)?;
    let encode: fn(&mut _, &DiffRecord) -> _ = |codec, record| record.encode(codec);
    for record in CodecPool::new(records, encode, options.compression, options.threads) {
        writer.write(&record?)?;
    }
    writer.finish()
}
