//! Raw page-aligned memory: the only place that talks to the allocator.
//!
//! Invariant: every byte of a `Memory` is initialised from its birth on, so that handing out slices
//! of recycled memory is safe (its contents are then merely old).
#![expect(unsafe_code, reason = "aligned memory comes from the raw allocator")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use super::ALIGN_BYTES;

/// An exclusively owned, page-aligned, initialised piece of memory.
pub(super) struct Memory {
    start: NonNull<u8>,
    layout: Layout,
    /// From the allocator, and goes back to it; else part of the arena, which lives for ever.
    from_allocator: bool,
}

// SAFETY: `Memory` owns what it points to, like a `Box<[u8]>`, which is `Send` and `Sync`.
unsafe impl Send for Memory {}
// SAFETY: as above; shared access is read-only through `&self`.
unsafe impl Sync for Memory {}

impl Memory {
    /// `capacity` zeroed bytes. Panics when `capacity` is 0 or not a multiple of the alignment.
    pub(super) fn zeroed(capacity: usize) -> Self {
        let layout = layout(capacity);
        // SAFETY: the layout has a non-zero size (asserted above).
        let start = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(start).unwrap_or_else(|| handle_alloc_error(layout));
        Self { start, layout, from_allocator: true }
    }

    /// A piece of the arena.
    ///
    /// # Safety
    /// `capacity` (not 0) bytes from `start`, page aligned, are mapped and initialised for ever and
    /// belong to nobody else.
    pub(super) unsafe fn borrow(start: NonNull<u8>, capacity: usize) -> Self {
        Self { start, layout: layout(capacity), from_allocator: false }
    }

    pub(super) fn is_from_allocator(&self) -> bool {
        self.from_allocator
    }

    pub(super) fn capacity(&self) -> usize {
        self.layout.size()
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: `start` is valid for `capacity` initialised bytes that we own; `&self` forbids
        // writes.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.capacity()) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_slice`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.capacity()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.from_allocator {
            // SAFETY: `start` came from `alloc_zeroed` with this layout and is freed only here.
            unsafe { dealloc(self.start.as_ptr(), self.layout) }
        }
    }
}

/// Panics when `capacity` is 0 or not in whole pages.
fn layout(capacity: usize) -> Layout {
    assert!(capacity > 0 && capacity.is_multiple_of(ALIGN_BYTES), "capacity in whole pages");
    match Layout::from_size_align(capacity, ALIGN_BYTES) {
        Ok(layout) => layout,
        Err(_) => panic!("a buffer of {capacity} bytes does not fit the address space"),
    }
}
