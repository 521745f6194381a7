//! Which position of which log belongs to which gid, for what was shipped: so that the device can
//! be asked what was written since the snapshot that the archive has.
//!
//! Invariants: what [`Ledger::find`] answers is never beyond the true position, so that a question
//! with it may name too many blocks but never too few; the size is bounded, points in between are
//! dropped first.

use serde::{Deserialize, Serialize};
use wdiff_format::gid::Gid;
use wlog_format::units::{LogUuid, Lsid};

/// Logs that are remembered.
pub const MAX_LOGS: usize = 4;
/// Points of one log.
pub const MAX_POINTS: usize = 64;

/// All that is remembered, oldest log first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    #[serde(default)]
    logs: Vec<Log>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Log {
    #[serde(with = "crate::book::hex_uuid")]
    uuid: LogUuid,
    /// Pairs of gid and lsid, both ascending.
    points: Vec<(u64, u64)>,
}

impl Ledger {
    /// No log yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.logs.is_empty()
    }

    /// Everything below `lsid` of this log is what snapshot `gid` holds.
    pub fn note(&mut self, uuid: LogUuid, gid: Gid, lsid: Lsid) {
        if self.logs.last().is_none_or(|log| log.uuid != uuid) {
            self.logs.retain(|log| log.uuid != uuid);
            self.logs.push(Log { uuid, points: Vec::new() });
            if self.logs.len() > MAX_LOGS {
                self.logs.remove(0);
            }
        }
        if let Some(log) = self.logs.last_mut() {
            log.points.push((gid.0, lsid.0));
            if log.points.len() > MAX_POINTS {
                let mut index = 0;
                log.points.retain(|_| {
                    index += 1;
                    index % 2 == 1
                });
            }
        }
    }

    /// A position of the log at or before snapshot `gid`; `None`: unknown.
    #[must_use]
    pub fn find(&self, uuid: LogUuid, gid: Gid) -> Option<Lsid> {
        let log = self.logs.iter().find(|log| log.uuid == uuid)?;
        log.points.iter().rev().find(|point| point.0 <= gid.0).map(|point| Lsid(point.1))
    }

    /// The archive has snapshot `gid`: what is older is not needed any more.
    pub fn trim(&mut self, uuid: LogUuid, gid: Gid) {
        let Some(at) = self.logs.iter().position(|log| log.uuid == uuid) else { return };
        self.logs.drain(..at);
        if let Some(log) = self.logs.first_mut() {
            let known = log.points.iter().rposition(|point| point.0 <= gid.0).unwrap_or(0);
            log.points.drain(..known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_logs_that_are_remembered_are_known() {
        let (first, second) = (LogUuid::random(), LogUuid::random());
        let mut ledger = Ledger::default();
        ledger.note(first, Gid(0), Lsid(0));
        ledger.note(first, Gid(3), Lsid(40));
        ledger.note(second, Gid(9), Lsid(0));
        assert_eq!(ledger.find(first, Gid(2)), Some(Lsid(0)));
        assert_eq!(ledger.find(first, Gid(7)), Some(Lsid(40)));
        assert_eq!(ledger.find(second, Gid(8)), None, "before its first snapshot");
        assert_eq!(ledger.find(LogUuid::random(), Gid(9)), None);
        ledger.trim(first, Gid(5));
        assert_eq!(ledger.find(first, Gid(2)), None);
        assert_eq!(ledger.find(first, Gid(5)), Some(Lsid(40)));
        ledger.trim(second, Gid(9));
        assert_eq!(ledger.find(first, Gid(5)), None);
        for i in 0..MAX_LOGS {
            ledger.note(LogUuid::random(), Gid(i as u64), Lsid(0));
        }
        assert_eq!(ledger.find(second, Gid(9)), None);
        assert_eq!(ledger.logs.len(), MAX_LOGS);
    }

    proptest! {
        #[test]
        fn an_answer_is_never_beyond_the_truth_and_the_size_is_bounded(
            steps in prop::collection::vec((1u64..5, 0u64..50), 1..400),
            asked in any::<prop::sample::Index>(), trimmed in any::<prop::sample::Index>(),
        ) {
            let uuid = LogUuid::random();
            let (mut ledger, mut gid, mut lsid) = (Ledger::default(), 0, 0);
            let mut truth = Vec::new();
            let trim_at = trimmed.index(steps.len());
            for (i, (gids, log)) in steps.iter().enumerate() {
                (gid, lsid) = (gid + gids, lsid + log);
                truth.push((gid, lsid));
                ledger.note(uuid, Gid(gid), Lsid(lsid));
                if i == trim_at {
                    ledger.trim(uuid, Gid(gid));
                }
                prop_assert!(ledger.logs[0].points.len() <= MAX_POINTS);
            }
            let (gid, lsid) = truth[asked.index(truth.len())];
            if let Some(found) = ledger.find(uuid, Gid(gid)) {
                prop_assert!(found.0 <= lsid);
            }
            prop_assert_eq!(ledger.find(uuid, Gid(truth[0].0 - 1)), None);
            if truth.len() <= MAX_POINTS {
                let (gid, lsid) = truth[truth.len() - 1];
                prop_assert_eq!(ledger.find(uuid, Gid(gid)), Some(Lsid(lsid)));
            }
        }
    }
}
