//! The states of a volume at the storage role (`semantics.md` §3.1).
//!
//! | from | via | to | by |
//! |---|---|---|---|
//! | Clear | InitVol | SyncReady | init |
//! | SyncReady, Damaged | ClearVol | Clear | clear |
//! | SyncReady | StartStandby | Standby | start standby |
//! | Standby | StopStandby | SyncReady | stop |
//! | SyncReady | FullSync | Target | full backup |
//! | SyncReady, Stopped | HashSync | Target | hash backup |
//! | Stopped | StartTarget | Target | start target |
//! | Target | StopTarget | Stopped | stop, lost logs |
//! | Stopped | Reset | SyncReady | reset |
//! | SyncReady, Stopped | Overwrite | the same | restore to device |
//!
//! During a backup the durable state is SyncReady once the log was reset, so a crash falls back to
//! it. The way of the original through Stopped at the end of a backup is one durable step here, and
//! so is its way from Stopped into a hash backup: nothing can be seen or done in between.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of a volume, static or transient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No such volume.
    Clear,
    /// Known, not followed; a backup can start.
    SyncReady,
    /// Was a target; its log is kept.
    Stopped,
    /// Its log is shipped.
    Target,
    /// Its log is thrown away.
    Standby,
    /// What is on disk cannot be read; only clear is possible.
    Damaged,
    /// Clear -> SyncReady.
    InitVol,
    /// SyncReady -> Clear.
    ClearVol,
    /// SyncReady -> Standby.
    StartStandby,
    /// Standby -> SyncReady.
    StopStandby,
    /// SyncReady -> Target, the log is shipped already.
    FullSync,
    /// SyncReady or Stopped -> Target, the log is shipped already.
    HashSync,
    /// Stopped -> Target.
    StartTarget,
    /// Target -> Stopped.
    StopTarget,
    /// Stopped -> SyncReady.
    Reset,
    /// SyncReady or Stopped, and back: the content of the device is replaced.
    Overwrite,
}

impl State {
    /// Whether a backup runs.
    #[must_use]
    pub fn is_backup(self) -> bool {
        matches!(self, Self::FullSync | Self::HashSync)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

/// The static states that a volume's directory can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Saved {
    /// [`State::SyncReady`].
    SyncReady,
    /// [`State::Stopped`].
    Stopped,
    /// [`State::Target`].
    Target,
    /// [`State::Standby`].
    Standby,
}

impl From<Saved> for State {
    fn from(saved: Saved) -> Self {
        match saved {
            Saved::SyncReady => Self::SyncReady,
            Saved::Stopped => Self::Stopped,
            Saved::Target => Self::Target,
            Saved::Standby => Self::Standby,
        }
    }
}
