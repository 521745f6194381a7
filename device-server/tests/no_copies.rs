//! A payload is not copied between its arrival and the two devices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::io;
use std::sync::Arc;

use block_io::device::BlockDevice;
use block_io::sim::SimDisk;
use bytes::Bytes;
use common::{formatted, payload, quiet};
use device_server::{ReadPiece, Volume};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use wlog_format::units::BlockSize;

/// A disk that remembers where in memory the buffers were that it was told to write.
struct Spy {
    disk: Arc<SimDisk>,
    buffers: Mutex<Vec<(usize, usize)>>,
}

impl Spy {
    fn on(image: Vec<u8>) -> Arc<Self> {
        let buffers = Mutex::new(Vec::new());
        Arc::new(Self { disk: SimDisk::from_image("spied", image, 512), buffers })
    }

    fn was_given(&self, part: &[u8]) -> bool {
        let part = (part.as_ptr().addr(), part.len());
        self.buffers.lock().contains(&part)
    }
}

impl BlockDevice for Spy {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }
    fn block_bytes(&self) -> u32 {
        self.disk.block_bytes()
    }
    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        self.disk.read(offset, len)
    }
    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        let places = bufs.iter().map(|buf| (buf.as_ptr().addr(), buf.len()));
        self.buffers.lock().extend(places);
        self.disk.write(offset, bufs)
    }
    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        self.disk.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.disk.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.disk.write_zeroes(offset, len)
    }
    fn path_hint(&self) -> String {
        self.disk.path_hint()
    }
}

#[tokio::test]
async fn log_write_reads_and_data_write_use_the_buffer_that_came_in() {
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let (log, data) = formatted(8 << 20, 8 << 20, block_size).await;
        let (log, data) = (Spy::on(log), Spy::on(data));
        let (volume, _) = Volume::open("v", log.clone(), data.clone(), quiet()).await.unwrap();
        let sent = payload(1, 3, 21);
        volume.write(3 * 512, sent.clone(), false).await.unwrap();
        let read = volume.read(3 * 512, sent.len()).await.unwrap();
        let [ReadPiece::Data(read)] = &read[..] else { panic!("{read:?}") };
        assert_eq!((read.as_ptr(), read.len()), (sent.as_ptr(), sent.len()));
        // A later write covers the middle: the rest reaches the data device as slices of the same.
        volume.write(8 * 512, payload(2, 8, 2), false).await.unwrap();
        volume.take_checkpoint().await.unwrap();
        assert!(log.was_given(&sent));
        assert!(data.was_given(&sent[..5 * 512]) && data.was_given(&sent[7 * 512..]));
    }
}
