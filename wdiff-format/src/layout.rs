//! The structures of a wdiff file byte by byte (`formats.md` §6.1, §6.3, §6.4), and nothing else.

use wlog_format::checksum::checksum;
use wlog_format::units::Salt;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub(crate) const FILE_HEADER_BYTES: usize = 32;
pub(crate) const PACK_HEADER_BYTES: usize = 4096;
pub(crate) const INDEX_RECORD_BYTES: usize = 48;
pub(crate) const INDEX_SUPER_BYTES: usize = 24;

/// Records that a pack header has room for.
pub(crate) const PACK_RECORDS_MAX: usize = 127;
/// Bytes of data after one pack header.
pub(crate) const PACK_DATA_MAX_BYTES: u64 = 32 << 20;

pub(crate) const WDIFF_VERSION: u16 = 2;
pub(crate) const TYPE_SORTED: u8 = 0;
pub(crate) const TYPE_INDEXED: u8 = 1;
/// Pack flag: no pack follows.
pub(crate) const PACK_END: u8 = 1;

/// Record flags. The other bits have no meaning: readers ignore them, writers leave them clear.
pub(crate) const FLAG_ALL_ZERO: u8 = 2;
pub(crate) const FLAG_DISCARD: u8 = 4;

/// `formats.md` §6.1.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawFileHeader {
    pub(crate) checksum: U32,
    pub(crate) version: U16,
    pub(crate) file_type: u8,
    pub(crate) reserved1: u8,
    pub(crate) reserved2: [u8; 8],
    pub(crate) uuid: [u8; 16],
}

/// `formats.md` §6.3, without the records and the zeros behind them.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawPackHeader {
    pub(crate) checksum: U32,
    pub(crate) n_records: U16,
    pub(crate) flags: u8,
    pub(crate) reserved1: u8,
    pub(crate) total_size: U32,
    pub(crate) reserved2: U32,
}

/// `formats.md` §6.3.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawRecord {
    pub(crate) io_address: U64,
    pub(crate) io_blocks: U32,
    pub(crate) flags: u8,
    pub(crate) compression: u8,
    pub(crate) reserved1: U16,
    pub(crate) data_offset: U32,
    pub(crate) data_size: U32,
    pub(crate) checksum: U32,
    pub(crate) reserved2: U32,
}

/// `formats.md` §6.4.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawIndexRecord {
    pub(crate) io_address: U64,
    pub(crate) io_blocks: U32,
    pub(crate) flags: u8,
    pub(crate) compression: u8,
    pub(crate) reserved1: U16,
    pub(crate) data_offset: U64,
    pub(crate) data_size: U32,
    pub(crate) io_offset: U32,
    pub(crate) orig_blocks: U32,
    pub(crate) reserved2: U32,
    pub(crate) io_checksum: U32,
    pub(crate) rec_checksum: U32,
}

/// `formats.md` §6.4.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawIndexSuper {
    pub(crate) index_offset: U64,
    pub(crate) n_records: U32,
    pub(crate) n_data: U32,
    pub(crate) reserved: U32,
    pub(crate) checksum: U32,
}

const _: () = assert!(size_of::<RawFileHeader>() == FILE_HEADER_BYTES);
const _: () = assert!(size_of::<RawPackHeader>() + PACK_RECORDS_MAX * 32 + 16 == PACK_HEADER_BYTES);
const _: () = assert!(size_of::<RawRecord>() == 32);
const _: () = assert!(size_of::<RawIndexRecord>() == INDEX_RECORD_BYTES);
const _: () = assert!(size_of::<RawIndexSuper>() == INDEX_SUPER_BYTES);

/// A structure that holds its own checksum is sound when it sums to 0 (`formats.md` §2.1).
pub(crate) fn is_sound(structure: &[u8]) -> bool {
    checksum(structure, Salt(0)) == 0
}

/// The checksum of a structure whose own checksum field is 0.
pub(crate) fn own_checksum(structure: &[u8]) -> U32 {
    checksum(structure, Salt(0)).into()
}
