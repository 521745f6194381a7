//! Reading a sorted wdiff as a stream (`formats.md` §6.3).
//!
//! Data is read in runs of a few hundred KiB, so that a thousand files can be merged at once.
//! A record is handed out only after its pack header, its place in the order and the checksum of
//! its data were verified. A file without its end pack gives all its records and then an error.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use wlog_format::checksum::checksum;
use wlog_format::units::{Lb, Salt};
use zerocopy::FromBytes;

use crate::codec::Stored;
use crate::compression::CompressionKind;
use crate::error::{Place, Problem, WdiffError};
use crate::header::{FileHeader, FileType};
use crate::io_at::{ReadAt, Sequential};
use crate::layout::{
    PACK_DATA_MAX_BYTES, PACK_END, PACK_HEADER_BYTES, PACK_RECORDS_MAX, RawPackHeader, RawRecord,
    is_sound,
};
use crate::locate::{Location, StoredImage};
use crate::record::{DATA_BLOCKS_MAX, DiffRecord, Entry, Image, Payload, RecordKind};

/// Bytes that are read at once, unless one record is larger.
const RUN_BYTES: u64 = 256 << 10;

/// The largest address: so that its byte offset fits 64 bits.
pub(crate) const ADDRESS_END: u64 = u64::MAX / 512;

/// Reads a sorted wdiff; an iterator over its records, which ends after the first error.
#[derive(Debug)]
pub struct SortedReader<R> {
    input: R,
    file: Arc<str>,
    header: FileHeader,
    offset: u64,
    /// Records of the current pack that were not handed out yet, last first.
    pack: Vec<Pending>,
    packs: u64,
    /// Data of the next records, read already.
    run: Bytes,
    /// The block after the last record.
    end: Lb,
    last: Option<Entry>,
    finished: bool,
}

/// A record whose fields are sound.
#[derive(Debug, Clone, Copy)]
struct Pending {
    address: Lb,
    blocks: u32,
    kind: RecordKind,
    compression: CompressionKind,
    data_offset: u32,
    data_size: u32,
    checksum: u32,
}

impl Pending {
    fn entry(self) -> Entry {
        Entry {
            compression: self.compression,
            data_size: self.data_size,
            data_offset: self.data_offset.into(),
            checksum: self.checksum,
            piece: None,
        }
    }
}

impl<R: Read> SortedReader<R> {
    /// Reads the file header. `file` is the name that errors use.
    ///
    /// # Errors
    /// No sorted wdiff, or reading fails.
    pub fn new(mut input: R, file: impl Into<Arc<str>>) -> Result<Self, WdiffError> {
        let file = file.into();
        let place = Place { file: file.clone(), offset: 0 };
        let mut bytes = [0; FileHeader::BYTES];
        input.read_exact(&mut bytes).map_err(|e| short(&place, e, "the file header is cut"))?;
        let header =
            FileHeader::decode(&bytes).map_err(|e| place.clone().damaged(e.to_string()))?;
        if header.file_type != FileType::Sorted {
            return Err(place.damaged("the wdiff is indexed and cannot be read as a stream"));
        }
        Ok(Self::after_header(input, file, header))
    }

    pub(crate) fn after_header(input: R, file: Arc<str>, header: FileHeader) -> Self {
        Self {
            input,
            file,
            header,
            offset: FileHeader::BYTES as u64,
            pack: Vec::new(),
            packs: 0,
            run: Bytes::new(),
            end: Lb(0),
            last: None,
            finished: false,
        }
    }

    /// The file header.
    #[must_use]
    pub const fn header(&self) -> FileHeader {
        self.header
    }

    /// Packs read so far, without the end pack.
    #[must_use]
    pub const fn packs(&self) -> u64 {
        self.packs
    }

    /// How the record that was handed out last lies in the file.
    #[must_use]
    pub const fn entry(&self) -> Option<Entry> {
        self.last
    }

    fn place(&self, offset: u64) -> Place {
        Place { file: self.file.clone(), offset }
    }

    fn next_record(&mut self) -> Result<Option<DiffRecord>, WdiffError> {
        while self.pack.is_empty() {
            if !self.read_pack_header()? {
                return Ok(None);
            }
        }
        let Some(next) = self.pack.pop() else { return Ok(None) };
        self.last = Some(next.entry());
        let payload = match next.kind {
            RecordKind::AllZero => Payload::AllZero,
            RecordKind::Discard => Payload::Discard,
            RecordKind::Normal => {
                let place = self.place(self.offset - self.run.remaining() as u64);
                let image = Image::from_stored(self.read_data(next)?, next.blocks, place);
                return Ok(Some(DiffRecord::whole(next.address, next.blocks, image)));
            }
        };
        Ok(Some(DiffRecord { address: next.address, blocks: next.blocks, payload }))
    }

    /// Reads the next pack header; false when it is the end pack.
    fn read_pack_header(&mut self) -> Result<bool, WdiffError> {
        let place = self.place(self.offset);
        let mut bytes = [0; PACK_HEADER_BYTES];
        self.input.read_exact(&mut bytes).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => place.clone().fails(Problem::Truncated),
            _ => place.clone().fails(Problem::Io(e)),
        })?;
        if !is_sound(&bytes) {
            return Err(place.damaged("the pack header contradicts its checksum"));
        }
        let (raw, mut rest) = RawPackHeader::read_from_prefix(&bytes)
            .map_err(|_| place.clone().damaged("no pack header"))?;
        let (n_records, total) = (usize::from(raw.n_records.get()), raw.total_size.get());
        self.offset += PACK_HEADER_BYTES as u64;
        if raw.flags & PACK_END != 0 {
            return if n_records == 0 && total == 0 {
                Ok(false)
            } else {
                Err(place.damaged("the end pack has records"))
            };
        }
        if n_records > PACK_RECORDS_MAX || u64::from(total) > PACK_DATA_MAX_BYTES {
            let claim = format!("the pack claims {n_records} records and {total} bytes of data");
            return Err(place.damaged(claim));
        }
        let mut sum = 0_u64;
        for index in 0..n_records {
            let at = self.place(place.offset + 16 + 32 * index as u64);
            let (raw, tail) =
                RawRecord::read_from_prefix(rest).map_err(|_| at.clone().damaged("no record"))?;
            let record = self.checked(&raw, sum).map_err(|what| at.damaged(what))?;
            sum += u64::from(record.data_size);
            self.end = Lb(record.address.0 + u64::from(record.blocks));
            self.pack.push(record);
            rest = tail;
        }
        if sum != u64::from(total) {
            return Err(place.damaged("the data sizes of the pack do not add up to its total"));
        }
        self.pack.reverse();
        self.packs += 1;
        Ok(true)
    }

    /// Checks all fields of a record, whose data must begin `data_offset` bytes into the data.
    fn checked(&self, raw: &RawRecord, data_offset: u64) -> Result<Pending, String> {
        let record = Pending {
            address: Lb(raw.io_address.get()),
            blocks: raw.io_blocks.get(),
            kind: RecordKind::from_flags(raw.flags)
                .ok_or_else(|| format!("the record has the impossible flags {}", raw.flags))?,
            compression: CompressionKind::from_code(raw.compression)
                .ok_or_else(|| format!("the record has compression {}", raw.compression))?,
            data_offset: raw.data_offset.get(),
            data_size: raw.data_size.get(),
            checksum: raw.checksum.get(),
        };
        check_range(record.address, record.blocks, self.end)?;
        if u64::from(record.data_offset) != data_offset {
            return Err("the data of the record does not follow that of the one before".into());
        }
        check_size(record.kind, record.compression, record.blocks, record.data_size)?;
        Ok(record)
    }

    fn read_data(&mut self, record: Pending) -> Result<Stored, WdiffError> {
        if self.run.is_empty() {
            self.read_run(record)?;
        }
        let place = self.place(self.offset - self.run.remaining() as u64);
        let size = wlog_format::units::to_usize(record.data_size.into());
        if size > self.run.len() {
            return Err(place.damaged("the data of the record is cut"));
        }
        let bytes = self.run.split_to(size);
        if checksum(&bytes, Salt(0)) != record.checksum {
            return Err(place.damaged("the data of a record contradicts its checksum"));
        }
        Ok(Stored { kind: record.compression, bytes, checksum: record.checksum })
    }

    /// Reads the data of `first` and of as many following records as fit a run.
    fn read_run(&mut self, first: Pending) -> Result<(), WdiffError> {
        let mut len = u64::from(first.data_size);
        for next in self.pack.iter().rev() {
            if len + u64::from(next.data_size) > RUN_BYTES {
                break;
            }
            len += u64::from(next.data_size);
        }
        // At most the data of one record, whose size was checked, or of one run.
        let mut run = Vec::with_capacity(wlog_format::units::to_usize(len));
        let place = self.place(self.offset);
        let mut part = self.input.by_ref().take(len);
        part.read_to_end(&mut run).map_err(|e| place.clone().fails(Problem::Io(e)))?;
        if run.len() as u64 != len {
            return Err(place.damaged("the file ends inside the data of a record"));
        }
        self.offset += len;
        self.run = Bytes::from(run);
        Ok(())
    }
}

impl<R: ReadAt> SortedReader<Sequential<R>> {
    /// Where the records of the next pack lie; its data is passed over. `None` at the end pack.
    pub(crate) fn locate_pack(&mut self) -> Result<Option<Vec<Location>>, WdiffError> {
        if !self.read_pack_header()? {
            return Ok(None);
        }
        let data = self.offset;
        let mut found = Vec::with_capacity(self.pack.len());
        while let Some(next) = self.pack.pop() {
            self.offset += u64::from(next.data_size);
            found.push(Location {
                address: next.address,
                blocks: next.blocks,
                kind: next.kind,
                image: StoredImage {
                    offset: data + u64::from(next.data_offset),
                    size: next.data_size,
                    checksum: next.checksum,
                    blocks: next.blocks,
                    compression: next.compression,
                },
                skip: 0,
            });
        }
        self.input.skip(self.offset - data);
        Ok(Some(found))
    }
}

impl<R: Read> Iterator for SortedReader<R> {
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

pub(crate) fn short(place: &Place, error: io::Error, cut: &str) -> WdiffError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => place.clone().damaged(cut),
        _ => place.clone().fails(Problem::Io(error)).into(),
    }
}

/// A record has blocks, lies behind the one before, and its end is an address.
pub(crate) fn check_range(address: Lb, blocks: u32, after: Lb) -> Result<(), String> {
    if blocks == 0 {
        return Err("the record has no blocks".into());
    }
    if address < after {
        return Err(format!("the record begins at block {address}, before block {after}"));
    }
    match address.checked_add(Lb(blocks.into())) {
        Some(end) if end.0 <= ADDRESS_END => Ok(()),
        _ => Err(format!("the record lies at the impossible block {address}")),
    }
}

/// Stored data is never larger than the `raw_blocks` that it stands for; no data, no size.
pub(crate) fn check_size(
    kind: RecordKind,
    compression: CompressionKind,
    raw_blocks: u32,
    stored_bytes: u32,
) -> Result<(), String> {
    let raw_bytes = Lb(raw_blocks.into()).bytes();
    let stored = u64::from(stored_bytes);
    let sound = match (kind, compression) {
        (RecordKind::Normal, _) if raw_blocks > DATA_BLOCKS_MAX => false,
        (RecordKind::Normal, CompressionKind::None) => stored == raw_bytes,
        (RecordKind::Normal, _) => stored > 0 && stored <= raw_bytes,
        (RecordKind::AllZero | RecordKind::Discard, CompressionKind::None) => stored == 0,
        (RecordKind::AllZero | RecordKind::Discard, _) => false,
    };
    if sound {
        Ok(())
    } else {
        Err(format!("{raw_blocks} blocks cannot be stored as {stored_bytes} {compression} bytes"))
    }
}
