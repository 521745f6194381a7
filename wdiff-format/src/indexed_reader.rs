//! Reading an indexed wdiff (`formats.md` §6.4).
//!
//! Records come in the order of the index, which is read piece by piece; data is read where it
//! lies. An image that later pieces can refer to is kept until the address of the records leaves
//! the I/O that it came from, within a bound. Everything in an index record is checked against the
//! file before a byte of data is read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use wlog_format::checksum::checksum;
use wlog_format::units::{Lb, Salt, to_usize};
use zerocopy::FromBytes;

use crate::codec::Stored;
use crate::compression::CompressionKind;
use crate::error::{Place, Problem, WdiffError};
use crate::header::{FileHeader, FileType};
use crate::io_at::ReadAt;
use crate::layout::{FILE_HEADER_BYTES, is_sound};
use crate::layout::{INDEX_RECORD_BYTES, INDEX_SUPER_BYTES, RawIndexRecord, RawIndexSuper};
use crate::locate::{Location, StoredImage};
use crate::record::{DiffRecord, Entry, Image, Payload, PieceEntry, RecordKind};
use crate::sorted_reader::{check_range, check_size, short};

/// Index records that are read at once.
const INDEX_WINDOW_RECORDS: u64 = 1024;
/// Memory that cached images may come to take.
const CACHE_BYTES: usize = 16 << 20;

/// What the index super block says (`formats.md` §6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexSuper {
    /// Byte offset of the first index record.
    pub index_offset: u64,
    /// Index records.
    pub n_records: u32,
    /// I/Os that were added to the file, including overwritten ones.
    pub n_data: u32,
}

/// Reads an indexed wdiff; an iterator over its records, which ends after the first error.
#[derive(Debug)]
pub struct IndexedReader<R> {
    input: R,
    file: Arc<str>,
    header: FileHeader,
    index: IndexSuper,
    /// Index records read already, and the number of the one that comes next.
    window: Bytes,
    next: u64,
    end: Lb,
    last: Option<Entry>,
    cache: ImageCache,
    finished: bool,
}

/// Which image: all that says how it is read, so that no two readings share a cache entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ImageKey {
    offset: u64,
    size: u32,
    blocks: u32,
    compression: CompressionKind,
    checksum: u32,
}

/// The images of I/Os that reach beyond the current record, up to [`CACHE_BYTES`].
#[derive(Debug, Default)]
struct ImageCache {
    images: HashMap<ImageKey, Arc<Image>>,
    /// The block after each I/O; the number tells I/Os apart that end together.
    ends: BTreeMap<(u64, u64), ImageKey>,
    inserted: u64,
    weight_bytes: usize,
}

impl ImageCache {
    /// Keeps the image of an I/O that ends before block `end`.
    fn insert(&mut self, key: ImageKey, image: Arc<Image>, end: u64) {
        self.weight_bytes += image.weight_bytes();
        self.images.insert(key, image);
        self.inserted += 1;
        self.ends.insert((end, self.inserted), key);
        while self.weight_bytes > CACHE_BYTES && self.ends.len() > 1 {
            self.remove_first();
        }
    }

    /// Forgets the I/Os that end at `address` or before.
    fn advance(&mut self, address: Lb) {
        while self.ends.first_key_value().is_some_and(|(&(end, _), _)| end <= address.0) {
            self.remove_first();
        }
    }

    fn remove_first(&mut self) {
        if let Some((_, key)) = self.ends.pop_first() {
            self.weight_bytes -= self.images.remove(&key).map_or(0, |i| i.weight_bytes());
        }
    }
}

impl<R: ReadAt> IndexedReader<R> {
    /// Reads the file header and the index super block. `file` is the name that errors use.
    ///
    /// # Errors
    /// No indexed wdiff, or reading fails.
    pub fn new(input: R, file: impl Into<Arc<str>>) -> Result<Self, WdiffError> {
        let file = file.into();
        let place = |offset| Place { file: file.clone(), offset };
        let mut bytes = [0; FileHeader::BYTES];
        let cut = |e| short(&place(0), e, "the file header is cut");
        input.read_exact_at(&mut bytes, 0).map_err(cut)?;
        let header = FileHeader::decode(&bytes).map_err(|e| place(0).damaged(e.to_string()))?;
        if header.file_type != FileType::Indexed {
            return Err(place(0).damaged("the wdiff is sorted, not indexed"));
        }
        let size = input.size_bytes().map_err(|e| place(0).fails(Problem::Io(e)))?;
        let index = read_super(&input, size, place)?;
        Ok(Self {
            input,
            file,
            header,
            index,
            window: Bytes::new(),
            next: 0,
            end: Lb(0),
            last: None,
            cache: ImageCache::default(),
            finished: false,
        })
    }

    /// The file header.
    #[must_use]
    pub const fn header(&self) -> FileHeader {
        self.header
    }

    /// The index super block.
    #[must_use]
    pub const fn index(&self) -> IndexSuper {
        self.index
    }

    /// How the record that was handed out last lies in the file.
    #[must_use]
    pub const fn entry(&self) -> Option<Entry> {
        self.last
    }

    /// Lets another reader hand out the next `count` index records, if there are as many.
    ///
    /// # Errors
    /// The record before them cannot be read: what comes next must lie behind it.
    pub(crate) fn part(&mut self, count: usize) -> Result<Self, WdiffError>
    where
        R: Clone,
    {
        let from = self.next;
        let left = u32::try_from(count.min(self.left())).unwrap_or(u32::MAX);
        self.next += u64::from(left);
        self.window = Bytes::new();
        let n_records = u32::try_from(self.next).unwrap_or(self.index.n_records);
        let mut part = Self {
            input: self.input.clone(),
            file: self.file.clone(),
            header: self.header,
            index: IndexSuper { n_records, ..self.index },
            window: Bytes::new(),
            next: from.saturating_sub(1),
            end: Lb(0),
            last: None,
            cache: ImageCache::default(),
            finished: false,
        };
        if from > 0 {
            part.next_entry()?;
        }
        Ok(part)
    }

    /// Index records that were not handed out yet.
    pub(crate) fn left(&self) -> usize {
        to_usize(u64::from(self.index.n_records) - self.next)
    }

    fn place(&self, offset: u64) -> Place {
        Place { file: self.file.clone(), offset }
    }

    fn next_record(&mut self) -> Result<Option<DiffRecord>, WdiffError> {
        let Some(record) = self.next_entry()? else { return Ok(None) };
        let payload = match record.kind {
            RecordKind::AllZero => Payload::AllZero,
            RecordKind::Discard => Payload::Discard,
            RecordKind::Normal => return self.read_piece(record).map(Some),
        };
        Ok(Some(DiffRecord { address: record.address, blocks: record.blocks, payload }))
    }

    /// Where the data of the next record lies; none of it is read.
    pub(crate) fn next_location(&mut self) -> Result<Option<Location>, WdiffError> {
        Ok(self.next_entry()?.map(|entry| entry.location()))
    }

    fn next_entry(&mut self) -> Result<Option<IndexEntry>, WdiffError> {
        if self.next == u64::from(self.index.n_records) {
            return Ok(None);
        }
        if self.window.is_empty() {
            self.read_window()?;
        }
        let record_at = self.index.index_offset + self.next * INDEX_RECORD_BYTES as u64;
        let damaged = |what: String| self.place(record_at).damaged(what);
        let bytes = self.window.get(..INDEX_RECORD_BYTES).unwrap_or(&self.window);
        if !is_sound(bytes) {
            return Err(damaged("the index record contradicts its checksum".into()));
        }
        let raw = RawIndexRecord::read_from_bytes(bytes)
            .map_err(|_| damaged("no index record".into()))?;
        let record = self.checked(&raw).map_err(damaged)?;
        self.window.advance(bytes.len());
        self.next += 1;
        self.last = Some(record.entry(raw.rec_checksum.get()));
        self.end = Lb(record.address.0 + u64::from(record.blocks));
        Ok(Some(record))
    }

    fn read_window(&mut self) -> Result<(), WdiffError> {
        let at = self.index.index_offset + self.next * INDEX_RECORD_BYTES as u64;
        let left = u64::from(self.index.n_records) - self.next;
        let len = to_usize(left.min(INDEX_WINDOW_RECORDS)) * INDEX_RECORD_BYTES;
        self.window = self.read(at, len)?;
        Ok(())
    }

    fn read(&self, offset: u64, len: usize) -> Result<Bytes, WdiffError> {
        let mut bytes = vec![0; len];
        let cut = |e| short(&self.place(offset), e, "the file has become shorter");
        self.input.read_exact_at(&mut bytes, offset).map_err(cut)?;
        Ok(Bytes::from(bytes))
    }

    /// Checks all fields of an index record against the format and the file.
    fn checked(&self, raw: &RawIndexRecord) -> Result<IndexEntry, String> {
        let kind = RecordKind::from_flags(raw.flags)
            .ok_or_else(|| format!("the record has the impossible flags {}", raw.flags))?;
        let compression = CompressionKind::from_code(raw.compression)
            .ok_or_else(|| format!("the record has compression {}", raw.compression))?;
        let (address, blocks) = (Lb(raw.io_address.get()), raw.io_blocks.get());
        check_range(address, blocks, self.end)?;
        if !blocks.is_power_of_two() || !address.0.is_multiple_of(blocks.into()) {
            return Err(format!("the {blocks} blocks at {address} are not aligned to their size"));
        }
        let image = ImageKey {
            offset: raw.data_offset.get(),
            size: raw.data_size.get(),
            blocks: raw.orig_blocks.get(),
            compression,
            checksum: raw.io_checksum.get(),
        };
        check_size(kind, compression, image.blocks, image.size)?;
        let io_offset = raw.io_offset.get();
        if kind == RecordKind::Normal {
            let data_end = image.offset.checked_add(image.size.into());
            let in_data = data_end.is_some_and(|end| end <= self.index.index_offset);
            if image.offset < FILE_HEADER_BYTES as u64 || !in_data {
                return Err("the data of the record lies outside the data of the file".into());
            }
            if io_offset.checked_add(blocks).is_none_or(|end| end > image.blocks) {
                return Err("the record lies outside the data that it is a piece of".into());
            }
        }
        Ok(IndexEntry { address, blocks, kind, image, io_offset })
    }

    fn read_piece(&mut self, record: IndexEntry) -> Result<DiffRecord, WdiffError> {
        let IndexEntry { address, blocks, image: key, io_offset, .. } = record;
        self.cache.advance(address);
        if let Some(image) = self.cache.images.get(&key) {
            return Ok(DiffRecord::piece(address, blocks, image.clone(), io_offset));
        }
        let place = self.place(key.offset);
        let bytes = self.read(key.offset, to_usize(key.size.into()))?;
        if checksum(&bytes, Salt(0)) != key.checksum {
            return Err(place.damaged("the data of a record contradicts its checksum"));
        }
        let stored = Stored { kind: key.compression, bytes, checksum: key.checksum };
        let image = Arc::new(Image::from_stored(stored, key.blocks, place));
        let io_end = address.0 + u64::from(key.blocks - io_offset);
        if io_end > self.end.0 {
            self.cache.insert(key, image.clone(), io_end);
        }
        Ok(DiffRecord::piece(address, blocks, image, io_offset))
    }
}

/// An index record whose fields are sound.
#[derive(Clone, Copy)]
struct IndexEntry {
    address: Lb,
    blocks: u32,
    kind: RecordKind,
    image: ImageKey,
    io_offset: u32,
}

impl IndexEntry {
    const fn location(&self) -> Location {
        Location {
            address: self.address,
            blocks: self.blocks,
            kind: self.kind,
            image: StoredImage {
                offset: self.image.offset,
                size: self.image.size,
                checksum: self.image.checksum,
                blocks: self.image.blocks,
                compression: self.image.compression,
            },
            skip: self.io_offset,
        }
    }

    const fn entry(&self, rec_checksum: u32) -> Entry {
        Entry {
            compression: self.image.compression,
            data_size: self.image.size,
            data_offset: self.image.offset,
            checksum: self.image.checksum,
            piece: Some(PieceEntry {
                orig_blocks: self.image.blocks,
                io_offset: self.io_offset,
                rec_checksum,
            }),
        }
    }
}

fn read_super(
    input: &impl ReadAt,
    size: u64,
    place: impl Fn(u64) -> Place,
) -> Result<IndexSuper, WdiffError> {
    let at = size.saturating_sub(INDEX_SUPER_BYTES as u64);
    if at < FILE_HEADER_BYTES as u64 {
        return Err(place(at).damaged("the file is too short for an index"));
    }
    let mut bytes = [0; INDEX_SUPER_BYTES];
    let cut = |e| short(&place(at), e, "the index super block is cut");
    input.read_exact_at(&mut bytes, at).map_err(cut)?;
    if !is_sound(&bytes) {
        return Err(place(at).damaged("the index super block contradicts its checksum"));
    }
    let raw: RawIndexSuper = zerocopy::transmute!(bytes);
    let index = IndexSuper {
        index_offset: raw.index_offset.get(),
        n_records: raw.n_records.get(),
        n_data: raw.n_data.get(),
    };
    let index_bytes = u64::from(index.n_records) * INDEX_RECORD_BYTES as u64;
    let fills = index.index_offset.checked_add(index_bytes) == Some(at);
    let aligned = index.index_offset.is_multiple_of(8);
    if !fills || !aligned || index.index_offset < FILE_HEADER_BYTES as u64 {
        return Err(place(at).damaged("the index does not lie where the index super block says"));
    }
    Ok(index)
}

impl<R: ReadAt> Iterator for IndexedReader<R> {
    type Item = Result<DiffRecord, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.next_record().transpose();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}
