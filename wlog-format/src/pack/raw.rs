//! The bytes of a pack header and its records (`formats.md` §4.1, §4.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{MAX_WRITE, Record, RecordKind};
use crate::units::{Lb, Lsid, Pb};

pub(super) const HEADER_BYTES: usize = size_of::<RawHeader>();
pub(super) const RECORD_BYTES: usize = size_of::<RawRecord>();

const SECTOR_TYPE: u16 = 3;
const EXIST: u32 = 1;
const PADDING: u32 = 2;
const DISCARD: u32 = 4;

/// 24 bytes, then the records; the rest of the block is zero.
///
/// | Off | Size | Field |
/// |---|---|---|
/// | 0 | u32 | checksum, log salt, over the physical block |
/// | 4 | u16 | sector_type = 3 |
/// | 6 | u16 | total_io_size [pb]: normal and padding records |
/// | 8 | u64 | logpack_lsid |
/// | 16 | u16 | n_records, all kinds |
/// | 18 | u16 | n_padding, 0 or 1 |
/// | 20 | u32 | reserved = 0 |
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) checksum: U32,
    pub(super) sector_type: U16,
    pub(super) total_io_size: U16,
    pub(super) logpack_lsid: U64,
    pub(super) n_records: U16,
    pub(super) n_padding: U16,
    pub(super) reserved: U32,
}

/// 32 bytes.
///
/// | Off | Size | Field |
/// |---|---|---|
/// | 0 | u32 | checksum of the payload, log salt; 0 for padding and discard |
/// | 4 | u32 | flags: bit 0 exist, bit 1 padding, bit 2 discard |
/// | 8 | u64 | offset [lb]; 0 for padding |
/// | 16 | u32 | io_size [lb] |
/// | 20 | u16 | lsid_local = lsid - logpack_lsid |
/// | 22 | u16 | reserved = 0 |
/// | 24 | u64 | lsid of the first data block |
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawRecord {
    checksum: U32,
    flags: U32,
    offset: U64,
    io_size: U32,
    lsid_local: U16,
    reserved: U16,
    lsid: U64,
}

const _: () = assert!(HEADER_BYTES == 24 && RECORD_BYTES == 32);

/// A count that a valid pack keeps below 2^16.
fn short(n: u64) -> U16 {
    let n = u16::try_from(n);
    debug_assert!(n.is_ok(), "a pack header is valid when it is made");
    U16::new(n.unwrap_or(u16::MAX))
}

impl RawHeader {
    /// With checksum 0.
    pub(super) fn new(lsid: Lsid, total_io: Pb, records: usize, paddings: usize) -> Self {
        Self {
            checksum: U32::ZERO,
            sector_type: U16::new(SECTOR_TYPE),
            total_io_size: short(total_io.0),
            logpack_lsid: U64::new(lsid.0),
            n_records: short(records as u64),
            n_padding: short(paddings as u64),
            reserved: U32::ZERO,
        }
    }

    pub(super) fn has_type(&self) -> bool {
        self.sector_type == SECTOR_TYPE
    }
}

impl RawRecord {
    pub(super) fn new(record: &Record, pack: Lsid) -> Self {
        let kind = match record.kind {
            RecordKind::Normal => 0,
            RecordKind::Padding => PADDING,
            RecordKind::Discard => DISCARD,
        };
        Self {
            checksum: U32::new(record.checksum),
            flags: U32::new(EXIST | kind),
            offset: U64::new(record.address.0),
            io_size: U32::new(record.blocks),
            lsid_local: short(record.lsid.distance_from(pack).0),
            reserved: U16::ZERO,
            lsid: U64::new(record.lsid.0),
        }
    }

    /// The record, whose data must start `local` blocks behind the pack's lsid.
    pub(super) fn decode(&self, pack: Lsid, local: Pb) -> Result<Record, &'static str> {
        let kind = match self.flags.get() {
            EXIST => RecordKind::Normal,
            flags if flags == EXIST | PADDING => RecordKind::Padding,
            flags if flags == EXIST | DISCARD => RecordKind::Discard,
            flags if flags & EXIST == 0 => return Err("it is marked as not existing"),
            _ => return Err("it has an unknown mix of flags"),
        };
        let blocks = self.io_size.get();
        if blocks == 0 && kind != RecordKind::Padding {
            return Err("it is empty");
        }
        if u64::from(blocks) > MAX_WRITE.0 && kind != RecordKind::Discard {
            return Err("it is larger than any write can be");
        }
        if u64::from(self.lsid_local.get()) != local.0 {
            return Err("it does not start where the one before ends");
        }
        let lsid = pack.checked_add(local).filter(|lsid| self.lsid == lsid.0);
        let lsid = lsid.ok_or("its lsid is not that of its place in the pack")?;
        let address = Lb(self.offset.get());
        if address.checked_add(Lb(u64::from(blocks))).is_none() {
            return Err("it ends beyond the largest address");
        }
        let checksum = if kind == RecordKind::Normal { self.checksum.get() } else { 0 };
        Ok(Record { kind, address, blocks, lsid, checksum })
    }
}
