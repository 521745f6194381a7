//! Page-aligned memory for O_DIRECT that travels as [`Bytes`] without being copied.
//!
//! A payload is received into an [`AlignedBuf`], frozen into `Bytes`, and the same memory goes to
//! the log write, the pending map and the data write. When the last `Bytes` is dropped, the memory
//! returns to a bounded pool: a steady load neither allocates nor zeroes.
//!
//! Invariants: the start is page aligned; all bytes are initialised; `len <= capacity`.

pub(crate) mod arena;
mod memory;
mod pool;

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};

use bytes::Bytes;

use memory::Memory;
pub use pool::POOL_BYTES;

/// Every buffer starts at a multiple of this: the page, and the largest block of any device in use.
pub const ALIGN_BYTES: usize = 4096;

/// A growable-up-to-capacity, page-aligned buffer. Dereferences to its first `len` bytes.
pub struct AlignedBuf {
    memory: ManuallyDrop<Memory>,
    len: usize,
}

impl AlignedBuf {
    /// An empty buffer that holds at least `capacity` bytes.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { memory: ManuallyDrop::new(pool::take(capacity)), len: 0 }
    }

    /// `len` bytes of unspecified (old, but initialised) contents: for callers that overwrite all
    /// of them.
    #[must_use]
    pub fn recycled(len: usize) -> Self {
        let mut buf = Self::with_capacity(len);
        buf.len = len;
        buf
    }

    /// `len` zero bytes.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let mut buf = Self::recycled(len);
        buf.fill(0);
        buf
    }

    /// A copy of `data`.
    #[must_use]
    pub fn copy_of(data: &[u8]) -> Self {
        let mut buf = Self::recycled(data.len());
        buf.copy_from_slice(data);
        buf
    }

    /// Bytes that fit without a new buffer.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    /// Appends `data`. Panics when it does not fit: a buffer never moves.
    pub fn extend_from_slice(&mut self, data: &[u8]) {
        let start = self.len;
        let end = start.checked_add(data.len()).filter(|end| *end <= self.capacity());
        let Some(end) = end else {
            panic!("{} bytes do not fit behind {start} of {}", data.len(), self.capacity())
        };
        self.len = end;
        if let Some(tail) = self.get_mut(start..) {
            tail.copy_from_slice(data);
        }
    }

    /// Shortens to `len`; does nothing when it is shorter already.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The same memory as `Bytes`, without a copy; it returns to the pool with the last clone or
    /// slice.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        pool::give(self.take_memory());
    }
}

impl AlignedBuf {
    #[expect(unsafe_code, reason = "moves the memory out of a value that is being dropped")]
    fn take_memory(&mut self) -> Memory {
        // SAFETY: called by `drop` only, once; nothing uses `memory` afterwards.
        unsafe { ManuallyDrop::take(&mut self.memory) }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.memory.as_slice().get(..self.len).unwrap_or_default()
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut_slice().get_mut(..self.len).unwrap_or_default()
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<AlignedBuf> for Bytes {
    fn from(buf: AlignedBuf) -> Self {
        buf.freeze()
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlignedBuf")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish()
    }
}

/// Whether O_DIRECT takes `data` as it is: address and length are multiples of `align_bytes` (a
/// power of two).
#[must_use]
pub fn is_aligned(data: &[u8], align_bytes: usize) -> bool {
    data.as_ptr().addr().is_multiple_of(align_bytes) && data.len().is_multiple_of(align_bytes)
}

/// `data` itself when it is aligned (no copy), else an aligned copy.
#[must_use]
pub fn aligned(data: Bytes, align_bytes: usize) -> Bytes {
    if is_aligned(&data, align_bytes) { data } else { AlignedBuf::copy_of(&data).freeze() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_page_aligned_at_every_size() {
        for len in [0, 1, 511, 512, 4096, 4097, 1 << 20, (4 << 20) + 1, 33 << 20] {
            let buf = AlignedBuf::zeroed(len);
            assert_eq!(buf.len(), len);
            assert!(buf.capacity() >= len);
            assert!(buf.as_ptr().addr().is_multiple_of(ALIGN_BYTES));
            assert!(buf.iter().all(|b| *b == 0));
        }
    }

    #[test]
    fn freezing_does_not_copy_and_slices_stay_aligned() {
        let mut buf = AlignedBuf::with_capacity(8192);
        buf.extend_from_slice(&[7; 8192]);
        let address = buf.as_ptr();
        let bytes = buf.freeze();
        assert_eq!(bytes.as_ptr(), address);
        assert!(is_aligned(&bytes.slice(512..1024), 512));
        assert!(is_aligned(&bytes.slice(4096..), 4096));
        assert!(!is_aligned(&bytes.slice(512..1024), 1024));
        assert!(!is_aligned(&bytes.slice(..100), 512));
        assert_eq!(aligned(bytes.slice(512..1024), 512).as_ptr(), bytes.slice(512..).as_ptr());
        assert!(is_aligned(&aligned(bytes.slice(3..515), 512), 512));
    }

    #[test]
    #[should_panic(expected = "do not fit")]
    fn a_buffer_does_not_grow_past_its_capacity() {
        AlignedBuf::recycled(4096).extend_from_slice(&[1]);
    }
}
