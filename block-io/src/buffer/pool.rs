//! The process-wide pool: memory of dropped buffers, kept by size class for the next ones.
//!
//! Memory of the arena is preferred, because io_uring has it registered; it always comes back here.
//!
//! Invariant: of the allocator's memory the pool never retains more than [`POOL_BYTES`]; beyond it
//! memory goes back.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::ALIGN_BYTES;
use super::arena::{self, SLAB_BYTES, SLABS};
use super::memory::Memory;

/// The most that the pool retains for later use.
pub const POOL_BYTES: usize = 64 << 20;

/// Size classes are powers of two from one page (4 KiB) to 4 MiB; larger buffers are not pooled.
const CLASSES: usize = 11;

/// No class takes more of the arena than this many slabs.
const SLABS_PER_CLASS: usize = SLABS / 4;

static POOL: Pool = Pool::new();

struct Free {
    arena: Vec<Memory>,
    allocator: Vec<Memory>,
    slabs: usize,
}

impl Free {
    const fn new() -> Self {
        Self { arena: Vec::new(), allocator: Vec::new(), slabs: 0 }
    }
}

struct Pool {
    free: [Mutex<Free>; CLASSES],
    retained_bytes: AtomicUsize,
}

/// Memory of at least `len` bytes, contents unspecified.
pub(super) fn take(len: usize) -> Memory {
    let capacity = len.max(1).next_multiple_of(ALIGN_BYTES);
    match class_of(capacity) {
        Some((class, capacity)) => {
            POOL.pop(class, capacity).unwrap_or_else(|| Memory::zeroed(capacity))
        }
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
            free: [const { Mutex::new(Free::new()) }; CLASSES],
            retained_bytes: AtomicUsize::new(0),
        }
    }

    fn pop(&self, class: usize, capacity: usize) -> Option<Memory> {
        let mut free = self.free.get(class)?.lock();
        if free.arena.is_empty() && free.slabs < SLABS_PER_CLASS && capacity <= SLAB_BYTES {
            free.slabs += 1;
            free.arena.extend(arena::cut(capacity).into_iter().flatten());
        }
        if let Some(memory) = free.arena.pop() {
            return Some(memory);
        }
        let memory = free.allocator.pop()?;
        self.retained_bytes.fetch_sub(memory.capacity(), Ordering::Relaxed);
        Some(memory)
    }

    fn push(&self, class: usize, memory: Memory) {
        let Some(free) = self.free.get(class) else { return };
        if !memory.is_from_allocator() {
            free.lock().arena.push(memory);
            return;
        }
        let bytes = memory.capacity();
        if self.retained_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > POOL_BYTES {
            self.retained_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        free.lock().allocator.push(memory);
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
        let retained = pool.free[10].lock().allocator.len();
        assert_eq!(retained, POOL_BYTES / (4 << 20));
        assert_eq!(pool.retained_bytes.load(Ordering::Relaxed), POOL_BYTES);
        assert!(pool.pop(10, 4 << 20).is_some());
        assert_eq!(pool.retained_bytes.load(Ordering::Relaxed), POOL_BYTES - (4 << 20));
    }

    #[test]
    fn the_arena_is_preferred_and_its_memory_comes_back() {
        let pool = Pool::new();
        let pieces = SLABS_PER_CLASS * SLAB_BYTES / 65536;
        let taken: Vec<_> = (0..).map_while(|_| pool.pop(4, 65536)).collect();
        assert!(taken.len() <= pieces);
        assert!(taken.iter().all(|memory| !memory.is_from_allocator()));
        let count = taken.len();
        taken.into_iter().for_each(|memory| pool.push(4, memory));
        assert_eq!((0..).map_while(|_| pool.pop(4, 65536)).count(), count);
        assert_eq!(pool.retained_bytes.load(Ordering::Relaxed), 0);
    }
}
