//! The base image as a mount found it, while an apply writes to it: where it cannot be cloned, what
//! the apply is about to write over is copied into a file of the mount first.
//!
//! Invariant: a block is read from the base image only while nothing wrote over it. Readers hold
//! the gate for as long as a read takes; who keeps blocks takes it alone before they count as kept,
//! so that no read of the old place is under way when it is written over.

use super::cow::Cow;
use block_io::device::{BlockDevice, Extent};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use std::io;
use std::sync::Arc;
use tokio::sync::RwLock;
use wlog_format::units::to_usize;

/// Bytes that are copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// What of the base image was copied for one mount.
pub(super) struct Kept {
    copy: Cow,
    gate: RwLock<()>,
}

impl Kept {
    pub(super) fn new(copy: Cow) -> Arc<Self> {
        Arc::new(Self { copy, gate: RwLock::default() })
    }

    async fn read(&self, base: &dyn BlockDevice, offset: u64, len: u64) -> io::Result<Bytes> {
        let _gate = self.gate.read().await;
        let mut data = BytesMut::new();
        for (start, end, kept) in self.copy.split(offset, len) {
            let from = if kept { &**self.copy.side() } else { base };
            let part = from.read(start, to_usize(end - start)).await?;
            if end - start == len {
                return Ok(part);
            }
            data.extend_from_slice(&part);
        }
        Ok(data.freeze())
    }

    async fn extents(
        &self,
        base: &dyn BlockDevice,
        offset: u64,
        len: u64,
    ) -> io::Result<Vec<Extent>> {
        let _gate = self.gate.read().await;
        let first = self.copy.split(offset, len).into_iter().next();
        let Some((start, end, kept)) = first else { return Ok(Vec::new()) };
        let from = if kept { &**self.copy.side() } else { base };
        from.extents(start, end - start).await
    }

    /// Copies what is in a range, which is about to be written over, as far as the mount reaches:
    /// the volume may have grown since.
    async fn keep(&self, base: &dyn BlockDevice, offset: u64, len: u64) -> io::Result<()> {
        let (mut at, end) = (offset, (offset + len).min(self.copy.side().size_bytes()));
        while at < end {
            let piece = COPY_BYTES.min(end - at);
            for (start, end, kept) in self.copy.split(at, piece) {
                if kept {
                    continue;
                }
                let data = base.read(start, to_usize(end - start)).await?;
                self.copy.store(start, data).await?;
                let _gate = self.gate.write().await;
                self.copy.note(start, end);
            }
            at += piece;
        }
        Ok(())
    }
}

/// The base image as a mount found it, to be read only.
pub(super) struct AsFound {
    pub(super) base: Arc<dyn BlockDevice>,
    pub(super) kept: Arc<Kept>,
}

fn read_only() -> BoxFuture<'static, io::Result<()>> {
    Box::pin(async { Err(io::ErrorKind::ReadOnlyFilesystem.into()) })
}

impl BlockDevice for AsFound {
    fn size_bytes(&self) -> u64 {
        self.base.size_bytes().min(self.kept.copy.side().size_bytes())
    }

    fn block_bytes(&self) -> u32 {
        self.base.block_bytes()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(self.kept.read(&*self.base, offset, len as u64))
    }

    fn write(&self, _offset: u64, _bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        read_only()
    }

    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        read_only()
    }

    fn discard(&self, _offset: u64, _len: u64) -> BoxFuture<'_, io::Result<()>> {
        read_only()
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> BoxFuture<'_, io::Result<()>> {
        read_only()
    }

    fn extents(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<Vec<Extent>>> {
        Box::pin(self.kept.extents(&*self.base, offset, len))
    }

    fn path_hint(&self) -> String {
        self.base.path_hint()
    }
}

/// A base image that is written under mounts which read it.
pub(super) struct Keeping {
    pub(super) base: Arc<dyn BlockDevice>,
    pub(super) mounts: Vec<Arc<Kept>>,
}

impl Keeping {
    async fn keep(&self, offset: u64, len: u64) -> io::Result<()> {
        for mount in &self.mounts {
            mount.keep(&*self.base, offset, len).await?;
        }
        Ok(())
    }
}

impl BlockDevice for Keeping {
    fn size_bytes(&self) -> u64 {
        self.base.size_bytes()
    }

    fn block_bytes(&self) -> u32 {
        self.base.block_bytes()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        self.base.read(offset, len)
    }

    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.keep(offset, bufs.iter().map(|b| b.len() as u64).sum()).await?;
            self.base.write(offset, bufs).await
        })
    }

    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        self.base.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.keep(offset, len).await?;
            self.base.discard(offset, len).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.keep(offset, len).await?;
            self.base.write_zeroes(offset, len).await
        })
    }

    fn write_hole(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.keep(offset, len).await?;
            self.base.write_hole(offset, len).await
        })
    }

    fn extents(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<Vec<Extent>>> {
        self.base.extents(offset, len)
    }

    fn path_hint(&self) -> String {
        self.base.path_hint()
    }
}
