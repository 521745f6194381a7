//! Base images and restored ones: files of a simulated host, as block devices.

use crate::defect::{Defect, Defects};
use crate::fs::{Fs, sync_file};
use crate::life::Life;
use archive_server::Images;
use block_io::device::BlockDevice;
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a write takes while images are slow.
const SLOW: Duration = Duration::from_millis(8);

/// The images of one process.
pub(crate) struct SimImages {
    pub(crate) fs: Fs,
    pub(crate) life: Life,
    pub(crate) defects: Defects,
}

impl Images for SimImages {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn BlockDevice>> {
        let node = self.fs.file_at(path)?;
        let (fs, life) = (self.fs.clone(), self.life.clone());
        let (path, defects) = (path.to_owned(), self.defects.clone());
        Ok(Arc::new(SimImage { fs, node, path, life, defects, writes: Mutex::new(0) }))
    }
}

/// No image can be opened.
pub(crate) struct NoImages;

impl Images for NoImages {
    fn open(&self, _: &Path) -> io::Result<Arc<dyn BlockDevice>> {
        Err(ErrorKind::PermissionDenied.into())
    }
}

/// An image in a file. Writes are seen at once and last after a flush.
struct SimImage {
    fs: Fs,
    node: usize,
    path: PathBuf,
    life: Life,
    defects: Defects,
    /// Counted when every fifth one is to go wrong.
    writes: Mutex<u32>,
}

impl SimImage {
    /// Whether this write goes wrong.
    fn goes_wrong(&self, defect: Defect) -> bool {
        let mut writes = self.writes.lock();
        *writes += u32::from(self.defects.has(defect));
        *writes > 0 && writes.is_multiple_of(5) && self.defects.has(defect)
    }

    fn put(&self, offset: u64, len: u64, data: Option<&[Bytes]>) -> io::Result<()> {
        if self.goes_wrong(Defect::LostImageWrite) {
            return Ok(());
        }
        let damaged = self.goes_wrong(Defect::DamagedImage);
        let mut tree = self.fs.change(&self.life, data.is_some())?;
        let content = tree.file(self.node)?.0;
        let (from, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        let target = content.get_mut(from..from + len).ok_or(ErrorKind::InvalidInput)?;
        match data {
            None => target.fill(0),
            Some(pieces) => target.copy_from_slice(&pieces.concat()),
        }
        if damaged && let Some(byte) = target.get_mut(len / 2) {
            *byte ^= 0x10;
        }
        Ok(())
    }
}

impl BlockDevice for SimImage {
    fn size_bytes(&self) -> u64 {
        self.fs.lock().file(self.node).map_or(0, |f| f.0.len() as u64)
    }
    fn block_bytes(&self) -> u32 {
        512
    }
    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut tree = self.fs.lock();
            let from = usize::try_from(offset).unwrap();
            let found = tree.file(self.node)?.0.get(from..from + len);
            Ok(Bytes::copy_from_slice(found.ok_or(ErrorKind::InvalidInput)?))
        })
    }
    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            match self.fs.is_slow(&self.path) {
                true => tokio::time::sleep(SLOW).await,
                false => tokio::task::yield_now().await,
            }
            let len = bufs.iter().map(|b| b.len() as u64).sum();
            self.put(offset, len, Some(&bufs))
        })
    }
    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if self.defects.has(Defect::NoImageFlush) {
                return Ok(());
            }
            sync_file(&self.fs, &self.life, self.node, &Defects::default())
        })
    }
    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.put(offset, len, None) })
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.put(offset, len, None) })
    }
    fn path_hint(&self) -> String {
        self.path.display().to_string()
    }
}
