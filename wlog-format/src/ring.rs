//! The ring of a log device: where an lsid lies (`formats.md` §3.1).
//!
//! `block(lsid) = offset + lsid mod size`; data of one record never crosses the ring end, a pack
//! may.

use crate::units::{BlockSize, Lsid, Pb};

/// Geometry of a log device's ring buffer. The size is never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    block_size: BlockSize,
    offset: Pb,
    size: Pb,
}

/// A run of blocks that lies in one piece on the log device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it starts on the log device, in bytes.
    pub byte_offset: u64,
    /// The lsid of its first block.
    pub lsid: Lsid,
    /// How many blocks it has, at least one.
    pub blocks: Pb,
}

impl Ring {
    /// `None` when the ring is empty or ends beyond what 64 bits can address in bytes.
    #[must_use]
    pub fn new(block_size: BlockSize, offset: Pb, size: Pb) -> Option<Self> {
        let end = offset.0.checked_add(size.0)?;
        end.checked_mul(u64::from(block_size.bytes()))?;
        (size.0 > 0).then_some(Self { block_size, offset, size })
    }

    /// Bytes of a block.
    #[must_use]
    pub const fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The first block of the ring on the log device.
    #[must_use]
    pub const fn offset(&self) -> Pb {
        self.offset
    }

    /// Blocks in the ring.
    #[must_use]
    pub const fn size(&self) -> Pb {
        self.size
    }

    /// First byte of the log device behind the ring.
    #[must_use]
    pub const fn end_bytes(&self) -> u64 {
        (self.offset.0 + self.size.0) * self.block_size.bytes() as u64
    }

    /// Where the block of `lsid` lies on the log device, in bytes.
    #[must_use]
    pub const fn byte_offset(&self, lsid: Lsid) -> u64 {
        (self.offset.0 + lsid.0 % self.size.0) * self.block_size.bytes() as u64
    }

    /// Blocks from `lsid` to the ring end: at least one.
    #[must_use]
    pub const fn contiguous(&self, lsid: Lsid) -> Pb {
        Pb(self.size.0 - lsid.0 % self.size.0)
    }

    /// `blocks` blocks from `lsid`, cut where the ring wraps.
    pub fn segments(&self, lsid: Lsid, blocks: Pb) -> impl Iterator<Item = Segment> + use<> {
        let ring = *self;
        let mut done = 0;
        std::iter::from_fn(move || {
            let lsid = Lsid(lsid.0.checked_add(done)?);
            let blocks = ring.contiguous(lsid).0.min(blocks.0 - done);
            done += blocks;
            (blocks > 0).then(|| Segment {
                byte_offset: ring.byte_offset(lsid),
                lsid,
                blocks: Pb(blocks),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsids_lie_where_the_worked_example_says() {
        // formats.md §10.1: pbs 512, ring of 16374 blocks from block 10.
        let ring = Ring::new(BlockSize::B512, Pb(10), Pb(16374)).unwrap();
        assert_eq!(ring.byte_offset(Lsid(16185)), 0x7e_8600);
        assert_eq!(ring.byte_offset(Lsid(16374)), 10 * 512);
        assert_eq!(ring.contiguous(Lsid(16373)), Pb(1));
        assert_eq!(ring.contiguous(Lsid(16374)), Pb(16374));
        assert_eq!(ring.end_bytes(), 8 << 20);
    }

    #[test]
    fn segments_are_cut_at_the_ring_end_only() {
        let ring = Ring::new(BlockSize::B4096, Pb(3), Pb(8)).unwrap();
        let cut: Vec<_> = ring.segments(Lsid(14), Pb(11)).map(|s| (s.lsid.0, s.blocks.0)).collect();
        assert_eq!(cut, [(14, 2), (16, 8), (24, 1)]);
        let offsets: Vec<_> = ring.segments(Lsid(14), Pb(3)).map(|s| s.byte_offset).collect();
        assert_eq!(offsets, [(3 + 6) * 4096, 3 * 4096]);
        assert_eq!(ring.segments(Lsid(14), Pb(0)).count(), 0);
    }

    #[test]
    fn impossible_rings_are_refused() {
        assert_eq!(Ring::new(BlockSize::B512, Pb(10), Pb(0)), None);
        assert_eq!(Ring::new(BlockSize::B512, Pb(10), Pb(u64::MAX)), None);
        assert_eq!(Ring::new(BlockSize::B512, Pb(10), Pb(u64::MAX / 512)), None);
    }
}
