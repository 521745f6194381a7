//! Images whose requests first pass a hook of the test: it counts, delays, or fails them.
#![allow(dead_code, reason = "each test file uses its part")]

use archive_server::{FileImages, Images};
use block_io::device::{BlockDevice, Extent};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    Flush,
}

type Hook = dyn Fn(Access, &Path) -> BoxFuture<'static, io::Result<()>> + Send + Sync;

#[derive(Clone)]
pub struct Hooked(Arc<Hook>);

impl Hooked {
    pub fn images<F>(hook: F) -> Arc<dyn Images>
    where
        F: Fn(Access, &Path) -> BoxFuture<'static, io::Result<()>> + Send + Sync + 'static,
    {
        Arc::new(Self(Arc::new(hook)))
    }
}

impl Images for Hooked {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn BlockDevice>> {
        let (inner, hook) = (FileImages.open(path)?, self.0.clone());
        Ok(Arc::new(Device { inner, hook, path: path.to_owned() }))
    }
}

struct Device {
    inner: Arc<dyn BlockDevice>,
    hook: Arc<Hook>,
    path: PathBuf,
}

impl BlockDevice for Device {
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }
    fn block_bytes(&self) -> u32 {
        self.inner.block_bytes()
    }
    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            (self.hook)(Access::Read, &self.path).await?;
            self.inner.read(offset, len).await
        })
    }
    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            (self.hook)(Access::Write, &self.path).await?;
            self.inner.write(offset, bufs).await
        })
    }
    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            (self.hook)(Access::Flush, &self.path).await?;
            self.inner.flush().await
        })
    }
    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            (self.hook)(Access::Write, &self.path).await?;
            self.inner.write_zeroes(offset, len).await
        })
    }
    fn extents(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<Vec<Extent>>> {
        self.inner.extents(offset, len)
    }
    fn path_hint(&self) -> String {
        self.inner.path_hint()
    }
}
