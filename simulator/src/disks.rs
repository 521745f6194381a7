//! The log and the data device: simulated disks that outlive the processes which use them.

use crate::defect::{Defect, Defects};
use block_io::device::BlockDevice;
use block_io::sim::{SimDisk, Survival};
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

/// A disk, whoever has it open. Clones are the same.
#[derive(Clone)]
pub(crate) struct Disk {
    name: &'static str,
    now: Arc<Mutex<Arc<SimDisk>>>,
    /// A write that was acknowledged and is done behind the next one, where that is so.
    late: Arc<Mutex<Option<Write>>>,
    defects: Defects,
}

/// Where, and what.
type Write = (u64, Vec<Bytes>);

impl Disk {
    pub(crate) fn new(name: &'static str, bytes: usize, defects: Defects) -> Self {
        let now = Arc::new(Mutex::new(SimDisk::new(name, bytes, 512)));
        Self { name, now, late: Arc::default(), defects }
    }

    fn disk(&self) -> Arc<SimDisk> {
        self.now.lock().clone()
    }

    /// The device gets more room at its end.
    pub(crate) fn grow(&self, bytes: usize) {
        self.disk().grow(bytes);
    }

    /// The write that is to be done now, and the one behind it; none: it is done later.
    fn due(&self, write: Write) -> Vec<Write> {
        if self.name != "data" || !self.defects.has(Defect::LateDataWrites) {
            return vec![write];
        }
        let mut late = self.late.lock();
        match late.take() {
            Some(earlier) => vec![write, earlier],
            None => {
                *late = Some(write);
                Vec::new()
            }
        }
    }

    /// The process is gone: what it has written is there; requests in flight have ended somehow.
    pub(crate) fn killed(&self) {
        let mut image = self.disk().image();
        if let Some((offset, bufs)) = self.late.lock().take() {
            let (from, data) = (usize::try_from(offset).unwrap(), bufs.concat());
            image[from..from + data.len()].copy_from_slice(&data);
        }
        *self.now.lock() = SimDisk::from_image(self.name, image, 512);
    }

    /// The power is cut.
    pub(crate) fn power_cut(&self, seed: u64) {
        *self.late.lock() = None;
        let image = self.disk().power_cut(Survival::Random(seed));
        *self.now.lock() = SimDisk::from_image(self.name, image, 512);
    }
}

impl BlockDevice for Disk {
    fn size_bytes(&self) -> u64 {
        self.disk().size_bytes()
    }
    fn block_bytes(&self) -> u32 {
        512
    }
    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move { self.disk().read(offset, len).await })
    }
    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let disk = self.disk();
            // So that the kill of a process can come between any two writes.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            for (offset, bufs) in self.due((offset, bufs)) {
                disk.write(offset, bufs).await?;
            }
            Ok(())
        })
    }
    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        let lie = match self.name {
            "log" => Defect::NoLogFlush,
            _ => Defect::NoDataFlush,
        };
        Box::pin(async move {
            let disk = self.disk();
            let late = self.late.lock().take();
            if let Some((offset, bufs)) = late {
                disk.write(offset, bufs).await?;
            }
            if !self.defects.has(lie) {
                disk.flush().await?;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            Ok(())
        })
    }
    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.disk().discard(offset, len).await })
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.disk().write_zeroes(offset, len).await })
    }
    fn path_hint(&self) -> String {
        format!("/sim/{}", self.name)
    }
}
