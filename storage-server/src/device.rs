//! A logging block device as the storage role sees it.
//!
//! The role uses devices through [`WalbDevice`] alone: [`control`] speaks to our device role; the
//! original kernel driver could be a second implementation. Invariant of every implementation:
//! what [`WalbDevice::watch`] shows is never newer than the truth, and a change is shown without
//! being asked for.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use block_io::device::BlockDevice;
use futures::future::BoxFuture;
use server_kit::error::RoleError;
use tokio::sync::watch;
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid, Pb, Salt};

pub mod address;
pub mod control;

/// Positions of the log (`semantics.md` §1.5), those that this role uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// Everything below may be overwritten.
    pub oldest: Lsid,
    /// Everything below is known to be on the data device: the limit of `oldest`.
    pub prev_written: Lsid,
    /// Everything below can be read from the log device.
    pub permanent: Lsid,
    /// End of the log.
    pub latest: Lsid,
}

/// What changes while a device is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Positions of the log.
    pub positions: Positions,
    /// Logs were overwritten before they were released.
    pub overflow: bool,
    /// Size of the volume.
    pub size: Lb,
    /// Identity of the log; another one means that the log was reset.
    pub log_uuid: LogUuid,
}

/// All that a device tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// What changes.
    pub status: Status,
    /// Block size of the log.
    pub block_size: BlockSize,
    /// Salt of its checksums.
    pub salt: Salt,
    /// Blocks in the ring.
    pub ring_size: Pb,
    /// The log device, to be read by us.
    pub log_path: String,
    /// The data device.
    pub data_path: String,
    /// Its content is being replaced: it is neither the old one nor the new one.
    pub overwriting: bool,
    /// Why the device has failed.
    pub failure: Option<String>,
}

/// What was written since some position of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Regions {
    /// At most these bytes, in order.
    Known(Vec<Range<u64>>),
    /// Perhaps everything; why.
    Unknown(String),
}

/// What is known by watching.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Not heard of yet.
    Nothing,
    /// The last event.
    Up(Status),
    /// The device role does not answer; reconnecting goes on.
    Down(Arc<RoleError>),
}

/// One logging block device.
pub trait WalbDevice: Send + Sync + 'static {
    /// The address that it was opened by.
    fn address(&self) -> &address::DeviceAddress;

    /// Asks for everything.
    fn info(&self) -> BoxFuture<'_, Result<Info, RoleError>>;

    /// Releases the logs below `oldest`. Refused unless `oldest` is a pack boundary and not above
    /// `prev_written`.
    fn set_oldest(&self, oldest: Lsid) -> BoxFuture<'_, Result<Positions, RoleError>>;

    /// Flushes data and log, so that `prev_written` and `permanent` catch up.
    fn take_checkpoint(&self) -> BoxFuture<'_, Result<Positions, RoleError>>;

    /// Empties the log: positions 0, new uuid and salt.
    fn reset_log(&self) -> BoxFuture<'_, Result<Info, RoleError>>;

    /// Makes a larger size known; 0 asks for all that the data device has. Never smaller.
    fn resize(&self, size: Lb) -> BoxFuture<'_, Result<Info, RoleError>>;

    /// What was written at or after a position of a log, which may be a former log of the device.
    fn regions(&self, log: LogUuid, since: Lsid) -> BoxFuture<'_, Result<Regions, RoleError>>;

    /// The content is about to be replaced: the application waits until [`Self::end_overwrite`].
    fn begin_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>>;

    /// The content was replaced; the log is reset.
    fn end_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>>;

    /// Follows the device until all receivers are dropped.
    fn watch(&self) -> watch::Receiver<Seen>;

    /// Opens the log device for reading.
    ///
    /// # Errors
    /// Names the path.
    fn open_log(&self, info: &Info) -> Result<Arc<dyn BlockDevice>, RoleError>;

    /// Opens the data device for reading.
    ///
    /// # Errors
    /// Names the path.
    fn open_data(&self, info: &Info) -> Result<Arc<dyn BlockDevice>, RoleError>;

    /// Opens the data device to replace its content.
    ///
    /// # Errors
    /// Names the path.
    fn open_data_for_writing(&self, info: &Info) -> Result<Arc<dyn BlockDevice>, RoleError>;
}

impl fmt::Debug for dyn WalbDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WalbDevice({})", self.address())
    }
}

/// Finds devices by their address; handed to the server, so that tests can bring their own.
pub trait Devices: Send + Sync + 'static {
    /// The device of this address. Nothing is asked yet.
    fn find(&self, address: &address::DeviceAddress) -> Arc<dyn WalbDevice>;
}
