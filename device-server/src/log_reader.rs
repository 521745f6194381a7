//! Reads a log ring from some lsid on, with read-ahead, for redo.

use std::io;
use std::sync::Arc;

use block_io::device::BlockDevice;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use wlog_format::ring::Ring;
use wlog_format::units::{Lsid, Pb, to_usize};

/// Bytes of one read.
const READ_BYTES: u64 = 1 << 20;
/// Reads in flight.
const READS_AHEAD: usize = 4;

/// A place in the log that moves forward.
pub(crate) struct LogReader {
    log: Arc<dyn BlockDevice>,
    ring: Ring,
    /// Where the next read starts.
    ahead: Lsid,
    /// Nothing is read from here on.
    limit: Lsid,
    reads: FuturesOrdered<BoxFuture<'static, io::Result<Bytes>>>,
}

impl LogReader {
    /// From `begin` up to `limit`.
    pub(crate) fn new(log: Arc<dyn BlockDevice>, ring: Ring, begin: Lsid, limit: Lsid) -> Self {
        Self { log, ring, ahead: begin, limit, reads: FuturesOrdered::new() }
    }

    /// The next blocks, as many as one read gives; `None` at the limit.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        while self.reads.len() < READS_AHEAD && self.ahead < self.limit {
            let block_size = self.ring.block_size();
            let most = Pb(READ_BYTES / u64::from(block_size.bytes()));
            let left = self.limit.distance_from(self.ahead);
            let blocks = self.ring.contiguous(self.ahead).min(most).min(left);
            let (log, offset) = (Arc::clone(&self.log), self.ring.byte_offset(self.ahead));
            let len = to_usize(block_size.bytes_of(blocks));
            self.reads.push_back(Box::pin(async move { log.read(offset, len).await }));
            self.ahead = self.ahead + blocks;
        }
        self.reads.next().await.transpose()
    }
}
