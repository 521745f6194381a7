//! The parts that the verbs' arguments are made of, and their parsers.

use clap::{Args, Subcommand, ValueEnum};
use proto::v1;
use server_kit::volume_name::VolumeName;

use crate::ops::archive::RestorePoint;

/// A server and a volume.
#[derive(Debug, Args)]
pub struct Target {
    /// A server of the group file
    pub server: String,
    /// The volume
    #[arg(value_parser = parse_volume)]
    pub volume: String,
}

/// Snapshots of a volume at an archive.
#[derive(Debug, Args)]
pub struct Snapshots {
    /// An archive of the group file, and the volume
    #[command(flatten)]
    pub target: Target,
    /// Their gids
    #[arg(required = true, value_name = "GID")]
    pub gids: Vec<u64>,
}

/// A snapshot by gid or by time.
#[derive(Debug, Args)]
#[group(id = "point", required = true, multiple = false)]
pub struct Point {
    /// The snapshot's gid
    #[arg(group = "point")]
    pub gid: Option<u64>,
    /// The last clean snapshot not later than this (RFC 3339, or `10m` for ten minutes ago)
    #[arg(long, group = "point", value_name = "TIME", value_parser = parse_time)]
    pub at: Option<u64>,
}

impl Point {
    /// As the operations want it.
    #[must_use]
    pub fn point(&self) -> RestorePoint {
        match (self.gid, self.at) {
            (_, Some(at_s)) => RestorePoint::At(at_s),
            (gid, None) => RestorePoint::Gid(gid.unwrap_or_default()),
        }
    }
}

/// A uuid as `walbc status --json` shows it.
pub(super) fn parse_uuid(text: &str) -> Result<[u8; 16], String> {
    let number = u128::from_str_radix(text, 16).ok().filter(|_| text.len() == 32);
    let number = number.ok_or_else(|| "a uuid has 32 hexadecimal digits".to_owned())?;
    Ok(number.to_be_bytes())
}

/// How to stop.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Mode {
    /// What runs is finished first
    #[default]
    Graceful,
    /// What runs is aborted at the next block
    Force,
    /// Proxy: nothing new is taken, the queues are sent first
    Empty,
}

impl From<Mode> for v1::StopMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Graceful => Self::Graceful,
            Mode::Force => Self::Force,
            Mode::Empty => Self::Empty,
        }
    }
}

/// What to do with a proxy's list of archives.
#[derive(Debug, Subcommand)]
pub enum InfoChange {
    /// Put an archive on the list
    Add(InfoEntry),
    /// Change an archive's entry; its queue stays
    Update(InfoEntry),
    /// Take an archive off the list; its queue goes with it
    Delete {
        /// An archive of the group file
        archive: String,
    },
}

/// One archive of a proxy's list.
#[derive(Debug, Args)]
pub struct InfoEntry {
    /// An archive of the group file
    pub archive: String,
    /// none, gzip, snappy, lzma, lz4 or zstd, with :LEVEL
    #[arg(long, default_value = crate::ops::sync::DEFAULT_COMPRESSION)]
    pub compression: String,
    /// How long to collect wdiffs before sending
    #[arg(long, default_value = "0s")]
    pub send_delay: humantime::Duration,
}

/// A volume's name, checked here so that a slip is a usage error.
pub(super) fn parse_volume(text: &str) -> Result<String, String> {
    text.parse::<VolumeName>().map(|name| name.to_string()).map_err(|e| e.to_string())
}

/// A size with a suffix `K M G T` (powers of two), in bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    server_kit::units::parse_size(text)
}

/// RFC 3339, or a duration before now, as Unix seconds.
pub(super) fn parse_time(text: &str) -> Result<u64, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(crate::ops::look::now_s().saturating_sub(ago.as_secs()));
    }
    let time: jiff::Timestamp =
        text.parse().map_err(|e| format!("neither RFC 3339 nor a duration such as 10m: {e}"))?;
    u64::try_from(time.as_second()).map_err(|_| "before 1970".to_owned())
}
