//! Files and block devices of the host as a [`BlockDevice`].
//!
//! Invariants: nothing reaches an engine unchecked (range, alignment); with O_DIRECT every buffer
//! satisfies the kernel's alignment, by a copy if need be; after a failed flush every flush fails.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::future::BoxFuture;
use nix::errno::Errno;
use nix::fcntl::FallocateFlags;

use crate::admission::Admission;
use crate::backend::Backend;
use crate::buffer::AlignedBuf;
use crate::device::{
    BlockDevice, Extent, IoContext, Operation, check_range, check_transfer, os_error,
};
use crate::probe::{Kind, Opened};
use crate::request::Op;
use crate::{extents, probe, sys, workers};

/// Zeros are written in pieces of this size where the filesystem cannot zero a range itself.
const ZERO_CHUNK_BYTES: usize = 1 << 20;

fn punch_hole() -> FallocateFlags {
    FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE
}

/// An open file or block device.
pub(crate) struct FileDevice {
    file: Arc<File>,
    path: String,
    kind: Kind,
    backend: Backend,
    admission: Admission,
    size_bytes: AtomicU64,
    block_bytes: u32,
    /// Alignment of memory that the kernel asks for; 1 when buffered.
    memory_align: usize,
    flush_failed: AtomicBool,
    cannot_zero_range: AtomicBool,
}

impl FileDevice {
    pub(crate) fn new(opened: Opened, backend: Backend) -> Self {
        Self {
            file: Arc::new(opened.file),
            path: opened.path,
            kind: opened.kind,
            backend,
            admission: Admission::new(),
            size_bytes: AtomicU64::new(opened.size_bytes),
            block_bytes: opened.block_bytes,
            memory_align: opened.memory_align,
            flush_failed: AtomicBool::new(false),
            cannot_zero_range: AtomicBool::new(false),
        }
    }

    fn context(&self, operation: Operation, offset: u64, len: u64, cause: io::Error) -> io::Error {
        IoContext { operation, path: self.path.clone(), offset, len, cause }.into_io()
    }

    fn check(&self, operation: Operation, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len, self.size_bytes(), self.block_bytes)
            .map_err(|e| self.context(operation, offset, len, e.into()))
    }

    fn check_transfer(&self, operation: Operation, offset: u64, len: usize) -> io::Result<()> {
        check_transfer(offset, len, self.size_bytes(), self.block_bytes)
            .map_err(|e| self.context(operation, offset, len as u64, e.into()))
    }

    /// Through the page cache.
    const fn is_buffered(&self) -> bool {
        self.memory_align == 1
    }

    async fn run(&self, op: Op) -> io::Result<Op> {
        self.backend.run(&self.file, op, self.admission.admit().await).await
    }

    async fn read_checked(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        let mut buf = AlignedBuf::recycled(len);
        // What the page cache has costs less than the way to an engine and back.
        let filled =
            if self.is_buffered() { sys::read_cached(&self.file, &mut buf, offset) } else { 0 };
        if filled == len {
            return Ok(buf.freeze());
        }
        let permit = self.admission.admit().await;
        let op = Op::Read { offset, buf, filled };
        match self.backend.run(&self.file, op, permit).await? {
            Op::Read { buf, .. } => Ok(buf.freeze()),
            other => Err(io::Error::other(format!("a read was answered by {other:?}"))),
        }
    }

    /// The buffers as the kernel takes them: unchanged when each is aligned, else copied into one.
    fn suitable(&self, bufs: Vec<Bytes>, total: usize) -> Vec<Bytes> {
        let fits = |buf: &Bytes| {
            buf.as_ptr().addr().is_multiple_of(self.memory_align)
                && buf.len().is_multiple_of(self.block_bytes as usize)
        };
        if self.is_buffered() || bufs.iter().all(fits) {
            return bufs;
        }
        let mut joined = AlignedBuf::with_capacity(total);
        bufs.iter().for_each(|b| joined.extend_from_slice(b));
        vec![joined.freeze()]
    }

    async fn flush_once(&self) -> io::Result<()> {
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(io::Error::other(
                "an earlier flush failed, what was written may be lost: reopen and recover",
            ));
        }
        let result = self.run(Op::Sync).await;
        if result.is_err() {
            self.flush_failed.store(true, Ordering::Release);
        }
        result.map(drop)
    }

    async fn allocate(&self, mode: FallocateFlags, offset: u64, len: u64) -> io::Result<()> {
        let offset = offset.try_into().map_err(io::Error::other)?;
        let len = len.try_into().map_err(io::Error::other)?;
        self.run(Op::Allocate { mode, offset, len }).await.map(drop)
    }

    async fn discard_checked(&self, offset: u64, len: u64) -> io::Result<()> {
        let result = match self.kind {
            Kind::File => self.allocate(punch_hole(), offset, len).await,
            Kind::BlockDevice => {
                let (file, permit) = (Arc::clone(&self.file), self.admission.admit().await);
                workers::run(move || {
                    let _permit = permit;
                    sys::discard(&file, offset, len)
                })
                .await
            }
        };
        match result {
            Err(error) if unsupported(&error) => Ok(()),
            other => other,
        }
    }

    async fn zero_checked(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.cannot_zero_range.load(Ordering::Relaxed) {
            let mode = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            match self.allocate(mode, offset, len).await {
                Err(error) if unsupported(&error) => {
                    self.cannot_zero_range.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        let end = offset + len;
        let zeros = AlignedBuf::zeroed(ZERO_CHUNK_BYTES).freeze();
        let mut at = offset;
        while at < end {
            let n = zeros.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            self.run(Op::write(at, vec![zeros.slice(..n)])).await?;
            at += n as u64;
        }
        Ok(())
    }

    async fn extents_checked(&self, offset: u64, len: u64) -> io::Result<Vec<Extent>> {
        if len == 0 {
            return Ok(Vec::new());
        }
        if self.kind == Kind::BlockDevice {
            return Ok(vec![Extent { len, hole: false }]);
        }
        let (file, permit) = (Arc::clone(&self.file), self.admission.admit().await);
        let block = u64::from(self.block_bytes);
        workers::run(move || {
            let _permit = permit;
            extents::list(&file, offset, len, block)
        })
        .await
    }
}

impl BlockDevice for FileDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            self.check_transfer(Operation::Read, offset, len)?;
            if len == 0 {
                return Ok(Bytes::new());
            }
            let result = self.read_checked(offset, len).await;
            result.map_err(|e| self.context(Operation::Read, offset, len as u64, e))
        })
    }

    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let len = bufs.iter().fold(0, |sum: usize, b| sum.saturating_add(b.len()));
            self.check_transfer(Operation::Write, offset, len)?;
            if len == 0 {
                return Ok(());
            }
            let result = self.run(Op::write(offset, self.suitable(bufs, len))).await;
            result.map_err(|e| self.context(Operation::Write, offset, len as u64, e)).map(drop)
        })
    }

    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let result = self.flush_once().await;
            result.map_err(|e| self.context(Operation::Flush, 0, self.size_bytes(), e))
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.check(Operation::Discard, offset, len)?;
            if len == 0 {
                return Ok(());
            }
            let result = self.discard_checked(offset, len).await;
            result.map_err(|e| self.context(Operation::Discard, offset, len, e))
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.check(Operation::WriteZeroes, offset, len)?;
            if len == 0 {
                return Ok(());
            }
            let result = self.zero_checked(offset, len).await;
            result.map_err(|e| self.context(Operation::WriteZeroes, offset, len, e))
        })
    }

    fn write_hole(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.check(Operation::WriteZeroes, offset, len)?;
            if len > 0 {
                match self.allocate(punch_hole(), offset, len).await {
                    Err(error) if unsupported(&error) => {}
                    other => {
                        let failed = |e| self.context(Operation::WriteZeroes, offset, len, e);
                        return other.map_err(failed);
                    }
                }
            }
            self.write_zeroes(offset, len).await
        })
    }

    fn extents(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<Vec<Extent>>> {
        Box::pin(async move {
            self.check(Operation::Extents, offset, len)?;
            let result = self.extents_checked(offset, len).await;
            result.map_err(|e| self.context(Operation::Extents, offset, len, e))
        })
    }

    fn refresh_size(&self) -> BoxFuture<'_, io::Result<u64>> {
        Box::pin(async move {
            let size = probe::size_bytes(&self.file, self.kind)
                .map_err(|e| self.context(Operation::Resize, 0, self.size_bytes(), e))?;
            let whole = size - size % u64::from(self.block_bytes);
            self.size_bytes.store(whole, Ordering::Release);
            Ok(whole)
        })
    }

    fn path_hint(&self) -> String {
        self.path.clone()
    }
}

/// Whether the filesystem or the device lacks the operation.
fn unsupported(error: &io::Error) -> bool {
    let errno = os_error(error).map(Errno::from_raw);
    matches!(errno, Some(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENOTTY))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Engine;

    #[tokio::test]
    async fn after_a_failed_flush_every_flush_fails() {
        for engine in [Engine::Auto, Engine::Near, Engine::NearAlone, Engine::Plain] {
            // fdatasync of a pipe fails; then the file under the same device is exchanged for one
            // that syncs well, as a kernel does that has dropped what it could not write.
            let (pipe, _other_end) = std::io::pipe().unwrap();
            let opened = Opened {
                file: File::from(std::os::fd::OwnedFd::from(pipe)),
                path: "pipe".to_owned(),
                kind: Kind::File,
                size_bytes: 4096,
                block_bytes: 512,
                memory_align: 1,
            };
            let mut device = FileDevice::new(opened, Backend::new(engine));
            let first = device.flush().await.unwrap_err();
            assert_eq!(os_error(&first), Some(nix::libc::EINVAL), "{engine:?}");
            device.file = Arc::new(tempfile::tempfile().unwrap());
            let second = device.flush().await.unwrap_err();
            assert!(second.to_string().contains("earlier flush failed"), "{engine:?}: {second}");
        }
    }
}
