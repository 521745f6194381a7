//! The process-wide pool: memory of dropped buffers, kept by size class for the next ones.
//!
//! Invariant: the pool never retains more than [`POOL_BYTES`]; beyond it memory goes back to the
//! allocator.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::ALIGN_BYTES;
use super::memory::Memory;

/// The most that the pool retains for later use.
pub const POOL_BYTES: usize = 64 << 20;

/// Size classes are powers of two from one page (4 KiB) to 4 MiB; larger buffers are not pooled.
const CLASSES: usize = 11;

static POOL: Pool = Pool::new();

struct Pool {
    free: [Mutex<Vec<Memory>>; CLASSES],
    retained_bytes: AtomicUsize,
}

/// Memory of at least `len` bytes, contents unspecified.
pub(super) fn take(len: usize) -> Memory {
    let capacity = len.max(1).next_multiple_of(ALIGN_BYTES);
    match class_of(capacity) {
        Some((class, capacity)) => POOL.pop(class).unwrap_or_else(|| Memory::zeroed(capacity)),
        None => Memory::zeroed(capacity),
    }
}

/// Keeps `memory` for later, or frees it.
pub(super) fn give(memory: Memory) {
    if let Some((class, capacity)) = class_of(memory.capacity())
        && capacity == memory.capacity()
    {
        POOL.push(class, memory);
    }
}

/// The class of a capacity in whole pages, and the capacity that all of the class have.
fn class_of(capacity: usize) -> Option<(usize, usize)> {
    let pages = (capacity / ALIGN_BYTES).checked_next_power_of_two()?;
    let class = usize::try_from(pages.trailing_zeros()).ok()?;
    (class < CLASSES).then_some((class, pages * ALIGN_BYTES))
}

impl Pool {
    const fn new() -> Self {
        Self {
            free: [const { Mutex::new(Vec::new()) }; CLASSES],
            retained_bytes: AtomicUsize::new(0),
        }
    }

    fn pop(&self, class: usize) -> Option<Memory> {
        let memory = self.free.get(class)?.lock().pop()?;
        self.retained_bytes.fetch_sub(memory.capacity(), Ordering::Relaxed);
        Some(memory)
    }

    fn push(&self, class: usize, memory: Memory) {
        let bytes = memory.capacity();
        if self.retained_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > POOL_BYTES {
            self.retained_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        if let Some(free) = self.free.get(class) {
            free.lock().push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_cover_what_was_asked_for() {
        assert_eq!(class_of(4096), Some((0, 4096)));
        assert_eq!(class_of(3 * 4096), Some((2, 16384)));
        assert_eq!(class_of(4 << 20), Some((10, 4 << 20)));
        assert_eq!(class_of((4 << 20) + 4096), None);
    }

    #[test]
    fn the_pool_retains_a_bounded_amount() {
        let pool = Pool::new();
        for _ in 0..POOL_BYTES / (4 << 20) + 3 {
            pool.push(10, Memory::zeroed(4 << 20));
        }
        let retained = pool.free[10].lock().len();
        assert_eq!(retained, POOL_BYTES / (4 << 20));
        assert_eq!(pool.retained_bytes.load(Ordering::Relaxed), POOL_BYTES);
        assert!(pool.pop(10).is_some());
        assert_eq!(pool.retained_bytes.load(Ordering::Relaxed), POOL_BYTES - (4 << 20));
    }
}
