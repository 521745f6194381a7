//! What a volume can be told about how to behave, and the limits that are not for choosing.

use std::time::Duration;

/// The largest record that we log. Larger writes become several records: nothing waits long behind
/// one write, and no converter downstream has to split.
pub(crate) const MAX_RECORD_BYTES: u64 = 1 << 20;

/// Payload bytes that go into one log write at most; what has queued beyond is the next one.
pub(crate) const MAX_LOG_WRITE_BYTES: u64 = 4 << 20;

/// Requests that go into one log write at most: keeps one vectored write below the 1024 pieces that
/// the kernel takes (payload, padding and headers).
pub(crate) const MAX_LOG_WRITE_REQUESTS: usize = 384;

/// Log writes in flight at most.
pub(crate) const MAX_LOG_WRITES_IN_FLIGHT: usize = 4;

/// `latest - permanent` never exceeds this. So after a crash every stale pack lies within this
/// distance behind the last sound one: permanent packs are sound (see the `redo` module).
pub(crate) const MAX_UNFLUSHED_BYTES: u64 = 32 << 20;

/// How far redo clears the log behind its new end. More than [`MAX_UNFLUSHED_BYTES`], so that it
/// also covers a log that the original driver left with its default limits.
pub(crate) const STALE_WINDOW_BYTES: u64 = 64 << 20;

/// Unflushed log that is flushed at once, without waiting for the interval.
pub(crate) const FLUSH_AT_BYTES: u64 = 8 << 20;

/// Payload bytes of one batch of the data writer.
pub(crate) const MAX_BATCH_BYTES: u64 = 16 << 20;

/// How long permanent writes gather before they go to the data device, so that clients that flush
/// after every write do not wait behind as many data writes.
pub(crate) const GATHER: Duration = Duration::from_millis(5);

/// As much log as this does not gather any longer.
pub(crate) const GATHERED_BYTES: u64 = 1 << 20;

/// The least that `max_pending_bytes` may be: a few of the largest records.
pub const MIN_PENDING_BYTES: u64 = 4 * MAX_RECORD_BYTES;

/// What happens to writes when the log device is full of logs that were not released yet.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    clap::ValueEnum,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum OverflowPolicy {
    /// The application never stops. Logs are lost; backup must start anew with a log reset.
    #[default]
    Overwrite,
    /// Writers wait until logs are released.
    Stall,
    /// Writes fail with "no space left".
    Error,
}

/// The choices for one volume.
#[derive(Clone, Copy, Debug)]
pub struct VolumeOptions {
    /// When the log device is full.
    pub policy: OverflowPolicy,
    /// Payload bytes that are logged (or about to be) and not yet on the data device, at most;
    /// writers wait beyond.
    pub max_pending_bytes: u64,
    /// Time between checkpoints while there are writes.
    pub checkpoint_interval: Duration,
    /// The log is flushed this long after a write at the latest; shipping and data writes wait for
    /// it.
    pub log_flush_interval: Duration,
}

impl Default for VolumeOptions {
    fn default() -> Self {
        Self {
            policy: OverflowPolicy::Overwrite,
            max_pending_bytes: 128 << 20,
            checkpoint_interval: Duration::from_secs(10),
            log_flush_interval: Duration::from_millis(5),
        }
    }
}
