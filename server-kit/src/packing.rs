//! Pieces of data as they go over the wire: compressed when that makes them smaller, and when there
//! is a wire.

use std::cell::RefCell;

use crate::blocking::{self, Work};
use crate::chunks::{self, ChunkCompressor};
use crate::error::RoleError;
use crate::net::Endpoint;
use bytes::Bytes;
use proto::v1::Chunk;

/// Fast enough to keep up with a disk; logs of databases shrink to a third.
const LEVEL: i32 = 1;

thread_local! {
    /// A compressor is large: each worker thread keeps one.
    static COMPRESSOR: RefCell<Option<ChunkCompressor>> =
        RefCell::new(ChunkCompressor::new(LEVEL).ok());
}

/// How pieces travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// As they are: from process to process of a machine, copying costs less than any codec.
    Plain,
    /// Compressed where that makes them smaller.
    Compressed,
}

impl Way {
    /// The way to a server. A loopback address may be the mouth of a tunnel.
    #[must_use]
    pub const fn to(server: &Endpoint) -> Self {
        match server {
            Endpoint::Unix(_) => Self::Plain,
            Endpoint::Tcp(_) => Self::Compressed,
        }
    }
}

/// A chunk in the making; made by a worker thread whether or not anybody waits for it yet.
pub struct Packing(Work<Chunk>);

/// Starts to make a message of a piece of at most 1 MiB.
#[must_use]
pub fn pack(piece: Bytes, way: Way) -> Packing {
    Packing(blocking::spawn(move || match way {
        Way::Plain => chunks::encode(piece),
        Way::Compressed => COMPRESSOR.with_borrow_mut(|compressor| match compressor {
            Some(compressor) => compressor.encode(piece),
            None => chunks::encode(piece),
        }),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_stays_on_the_machine_is_not_compressed() {
        let piece = Bytes::from(vec![7; 1 << 20]);
        let ways = ["unix:/run/walb/a0.sock", "127.0.0.1:5002", "a0.example.net:5002"];
        let mut sent = Vec::new();
        for way in ways.map(|address| Way::to(&address.parse().unwrap())) {
            let chunk = pack(piece.clone(), way).chunk().await.unwrap();
            sent.push(chunk.data.len() == piece.len());
            assert_eq!(chunks::decode(chunk).unwrap(), piece);
        }
        assert_eq!(sent, [true, false, false]);
    }
}
