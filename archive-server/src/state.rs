//! The states of a volume at an archive (`semantics.md` §5.1).
//!
//! ```text
//!   (none) --init--> SyncReady --full sync--> Archived <--start/stop--> Stopped
//!      ^                |  ^                     |  ^                      |  |
//!      +-----clear------+  +----------reset------|--|----------------------+  |
//!      +-----clear------------------------------ | -|-------------------------+
//!                 wdiff, hash sync, replication --> +--+
//!      SyncReady or Archived --resync--> SyncReady --> Archived
//! ```
//! A volume that is not known is Clear. `Broken` is ours: what a volume needs could not be read at
//! start; the others run on, this one says why and can only be cleared.

use std::fmt;

/// A state, static or transient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// There is no such volume; also what is left of one that was cleared.
    Clear,
    /// Waits for a full backup.
    SyncReady,
    /// Has a base image and takes wdiffs.
    Archived,
    /// As `Archived`, but refuses everything that changes it.
    Stopped,
    /// Could not be loaded.
    Broken,
    /// A full backup is received, or announced.
    FullSync,
    /// A wdiff is received.
    WdiffRecv,
    /// A hash backup is received, or announced.
    HashSync,
    /// A comparison diff of another archive is received.
    ReplSync,
    /// The image of another archive is received into the one that is here, or announced.
    Resync,
    /// On the way from `Archived` to `Stopped`.
    Stop,
    /// On the way from `Stopped` to `Archived`.
    Start,
    /// Is being emptied.
    ResetVol,
    /// Is being removed.
    ClearVol,
}

impl State {
    /// The states in which the archive of a volume can be used (§5.1).
    pub(crate) const ACTIVE: [Self; 4] =
        [Self::Archived, Self::WdiffRecv, Self::HashSync, Self::ReplSync];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
