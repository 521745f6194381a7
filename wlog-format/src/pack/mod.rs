//! Log packs: one header block, then the data of its records (`formats.md` §4).
//!
//! A [`PackHeader`] exists only if it passed every check of §4.4, or was built by [`PackBuilder`]:
//! its records follow each other without gaps and end where `total_io` says. So whoever holds one
//! may add up its sizes without fear.

mod builder;
mod raw;

pub use builder::{Add, PackBuilder};

use crate::checksum::{checksum, is_sound};
use crate::units::{BlockSize, Lb, Lsid, Pb, Salt, to_usize};
use raw::{HEADER_BYTES, RECORD_BYTES, RawHeader, RawRecord};
use zerocopy::{FromBytes, IntoBytes};

/// The largest `total_io_size` of a pack.
pub const MAX_PACK: Pb = Pb(65535);
/// The largest write in one record.
pub const MAX_WRITE: Lb = Lb(65535);
/// The largest discard in one record.
pub const MAX_DISCARD: Lb = Lb(0xffff_ffff);

/// Records that fit a header block: 15 at 512 bytes, 127 at 4096.
#[must_use]
pub const fn max_records(block_size: BlockSize) -> usize {
    (block_size.as_usize() - HEADER_BYTES) / RECORD_BYTES
}

/// What a record stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// A write; its data follows in the log.
    Normal,
    /// Blocks without meaning, so that the next data does not cross the ring end.
    Padding,
    /// A discard; nothing follows in the log.
    Discard,
}

/// One I/O of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it stands for.
    pub kind: RecordKind,
    /// Where on the volume; 0 for padding.
    pub address: Lb,
    /// How many logical blocks.
    pub blocks: u32,
    /// Where its data starts in the log (for a discard: where data would).
    pub lsid: Lsid,
    /// Checksum of its payload with the log salt; 0 unless a write.
    pub checksum: u32,
}

impl Record {
    /// Its size on the volume.
    #[must_use]
    pub fn len(&self) -> Lb {
        Lb(u64::from(self.blocks))
    }

    /// Only a padding record may be empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks == 0
    }

    /// The first logical block behind it on the volume.
    #[must_use]
    pub fn end(&self) -> Lb {
        Lb(self.address.0.saturating_add(u64::from(self.blocks)))
    }

    /// Bytes of payload: what a write changes on the volume.
    #[must_use]
    pub fn payload_bytes(&self) -> usize {
        match self.kind {
            RecordKind::Normal => to_usize(self.len().bytes()),
            RecordKind::Padding | RecordKind::Discard => 0,
        }
    }

    /// Blocks that it takes in the log behind the header.
    #[must_use]
    pub fn log_blocks(&self, block_size: BlockSize) -> Pb {
        match self.kind {
            RecordKind::Normal | RecordKind::Padding => block_size.pb(self.len()),
            RecordKind::Discard => Pb(0),
        }
    }
}

/// Why a block is not the valid pack header that was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Fewer bytes than a block.
    #[error("the pack header is cut short: {got} of {want} bytes")]
    Short {
        /// Bytes of a block.
        want: usize,
        /// Bytes given.
        got: usize,
    },
    /// The end of a wlog stream: no error there.
    #[error("an end block instead of a pack")]
    Terminator,
    /// Another kind of block.
    #[error("no pack header: sector type {0}")]
    SectorType(u16),
    /// A header without records, and not an end block.
    #[error("a pack header without records")]
    Empty,
    /// Damaged, or written with another salt.
    #[error("the checksum of the pack header is wrong: it is damaged or of another log")]
    Checksum,
    /// A pack of another place in the log.
    #[error("a pack of lsid {found} instead of {expected}")]
    Lsid {
        /// The lsid that comes next.
        expected: Lsid,
        /// logpack_lsid.
        found: Lsid,
    },
    /// More records than the block can hold.
    #[error("a pack of {0} records, more than its header can hold")]
    TooManyRecords(u16),
    /// A record that contradicts itself or its neighbours.
    #[error("record {index} of the pack: {what}")]
    Record {
        /// Its place in the pack.
        index: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The counts in the header contradict the records.
    #[error("the pack header's {0} contradicts its records")]
    Count(&'static str),
}

/// A valid pack header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackHeader {
    block_size: BlockSize,
    salt: Salt,
    lsid: Lsid,
    total_io: Pb,
    records: Vec<Record>,
}

impl PackHeader {
    /// Reads a header block that must belong to the pack of lsid `expected`: every check of
    /// `formats.md` §4.4, the recommended ones included.
    ///
    /// # Errors
    /// When the block is anything else; [`PackError::Terminator`] for an end block.
    pub fn decode(
        block: &[u8],
        block_size: BlockSize,
        salt: Salt,
        expected: Lsid,
    ) -> Result<Self, PackError> {
        let want = block_size.as_usize();
        let block = block.get(..want).ok_or(PackError::Short { want, got: block.len() })?;
        let (raw, rest) = RawHeader::ref_from_prefix(block)
            .map_err(|_| PackError::Short { want, got: block.len() })?;
        check_header(raw, block, salt, expected)?;
        let count = usize::from(raw.n_records.get());
        let (raw_records, _) = <[RawRecord]>::ref_from_prefix_with_elems(rest, count)
            .map_err(|_| PackError::TooManyRecords(raw.n_records.get()))?;
        let (records, total_io) = decode_records(raw_records, block_size, expected)?;
        if total_io.0 != u64::from(raw.total_io_size.get()) {
            return Err(PackError::Count("total size"));
        }
        let padding = records.iter().filter(|r| r.kind == RecordKind::Padding).count();
        if padding != usize::from(raw.n_padding.get()) || padding > 1 {
            return Err(PackError::Count("number of paddings"));
        }
        if expected.checked_add(Pb(1) + total_io).is_none() {
            return Err(PackError::Count("end lsid"));
        }
        Ok(Self { block_size, salt, lsid: expected, total_io, records })
    }

    /// The header block, checksum included.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; self.block_size.as_usize()];
        self.encode_into(&mut block);
        block
    }

    /// Writes the header block into the start of `block`.
    ///
    /// # Panics
    /// When `block` is shorter than a physical block.
    pub fn encode_into(&self, block: &mut [u8]) {
        assert!(block.len() >= self.block_size.as_usize(), "a header takes a whole block");
        let (block, _) = block.split_at_mut(self.block_size.as_usize());
        let (head, tail) = block.split_at_mut(HEADER_BYTES);
        let mut raw = RawHeader::new(self.lsid, self.total_io, self.records.len(), self.paddings());
        tail.fill(0);
        for (place, record) in tail.chunks_exact_mut(RECORD_BYTES).zip(&self.records) {
            place.copy_from_slice(RawRecord::new(record, self.lsid).as_bytes());
        }
        head.copy_from_slice(raw.as_bytes());
        raw.checksum = checksum(block, self.salt).into();
        let (head, _) = block.split_at_mut(HEADER_BYTES);
        head.copy_from_slice(raw.as_bytes());
    }

    fn paddings(&self) -> usize {
        self.records.iter().filter(|r| r.kind == RecordKind::Padding).count()
    }

    /// The lsid of the header block.
    #[must_use]
    pub const fn lsid(&self) -> Lsid {
        self.lsid
    }

    /// The lsid of the pack that follows.
    #[must_use]
    pub const fn next_lsid(&self) -> Lsid {
        Lsid(self.lsid.0 + 1 + self.total_io.0)
    }

    /// Blocks behind the header.
    #[must_use]
    pub const fn total_io(&self) -> Pb {
        self.total_io
    }

    /// Bytes behind the header.
    #[must_use]
    pub const fn data_bytes(&self) -> usize {
        to_usize(self.block_size.bytes_of(self.total_io))
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The salt of its log.
    #[must_use]
    pub const fn salt(&self) -> Salt {
        self.salt
    }

    /// Its records, at least one.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// Does `data` (the payload, or the whole blocks that hold it) fit the checksum of `record`?
    /// Records without payload always fit.
    #[must_use]
    pub fn verify_data(&self, record: &Record, data: &[u8]) -> bool {
        match record.kind {
            RecordKind::Normal => data
                .get(..record.payload_bytes())
                .is_some_and(|payload| checksum(payload, self.salt) == record.checksum),
            RecordKind::Padding | RecordKind::Discard => true,
        }
    }

    /// The pack cut down to its first `keep` records (`formats.md` §4.6), for a torn log end;
    /// `None` when nothing would be left.
    #[must_use]
    pub fn shrink(&self, keep: usize) -> Option<Self> {
        let records = self.records.get(..keep).filter(|kept| !kept.is_empty())?.to_vec();
        let total_io = Pb(records.iter().map(|r| r.log_blocks(self.block_size).0).sum());
        Some(Self { records, total_io, ..*self })
    }

    /// The same pack at another place in the log; `None` when its end would be no valid lsid. Its
    /// data stays as it is, and so do the checksums of the records.
    #[must_use]
    pub fn moved_to(&self, lsid: Lsid) -> Option<Self> {
        lsid.checked_add(Pb(1) + self.total_io)?;
        let mut moved = Self { lsid, ..self.clone() };
        for record in &mut moved.records {
            record.lsid = lsid + record.lsid.distance_from(self.lsid);
        }
        Some(moved)
    }
}

/// The block that ends a wlog stream (`formats.md` §4.4, §5.2).
#[must_use]
pub fn encode_terminator(block_size: BlockSize, salt: Salt) -> Vec<u8> {
    let mut block = vec![0; block_size.as_usize()];
    let (head, _) = block.split_at_mut(HEADER_BYTES);
    let mut raw = RawHeader::new(Lsid::INVALID, Pb(0), 0, 0);
    raw.checksum = checksum(raw.as_bytes(), salt).into();
    head.copy_from_slice(raw.as_bytes());
    block
}

/// Could the block at `lsid` be taken for the header of a pack there?
///
/// Redo asks this of blocks behind the log's end: such a block must be made unreadable, or a later
/// redo may take it for the continuation of the log (`formats.md` §4.6, stale packs).
#[must_use]
pub fn is_header_at(block: &[u8], block_size: BlockSize, salt: Salt, lsid: Lsid) -> bool {
    let Some(block) = block.get(..block_size.as_usize()) else { return false };
    let Ok((raw, _)) = RawHeader::ref_from_prefix(block) else { return false };
    raw.has_type() && raw.logpack_lsid == lsid.0 && raw.n_records != 0 && is_sound(block, salt)
}

fn check_header(
    raw: &RawHeader,
    block: &[u8],
    salt: Salt,
    expected: Lsid,
) -> Result<(), PackError> {
    if !raw.has_type() {
        return Err(PackError::SectorType(raw.sector_type.get()));
    }
    if !is_sound(block, salt) {
        return Err(PackError::Checksum);
    }
    let found = Lsid(raw.logpack_lsid.get());
    if raw.n_records == 0 {
        let end = found == Lsid::INVALID && raw.total_io_size == 0 && raw.n_padding == 0;
        return Err(if end { PackError::Terminator } else { PackError::Empty });
    }
    if found != expected {
        return Err(PackError::Lsid { expected, found });
    }
    Ok(())
}

/// The records, which must lie one behind the other from `pack + 1`, and their sum of blocks.
fn decode_records(
    raw: &[RawRecord],
    block_size: BlockSize,
    pack: Lsid,
) -> Result<(Vec<Record>, Pb), PackError> {
    let mut records = Vec::with_capacity(raw.len());
    let mut total = Pb(0);
    for (index, raw) in raw.iter().enumerate() {
        let local = Pb(1) + total;
        let record = raw.decode(pack, local).map_err(|what| PackError::Record { index, what })?;
        total += record.log_blocks(block_size);
        records.push(record);
    }
    Ok((records, total))
}
