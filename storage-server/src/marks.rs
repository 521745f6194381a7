//! The lsid -> gid bookkeeping of one volume: what a proxy has acknowledged (`done`) and the
//! snapshots that have not been shipped yet (the queue), `semantics.md` §3.2-§3.5.
//!
//! Invariants: lsids and timestamps do not decrease and gids strictly increase from `done` through
//! the queue; a gid, once pushed, belongs to one lsid for ever (I6). Pure data: the caller makes a
//! changed copy durable before anybody hears of it.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use wdiff_format::gid::Gid;
use wlog_format::units::{Lsid, Pb};

/// Snapshots that may wait to be shipped. One is taken at most every implicit interval, and only
/// when a transfer is about to start, so the limit is reached by a script gone wild, not by a
/// dead proxy.
pub const MAX_QUEUED: usize = 100_000;

/// A snapshot: position in the log and generation id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "MarkFile", into = "MarkFile")]
pub struct Mark {
    /// The snapshot holds every write below this position.
    pub lsid: Lsid,
    /// Its generation id.
    pub gid: Gid,
    /// Implicit: the diff that starts here may be merged into its predecessor.
    pub mergeable: bool,
    /// When it was taken, Unix seconds.
    pub timestamp_s: u64,
    /// The piece size by which gids were reserved for the way here. Kept with the snapshot, so
    /// that a retry cuts the log at the same places although the configuration has changed.
    pub piece: Pb,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MarkFile {
    lsid: u64,
    gid: u64,
    mergeable: bool,
    timestamp_s: u64,
    piece_pb: u64,
}

impl From<MarkFile> for Mark {
    fn from(f: MarkFile) -> Self {
        Self {
            lsid: Lsid(f.lsid),
            gid: Gid(f.gid),
            mergeable: f.mergeable,
            timestamp_s: f.timestamp_s,
            piece: Pb(f.piece_pb),
        }
    }
}

impl From<Mark> for MarkFile {
    fn from(m: Mark) -> Self {
        Self {
            lsid: m.lsid.0,
            gid: m.gid.0,
            mergeable: m.mergeable,
            timestamp_s: m.timestamp_s,
            piece_pb: m.piece.0,
        }
    }
}

/// Why a snapshot cannot be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MarkError {
    /// The log position went backwards: this is not the log that the records are about.
    #[error("the device's log stands at lsid {lsid}, behind the last snapshot at lsid {newest}")]
    Backwards {
        /// Position of the device.
        lsid: Lsid,
        /// Position of the newest snapshot.
        newest: Lsid,
    },
    /// The gids are used up.
    #[error("no gid is left after gid {0}")]
    GidsExhausted(u64),
    /// [`MAX_QUEUED`] snapshots wait already.
    #[error("{MAX_QUEUED} snapshots wait for a proxy, no more are taken")]
    QueueFull,
    /// The records contradict each other.
    #[error("snapshot records are out of order at gid {0}")]
    OutOfOrder(u64),
}

/// `done` and the queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Marks {
    /// Acknowledged by a proxy: the log below it is not needed any more.
    pub done: Mark,
    /// Taken and not acknowledged, oldest first.
    #[serde(default)]
    queue: VecDeque<Mark>,
}

impl Marks {
    /// The bookkeeping right after a log reset: nothing shipped, the history starts with `gid`.
    #[must_use]
    pub fn after_reset(gid: Gid, now_s: u64) -> Self {
        let done = Mark { lsid: Lsid(0), gid, mergeable: false, timestamp_s: now_s, piece: Pb(0) };
        Self { done, queue: VecDeque::new() }
    }

    /// Snapshots that wait, oldest first.
    pub fn queue(&self) -> impl ExactSizeIterator<Item = &Mark> {
        self.queue.iter()
    }

    /// The newest snapshot.
    #[must_use]
    pub fn newest(&self) -> &Mark {
        self.queue.back().unwrap_or(&self.done)
    }

    /// Records a snapshot at `lsid` (`semantics.md` §3.4). One gid per started `piece` of log is
    /// reserved on the way, so that a long log can be shipped in pieces, each with a gid.
    ///
    /// # Errors
    /// [`MarkError`]; nothing is recorded then.
    pub fn take(
        &mut self,
        lsid: Lsid,
        mergeable: bool,
        now_s: u64,
        piece: Pb,
    ) -> Result<Mark, MarkError> {
        assert!(piece.0 > 0, "the configuration rejects an empty piece");
        if self.queue.len() >= MAX_QUEUED {
            return Err(MarkError::QueueFull);
        }
        let newest = self.newest();
        if lsid < newest.lsid {
            return Err(MarkError::Backwards { lsid, newest: newest.lsid });
        }
        let reserved = lsid.distance_from(newest.lsid).0 / piece.0;
        let gid = (newest.gid.0.checked_add(1))
            .and_then(|gid| gid.checked_add(reserved))
            .ok_or(MarkError::GidsExhausted(newest.gid.0))?;
        // A clock that was set back must not make a later snapshot look older.
        let timestamp_s = now_s.max(newest.timestamp_s);
        let mark = Mark { lsid, gid: Gid(gid), mergeable, timestamp_s, piece };
        self.queue.push_back(mark);
        Ok(mark)
    }

    /// `done` moves on, and what it covers leaves the queue.
    pub fn acknowledge(&mut self, done: Mark) {
        debug_assert!(done.gid > self.done.gid && done.lsid >= self.done.lsid);
        self.done = done;
        while self.queue.front().is_some_and(|m| m.gid <= done.gid) {
            self.queue.pop_front();
        }
    }

    /// Checks the invariants of records that come from a file.
    ///
    /// # Errors
    /// [`MarkError::OutOfOrder`] with the first offender.
    pub fn validate(&self) -> Result<(), MarkError> {
        let mut last = &self.done;
        for mark in &self.queue {
            let ordered = mark.gid > last.gid
                && mark.lsid >= last.lsid
                && mark.lsid <= Lsid::MAX
                && mark.piece.0 > 0;
            if !ordered {
                return Err(MarkError::OutOfOrder(mark.gid.0));
            }
            last = mark;
        }
        Ok(())
    }
}
