//! Looking whether a wdiff can be read, for somebody who does not want its data now.

use std::ops::Range;

use wlog_format::units::Lb;

use crate::codec::Codec;
use crate::compression::Compression;
use crate::error::WdiffError;
use crate::pool::CodecPool;
use crate::record::DiffRecord;

/// Sees on `threads` threads that the data of each of `records` can be decompressed: where each
/// is, in order. It costs less than decompressing them where the compression lets it.
pub fn check<I>(records: I, threads: usize) -> CodecPool<I, Range<Lb>>
where
    I: Iterator<Item = Result<DiffRecord, WdiffError>>,
{
    CodecPool::new(records, look, Compression::NONE, threads)
}

fn look(codec: &mut Codec, record: &DiffRecord) -> Result<Range<Lb>, WdiffError> {
    let is_sound = record
        .stored()
        .is_some_and(|stored| codec.look(stored.kind, &stored.bytes, record.raw_bytes()).is_ok());
    if !is_sound {
        // A piece of something larger; or damage, which is told with its place.
        record.raw(codec)?;
    }
    Ok(record.address..record.end())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wlog_format::units::LogUuid;

    use super::*;
    use crate::compression::CompressionKind;
    use crate::header::FileType;
    use crate::open::WdiffReader;
    use crate::record::EncodedRecord;
    use crate::split::MaxIo;
    use crate::write::{WdiffWriter, WriteOptions};

    const KINDS: [CompressionKind; 6] = [
        CompressionKind::None,
        CompressionKind::Gzip,
        CompressionKind::Snappy,
        CompressionKind::Lzma,
        CompressionKind::Lz4,
        CompressionKind::Zstd,
    ];

    /// A wdiff of three records, of which the second one claims to be a block longer than its data.
    fn wdiff(kind: CompressionKind, harmed: bool) -> WdiffReader {
        let compression = Compression::of(kind);
        let options = WriteOptions {
            file_type: FileType::Sorted,
            uuid: LogUuid::ZERO,
            compression,
            max_io: MaxIo::default(),
            threads: 1,
        };
        let (mut file, mut codec) = (Vec::new(), Codec::new(compression));
        let mut writer = WdiffWriter::new(&mut file, &options).unwrap();
        for number in 0..3 {
            let raw = Bytes::from(vec![b'x'; 4096]);
            let record = DiffRecord::from_raw(Lb(number * 16), raw).unwrap();
            let EncodedRecord { address, mut blocks, body } = record.encode(&mut codec).unwrap();
            blocks += u32::from(harmed && number == 1);
            writer.write(&EncodedRecord { address, blocks, body }).unwrap();
        }
        writer.finish().unwrap();
        WdiffReader::from_stream(Box::new(std::io::Cursor::new(file)), "w").unwrap()
    }

    #[test]
    fn every_record_is_looked_at_whatever_compresses_it() {
        for kind in KINDS {
            let seen: Vec<_> = check(wdiff(kind, false), 2).map(Result::unwrap).collect();
            assert_eq!(seen, [Lb(0)..Lb(8), Lb(16)..Lb(24), Lb(32)..Lb(40)], "{kind}");
        }
    }

    #[test]
    fn data_that_its_checksum_fits_and_that_is_no_data_is_found_and_placed() {
        for kind in KINDS.into_iter().filter(|kind| *kind != CompressionKind::None) {
            let seen: Vec<_> = check(wdiff(kind, true), 1).collect();
            let [Ok(first), Err(error)] = seen.as_slice() else { panic!("{kind}: {seen:?}") };
            assert_eq!(*first, Lb(0)..Lb(8));
            assert!(matches!(error, WdiffError::Input(input) if input.place.offset > 4096));
        }
    }
}
