//! The log device, opened for reading: where its ring is and how its packs are checked.

use std::sync::Arc;

use block_io::device::BlockDevice;
use bytes::Bytes;
use server_kit::error::RoleError;
use wlog_format::ring::Ring;
use wlog_format::superblock::{SUPER_OFFSET_BYTES, SuperBlock};
use wlog_format::units::{BlockSize, LogUuid, Salt, to_usize};

/// How much of the device holds the super sector, whatever the block size.
const SUPER_BYTES: usize = 4096;

/// A log device and the geometry of the log on it.
#[derive(Debug)]
pub struct Log {
    device: Arc<dyn BlockDevice>,
    /// Its ring.
    pub ring: Ring,
    /// Salt of its checksums.
    pub salt: Salt,
    /// The log that it holds.
    pub uuid: LogUuid,
}

impl Log {
    /// Reads the super sector. The log must be the one that the device role speaks of, or we would
    /// read another volume's log.
    ///
    /// # Errors
    /// Not a log device, or the log of another history; names the path.
    pub async fn open(device: Arc<dyn BlockDevice>, uuid: LogUuid) -> Result<Self, RoleError> {
        let path = device.path_hint();
        let block = device
            .read(SUPER_OFFSET_BYTES, SUPER_BYTES)
            .await
            .map_err(|e| RoleError::io("read the super sector of log device", &path, e))?;
        let damaged = |e| {
            RoleError::damaged(format!("the log device {path} cannot be used"))
                .with_file(&path)
                .with_source(e)
                .with_next_step("check which log device the device role was given")
        };
        let superblock = SuperBlock::decode(&block).map_err(damaged)?;
        let ring = superblock.ring(device.size_bytes()).map_err(damaged)?;
        if superblock.uuid != uuid {
            let found = superblock.uuid;
            let message =
                format!("log device {path} holds log {found}, the device role uses {uuid}");
            return Err(RoleError::wrong_peer(message).with_file(path));
        }
        Ok(Self { device, ring, salt: superblock.salt, uuid })
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.ring.block_size()
    }

    /// The path, for messages.
    #[must_use]
    pub fn path(&self) -> String {
        self.device.path_hint()
    }

    /// Reads `len` bytes at `offset`. The device may have larger sectors than the log has blocks.
    pub(crate) async fn read(&self, offset: u64, len: usize) -> Result<Bytes, RoleError> {
        let sector = u64::from(self.device.block_bytes());
        let start = offset - offset % sector;
        let end = (offset + len as u64).next_multiple_of(sector);
        let bytes = self
            .device
            .read(start, to_usize(end - start))
            .await
            .map_err(|e| RoleError::io("read the log device", self.path(), e))?;
        let skip = to_usize(offset - start);
        if bytes.len() < skip + len {
            return Err(RoleError::damaged(format!("{} ends too early", self.path())));
        }
        Ok(bytes.slice(skip..skip + len))
    }
}
