//! Where the records of a wdiff lie, and reading one of them alone (`formats.md` §6.3, §6.4).
//!
//! Only the pack headers, or the index of an indexed file, are read to find them, a portion at a
//! time. Invariant: what [`StoredImage::read`] hands out was checked as a reader of the whole file
//! would.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use wlog_format::checksum::checksum;
use wlog_format::units::{Lb, Salt, to_usize};

use crate::codec::Codec;
use crate::compression::CompressionKind;
use crate::error::{Place, Problem, WdiffError};
use crate::header::{FileHeader, FileType};
use crate::indexed_reader::IndexedReader;
use crate::io_at::{ReadAt, Sequential};
use crate::record::RecordKind;
use crate::sorted_reader::{SortedReader, short};

/// Data as it is stored in a file. Its fields are sound; of a record without data none counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Byte offset in the file.
    pub offset: u64,
    /// Bytes as they are stored.
    pub size: u32,
    /// Checksum of them.
    pub checksum: u32,
    /// Logical blocks when uncompressed.
    pub blocks: u32,
    /// How they are stored.
    pub compression: CompressionKind,
}

/// A record, and where its data lies in the file. Its fields are sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// First logical block.
    pub address: Lb,
    /// Logical blocks, at least 1.
    pub blocks: u32,
    /// What the blocks hold.
    pub kind: RecordKind,
    /// The data that the record is a part of.
    pub image: StoredImage,
    /// Where in it the record begins, in logical blocks.
    pub skip: u32,
}

impl Location {
    /// The block after the last one.
    #[must_use]
    pub const fn end(&self) -> Lb {
        Lb(self.address.0 + self.blocks as u64)
    }

    /// Where the record is in its uncompressed data.
    pub(crate) fn part(&self) -> Range<usize> {
        let at = |blocks: u32| to_usize(Lb(blocks.into()).bytes());
        at(self.skip)..at(self.skip + self.blocks)
    }

    /// Takes `next` in if it continues this record, on the device and in the data of both.
    pub(crate) fn join(&mut self, next: &Self) -> bool {
        let continues = (self.kind, next.kind) == (RecordKind::Normal, RecordKind::Normal)
            && next.address == self.end()
            && next.image == self.image
            && next.skip == self.skip + self.blocks;
        if continues {
            self.blocks += next.blocks;
        }
        continues
    }
}

/// The records of a wdiff, ascending; an iterator that ends after the first error.
#[derive(Debug)]
pub struct Locations<R> {
    reader: Kind<R>,
    /// Records of a pack that were not handed out yet.
    pack: std::vec::IntoIter<Location>,
    finished: bool,
}

#[derive(Debug)]
enum Kind<R> {
    Sorted(SortedReader<Sequential<R>>),
    Indexed(Box<IndexedReader<R>>),
}

/// The records of a wdiff of either kind. `file` is the name that errors use.
///
/// # Errors
/// It cannot be read, or is no wdiff.
pub fn locate<R: ReadAt>(input: R, file: impl Into<Arc<str>>) -> Result<Locations<R>, WdiffError> {
    let file = file.into();
    let place = Place { file: file.clone(), offset: 0 };
    let mut bytes = [0; FileHeader::BYTES];
    let cut = |e| short(&place, e, "the file header is cut");
    input.read_exact_at(&mut bytes, 0).map_err(cut)?;
    let header = FileHeader::decode(&bytes).map_err(|e| place.clone().damaged(e.to_string()))?;
    let reader = match header.file_type {
        FileType::Sorted => {
            let input = Sequential::new(input).map_err(|e| place.fails(Problem::Io(e)))?;
            Kind::Sorted(SortedReader::new(input, file)?)
        }
        FileType::Indexed => Kind::Indexed(Box::new(IndexedReader::new(input, file)?)),
    };
    Ok(Locations { reader, pack: Vec::new().into_iter(), finished: false })
}

impl<R: ReadAt> Locations<R> {
    /// Are they those of an index?
    pub(crate) const fn is_indexed(&self) -> bool {
        matches!(self.reader, Kind::Indexed(_))
    }

    fn step(&mut self) -> Result<Option<Location>, WdiffError> {
        let reader = match &mut self.reader {
            Kind::Indexed(reader) => return reader.next_location(),
            Kind::Sorted(reader) => reader,
        };
        loop {
            if let Some(next) = self.pack.next() {
                return Ok(Some(next));
            }
            match reader.locate_pack()? {
                Some(pack) => self.pack = pack.into_iter(),
                None => return Ok(None),
            }
        }
    }
}

impl<R: ReadAt> Iterator for Locations<R> {
    type Item = Result<Location, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.step().transpose();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}

impl StoredImage {
    /// The data, checked and uncompressed. `file` is the name that errors use.
    ///
    /// # Errors
    /// It cannot be read, or is not what it was.
    pub fn read(
        &self,
        input: &impl ReadAt,
        file: &Arc<str>,
        codec: &mut Codec,
    ) -> Result<Bytes, WdiffError> {
        let mut stored = vec![0; to_usize(self.size.into())];
        let cut = |e| short(&self.place(file), e, "the file ends inside the data of a record");
        input.read_exact_at(&mut stored, self.offset).map_err(cut)?;
        self.decode(&Bytes::from(stored), file, codec)
    }

    /// The data, checked and uncompressed, of what was read where it lies.
    pub(crate) fn decode(
        &self,
        stored: &Bytes,
        file: &Arc<str>,
        codec: &mut Codec,
    ) -> Result<Bytes, WdiffError> {
        self.check(stored, file)?;
        codec
            .decompress(self.compression, stored, self.raw_bytes())
            .map_err(|e| self.place(file).fails(Problem::Undecodable(e)).into())
    }

    /// [`StoredImage::decode`] to memory that is there, as much as it wants.
    pub(crate) fn decode_into(
        &self,
        stored: &Bytes,
        file: &Arc<str>,
        codec: &mut Codec,
        raw: &mut [u8],
    ) -> Result<(), WdiffError> {
        self.check(stored, file)?;
        codec
            .decompress_into(self.compression, stored, raw)
            .map_err(|e| self.place(file).fails(Problem::Undecodable(e)).into())
    }

    fn check(&self, stored: &[u8], file: &Arc<str>) -> Result<(), WdiffError> {
        if checksum(stored, Salt(0)) == self.checksum {
            return Ok(());
        }
        Err(self.place(file).damaged("the data of a record contradicts its checksum"))
    }

    fn place(&self, file: &Arc<str>) -> Place {
        Place { file: file.clone(), offset: self.offset }
    }

    /// The byte after the last one.
    pub(crate) const fn end(&self) -> u64 {
        self.offset + self.size as u64
    }

    /// Bytes when uncompressed.
    pub(crate) fn raw_bytes(&self) -> usize {
        to_usize(Lb(self.blocks.into()).bytes())
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]
mod tests {
    use super::*;
    use crate::compression::Compression;
    use crate::indexed_writer::IndexedWriter;
    use crate::record::{DiffRecord, Payload};
    use crate::sorted_writer::SortedWriter;
    use crate::split::MaxIo;
    use wlog_format::units::LogUuid;

    fn all(bytes: Bytes) -> Result<Vec<Location>, WdiffError> {
        locate(bytes, "f")?.collect()
    }

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
        let found = all(bytes.clone()).unwrap();
        assert_eq!(found.len(), records.len());
        let mut codec = Codec::new(Compression::NONE);
        for (location, record) in found.iter().zip(&records).rev() {
            assert_eq!((location.address, location.blocks), (record.address, record.blocks));
            assert_eq!(location.kind, record.kind());
            let Some(raw) = record.raw(&mut codec).unwrap() else { continue };
            assert_eq!(location.image.read(&bytes, &"f".into(), &mut codec).unwrap(), raw);
        }
    }

    #[test]
    fn the_pieces_of_an_indexed_file_are_found_with_the_images_that_they_are_of() {
        let (_, records) = file();
        let mut codec = Codec::new(Compression::SNAPPY);
        let mut writer = IndexedWriter::new(Vec::new(), LogUuid::ZERO, MaxIo::NONE).unwrap();
        // Written over each other, so that only parts of the older ones count.
        for record in records.iter().take(50) {
            let mut moved = record.clone();
            moved.address = Lb(record.address.0 / 8);
            writer.add(&moved.encode(&mut codec).unwrap()).unwrap();
        }
        let bytes = Bytes::from(writer.finish().unwrap());
        let read: Vec<_> = IndexedReader::new(bytes.clone(), "f").unwrap().collect();
        let found = all(bytes.clone()).unwrap();
        assert_eq!(found.len(), read.len());
        assert!(found.iter().any(|l| l.skip > 0));
        for (location, record) in found.iter().zip(read) {
            let record = record.unwrap();
            assert_eq!((location.address, location.blocks), (record.address, record.blocks));
            let Some(raw) = record.raw(&mut codec).unwrap() else { continue };
            let image = location.image.read(&bytes, &"f".into(), &mut codec).unwrap();
            let from = to_usize(Lb(location.skip.into()).bytes());
            assert_eq!(image.slice(from..from + raw.len()), raw);
        }
    }

    #[test]
    fn damage_is_found_where_it_is() {
        let (bytes, _) = file();
        let cut = bytes.slice(..bytes.len() - 4096);
        let error = all(cut).unwrap_err().to_string();
        assert!(error.contains("without its end pack"), "{error}");
        let mut header = bytes.to_vec();
        header[32 + 100] ^= 1;
        let error = all(Bytes::from(header)).unwrap_err().to_string();
        assert!(error.contains("f: at byte 32: the pack header contradicts"), "{error}");
        let found = all(bytes.clone()).unwrap()[2].image;
        let mut data = bytes.to_vec();
        data[usize::try_from(found.offset).unwrap()] ^= 1;
        let mut codec = Codec::new(Compression::NONE);
        let error = found.read(&Bytes::from(data), &"f".into(), &mut codec).unwrap_err();
        assert!(error.to_string().contains(&format!("at byte {}", found.offset)), "{error}");
        let short = bytes.slice(..usize::try_from(found.offset).unwrap() + 1);
        assert!(found.read(&short, &"f".into(), &mut codec).is_err());
    }
}
