//! Where the records of a sorted wdiff lie, and reading one of them alone (`formats.md` §6.3).
//!
//! Only the pack headers are read to find them. Invariant: what [`Location::read`] hands out was
//! checked as a reader of the whole file would.

use std::sync::Arc;

use bytes::Bytes;
use wlog_format::checksum::checksum;
use wlog_format::units::{Lb, Salt, to_usize};

use crate::codec::Codec;
use crate::compression::CompressionKind;
use crate::error::{Place, Problem, WdiffError};
use crate::io_at::{ReadAt, Sequential};
use crate::record::RecordKind;
use crate::sorted_reader::{SortedReader, short};

/// A record, and where its data lies in the file. Its fields are sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// First logical block.
    pub address: Lb,
    /// Byte offset of the data.
    pub offset: u64,
    /// Logical blocks, at least 1.
    pub blocks: u32,
    /// Bytes of the data as it is stored.
    pub size: u32,
    /// Checksum of the stored data.
    pub checksum: u32,
    /// What the blocks hold.
    pub kind: RecordKind,
    /// How the data is stored.
    pub compression: CompressionKind,
}

/// The records of a sorted wdiff. `file` is the name that errors use.
///
/// # Errors
/// It cannot be read, or is no whole sorted wdiff.
pub fn locate(input: impl ReadAt, file: impl Into<Arc<str>>) -> Result<Vec<Location>, WdiffError> {
    let file = file.into();
    let place = Place { file: file.clone(), offset: 0 };
    let input = Sequential::new(input).map_err(|e| place.fails(Problem::Io(e)))?;
    let mut reader = SortedReader::new(input, file)?;
    let mut found = Vec::new();
    while let Some(pack) = reader.locate_pack()? {
        found.extend(pack);
    }
    Ok(found)
}

impl Location {
    /// The data, uncompressed; of a record without data nothing is read. `file` is the name that
    /// errors use.
    ///
    /// # Errors
    /// It cannot be read, or is not what it was.
    pub fn read(
        &self,
        input: &impl ReadAt,
        file: &Arc<str>,
        codec: &mut Codec,
    ) -> Result<Bytes, WdiffError> {
        if self.kind != RecordKind::Normal {
            return Ok(Bytes::new());
        }
        let place = Place { file: file.clone(), offset: self.offset };
        let mut stored = vec![0; to_usize(self.size.into())];
        let cut = |e| short(&place, e, "the file ends inside the data of a record");
        input.read_exact_at(&mut stored, self.offset).map_err(cut)?;
        if checksum(&stored, Salt(0)) != self.checksum {
            return Err(place.damaged("the data of a record contradicts its checksum"));
        }
        let raw_bytes = to_usize(Lb(self.blocks.into()).bytes());
        codec
            .decompress(self.compression, &Bytes::from(stored), raw_bytes)
            .map_err(|e| place.fails(Problem::Undecodable(e)).into())
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]
mod tests {
    use super::*;
    use crate::compression::Compression;
    use crate::record::{DiffRecord, Payload};
    use crate::sorted_writer::SortedWriter;
    use wlog_format::units::LogUuid;

    /// A file of three packs: 127 records fill one.
    fn file() -> (Bytes, Vec<DiffRecord>) {
        let record = |i: u32| {
            let address = Lb(u64::from(i) * 20);
            match i % 5 {
                0 => DiffRecord { address, blocks: 7, payload: Payload::AllZero },
                1 => DiffRecord { address, blocks: 3, payload: Payload::Discard },
                _ => {
                    let raw: Vec<u8> = (0..(i % 4 + 1) * 512).map(|b| (b * i / 64) as u8).collect();
                    DiffRecord::from_raw(address, Bytes::from(raw)).unwrap()
                }
            }
        };
        let records: Vec<_> = (0..300).map(record).collect();
        let mut codec = Codec::new(Compression::SNAPPY);
        let mut writer = SortedWriter::new(Vec::new(), LogUuid::ZERO).unwrap();
        records.iter().for_each(|r| writer.write(&r.encode(&mut codec).unwrap()).unwrap());
        (Bytes::from(writer.finish().unwrap()), records)
    }

    #[test]
    fn every_record_is_found_and_read_alone() {
        let (bytes, records) = file();
        let found = locate(bytes.clone(), "f").unwrap();
        assert_eq!(found.len(), records.len());
        let mut codec = Codec::new(Compression::NONE);
        for (location, record) in found.iter().zip(&records).rev() {
            assert_eq!((location.address, location.blocks), (record.address, record.blocks));
            assert_eq!(location.kind, record.kind());
            let data = location.read(&bytes, &"f".into(), &mut codec).unwrap();
            assert_eq!(data, record.raw(&mut codec).unwrap().unwrap_or_default());
        }
    }

    #[test]
    fn damage_is_found_where_it_is() {
        let (bytes, _) = file();
        let cut = bytes.slice(..bytes.len() - 4096);
        let error = locate(cut, "f").unwrap_err().to_string();
        assert!(error.contains("without its end pack"), "{error}");
        let mut header = bytes.to_vec();
        header[32 + 100] ^= 1;
        let error = locate(Bytes::from(header), "f").unwrap_err().to_string();
        assert!(error.contains("f: at byte 32: the pack header contradicts"), "{error}");
        let found = locate(bytes.clone(), "f").unwrap()[2];
        let mut data = bytes.to_vec();
        data[usize::try_from(found.offset).unwrap()] ^= 1;
        let mut codec = Codec::new(Compression::NONE);
        let error = found.read(&Bytes::from(data), &"f".into(), &mut codec).unwrap_err();
        assert!(error.to_string().contains(&format!("at byte {}", found.offset)), "{error}");
        let short = bytes.slice(..usize::try_from(found.offset).unwrap() + 1);
        assert!(found.read(&short, &"f".into(), &mut codec).is_err());
    }
}
