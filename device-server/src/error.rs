//! What can go wrong with a volume: errors of its I/O and of its administration.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use wlog_format::pack::PackError;
use wlog_format::superblock::SuperBlockError;
use wlog_format::units::{Lb, Lsid};

/// Why a request to a running volume was not done.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VolumeError {
    /// An earlier I/O error stopped the volume for writes; reads go on.
    #[error(
        "the volume stopped taking writes: {0}; see to its devices, then restart the device role"
    )]
    Failed(Arc<str>),
    /// An earlier write found a device full; reads go on.
    #[error(
        "the volume stopped taking writes for want of space: {0}; \
         free some, then restart the device role"
    )]
    NoSpace(Arc<str>),
    /// The content is being replaced from outside.
    #[error(
        "the content of the volume is being replaced: no reads and writes until the restore to it \
         has ended; run the restore again, or take the content as it is with: \
         walb-device end-overwrite --control SOCKET VOLUME"
    )]
    Overwriting,
    /// Nobody replaces the content.
    #[error("the content of the volume is not being replaced")]
    NotOverwriting,
    /// The volume could not remember that its content is half replaced.
    #[error(
        "without a state directory a killed device role would forget that the content is half \
         replaced: start it with --state-dir DIR"
    )]
    NoStateDir,
    /// A file of the state directory failed.
    #[error("{0}")]
    State(Arc<str>),
    /// The role is going down.
    #[error("the volume is being stopped")]
    Stopping,
    /// The log is full and the policy is `error`.
    #[error("the log device is full of logs that were not backed up yet")]
    LogFull,
    /// Logs were lost: what was asked for makes no sense before a log reset.
    #[error("the log has overflowed: backup must start anew, with a log reset")]
    Overflow,
    /// A range that is not on the volume, or not in whole sectors.
    #[error(
        "bytes {offset}+{len} are not whole sectors of {sector} bytes on a volume of {size} bytes"
    )]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Sector size of the volume in bytes.
        sector: u32,
        /// Size of the volume in bytes.
        size: u64,
    },
    /// The volume is frozen, or its log is being reset.
    #[error("the volume is frozen, or its log is being reset")]
    Frozen,
    /// An lsid that `oldest` cannot be set to.
    #[error("oldest cannot be set to {lsid}: {why}")]
    BadOldest {
        /// What was asked for.
        lsid: Lsid,
        /// Why not.
        why: String,
    },
    /// A size that the volume cannot take.
    #[error("the volume cannot be resized from {from} to {to} sectors: {why}")]
    BadSize {
        /// Size now.
        from: Lb,
        /// Size that was asked for.
        to: Lb,
        /// Why not.
        why: String,
    },
    /// A device failed, or would not do it.
    #[error("{0}")]
    Io(#[from] Arc<io::Error>),
}

impl From<io::Error> for VolumeError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Why a volume could not be opened, redone or formatted. The message says everything: causes are
/// part of it, so that nobody prints them twice.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device or file could not be opened.
    #[error("cannot open the {role} device {}: {cause}", path.display())]
    Open {
        /// "log" or "data".
        role: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Somebody else has it.
    #[error(
        "the {role} device {} is in use: another walb-device, a mount or a `walb ldev` \
         command has it",
        path.display()
    )]
    InUse {
        /// "log" or "data".
        role: &'static str,
        /// Which.
        path: PathBuf,
    },
    /// There is no log on the log device.
    #[error(
        "{log} holds no walb log ({found}); if it may be overwritten, run: \
         walb ldev format --log {log} --data {data}"
    )]
    NotFormatted {
        /// The log device.
        log: String,
        /// The data device.
        data: String,
        /// What was found.
        found: SuperBlockError,
    },
    /// The log device belongs to something else.
    #[error("{log} is not the log of {data}: {why}")]
    Mismatch {
        /// The log device.
        log: String,
        /// The data device.
        data: String,
        /// What does not fit.
        why: String,
    },
    /// A device failed.
    #[error("{what}: {cause}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// Why it failed; names the device.
        cause: io::Error,
    },
    /// The state directory failed.
    #[error("{0}")]
    State(String),
    /// A pack that we had just found sound could not be made anew.
    #[error("pack at lsid {lsid} of {log}: {cause}")]
    Pack {
        /// The log device.
        log: String,
        /// Where.
        lsid: Lsid,
        /// Why.
        cause: PackError,
    },
}

impl OpenError {
    /// For `map_err`: an I/O error while doing `what`.
    pub(crate) const fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |cause| Self::Io { what, cause }
    }
}
