//! What people type (`cli.md`). Parsing only: no server is asked here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use proto::v1;
use server_kit::volume_name::VolumeName;

use crate::ops::archive::RestorePoint;

/// The controller of a walb backup group.
#[derive(Debug, Parser)]
#[command(name = "walbc", version, propagate_version = true)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 the answer is \"no\", \
                        4 a server could not be reached.")]
pub struct Cli {
    /// The group file: which servers there are, in which role and order
    #[arg(long, global = true, env = "WALB_CONFIG", default_value = "walb.toml")]
    pub config: PathBuf,
    /// Results as JSON on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// A server and a volume.
#[derive(Debug, Args)]
pub struct Target {
    /// A server of the group file
    pub server: String,
    /// The volume
    #[arg(value_parser = parse_volume)]
    pub volume: String,
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

/// One verb per operation of the recovery manual.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// All servers and volumes in one picture
    Status {
        /// This volume only
        #[arg(value_parser = parse_volume)]
        volume: Option<String>,
    },
    /// The state of a volume at a server
    State(Target),
    /// Which servers answer
    GetAlive,
    /// The volumes that a server knows
    ListVolumes {
        /// A server of the group file
        server: String,
    },
    /// Whether logs were lost at a storage server (true: exit 0, false: exit 3)
    IsOverflow(Target),
    /// Whether a proxy has given up sending to an archive (true: exit 0, false: exit 3)
    IsWdiffSendError {
        /// A proxy of the group file
        proxy: String,
        /// The volume
        #[arg(value_parser = parse_volume)]
        volume: String,
        /// An archive of the group file
        archive: String,
    },
    /// Whether every proxy sends the volume to the archive (true: exit 0, false: exit 3)
    IsSynchronizing(Target),
    /// How full the log devices are
    LogUsage {
        /// A storage server of the group file
        server: String,
        /// This volume only
        #[arg(value_parser = parse_volume)]
        volume: Option<String>,
    },
    /// How far the newest restorable point lies behind
    Lag {
        /// This volume only
        #[arg(value_parser = parse_volume)]
        volume: Option<String>,
    },
    /// The long operations that an archive runs on a volume
    Progress(Target),
    /// Make a volume known at a storage server, as standby
    InitStorage {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// Control socket of the device role, and the volume's name there
        #[arg(long, value_name = "CONTROL[#NAME]")]
        device: String,
    },
    /// Remove a volume from a server
    Clear(Target),
    /// Give up what is unsent (storage) or the image (archive): back to SyncReady
    Reset(Target),
    /// Start a stopped volume
    Start(Target),
    /// Stop a volume; returns when it has stopped
    Stop {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// How
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
    },
    /// Make a storage server's leg a standby
    GoStandby(Target),
    /// Copy the whole volume to the primary archive and back it up continuously; prints the gid
    FullBackup {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// Bytes read at once
        #[arg(long, value_parser = parse_size)]
        bulk: Option<u64>,
    },
    /// Take a snapshot; prints its gid
    Snapshot {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// Wait until these archives can restore it
        #[arg(long, value_delimiter = ',', value_name = "A,..")]
        wait: Vec<String>,
    },
    /// The snapshots that an archive can restore
    Restorable {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// Implicit ones, too
        #[arg(long)]
        all: bool,
    },
    /// Restore a snapshot to an image file; prints its path
    Restore {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// Which snapshot
        #[command(flatten)]
        point: Point,
        /// Image file on the archive host
        #[arg(long)]
        to: Option<PathBuf>,
        /// Say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// The restored images of a volume
    Restored(Target),
    /// Delete a restored image
    DelRestored {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// Its gid
        gid: u64,
    },
    /// The wdiffs of a volume
    Diffs(Target),
    /// Move the base image forward to a snapshot; older ones disappear
    Apply {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// The snapshot's gid
        gid: u64,
    },
    /// Send a volume to an archive from every proxy
    StartSynchronizing(Target),
    /// No longer send a volume to an archive
    StopSynchronizing(Target),
    /// A proxy's list of archives for a volume
    ArchiveInfo {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// Change it
        #[command(subcommand)]
        change: Option<InfoChange>,
    },
    /// Copy a proxy's list of archives to another proxy
    CopyArchiveInfo {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// The other proxy
        to: String,
    },
    /// End the back-offs of storage servers and all proxies
    KickAll {
        /// Storage servers; none: all
        storages: Vec<String>,
    },
    /// End the back-off of one queue of a proxy
    Kick {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// An archive of the group file
        archive: String,
    },
    /// Stop a server's process
    Shutdown {
        /// A server of the group file
        server: String,
        /// How
        #[arg(long, value_enum, default_value_t)]
        mode: Mode,
    },
    /// The long operations of all servers
    Operations,
    /// Wait for a long operation
    Wait {
        /// Its id
        id: String,
    },
    /// End a long operation
    Cancel {
        /// Its id
        id: String,
    },
    /// Completions for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// A volume's name, checked here so that a slip is a usage error.
fn parse_volume(text: &str) -> Result<String, String> {
    text.parse::<VolumeName>().map(|name| name.to_string()).map_err(|e| e.to_string())
}

/// A size with a suffix `K M G T` (powers of two), in bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    server_kit::units::parse_size(text)
}

/// RFC 3339, or a duration before now, as Unix seconds.
fn parse_time(text: &str) -> Result<u64, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(crate::ops::look::now_s().saturating_sub(ago.as_secs()));
    }
    let time: jiff::Timestamp =
        text.parse().map_err(|e| format!("neither RFC 3339 nor a duration such as 10m: {e}"))?;
    u64::try_from(time.as_second()).map_err(|_| "before 1970".to_owned())
}
