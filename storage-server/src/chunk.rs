//! Pieces of data as they go over the wire: compressed when that makes them smaller.

use std::cell::RefCell;

use bytes::Bytes;
use proto::v1::Chunk;
use server_kit::blocking;
use server_kit::chunks::{self, ChunkCompressor};
use server_kit::error::RoleError;

/// Fast enough to keep up with a disk; logs of databases shrink to a third.
const LEVEL: i32 = 1;

thread_local! {
    /// A compressor is large: each worker thread keeps one.
    static COMPRESSOR: RefCell<Option<ChunkCompressor>> =
        RefCell::new(ChunkCompressor::new(LEVEL).ok());
}

/// A piece of at most 1 MiB as a message, made on a worker thread.
///
/// # Errors
/// When the worker thread fails.
pub async fn pack(piece: Bytes) -> Result<Chunk, RoleError> {
    blocking::run(move || {
        COMPRESSOR.with_borrow_mut(|compressor| match compressor {
            Some(compressor) => Ok::<_, RoleError>(compressor.encode(piece)),
            None => Ok(chunks::encode(piece)),
        })
    })
    .await
}
