//! Pieces of data as they go over the wire: compressed when that makes them smaller.

use std::cell::RefCell;

use crate::blocking::{self, Work};
use crate::chunks::{self, ChunkCompressor};
use crate::error::RoleError;
use bytes::Bytes;
use proto::v1::Chunk;

/// Fast enough to keep up with a disk; logs of databases shrink to a third.
const LEVEL: i32 = 1;

thread_local! {
    /// A compressor is large: each worker thread keeps one.
    static COMPRESSOR: RefCell<Option<ChunkCompressor>> =
        RefCell::new(ChunkCompressor::new(LEVEL).ok());
}

/// A chunk in the making; made by a worker thread whether or not anybody waits for it yet.
pub struct Packing(Work<Chunk>);

/// Starts to make a message of a piece of at most 1 MiB.
#[must_use]
pub fn pack(piece: Bytes) -> Packing {
    Packing(blocking::spawn(move || {
        COMPRESSOR.with_borrow_mut(|compressor| match compressor {
            Some(compressor) => compressor.encode(piece),
            None => chunks::encode(piece),
        })
    }))
}

impl Packing {
    /// Waits for the chunk.
    ///
    /// # Errors
    /// When the worker thread fails.
    pub async fn chunk(self) -> Result<Chunk, RoleError> {
        Ok(self.0.await?)
    }
}
