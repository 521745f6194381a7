//! What people type (`cli.md`). Parsing only: no server is asked here.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::values::{InfoChange, Mode, Point, Snapshots, Target, parse_size, parse_volume};

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
    /// Bring the primary archive up to date by comparing, after logs were lost; prints the gid
    HashBackup {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// Compare the whole volume, not only what the device knows was written
        #[arg(long)]
        everything: bool,
        /// Read no more than this per second
        #[arg(long, value_name = "RATE", value_parser = parse_size)]
        scan_rate: Option<u64>,
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
        /// Which snapshot
        #[command(flatten)]
        point: Point,
        /// Write no more than this per second
        #[arg(long, value_name = "RATE", value_parser = parse_size)]
        rate: Option<u64>,
    },
    /// Serve a snapshot over NBD without restoring it; prints the URI
    Mount(super::mount::MountArgs),
    /// What an archive has mounted
    Mounts(super::mount::MountsArgs),
    /// End a mount; its clients are disconnected
    Unmount(super::mount::UnmountArgs),
    /// Make one wdiff of all between two snapshots
    Merge {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// The gid at which the first wdiff begins
        begin: u64,
        /// The gid at which the last one ends
        end: u64,
        /// Write no more than this per second
        #[arg(long, value_name = "RATE", value_parser = parse_size)]
        rate: Option<u64>,
    },
    /// Have an archive thin out the history by a policy, from now on: by merges and applies
    Retention(super::upkeep::RetentionArgs),
    /// Have an archive replicate a volume to another one, again and again
    ReplicationSchedule(super::upkeep::ScheduleArgs),
    /// Have an archive raise an alarm when the newest restorable point gets old
    Freshness(super::upkeep::FreshnessArgs),
    /// Read back all that an archive has; damage: exit 1, with the snapshots that it harms
    Verify(super::verify::VerifyArgs),
    /// Read a whole snapshot as a mount would, and compare its hash with the recorded one
    Drill(super::verify::DrillArgs),
    /// Fetch what is damaged or missing from another archive that has it
    Repair(super::verify::RepairArgs),
    /// Make the lost catalogue of a volume anew from what its directory has
    Rebuild(super::verify::RebuildArgs),
    /// Keep snapshots: merges do not take them
    EnableSnapshot(Snapshots),
    /// Let merges take snapshots
    DisableSnapshot(Snapshots),
    /// Remove wdiffs that no snapshot needs
    Gc(Target),
    /// Grow a volume at all archives, then at all storage servers; grow its data devices before
    Resize {
        /// The volume
        #[arg(value_parser = parse_volume)]
        volume: String,
        /// Its new size
        #[arg(value_parser = parse_size)]
        size: u64,
    },
    /// Write a snapshot over the device of a storage host; its application sees errors meanwhile
    RestoreToDevice {
        /// An archive of the group file, and the volume there
        #[command(flatten)]
        target: Target,
        /// The snapshot's gid
        gid: u64,
        /// A storage server of the group file
        storage: String,
        /// A volume that it knows, or CONTROL#NAME
        device: String,
    },
    /// Bring another archive up to date with one
    Replicate {
        /// The archive that sends, and the volume
        #[command(flatten)]
        target: Target,
        /// The archive that receives
        to: String,
        /// Send the volume to it from every proxy from then on
        #[arg(long)]
        synchronizing: bool,
        /// Throw away another history there, and compare the images
        #[arg(long)]
        resync: bool,
        /// At least up to this snapshot [default: the last explicit one]
        #[arg(long)]
        gid: Option<u64>,
        /// Send every wdiff as it is
        #[arg(long)]
        dont_merge: bool,
        /// Read no more than this per second for a comparison
        #[arg(long, value_name = "RATE", value_parser = parse_size)]
        scan_rate: Option<u64>,
    },
    /// Make an archive the primary of all storage servers; they go on without a restart
    Promote {
        /// An archive of the group file
        archive: String,
    },
    /// Tell storage servers their archive and proxies; what is not given is as in the group file
    SetPeers {
        /// Storage servers; none: all
        storages: Vec<String>,
        /// The primary archive
        #[arg(long, value_name = "A")]
        archive: Option<String>,
        /// The proxies in order of priority
        #[arg(long, value_delimiter = ',', value_name = "P,..")]
        proxies: Vec<String>,
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
    /// End the back-offs of storage servers and proxies
    KickAll {
        /// Storage servers, which means all proxies too, or proxies; none: all of both
        servers: Vec<String>,
    },
    /// End the back-off of one queue of a proxy
    Kick {
        /// Server and volume
        #[command(flatten)]
        target: Target,
        /// An archive of the group file
        archive: String,
    },
    /// Find out what is wrong, and what to do about it; all is well: exit 0, something is wrong:
    /// exit 3, servers do not answer and that is all: exit 4
    Doctor(super::doctor::DoctorArgs),
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
