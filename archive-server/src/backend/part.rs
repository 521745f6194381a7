//! The beginning of a block device as an image: as large as the volume is, whatever the device has
//! behind that.

use block_io::device::{BlockDevice, Extent, check_range, check_transfer};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::io;
use std::sync::Arc;
use wlog_format::units::Lb;

/// How a range of the device becomes a hole.
#[derive(Debug, Clone, Copy)]
pub(super) enum Holes {
    /// By zeroing that may free.
    Zeroing,
    /// A discard frees whole units of so many bytes, which read as zeroes then.
    Discard { unit: u64 },
}

/// An image at the beginning of a device.
pub(super) struct Part {
    device: Arc<dyn BlockDevice>,
    size_bytes: u64,
    holes: Holes,
}

impl Part {
    /// Fails when the device is smaller than that.
    pub(super) fn new(device: Arc<dyn BlockDevice>, size: Lb, holes: Holes) -> io::Result<Self> {
        let (has, size_bytes) = (device.size_bytes(), size.bytes());
        if has < size_bytes {
            let text = format!("it has {has} bytes, the volume {size_bytes}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self { device, size_bytes, holes })
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        let checked = check_range(offset, len, self.size_bytes, self.device.block_bytes());
        checked.map_err(io::Error::from)
    }
}

/// The whole units in a range: from, to. Empty when there are none.
fn whole_units(offset: u64, len: u64, unit: u64) -> (u64, u64) {
    let end = offset + len;
    let (from, to) = (offset.next_multiple_of(unit), end - end % unit);
    if from < to { (from, to) } else { (end, end) }
}

impl BlockDevice for Part {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn block_bytes(&self) -> u32 {
        self.device.block_bytes()
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            check_transfer(offset, len, self.size_bytes, self.block_bytes())?;
            self.device.read(offset, len).await
        })
    }

    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let len = bufs.iter().fold(0, |sum: usize, b| sum.saturating_add(b.len()));
            check_transfer(offset, len, self.size_bytes, self.block_bytes())?;
            self.device.write(offset, bufs).await
        })
    }

    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        self.device.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.check(offset, len)?;
            self.device.discard(offset, len).await
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.check(offset, len)?;
            self.device.write_zeroes(offset, len).await
        })
    }

    fn write_hole(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.check(offset, len)?;
            let Holes::Discard { unit } = self.holes else {
                return self.device.write_hole(offset, len).await;
            };
            let (from, to) = whole_units(offset, len, unit);
            self.device.write_zeroes(offset, from - offset).await?;
            self.device.discard(from, to - from).await?;
            self.device.write_zeroes(to, offset + len - to).await
        })
    }

    fn extents(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<Vec<Extent>>> {
        Box::pin(async move {
            self.check(offset, len)?;
            self.device.extents(offset, len).await
        })
    }

    fn path_hint(&self) -> String {
        self.device.path_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_units_are_discarded() {
        assert_eq!(whole_units(0, 4096, 4096), (0, 4096));
        assert_eq!(whole_units(512, 8192, 4096), (4096, 8192));
        assert_eq!(whole_units(512, 4096, 4096), (4608, 4608));
        assert_eq!(whole_units(4096, 0, 4096), (4096, 4096));
    }
}
