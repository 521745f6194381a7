//! Opening the devices of a volume for this process alone, and formatting a log device.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use block_io::device::{BlockDevice, bare};
use block_io::{Engine, OpenOptions};
use tokio::time::Instant;
use wlog_format::superblock::{DeviceName, SUPER_OFFSET_BYTES, SuperBlock, SuperBlockError};
use wlog_format::units::{BlockSize, Lb, Lsid};

use crate::checkpoint::write_super;
use crate::error::OpenError;
use crate::zeros::zeros;

/// Which device of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceRole {
    /// Holds the ring of logs.
    Log,
    /// Holds the image of the volume.
    Data,
}

impl DeviceRole {
    const fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Data => "data",
        }
    }
}

/// How long a device that is in use is tried again. A process that was just killed holds its
/// devices until the kernel has ended its requests.
const IN_USE_PATIENCE: Duration = Duration::from_secs(3);
const IN_USE_RETRY: Duration = Duration::from_millis(20);

/// Opens a log or data device for reading and writing, for this process alone. Others can still
/// read it.
///
/// # Errors
/// When it is missing, of the wrong kind, or (for some seconds) in use.
pub async fn open_device(path: &Path, role: DeviceRole) -> Result<Arc<dyn BlockDevice>, OpenError> {
    // Every write waits for the log device, every read for the data device.
    open_with(path, role, Engine::Near).await
}

/// [`open_device`] with an engine of choice.
pub(crate) async fn open_with(
    path: &Path,
    role: DeviceRole,
    engine: Engine,
) -> Result<Arc<dyn BlockDevice>, OpenError> {
    let deadline = Instant::now() + IN_USE_PATIENCE;
    loop {
        match try_open(path, role, engine) {
            Err(OpenError::InUse { .. }) if Instant::now() < deadline => {
                tokio::time::sleep(IN_USE_RETRY).await;
            }
            opened => return opened,
        }
    }
}

fn try_open(
    path: &Path,
    role: DeviceRole,
    engine: Engine,
) -> Result<Arc<dyn BlockDevice>, OpenError> {
    let options = OpenOptions { exclusive: true, engine, ..OpenOptions::default() };
    block_io::open(path, options).map_err(|source| {
        let (role, path) = (role.name(), path.to_owned());
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::ResourceBusy => {
                OpenError::InUse { role, path }
            }
            _ => OpenError::Open { role, path, cause: bare(source) },
        }
    })
}

/// Makes a log device for a data device: a super block and an empty ring. All logs on it are lost.
/// The data device is looked at, for its size, and left as it is.
///
/// # Errors
/// When a device is missing, in use or too small, or does not go with the block size.
pub async fn format_ldev(
    log: &Path,
    data: &Path,
    block_size: BlockSize,
    name: DeviceName,
) -> Result<SuperBlock, OpenError> {
    let log = open_device(log, DeviceRole::Log).await?;
    let data = open_device(data, DeviceRole::Data).await?;
    format_devices(&log, &data, block_size, name).await
}

/// [`format_ldev`] on devices that are open.
///
/// # Errors
/// The same.
pub async fn format_devices(
    log: &Arc<dyn BlockDevice>,
    data: &Arc<dyn BlockDevice>,
    block_size: BlockSize,
    name: DeviceName,
) -> Result<SuperBlock, OpenError> {
    let mismatch =
        |why: String| OpenError::Mismatch { log: log.path_hint(), data: data.path_hint(), why };
    if block_size.bytes() < log.block_bytes() {
        let (block, sector) = (block_size.bytes(), log.block_bytes());
        return Err(mismatch(format!(
            "a log of {block}-byte blocks on a device with sectors of {sector} bytes; \
             use --block-size {sector}"
        )));
    }
    let unfit = |error: SuperBlockError| mismatch(error.to_string());
    let size = Lb::from_bytes(data.size_bytes());
    let super_block =
        SuperBlock::for_format(log.size_bytes(), block_size, size, name).map_err(unfit)?;
    let ring = super_block.ring(log.size_bytes()).map_err(unfit)?;
    let write = async {
        // No pack at lsid 0 first, so that there is no moment with a log that was never written.
        let nothing = zeros(block_size.as_usize());
        log.write(ring.byte_offset(Lsid(0)), vec![nothing]).await?;
        write_super(log, &super_block).await?;
        log.read(SUPER_OFFSET_BYTES, 4096).await
    };
    let stored = write.await.map_err(OpenError::io("formatting the log device"))?;
    match SuperBlock::decode(&stored) {
        Ok(stored) if stored == super_block => Ok(super_block),
        _ => {
            Err(mismatch("the super block reads back differently: the device is broken".to_owned()))
        }
    }
}
