//! Memory for large data, used again without being cleared.
//!
//! Pieces of a chunk are handed out while the chunk waits here; once the last piece is dropped, by
//! whatever thread, the chunk takes new data. Memory that is overwritten as a whole need not be
//! cleared for that, and neither the allocator nor the kernel hears of it.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Chunks have a multiple of this: those for similar data are as large as each other.
const STEP_BYTES: usize = 64 << 10;

/// The last chunks, oldest first.
#[derive(Debug)]
pub struct Reuse {
    chunks: VecDeque<Bytes>,
    bytes: usize,
    bytes_max: usize,
}

impl Reuse {
    /// Lets the oldest chunks go when more than `bytes_max` wait: they are not used again.
    #[must_use]
    pub const fn new(bytes_max: usize) -> Self {
        Self { chunks: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Memory of `wanted` bytes or more, with something in it.
    pub fn take(&mut self, wanted: usize) -> BytesMut {
        if let Some(oldest) = self.chunks.pop_front() {
            let len = oldest.len();
            match oldest.try_into_mut() {
                Ok(free) => {
                    self.bytes -= len;
                    if len >= wanted {
                        return free;
                    }
                }
                Err(in_use) => self.chunks.push_front(in_use),
            }
        }
        BytesMut::zeroed(wanted.next_multiple_of(STEP_BYTES))
    }

    /// Takes `chunk` back once all its pieces are dropped.
    pub fn put(&mut self, chunk: Bytes) {
        self.bytes += chunk.len();
        self.chunks.push_back(chunk);
        while self.bytes > self.bytes_max {
            self.bytes -= self.chunks.pop_front().map_or(self.bytes, |chunk| chunk.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_once_its_pieces_are_gone_and_little_of_it_waits() {
        const CHUNK: usize = 1 << 20;
        const MAX: usize = 16 * CHUNK;
        let mut reuse = Reuse::new(MAX);
        let mut kept = Vec::new();
        for number in 0..64 {
            let mut chunk = reuse.take(CHUNK);
            chunk.fill(number);
            let chunk = chunk.freeze();
            kept.push(chunk.slice(1..3));
            reuse.put(chunk);
            assert!(reuse.bytes <= MAX);
        }
        assert_eq!(reuse.chunks.len(), MAX / CHUNK, "what is in use for long is let go");
        assert!((0..64).zip(&kept).all(|(number, piece)| piece[..] == [number, number]));
        drop(kept);
        assert_eq!(reuse.take(CHUNK)[..2], [48, 48], "the oldest that waits, as it was left");
        assert_eq!(reuse.take(CHUNK + 1)[..2], [0, 0], "one that is too small is let go");
        assert_eq!(reuse.bytes, MAX - 2 * CHUNK);
    }
}
