//! Writing a diff onto an image.

use crate::codec::Codec;
use crate::compression::Compression;
use crate::error::WdiffError;
use crate::io_at::WriteAt;
use crate::pool::CodecPool;
use crate::record::DiffRecord;
use bytes::Bytes;
use wlog_format::units::Lb;

/// A record whose data is uncompressed.
#[derive(Clone, Debug)]
pub struct DecodedRecord {
    /// First logical block.
    pub address: Lb,
    /// Logical blocks.
    pub blocks: u32,
    /// What they hold.
    pub content: Content,
}

/// What the blocks of a [`DecodedRecord`] hold.
#[derive(Clone, Debug)]
pub enum Content {
    /// This.
    Data(Bytes),
    /// Zeros that were written.
    AllZero,
    /// Discarded.
    Discard,
}

impl DecodedRecord {
    /// The block after the last one.
    #[must_use]
    pub const fn end(&self) -> Lb {
        Lb(self.address.0 + self.blocks as u64)
    }

    fn of(codec: &mut Codec, record: &DiffRecord) -> Result<Self, WdiffError> {
        use crate::record::RecordKind;
        let content = match (record.kind(), record.raw(codec)?) {
            (RecordKind::Discard, _) => Content::Discard,
            (RecordKind::Normal, Some(data)) => Content::Data(data),
            (RecordKind::Normal | RecordKind::AllZero, _) => Content::AllZero,
        };
        Ok(Self { address: record.address, blocks: record.blocks, content })
    }
}

/// Decompresses `records` on `threads` threads, in order.
pub fn decode<I>(records: I, threads: usize) -> CodecPool<I, DecodedRecord>
where
    I: Iterator<Item = Result<DiffRecord, WdiffError>>,
{
    CodecPool::new(records, DecodedRecord::of, Compression::NONE, threads)
}

/// What becomes of blocks that a diff discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discards {
    /// They keep what they hold.
    Ignore,
    /// They become zeros: what the volume's history says of them.
    Zero,
}

/// What becomes of records that reach beyond the end of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeyondEnd {
    /// The whole record is dropped, and counted.
    Drop,
    /// It is an error.
    Fail,
}

/// How [`redo`] writes.
#[derive(Clone, Copy, Debug)]
pub struct RedoOptions {
    /// Discarded blocks.
    pub discards: Discards,
    /// Records beyond the end.
    pub beyond_end: BeyondEnd,
    /// Whole logical blocks of the image.
    pub image_blocks: Lb,
    /// Threads that decompress.
    pub threads: usize,
}

/// What [`redo`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RedoStat {
    /// Records with data written.
    pub written: u64,
    /// Blocks of data written.
    pub written_blocks: u64,
    /// Records of zeros written.
    pub zeroed: u64,
    /// Discards that became zeros, or were ignored.
    pub discards: u64,
    /// Records dropped since they reach beyond the end.
    pub dropped: u64,
}

/// Writes `records` onto `image`. Does not flush it.
///
/// # Errors
/// A record cannot be read, or the image cannot be written; earlier records are written then.
/// Doing it again from the start is safe.
pub fn redo(
    records: impl Iterator<Item = Result<DiffRecord, WdiffError>>,
    image: &mut impl WriteAt,
    options: &RedoOptions,
) -> Result<RedoStat, WdiffError> {
    let mut stat = RedoStat::default();
    for record in decode(records, options.threads) {
        let record = record?;
        if record.end() > options.image_blocks {
            if options.beyond_end == BeyondEnd::Fail {
                return Err(beyond_end(&record, options.image_blocks));
            }
            stat.dropped += 1;
            continue;
        }
        redo_one(&record, image, options.discards, &mut stat)
            .map_err(|source| WdiffError::Output { offset: record.address.bytes(), source })?;
    }
    Ok(stat)
}

pub(crate) fn beyond_end(record: &DecodedRecord, image_blocks: Lb) -> WdiffError {
    WdiffError::BeyondEnd {
        address: record.address.0,
        end: record.end().0,
        image_blocks: image_blocks.0,
    }
}

fn redo_one(
    record: &DecodedRecord,
    image: &mut impl WriteAt,
    discards: Discards,
    stat: &mut RedoStat,
) -> std::io::Result<()> {
    let offset = record.address.bytes();
    let len = Lb(record.blocks.into()).bytes();
    match &record.content {
        Content::Data(data) => {
            stat.written += 1;
            stat.written_blocks += u64::from(record.blocks);
            image.write_all_at(data, offset)
        }
        Content::AllZero => {
            stat.zeroed += 1;
            image.write_zeros_at(offset, len)
        }
        Content::Discard => {
            stat.discards += 1;
            match discards {
                Discards::Ignore => Ok(()),
                Discards::Zero => image.write_zeros_at(offset, len),
            }
        }
    }
}
