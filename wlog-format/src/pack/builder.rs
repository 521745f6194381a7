//! Packing writes into packs as the original driver does (`formats.md` §4.3).
//!
//! Invariants: the data of a write never crosses the ring end (a padding record fills the ring up
//! before it), a pack has at most one padding record, and no limit of the header is exceeded.

use super::{
    MAX_DISCARD, MAX_PACK, MAX_WRITE, PackHeader, Record, RecordKind, max_records,
    raw::RECORD_BYTES,
};
use crate::ring::Ring;
use crate::units::{BlockSize, Lb, Lsid, Pb, Salt};

/// What became of an I/O that was offered to a [`PackBuilder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Add {
    /// It is in the pack; its data belongs to this lsid.
    Added(Lsid),
    /// The pack is full: finish it and offer the I/O to the next one. (A pack that holds nothing
    /// but padding is to be written too.)
    Full,
    /// No pack of this log can hold it: empty, above [`PackBuilder::max_write`] or
    /// [`MAX_DISCARD`], or the log has used up all lsids.
    TooLarge,
}

/// Collects I/Os into one pack.
#[derive(Debug)]
pub struct PackBuilder {
    header: PackHeader,
    ring: Ring,
    max: Pb,
}

impl PackBuilder {
    /// A pack at `lsid`. It is closed when its data would exceed `max`, unless one I/O alone does;
    /// it never exceeds the ring.
    #[must_use]
    pub fn new(lsid: Lsid, ring: Ring, salt: Salt, max: Pb) -> Self {
        let header = PackHeader {
            block_size: ring.block_size(),
            salt,
            lsid,
            total_io: Pb(0),
            records: Vec::with_capacity(max_records(ring.block_size())),
        };
        let whole_ring = Pb(ring.size().0.saturating_sub(1));
        Self { header, ring, max: max.min(MAX_PACK).min(whole_ring) }
    }

    /// The largest write that finds room wherever the log stands: half the ring, because the
    /// padding before it can be as long.
    #[must_use]
    pub fn max_write(ring: &Ring) -> Lb {
        let half_ring = (ring.size().0 / 2).saturating_mul(ring.block_size().logical_blocks());
        Lb(half_ring).min(MAX_WRITE)
    }

    /// Offers a write whose payload has this checksum (with the log's salt). The payload goes to
    /// the returned lsid, its last block may hold anything behind it.
    pub fn try_add_write(&mut self, address: Lb, len: Lb, checksum: u32) -> Add {
        let Some(blocks) = self.fitting(address, len, Self::max_write(&self.ring)) else {
            return Add::TooLarge;
        };
        let size = self.header.block_size.pb(len);
        let room = self.ring.contiguous(self.data_lsid());
        // With the header on the last block of the ring, data starts at the ring start by itself.
        let padding = if room.0 < size.0 { room } else { Pb(0) };
        if !self.has_room(padding, size) {
            if self.is_empty() && padding.0 > 0 {
                self.push_padding(padding);
            }
            return Add::Full;
        }
        if padding.0 > 0 {
            self.push_padding(padding);
        }
        self.push(RecordKind::Normal, address, blocks, checksum)
    }

    /// Offers a discard.
    pub fn try_add_discard(&mut self, address: Lb, len: Lb) -> Add {
        let Some(blocks) = self.fitting(address, len, MAX_DISCARD) else {
            return Add::TooLarge;
        };
        let in_reach = self.header.total_io.0 < MAX_PACK.0;
        if !in_reach || self.free_records() == 0 {
            return Add::Full;
        }
        self.push(RecordKind::Discard, address, blocks, 0)
    }

    /// Offers padding of one's own choice, 0 blocks allowed. A pack takes it once.
    pub fn try_add_padding(&mut self, blocks: Pb) -> Add {
        let Some(len) = self.padding_len(blocks) else { return Add::TooLarge };
        let room = self.header.total_io + blocks <= MAX_PACK && self.free_records() > 0;
        if !room || self.header.paddings() > 0 {
            return Add::Full;
        }
        self.push(RecordKind::Padding, Lb(0), len, 0)
    }

    /// The most blocks that one padding record can express.
    #[must_use]
    pub fn max_padding(block_size: BlockSize) -> Pb {
        Pb(MAX_WRITE.0 / block_size.logical_blocks())
    }

    fn padding_len(&self, blocks: Pb) -> Option<u32> {
        self.header.lsid.checked_add(Pb(1) + MAX_PACK)?;
        let len = Lb(blocks.0.checked_mul(self.header.block_size.logical_blocks())?);
        (len <= MAX_WRITE).then(|| u32::try_from(len.0).ok()).flatten()
    }

    /// The length, when one record can express the I/O and the pack's end stays a valid lsid.
    fn fitting(&self, address: Lb, len: Lb, max: Lb) -> Option<u32> {
        address.checked_add(len)?;
        self.header.lsid.checked_add(Pb(1) + MAX_PACK)?;
        (len.0 > 0 && len <= max).then(|| u32::try_from(len.0).ok()).flatten()
    }

    /// Is there room for a write of `size` behind `padding` blocks?
    fn has_room(&self, padding: Pb, size: Pb) -> bool {
        let records = 1 + usize::from(padding.0 > 0);
        let total = self.header.total_io + padding + size;
        let limit = if self.is_empty() { MAX_PACK } else { self.max };
        let second_padding = padding.0 > 0 && self.header.paddings() > 0;
        self.free_records() >= records && total <= limit && !second_padding
    }

    fn free_records(&self) -> usize {
        max_records(self.header.block_size) - self.header.records.len()
    }

    /// The padding before a write, shorter than that: 65528 sectors at most.
    fn push_padding(&mut self, blocks: Pb) {
        if let Some(len) = self.padding_len(blocks) {
            let _ = self.push(RecordKind::Padding, Lb(0), len, 0);
        }
    }

    fn push(&mut self, kind: RecordKind, address: Lb, blocks: u32, checksum: u32) -> Add {
        let record = Record { kind, address, blocks, lsid: self.data_lsid(), checksum };
        self.header.total_io += record.log_blocks(self.header.block_size);
        self.header.records.push(record);
        Add::Added(record.lsid)
    }

    /// Where the data of the next record goes.
    fn data_lsid(&self) -> Lsid {
        self.header.next_lsid()
    }

    /// No record yet?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.header.records.is_empty()
    }

    /// Blocks behind the header so far.
    #[must_use]
    pub fn total_io(&self) -> Pb {
        self.header.total_io
    }

    /// The pack; `None` when nothing was added, for an empty pack must not be written.
    #[must_use]
    pub fn finish(self) -> Option<PackHeader> {
        debug_assert!(self.header.records.len() * RECORD_BYTES < self.header.block_size.as_usize());
        (!self.is_empty()).then_some(self.header)
    }
}
