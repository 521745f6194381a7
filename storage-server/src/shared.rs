//! What all volumes of the server share: its settings, its memory, whom it talks to.

use std::sync::Arc;
use std::time::Duration;

use server_kit::operations::Operations;
use server_kit::shutdown::Shutdown;
use server_kit::volume_name::ServerId;
use tokio::sync::Notify;
use wlog_format::units::{BlockSize, Pb};

use crate::budget::Budget;
use crate::device::Devices;
use crate::peers::Peers;

/// Settings, complete and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Id of this server.
    pub id: ServerId,
    /// Most log of one transfer, in bytes.
    pub max_wlog_send: u64,
    /// Shortest time between implicit snapshots.
    pub snapshot_interval: Duration,
    /// First pause after a failure.
    pub retry_min: Duration,
    /// How long a proxy may do nothing in a transfer.
    pub send_timeout: Duration,
    /// Longest pause after failures.
    pub retry_max: Duration,
    /// Memory for log and backup data, in bytes.
    pub buffer_memory: u64,
    /// How often the archive is asked what it has.
    pub archive_poll: Duration,
    /// Gaps are healed by hash backups that start by themselves.
    pub auto_resync: bool,
}

impl Config {
    /// The piece size in blocks of a log.
    #[must_use]
    pub fn piece(&self, block_size: BlockSize) -> Pb {
        Pb((self.max_wlog_send / u64::from(block_size.bytes())).max(1))
    }
}

/// What all volumes share.
pub struct Shared {
    /// Settings.
    pub config: Config,
    /// Memory for log data: half of all.
    pub budget: Budget,
    /// Memory for scans of data devices: the other half, for they last long, and logs must be
    /// shipped meanwhile.
    pub scans: Budget,
    /// Where logs and backups go.
    pub peers: Peers,
    /// Where devices come from.
    pub devices: Arc<dyn Devices>,
    /// Wakes those who ask the archive what it has.
    pub ask_archive: Notify,
    /// Long jobs.
    pub operations: Operations,
    /// Ends the server.
    pub shutdown: Shutdown,
}

impl Shared {
    /// Nothing is connected yet.
    #[must_use]
    pub fn new(
        config: Config,
        peers: Peers,
        devices: Arc<dyn Devices>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            budget: Budget::new(config.buffer_memory / 2),
            scans: Budget::new(config.buffer_memory / 2),
            peers,
            devices,
            ask_archive: Notify::new(),
            operations: Operations::new(),
            shutdown,
            config,
        }
    }
}
