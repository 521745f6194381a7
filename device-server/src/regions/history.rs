//! The logs that a volume had, and where each begins on the common scale of positions.
//!
//! Invariant: epochs are in order, the last is the present log, bases do not go down; what lies
//! before `floor` is unknown.

use wlog_format::units::{LogUuid, Lsid};

use super::Position;

/// Logs that are remembered.
pub(super) const MAX_EPOCHS: usize = 16;

/// Why a map cannot answer. The text says what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// No map is kept at all.
    #[error("no map of written regions is kept: start walb-device with --state-dir DIR")]
    NoStateDir,
    /// A log that the volume did not have, or so long ago that it is forgotten.
    #[error("the map of written regions does not know the log {0}")]
    UnknownLog(LogUuid),
    /// The map begins later.
    #[error("the map of written regions begins later: {0}")]
    BeforeMap(String),
    /// Nothing was logged there, so whoever asks speaks of another log.
    #[error("lsid {since} lies behind the end of that log, which is {end}")]
    BehindEnd {
        /// What was asked for.
        since: Lsid,
        /// Where the log ends.
        end: Lsid,
    },
}

/// A log and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    pub(super) uuid: LogUuid,
    /// The position of its lsid 0.
    pub(super) base: Position,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct History {
    /// The logs before the present one, oldest first.
    past: Vec<Epoch>,
    present: Epoch,
    /// What was written before is not known.
    floor: Position,
    /// Why the map does not reach back further.
    why: String,
}

impl History {
    /// Knows what comes after `from` of the log `uuid`.
    pub(super) fn begin(uuid: LogUuid, from: Lsid, why: String) -> Self {
        let present = Epoch { uuid, base: Position(0) };
        Self { past: Vec::new(), present, floor: Position(from.0), why }
    }

    /// From what a file says: epochs in order.
    pub(super) fn stored(mut epochs: Vec<Epoch>, floor: Position) -> Option<Self> {
        let ordered = epochs.is_sorted_by_key(|epoch| epoch.base);
        let present = epochs.pop()?;
        let why = "it was begun after that".to_owned();
        ordered.then_some(Self { past: epochs, present, floor, why })
    }

    pub(super) fn epochs(&self) -> impl Iterator<Item = &Epoch> {
        self.past.iter().chain([&self.present])
    }

    pub(super) const fn floor(&self) -> Position {
        self.floor
    }

    /// Where `lsid` of the present log lies.
    pub(super) const fn position(&self, lsid: Lsid) -> Position {
        self.present.base.plus(lsid.0)
    }

    /// Fits what was stored, complete up to `covered`, to the log that is on the log device.
    ///
    /// # Errors
    /// Why it is of no use.
    pub(super) fn resume(
        &mut self,
        uuid: LogUuid,
        written: Lsid,
        covered: Position,
    ) -> Result<(), String> {
        while self.present.uuid != uuid {
            // A reset that was cut short: the log that it announced has never been used.
            if covered > self.present.base {
                return Err(format!("an earlier log, {uuid}, is on the log device again"));
            }
            let Some(before) = self.past.pop() else {
                return Err(format!("another program began the log {uuid}"));
            };
            self.present = before;
        }
        if self.position(written) > covered {
            self.floor = self.position(written);
            "a program that does not keep the map has written meanwhile".clone_into(&mut self.why);
        }
        Ok(())
    }

    /// What redo found ends before what the map covers: lsids will be used a second time.
    pub(super) fn went_back(&mut self, covered: Position) {
        self.floor = covered.plus(1);
        "the log ends earlier than it once did".clone_into(&mut self.why);
    }

    pub(super) fn begin_log(&mut self, uuid: LogUuid, latest: Lsid) {
        let base = self.position(latest);
        self.past.push(std::mem::replace(&mut self.present, Epoch { uuid, base }));
        let forgotten = (self.past.len() + 1).saturating_sub(MAX_EPOCHS);
        self.past.drain(..forgotten);
    }

    /// The position of `since` in the log `uuid`, when everything behind it is known. The present
    /// log ends at `latest`.
    pub(super) fn find(
        &self,
        uuid: LogUuid,
        since: Lsid,
        latest: Lsid,
    ) -> Result<Position, Unknown> {
        let ends = self.epochs().skip(1).map(|next| next.base).chain([self.position(latest)]);
        let mut logs = self.epochs().zip(ends);
        let found = logs.find(|(epoch, _)| epoch.uuid == uuid);
        let (epoch, end) = found.ok_or(Unknown::UnknownLog(uuid))?;
        let position = epoch.base.plus(since.0);
        if position > end {
            return Err(Unknown::BehindEnd { since, end: Lsid(end.0 - epoch.base.0) });
        }
        if position < self.floor {
            return Err(Unknown::BeforeMap(self.why.clone()));
        }
        Ok(position)
    }
}
