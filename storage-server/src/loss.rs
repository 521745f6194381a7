//! Why the history of a volume has a gap (I11): what was found, as a type and for people.

use proto::v1::GapCause;
use serde::{Deserialize, Serialize};

use crate::book::History;
use crate::device::Status;

/// What kind of loss it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Logs were overwritten or released before they were shipped.
    Overflow,
    /// The log was reset.
    #[default]
    LogReset,
    /// A proxy lost wdiffs that the archive has not got.
    ProxyDataLost,
}

impl From<Cause> for GapCause {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::Overflow => Self::Overflow,
            Cause::LogReset => Self::LogReset,
            Cause::ProxyDataLost => Self::ProxyDataLost,
        }
    }
}

/// A loss that was noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Its kind.
    pub cause: Cause,
    /// What happened.
    pub why: String,
}

impl Loss {
    /// A loss of this kind.
    #[must_use]
    pub fn new(cause: Cause, why: impl Into<String>) -> Self {
        Self { cause, why: why.into() }
    }
}

/// Why the log cannot be the continuation of what was shipped, if so.
#[must_use]
pub fn lost(status: &Status, history: &History) -> Option<Loss> {
    let (positions, marks) = (&status.positions, &history.marks);
    let (done, newest) = (marks.done.lsid, marks.newest().lsid);
    if status.overflow {
        let why = "the log overflowed: logs were overwritten before they were shipped";
        return Some(Loss::new(Cause::Overflow, why));
    }
    if status.log_uuid != history.log_uuid {
        let (found, expected) = (status.log_uuid, history.log_uuid);
        let why = format!("the log was reset by somebody else: it is {found}, not {expected}");
        return Some(Loss::new(Cause::LogReset, why));
    }
    if done < positions.oldest {
        let oldest = positions.oldest;
        let why = format!("logs up to lsid {oldest} were released, shipped are those to {done}");
        return Some(Loss::new(Cause::Overflow, why));
    }
    if newest > positions.latest {
        let latest = positions.latest;
        let why = format!("the log ends at lsid {latest}, a snapshot was taken at {newest}");
        return Some(Loss::new(Cause::LogReset, why));
    }
    None
}
