//! A log as a diff (`formats.md` §6.5, §6.6).
//!
//! Both kinds are made in one pass over the log. The indexed file is written while the log is
//! read, and memory grows with its index only. For the sorted one everything that is not
//! overwritten has to wait for the last write, in memory.

use std::io::{Read, Write};

use bytes::Bytes;
use wlog_format::checksum::unsalted;
use wlog_format::pack::{Record, RecordKind as LogKind};
use wlog_format::stream::{Pack, WlogReader};
use wlog_format::units::{Lb, LogUuid, Salt};

use crate::error::WdiffError;
use crate::header::FileType;
use crate::record::{DiffRecord, Payload};
use crate::sorted_reader::check_range;
use crate::split::{CutRule, MaxIo, Overlay};
use crate::write::{WriteOptions, write_records};

/// The writes and discards of a wlog, or of several that continue each other in one file, in the
/// order of the log. Writes of zeros alone are all-zero records. Ends after the first error.
pub struct LogRecords<R> {
    reader: WlogReader<R>,
    pack: std::vec::IntoIter<Result<DiffRecord, WdiffError>>,
    finished: bool,
}

impl<R: Read> LogRecords<R> {
    /// Reads what `reader` has not read yet.
    pub fn new(reader: WlogReader<R>) -> Self {
        Self { reader, pack: Vec::new().into_iter(), finished: false }
    }

    /// The log sequence of the log.
    pub const fn uuid(&self) -> LogUuid {
        self.reader.header().uuid
    }

    fn next_record(&mut self) -> Option<Result<DiffRecord, WdiffError>> {
        loop {
            if let Some(record) = self.pack.next() {
                return Some(record);
            }
            match self.next_pack() {
                Ok(Some(pack)) => self.pack = pack_records(&pack).collect::<Vec<_>>().into_iter(),
                Ok(None) => return None,
                Err(error) => return Some(Err(WdiffError::Log(Box::new(error)))),
            }
        }
    }

    fn next_pack(&mut self) -> Result<Option<Pack>, wlog_format::stream::WlogError> {
        loop {
            if let Some(pack) = self.reader.next_pack()? {
                return Ok(Some(pack));
            }
            if !self.reader.next_wlog()? {
                return Ok(None);
            }
        }
    }
}

impl<R: Read> Iterator for LogRecords<R> {
    type Item = Result<DiffRecord, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.next_record();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The writes and discards of one pack, whose data was verified, as records of a diff, in order.
pub fn pack_records(pack: &Pack) -> impl Iterator<Item = Result<DiffRecord, WdiffError>> {
    let salt = pack.header.salt();
    pack.ios().map(move |(record, payload)| log_record(record, payload, salt))
}

fn log_record(record: &Record, payload: Bytes, salt: Salt) -> Result<DiffRecord, WdiffError> {
    let (address, blocks) = (record.address, record.blocks);
    check_range(address, blocks, Lb(0)).map_err(|what| WdiffError::Log(what.into()))?;
    let payload = match record.kind {
        LogKind::Normal if !is_zero(&payload) => {
            let too_long = || WdiffError::Log(format!("a write of {blocks} blocks").into());
            let checksum = Some(unsalted(record.checksum, salt));
            return DiffRecord::from_summed(address, payload, checksum).ok_or_else(too_long);
        }
        LogKind::Normal => Payload::AllZero,
        LogKind::Discard | LogKind::Padding => Payload::Discard,
    };
    Ok(DiffRecord { address, blocks, payload })
}

/// Converts the records of a log, in log order, into a wdiff; gives back the flushed output.
///
/// # Errors
/// The log cannot be read, or the output cannot be written; the output is not complete then.
pub fn convert<W: Write>(
    records: impl Iterator<Item = Result<DiffRecord, WdiffError>>,
    output: W,
    options: &WriteOptions,
) -> Result<W, WdiffError> {
    match options.file_type {
        FileType::Indexed => write_records(records, output, options),
        FileType::Sorted => {
            let sorted = sort(records, options.max_io)?;
            write_records(sorted.map(Ok), output, options)
        }
    }
}

/// What is visible in the end of records of which later ones overwrite earlier ones, ascending and
/// disjoint. Holds it all in memory.
///
/// # Errors
/// A record cannot be read.
pub fn sort(
    records: impl Iterator<Item = Result<DiffRecord, WdiffError>>,
    max_io: MaxIo,
) -> Result<impl Iterator<Item = DiffRecord>, WdiffError> {
    let mut overlay = Overlay::new();
    for record in records {
        let record = record?;
        overlay.insert(record.address, record);
    }
    Ok(overlay.into_records(CutRule::Sequential(max_io)).map(|(_, record)| record))
}

/// Is there no other byte than 0?
#[must_use]
pub fn is_zero(data: &[u8]) -> bool {
    // Chunk by chunk: each by wide registers, and the first one decides for most data.
    data.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}
