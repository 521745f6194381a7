//! The bytes of an index run, and nothing else.
//!
//! A run is a file of blocks of 4 KiB, in this order:
//!
//! ```text
//!  leaves: the entries in the order of their keys, 102 in each
//!  levels: the first key of each block of the level below, 255 in each, until one block is left
//!  table:  the diffs that the run covers, 63 in each
//!  end:    one block: how many entries and diffs there are, from which all else follows
//! ```
//!
//! Each block ends with its own number and a CRC32 of all before that. Numbers are little-endian.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes in it before its number and checksum.
pub(crate) const PAYLOAD_BYTES: usize = BLOCK_BYTES - 16;

pub(crate) const ENTRIES_PER_BLOCK: usize = PAYLOAD_BYTES / size_of::<RawEntry>();
pub(crate) const KEYS_PER_BLOCK: usize = PAYLOAD_BYTES / size_of::<RawKey>();
pub(crate) const DIFFS_PER_BLOCK: usize = PAYLOAD_BYTES / size_of::<RawCovered>();

pub(crate) const MAGIC: [u8; 8] = *b"walbIDXr";
/// Runs of another version are made again.
pub(crate) const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEntry {
    pub(crate) address: U64,
    /// Number in the table.
    pub(crate) diff: U32,
    /// The entry has 2^class blocks and lies at a multiple of that.
    pub(crate) class: u8,
    /// As the flags of a wdiff record.
    pub(crate) kind: u8,
    pub(crate) compression: u8,
    pub(crate) reserved: u8,
    pub(crate) offset: U64,
    pub(crate) size: U32,
    pub(crate) checksum: U32,
    pub(crate) image_blocks: U32,
    pub(crate) skip: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawKey {
    pub(crate) address: U64,
    pub(crate) diff: U32,
    pub(crate) class: u8,
    pub(crate) reserved: [u8; 3],
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawCovered {
    /// Begin and end of the snapshot that it is from, then of the one that it leads to.
    pub(crate) gids: [U64; 4],
    pub(crate) timestamp: U64,
    pub(crate) size: U64,
    pub(crate) records: U64,
    /// The block after the last one that it has.
    pub(crate) end_block: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawEnd {
    pub(crate) magic: [u8; 8],
    pub(crate) version: U32,
    pub(crate) reserved: U32,
    pub(crate) entries: U64,
    /// Bit n: there are entries of class n.
    pub(crate) classes: U64,
    pub(crate) diffs: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawTrailer {
    pub(crate) number: U64,
    pub(crate) reserved: U32,
    pub(crate) crc32: U32,
}

/// A block from its payload, which is filled up with zeros.
pub(crate) fn seal(payload: &[u8], number: u64) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    let (body, end) = block.split_at_mut(PAYLOAD_BYTES);
    body.iter_mut().zip(payload).for_each(|(to, from)| *to = *from);
    let mut trailer = RawTrailer { number: number.into(), reserved: 0.into(), crc32: 0.into() };
    trailer.crc32 = crc(body, &trailer).into();
    end.copy_from_slice(trailer.as_bytes());
    block
}

/// The payload of a block, if it is the block of this number and sound.
pub(crate) fn open(block: &[u8], number: u64) -> Option<&[u8]> {
    let (payload, end) = block.split_at_checked(PAYLOAD_BYTES)?;
    let trailer = RawTrailer::read_from_bytes(end).ok()?;
    (trailer.number.get() == number && trailer.crc32.get() == crc(payload, &trailer))
        .then_some(payload)
}

fn crc(payload: &[u8], trailer: &RawTrailer) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(payload);
    hasher.update(trailer.number.as_bytes());
    hasher.finalize()
}

/// Where the parts of a run lie, in blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// First block and number of blocks of the leaves and of each level above, the last of which
    /// has one block. Empty when there are no entries.
    pub(crate) levels: Vec<(u64, u64)>,
    pub(crate) table: u64,
    /// Number of the last block.
    pub(crate) end: u64,
}

impl Shape {
    pub(crate) fn new(entries: u64, diffs: u64) -> Self {
        let (mut levels, mut at) = (Vec::new(), 0);
        let mut blocks = entries.div_ceil(ENTRIES_PER_BLOCK as u64);
        while blocks > 0 {
            levels.push((at, blocks));
            at += blocks;
            blocks = if blocks == 1 { 0 } else { blocks.div_ceil(KEYS_PER_BLOCK as u64) };
        }
        Self { levels, table: at, end: at + diffs.div_ceil(DIFFS_PER_BLOCK as u64) }
    }
}
