//! What a run is made of: entries, their keys, and the diffs that it covers.

use std::cmp::Reverse;

use wlog_format::units::Lb;

use super::layout::{RawCovered, RawEntry, RawKey};
use crate::compression::CompressionKind;
use crate::diff_set::Order;
use crate::gid::{Diff, Gid, Snapshot};
use crate::locate::{Location, StoredImage};
use crate::record::{DATA_BLOCKS_MAX, RecordKind};
use crate::split::aligned;

/// The place of an entry in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// The entry has 2^class blocks.
    pub class: u8,
    /// First logical block, a multiple of that.
    pub address: Lb,
    /// Number of its diff in the run, newest first.
    pub diff: Reverse<u32>,
}

impl Key {
    pub(super) fn raw(self) -> RawKey {
        let (address, diff) = (self.address.0.into(), self.diff.0.into());
        RawKey { address, diff, class: self.class, reserved: [0; 3] }
    }

    pub(super) fn from_raw(raw: &RawKey) -> Self {
        let (address, diff) = (Lb(raw.address.get()), Reverse(raw.diff.get()));
        Self { class: raw.class, address, diff }
    }
}

/// A piece of a record of a diff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub key: Key,
    /// What the blocks hold.
    pub kind: RecordKind,
    /// The data that it is a part of.
    pub image: StoredImage,
    /// Where in it the piece begins, in logical blocks.
    pub skip: u32,
}

impl Entry {
    /// The entries of a record of the diff that has number `diff` in the run.
    pub fn of(record: Location, diff: u32) -> impl Iterator<Item = Self> {
        aligned(record.address, record.blocks).map(move |(before, blocks)| {
            let address = record.address + Lb(before.into());
            // A power of two, so its logarithm is below 32.
            let class = u8::try_from(blocks.trailing_zeros()).unwrap_or_default();
            let key = Key { class, address, diff: Reverse(diff) };
            let Location { kind, image, skip, .. } = record;
            let skip = if kind == RecordKind::Normal { skip + before } else { 0 };
            Self { key, kind, image, skip }
        })
    }

    /// Logical blocks.
    #[must_use]
    pub const fn blocks(&self) -> u32 {
        1 << self.key.class
    }

    pub(super) fn raw(&self) -> RawEntry {
        let Self { key, kind, image, skip } = self;
        RawEntry {
            address: key.address.0.into(),
            diff: key.diff.0.into(),
            class: key.class,
            kind: kind.flags(),
            compression: image.compression.code(),
            reserved: 0,
            offset: image.offset.into(),
            size: image.size.into(),
            checksum: image.checksum.into(),
            image_blocks: image.blocks.into(),
            skip: (*skip).into(),
        }
    }

    /// `None` when the fields are none of an entry.
    pub(super) fn from_raw(raw: &RawEntry) -> Option<Self> {
        let (address, class) = (raw.address.get(), raw.class);
        let blocks = 1_u32.checked_shl(class.into())?;
        let entry = Self {
            key: Key { class, address: Lb(address), diff: Reverse(raw.diff.get()) },
            kind: RecordKind::from_flags(raw.kind)?,
            image: StoredImage {
                offset: raw.offset.get(),
                size: raw.size.get(),
                checksum: raw.checksum.get(),
                blocks: raw.image_blocks.get(),
                compression: CompressionKind::from_code(raw.compression)?,
            },
            skip: raw.skip.get(),
        };
        let end = address.checked_add(blocks.into());
        let placed = address.is_multiple_of(blocks.into())
            && end.is_some_and(|end| end <= crate::sorted_reader::ADDRESS_END);
        let inside = entry.kind != RecordKind::Normal
            || (entry.image.blocks <= DATA_BLOCKS_MAX
                && entry.skip.checked_add(blocks).is_some_and(|end| end <= entry.image.blocks));
        (placed && inside).then_some(entry)
    }
}

/// A diff that a run covers: which one, and what the run has of it.
///
/// Flags do not count, so that a file may be renamed. Time and size do: a file that took the place
/// of another one is not mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// Where the diff comes in the order of the diffs.
    pub order: Order,
    /// Unix seconds of the snapshot that it leads to.
    pub timestamp: u64,
    /// Bytes of its file.
    pub size: u64,
    /// Records that it has.
    pub records: u64,
    /// The block after the last one that it has.
    pub end_block: Lb,
}

impl Covered {
    /// A diff of which nothing is known yet.
    #[must_use]
    pub fn new(diff: &Diff) -> Self {
        let (order, end_block) = (Order::of(diff), Lb(0));
        Self { order, timestamp: diff.timestamp, size: diff.size, records: 0, end_block }
    }

    /// Counts a record of it.
    pub fn count(&mut self, record: &Location) {
        self.records += 1;
        self.end_block = self.end_block.max(record.end());
    }

    /// Whether this is `diff` as its file is now.
    #[must_use]
    pub fn is(&self, diff: &Diff) -> bool {
        self.order == Order::of(diff) && (self.timestamp, self.size) == (diff.timestamp, diff.size)
    }

    pub(super) fn raw(&self) -> RawCovered {
        RawCovered {
            gids: self.order.gids().map(|gid| gid.0.into()),
            timestamp: self.timestamp.into(),
            size: self.size.into(),
            records: self.records.into(),
            end_block: self.end_block.0.into(),
        }
    }

    /// `None` when the gids are none of a diff.
    pub(super) fn from_raw(raw: &RawCovered) -> Option<Self> {
        let [b0, b1, e0, e1] = raw.gids.map(|gid| Gid(gid.get()));
        let (begin, end) = (Snapshot::new(b0, b1).ok()?, Snapshot::new(e0, e1).ok()?);
        Some(Self {
            order: Order::of(&Diff::new(begin, end).ok()?),
            timestamp: raw.timestamp.get(),
            size: raw.size.get(),
            records: raw.records.get(),
            end_block: Lb(raw.end_block.get()),
        })
    }
}
