//! Pieces of data as they go over the wire: compressed when that makes them smaller.

use std::cell::RefCell;

use crate::chunks::{self, ChunkCompressor};
use crate::error::{Reason, RoleError};
use bytes::Bytes;
use proto::v1::Chunk;
use tokio::task::JoinHandle;

/// Fast enough to keep up with a disk; logs of databases shrink to a third.
const LEVEL: i32 = 1;

thread_local! {
    /// A compressor is large: each worker thread keeps one.
    static COMPRESSOR: RefCell<Option<ChunkCompressor>> =
        RefCell::new(ChunkCompressor::new(LEVEL).ok());
}

/// A chunk in the making; made by a worker thread whether or not anybody waits for it yet.
pub struct Packing(JoinHandle<Chunk>);

/// Starts to make a message of a piece of at most 1 MiB.
#[must_use]
pub fn pack(piece: Bytes) -> Packing {
    Packing(tokio::task::spawn_blocking(move || {
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
        let failed = |e| RoleError::new(Reason::Io, "a worker thread failed").with_source(e);
        self.0.await.map_err(failed)
    }
}
