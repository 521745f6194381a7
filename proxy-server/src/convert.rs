//! A wlog becomes an indexed wdiff while it arrives (semantics.md §4.4), on a thread that may
//! block: packs are verified, records are compressed in parallel and appended, the index is last.
//!
//! Invariants: nothing of a pack is used before its checksums were verified (I8); never more than
//! one pack and a few chunks in memory; a stream that breaks off makes no wdiff.
use server_kit::chunks::ChunkReceiver;
use server_kit::durable::TmpFile;
use server_kit::error::{Reason, RoleError};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use wdiff_format::compression::Compression;
use wdiff_format::convert::pack_records;
use wdiff_format::error::WdiffError;
use wdiff_format::header::FileType;
use wdiff_format::record::DiffRecord;
use wdiff_format::split::MaxIo;
use wdiff_format::write::{WriteOptions, write_records};
use wlog_format::stream::PackDecoder;
use wlog_format::units::{BlockSize, LogUuid, Lsid, Salt};

/// Logs and diffs below this are compressed by one thread: starting more costs more.
pub(crate) const PARALLEL_FROM_BYTES: u64 = 4 << 20;

const BUFFER_BYTES: usize = 256 << 10;

/// What arrives.
#[derive(Debug, Clone)]
pub(crate) struct LogSpec {
    pub(crate) uuid: LogUuid,
    pub(crate) block_size: BlockSize,
    pub(crate) salt: Salt,
    pub(crate) begin: Lsid,
    /// Nothing may end behind this.
    pub(crate) limit: Lsid,
}

/// How it is staged.
#[derive(Debug, Clone)]
pub(crate) struct Staging {
    pub(crate) compression: Compression,
    pub(crate) threads: usize,
    /// Where, for messages.
    pub(crate) path: PathBuf,
}

/// A converted log that is not durable yet.
pub(crate) struct Converted {
    pub(crate) tmp: TmpFile,
    pub(crate) end: Lsid,
    pub(crate) bytes: u64,
}

/// Reads the whole of `input` and writes it to `tmp`.
pub(crate) fn convert(
    input: ChunkReceiver,
    spec: &LogSpec,
    tmp: TmpFile,
    staging: &Staging,
) -> Result<Converted, RoleError> {
    let mut records = Records {
        input,
        decoder: PackDecoder::new(spec.block_size, spec.salt, spec.begin),
        limit: spec.limit,
        pack: Vec::new().into_iter(),
    };
    let options = WriteOptions {
        file_type: FileType::Indexed,
        uuid: spec.uuid,
        compression: staging.compression,
        max_io: MaxIo::default(),
        threads: staging.threads,
    };
    let output = BufWriter::with_capacity(BUFFER_BYTES, Counted { tmp, bytes: 0 });
    let written = write_records(&mut records, output, &options).map_err(|e| failed(e, staging))?;
    let broken = |e: io::IntoInnerError<_>| RoleError::io("stage", &staging.path, e.into_error());
    let Counted { tmp, bytes } = written.into_inner().map_err(broken)?;
    Ok(Converted { tmp, end: records.decoder.next_lsid(), bytes })
}

fn failed(error: WdiffError, staging: &Staging) -> RoleError {
    match error {
        WdiffError::Output { source, .. } => RoleError::io("stage", &staging.path, source),
        WdiffError::Log(source) => match source.downcast::<RoleError>() {
            Ok(error) => *error,
            Err(source) => {
                RoleError::damaged("the log that arrives is not sound").with_source(source)
            }
        },
        other => RoleError::new(Reason::Io, "cannot convert the log").with_source(other),
    }
}

/// The writes and discards of the log that arrives.
struct Records {
    input: ChunkReceiver,
    decoder: PackDecoder,
    limit: Lsid,
    pack: std::vec::IntoIter<Result<DiffRecord, WdiffError>>,
}

impl Records {
    /// Reads the next pack; `false` when the log has ended.
    fn fill(&mut self) -> Result<bool, RoleError> {
        let damaged = |e| RoleError::damaged("the log that arrives is not sound").with_source(e);
        loop {
            if let Some(pack) = self.decoder.next_pack().map_err(damaged)? {
                if self.decoder.next_lsid() > self.limit {
                    return Err(RoleError::bad_request(format!(
                        "the log goes beyond lsid {}, the limit that was announced",
                        self.limit
                    )));
                }
                self.pack = pack_records(&pack).collect::<Vec<_>>().into_iter();
                return Ok(true);
            }
            if self.decoder.is_ended() {
                return Err(RoleError::bad_request("the log has an end block; packs only"));
            }
            match self.input.next_bytes() {
                Ok(Some(bytes)) => self.decoder.push(bytes),
                Ok(None) => return self.decoder.finish().map(|_| false).map_err(damaged),
                Err(e) => {
                    return Err(RoleError::unreachable("the storage server", e));
                }
            }
        }
    }
}

impl Iterator for Records {
    type Item = Result<DiffRecord, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.pack.next() {
                return Some(record);
            }
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(WdiffError::Log(Box::new(error)))),
            }
        }
    }
}

/// A file that knows its length.
struct Counted {
    tmp: TmpFile,
    bytes: u64,
}

impl Write for Counted {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.tmp.write(data)?;
        self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.tmp.flush()
    }
}
