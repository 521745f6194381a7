//! Memory that io_uring can have registered: one mapping, cut into slabs.
//!
//! The kernel pins a registered slab once, instead of the pages of every single request. A slab is
//! cut into pieces of one size class, which the pool hands out for ever after. Untouched slabs
//! cost address space only.
//!
//! Invariant: the mapping is never unmapped; no two pieces overlap.
#![expect(unsafe_code, reason = "memory that is mapped by hand")]

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};

use super::memory::Memory;

/// Bytes of one slab: the largest piece.
pub(super) const SLAB_BYTES: usize = 1 << 20;

/// How many slabs there are.
pub(crate) const SLABS: usize = 32;

static ARENA: OnceLock<Option<Arena>> = OnceLock::new();

struct Arena {
    base: NonNull<u8>,
    /// Slabs that are cut; those behind are untouched.
    cut: AtomicUsize,
}

// SAFETY: `base` is only computed with; what it points to is reached through `Memory`, whose pieces
// are disjoint.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    fn map() -> Option<Self> {
        let len = NonZeroUsize::new(SLABS * SLAB_BYTES)?;
        let (prot, flags) = (
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
            MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE,
        );
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe { mmap_anonymous(None, len, prot, flags) }.ok()?;
        Some(Self { base: base.cast(), cut: AtomicUsize::new(0) })
    }

    fn slab(&self, index: usize) -> NonNull<u8> {
        debug_assert!(index < SLABS);
        // SAFETY: `index < SLABS`, so the result lies within the mapping.
        unsafe { self.base.add(index * SLAB_BYTES) }
    }
}

/// A slab that nobody has used, in pieces of `piece_bytes`, a power of two of at least a page and
/// at most a slab. `None` when all slabs are cut.
pub(super) fn cut(piece_bytes: usize) -> Option<impl Iterator<Item = Memory>> {
    assert!(piece_bytes.is_power_of_two() && piece_bytes <= SLAB_BYTES);
    let arena = ARENA.get_or_init(Arena::map).as_ref()?;
    let next = |cut| (cut < SLABS).then_some(cut + 1);
    let index = arena.cut.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).ok()?;
    let slab = arena.slab(index);
    Some((0..SLAB_BYTES / piece_bytes).map(move |piece| {
        // SAFETY: the piece lies within the slab, which was taken off `cut` once and is ours alone;
        // it is page aligned, zeroed by the kernel, and never unmapped.
        unsafe { Memory::borrow(slab.add(piece * piece_bytes), piece_bytes) }
    }))
}

/// The slab that `[start, start + len)` lies in, or `None` for other memory.
pub(crate) fn slab_of(start: *const u8, len: usize) -> Option<usize> {
    let arena = ARENA.get()?.as_ref()?;
    let from = start.addr().checked_sub(arena.base.as_ptr().addr())?;
    let (slab, within) = (from / SLAB_BYTES, from % SLAB_BYTES);
    (slab < SLABS && within + len <= SLAB_BYTES).then_some(slab)
}

/// A slab as io_uring registers it. `None` when there is no such slab.
pub(crate) fn slab_vector(index: usize) -> Option<libc::iovec> {
    let arena = ARENA.get()?.as_ref()?;
    let slab = (index < SLABS).then(|| arena.slab(index))?;
    Some(libc::iovec { iov_base: slab.as_ptr().cast(), iov_len: SLAB_BYTES })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_disjoint_and_know_their_slab() {
        let mut pieces: Vec<_> = cut(65536).unwrap().collect();
        assert_eq!(pieces.len(), SLAB_BYTES / 65536);
        let slab = slab_of(pieces[0].as_slice().as_ptr(), 65536).unwrap();
        for (piece, tag) in pieces.iter_mut().zip(1..) {
            assert_eq!(slab_of(piece.as_slice().as_ptr(), 65536), Some(slab));
            assert!(piece.as_slice().iter().all(|b| *b == 0));
            piece.as_mut_slice().fill(tag);
        }
        for (piece, tag) in pieces.iter().zip(1..) {
            assert!(piece.as_slice().iter().all(|b| *b == tag));
        }
        let last = pieces[pieces.len() - 1].as_slice().as_ptr();
        assert_eq!(slab_of(last, 65537), None, "reaches into the next slab");
        let stack = [0_u8; 16];
        assert_eq!(slab_of(stack.as_ptr(), 16), None);
        assert!(slab_vector(slab).is_some() && slab_vector(SLABS).is_none());
    }
}
