//! Which part of the log is shipped next, and under which gids (`semantics.md` §3.5, steps 7-12).
//!
//! The rule that everything here serves: an acknowledgement can be lost, and the retry - perhaps
//! after a restart, perhaps to another proxy - must never give another lsid range or timestamp to
//! the same pair of gids.

use thiserror::Error;
use wdiff_format::gid::{Diff, Gid, GidError};
use wlog_format::units::{Lsid, Pb};

use crate::marks::{Mark, Marks};

/// The next transfer: `[begin.lsid, limit)`, or less when a pack would cross `limit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the last acknowledged transfer ended.
    pub begin: Mark,
    /// The snapshot that is worked towards.
    pub end: Mark,
    /// Nothing at or beyond this position is sent.
    pub limit: Lsid,
}

/// The log that was read does not fit the plan.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A snapshot lies inside a pack.
    #[error("no log pack ends at lsid {end}, where snapshot {gid} was taken, but at {reached}")]
    NotABoundary {
        /// Position of the snapshot.
        end: Lsid,
        /// End of the last pack before it.
        reached: Lsid,
        /// The snapshot.
        gid: Gid,
    },
    /// Not even one pack fits.
    #[error("the log pack at lsid {at} does not fit {max} physical blocks; raise max_wlog_send")]
    PackTooLarge {
        /// The pack.
        at: Lsid,
        /// The piece size.
        max: Pb,
    },
    /// Unreachable while [`Marks`] holds its invariants.
    #[error(transparent)]
    Gids(#[from] GidError),
}

/// Chooses what to send; `None`: there is nothing to send yet. `permanent` is the position up to
/// which the log can be read, `max` the size that snapshots are coalesced up to.
#[must_use]
pub fn plan(marks: &Marks, permanent: Lsid, max: Pb) -> Option<Plan> {
    let begin = marks.done;
    let mut waiting = marks.queue();
    let oldest = *waiting.next()?;
    let mut end = oldest;
    for &next in waiting {
        let fits = next.lsid.distance_from(begin.lsid) <= max && next.lsid <= permanent;
        if !end.mergeable || !fits {
            break;
        }
        end = next;
    }
    let splits = end == oldest && end.gid.0 > begin.gid.0.saturating_add(1);
    let limit = match begin.lsid.checked_add(end.piece) {
        Some(cut) if splits => cut.min(end.lsid),
        _ => end.lsid,
    };
    (limit <= permanent).then_some(Plan { begin, end, limit })
}

impl Plan {
    /// Upper bound of what is sent.
    #[must_use]
    pub fn max_log(&self) -> Pb {
        self.limit.distance_from(self.begin.lsid)
    }

    /// What the transfer is when its last whole pack ends at `reached`: the diff that the proxy
    /// is told, and the mark that becomes `done` when it has acknowledged.
    ///
    /// # Errors
    /// [`PlanError`]: the log contradicts the plan, nothing may be concluded.
    pub fn finish(&self, reached: Lsid) -> Result<(Diff, Mark), PlanError> {
        let Self { begin, end, limit } = *self;
        let done = if reached == end.lsid {
            end
        } else if limit == end.lsid {
            return Err(PlanError::NotABoundary { end: end.lsid, reached, gid: end.gid });
        } else if reached == begin.lsid {
            return Err(PlanError::PackTooLarge { at: reached, max: self.max_log() });
        } else {
            let gid = Gid(begin.gid.0 + 1);
            Mark { lsid: reached, gid, mergeable: true, ..begin }
        };
        let mut diff = Diff::clean(begin.gid, done.gid)?;
        diff.mergeable = begin.mergeable;
        diff.timestamp = end.timestamp_s;
        Ok((diff, done))
    }
}

/// Whether logs that need shipping have no snapshot yet that would ship them.
#[must_use]
pub fn wants_snapshot(marks: &Marks, permanent: Lsid) -> bool {
    marks.newest().lsid < permanent
}

/// Whether so much log waits that the implicit snapshot should not.
#[must_use]
pub fn is_pressing(marks: &Marks, permanent: Lsid, max: Pb) -> bool {
    permanent.distance_from(marks.newest().lsid).0 >= max.0 / 2
}
