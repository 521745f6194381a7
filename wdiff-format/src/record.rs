//! One record of a diff: a range of blocks, and what they hold (`formats.md` §6.3).
//!
//! Data is shared, never copied: a record that is cut in two, and the pieces of an indexed file,
//! refer to one [`Image`], which is decompressed at most once.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use wlog_format::units::{LOGICAL_BLOCK_BYTES, Lb, to_usize};

use crate::codec::{Codec, Stored};
use crate::compression::CompressionKind;
use crate::error::{Place, Problem, WdiffError};
use crate::layout::{FLAG_ALL_ZERO, FLAG_DISCARD};
use crate::room::{Raw, Room};

/// Logical blocks that one record with data may have: what fits a pack (32 MiB).
pub const DATA_BLOCKS_MAX: u32 = 65_536;

/// What the blocks of a record hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// Data.
    Normal,
    /// Zeros that were written.
    AllZero,
    /// Discarded: undefined for the application, zeros for us.
    Discard,
}

impl RecordKind {
    /// `None` when all-zero and discard, which exclude each other, are both set. All other bits are
    /// ignored: the original leaves chance values in them when it writes an image as indexed wdiff.
    pub(crate) const fn from_flags(flags: u8) -> Option<Self> {
        match flags & (FLAG_ALL_ZERO | FLAG_DISCARD) {
            0 => Some(Self::Normal),
            FLAG_ALL_ZERO => Some(Self::AllZero),
            FLAG_DISCARD => Some(Self::Discard),
            _ => None,
        }
    }

    pub(crate) const fn flags(self) -> u8 {
        match self {
            Self::Normal => 0,
            Self::AllZero => FLAG_ALL_ZERO,
            Self::Discard => FLAG_DISCARD,
        }
    }
}

/// A piece of data as it was written.
#[derive(Debug)]
pub struct Image {
    raw_bytes: usize,
    source: Source,
}

#[derive(Debug)]
enum Source {
    /// The data, and its checksum (salt 0) if somebody has looked already.
    Memory(Bytes, Option<u32>),
    File {
        stored: Stored,
        place: Place,
        raw: OnceLock<Bytes>,
    },
}

impl Image {
    fn from_raw(raw: Bytes, checksum: Option<u32>) -> Self {
        Self { raw_bytes: raw.len(), source: Source::Memory(raw, checksum) }
    }

    const fn raw_checksum(&self) -> Option<u32> {
        match &self.source {
            Source::Memory(_, checksum) => *checksum,
            Source::File { .. } => None,
        }
    }

    /// Data that was read from `place` and whose checksum is right. `blocks` is checked.
    pub(crate) fn from_stored(stored: Stored, blocks: u32, place: Place) -> Self {
        let raw_bytes = to_usize(Lb(blocks.into()).bytes());
        Self { raw_bytes, source: Source::File { stored, place, raw: OnceLock::new() } }
    }

    const fn stored(&self) -> Option<&Stored> {
        match &self.source {
            Source::Memory(..) => None,
            Source::File { stored, .. } => Some(stored),
        }
    }

    /// The data; kept for the next caller, since pieces of one image are asked for one by one.
    fn raw(&self, codec: &mut Codec) -> Result<Bytes, WdiffError> {
        match &self.source {
            Source::Memory(raw, _) => Ok(raw.clone()),
            Source::File { stored, place, raw } => {
                if let Some(raw) = raw.get() {
                    return Ok(raw.clone());
                }
                let new = codec
                    .decompress(stored.kind, &stored.bytes, self.raw_bytes)
                    .map_err(|e| place.clone().fails(Problem::Undecodable(e)))?;
                Ok(raw.get_or_init(|| new).clone())
            }
        }
    }

    /// The data, for its only user: what has to be decompressed goes to `room`.
    fn raw_to(&self, room: &mut Room, codec: &mut Codec) -> Result<Raw, WdiffError> {
        match &self.source {
            Source::File { stored, place, .. } if stored.kind != CompressionKind::None => {
                room.add(self.raw_bytes, |raw| {
                    codec
                        .decompress_into(stored.kind, &stored.bytes, raw)
                        .map_err(|e| place.clone().fails(Problem::Undecodable(e)).into())
                })
            }
            Source::File { .. } | Source::Memory(..) => self.raw(codec).map(Raw::Apart),
        }
    }

    /// Sees that the data can be decompressed, and keeps nothing of it.
    fn look(&self, codec: &mut Codec) -> Result<(), WdiffError> {
        match &self.source {
            Source::Memory(..) => Ok(()),
            Source::File { stored, place, .. } => codec
                .look(stored.kind, &stored.bytes, self.raw_bytes)
                .map_err(|e| place.clone().fails(Problem::Undecodable(e)).into()),
        }
    }

    /// Bytes of memory that this image may come to hold.
    pub(crate) fn weight_bytes(&self) -> usize {
        self.raw_bytes + self.stored().map_or(0, |stored| stored.bytes.len())
    }
}

/// A run of blocks inside an [`Image`].
#[derive(Clone, Debug)]
pub struct Data {
    image: Arc<Image>,
    offset: u32,
}

impl Data {
    /// Where a record of `blocks` blocks ends in the image.
    fn end_bytes(&self, blocks: u32) -> usize {
        to_usize(Lb(u64::from(self.offset) + u64::from(blocks)).bytes())
    }
}

/// What a record says of its blocks.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Zeros that were written.
    AllZero,
    /// Discarded.
    Discard,
    /// Data.
    Data(Data),
}

/// One record of a diff.
#[derive(Clone, Debug)]
pub struct DiffRecord {
    /// First logical block.
    pub address: Lb,
    /// Logical blocks, at least 1.
    pub blocks: u32,
    /// What they hold.
    pub payload: Payload,
}

impl DiffRecord {
    /// Data from memory. `None` unless `raw` is 1 to [`DATA_BLOCKS_MAX`] whole blocks.
    #[must_use]
    pub fn from_raw(address: Lb, raw: Bytes) -> Option<Self> {
        Self::from_summed(address, raw, None)
    }

    /// [`DiffRecord::from_raw`] for somebody who may have verified the checksum of `raw`, salt 0.
    pub(crate) fn from_summed(address: Lb, raw: Bytes, checksum: Option<u32>) -> Option<Self> {
        let blocks = u32::try_from(raw.len() as u64 / LOGICAL_BLOCK_BYTES).ok()?;
        let whole = (raw.len() as u64).is_multiple_of(LOGICAL_BLOCK_BYTES);
        (whole && (1..=DATA_BLOCKS_MAX).contains(&blocks))
            .then(|| Self::whole(address, blocks, Image::from_raw(raw, checksum)))
    }

    pub(crate) fn whole(address: Lb, blocks: u32, image: Image) -> Self {
        Self::piece(address, blocks, Arc::new(image), 0)
    }

    pub(crate) fn piece(address: Lb, blocks: u32, image: Arc<Image>, offset: u32) -> Self {
        Self { address, blocks, payload: Payload::Data(Data { image, offset }) }
    }

    /// The block after the last one.
    #[must_use]
    pub const fn end(&self) -> Lb {
        Lb(self.address.0 + self.blocks as u64)
    }

    /// What the record holds.
    #[must_use]
    pub const fn kind(&self) -> RecordKind {
        match &self.payload {
            Payload::AllZero => RecordKind::AllZero,
            Payload::Discard => RecordKind::Discard,
            Payload::Data(_) => RecordKind::Normal,
        }
    }

    /// The `blocks` blocks that begin `skip` blocks into this record; both lie inside it.
    #[must_use]
    pub fn cut(&self, skip: u32, blocks: u32) -> Self {
        debug_assert!(blocks > 0 && skip + blocks <= self.blocks, "a cut lies inside its record");
        let mut piece = self.clone();
        piece.address += Lb(skip.into());
        piece.blocks = blocks;
        if let Payload::Data(data) = &mut piece.payload {
            data.offset += skip;
        }
        piece
    }

    /// Can a record follow that is the next piece of the same image?
    pub(crate) fn may_continue(&self) -> bool {
        match &self.payload {
            Payload::Data(data) => data.end_bytes(self.blocks) < data.image.raw_bytes,
            Payload::AllZero | Payload::Discard => false,
        }
    }

    /// Takes `next` in if it continues this record, on the device and in the image of both.
    pub(crate) fn join(&mut self, next: &Self) -> bool {
        let (Payload::Data(data), Payload::Data(more)) = (&self.payload, &next.payload) else {
            return false;
        };
        let continues = next.address == self.end()
            && Arc::ptr_eq(&data.image, &more.image)
            && data.offset + self.blocks == more.offset;
        if continues {
            self.blocks += next.blocks;
        }
        continues
    }

    /// The uncompressed data; `None` unless the record is normal.
    ///
    /// # Errors
    /// The stored data cannot be decompressed.
    pub fn raw(&self, codec: &mut Codec) -> Result<Option<Bytes>, WdiffError> {
        let Payload::Data(data) = &self.payload else {
            return Ok(None);
        };
        let raw = data.image.raw(codec)?;
        let from = to_usize(Lb(data.offset.into()).bytes());
        let len = to_usize(Lb(self.blocks.into()).bytes());
        Ok(Some(raw.slice(from..from + len)))
    }

    /// [`DiffRecord::raw`] in `room`, unless it is in memory anyway or others want data of the same
    /// image.
    pub(crate) fn raw_to(
        &self,
        room: &mut Room,
        codec: &mut Codec,
    ) -> Result<Option<Raw>, WdiffError> {
        match &self.payload {
            Payload::Data(data) if self.stored().is_some() => {
                data.image.raw_to(room, codec).map(Some)
            }
            _ => Ok(self.raw(codec)?.map(Raw::Apart)),
        }
    }

    /// The data as it is stored, when this record is the whole of what was stored.
    #[must_use]
    pub fn stored(&self) -> Option<&Stored> {
        let Payload::Data(data) = &self.payload else {
            return None;
        };
        let stored = data.image.stored()?;
        let whole = data.offset == 0 && data.image.raw_bytes == self.raw_bytes();
        whole.then_some(stored)
    }

    /// How the data that this record is a piece of is stored; `None` for data from memory and for
    /// records without data.
    #[must_use]
    pub fn stored_kind(&self) -> Option<CompressionKind> {
        match &self.payload {
            Payload::Data(data) => data.image.stored().map(|stored| stored.kind),
            Payload::AllZero | Payload::Discard => None,
        }
    }

    /// Bytes of uncompressed data; 0 for all-zero and discard records.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        match self.payload {
            Payload::Data(_) => to_usize(Lb(self.blocks.into()).bytes()),
            Payload::AllZero | Payload::Discard => 0,
        }
    }

    /// The record with its data in the codec's compression. Data that is stored in it already is
    /// taken as it is, after a look that it can be decompressed.
    ///
    /// # Errors
    /// The stored data cannot be decompressed.
    pub fn encode(&self, codec: &mut Codec) -> Result<EncodedRecord, WdiffError> {
        let body = match &self.payload {
            Payload::AllZero => Body::AllZero,
            Payload::Discard => Body::Discard,
            Payload::Data(data) => Body::Data(self.encode_data(data, codec)?),
        };
        Ok(EncodedRecord { address: self.address, blocks: self.blocks, body })
    }

    fn encode_data(&self, data: &Data, codec: &mut Codec) -> Result<Stored, WdiffError> {
        if let Some(stored) = self.stored()
            && stored.kind == codec.compression().kind()
        {
            data.image.look(codec)?;
            return Ok(stored.clone());
        }
        let raw = self.raw(codec)?.unwrap_or_default();
        let whole = raw.len() == data.image.raw_bytes;
        let checksum = if whole { data.image.raw_checksum() } else { None };
        Ok(codec.compress_summed(&raw, checksum)?)
    }
}

/// How a record lies in its file, for those who look at files (`formats.md` §6.3, §6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How the data is stored.
    pub compression: CompressionKind,
    /// Bytes of stored data.
    pub data_size: u32,
    /// Where they begin: in a sorted file from the end of the pack header, in an indexed one from
    /// the start of the file.
    pub data_offset: u64,
    /// Their checksum.
    pub checksum: u32,
    /// What an indexed file says in addition.
    pub piece: Option<PieceEntry>,
}

/// The fields that index records alone have (`formats.md` §6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceEntry {
    /// Logical blocks of the uncompressed image.
    pub orig_blocks: u32,
    /// Where in them the record begins, in logical blocks.
    pub io_offset: u32,
    /// The checksum of the index record.
    pub rec_checksum: u32,
}

/// A record ready to be written.
#[derive(Clone, Debug)]
pub struct EncodedRecord {
    /// First logical block.
    pub address: Lb,
    /// Logical blocks, at least 1.
    pub blocks: u32,
    /// What they hold.
    pub body: Body,
}

/// What an [`EncodedRecord`] holds.
#[derive(Clone, Debug)]
pub enum Body {
    /// Zeros that were written.
    AllZero,
    /// Discarded.
    Discard,
    /// Data in its stored form.
    Data(Stored),
}

impl EncodedRecord {
    /// What the record holds.
    #[must_use]
    pub const fn kind(&self) -> RecordKind {
        match &self.body {
            Body::AllZero => RecordKind::AllZero,
            Body::Discard => RecordKind::Discard,
            Body::Data(_) => RecordKind::Normal,
        }
    }
}
