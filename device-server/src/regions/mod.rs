//! The map of regions written since: which parts of a volume differ, at most, from what a backup
//! has that ends at a position of the log. With it a hash backup after lost logs reads and compares
//! these regions only.
//!
//! A volume has at most 65,536 regions of equal size. Each remembers the [`Position`] behind the
//! last write to it. A position is an lsid plus the base of its log, and the base grows at each log
//! reset by the length of the log before, so positions never go back:
//!
//! ```text
//!  log A, lsid 0 ....... 700 | log B, lsid 0 .... 40 | log C, lsid 0 ...
//!  base 0                    | base 700              | base 740
//! ```
//!
//! What holds:
//! - An answer is a superset of what was written since, or [`Unknown`]; never less. A write is
//!   marked before it is acknowledged. Discards and zeroes are writes, and so is a part by which
//!   the volume grew.
//! - The file on disk ([`file`]) is complete up to its `covered` position. It is stored before each
//!   super block that moves `written` ([`keeper`]), so `written <= covered`, and redo from
//!   `written` on marks the rest. A super block that is further was written by somebody who did not
//!   keep the map: then all before is unknown.
//! - A log reset is entered into the file before the super block with the new uuid is written. A
//!   crash in between leaves an entry for a log that never was: it is dropped at the next start.
//! - A state directory that fails does not stop the volume: the map in memory goes on, and the file
//!   is stale in a way that the next start sees.

mod file;
mod history;
mod keeper;
mod map;

use std::ops::Range;
use std::sync::Arc;

use wlog_format::superblock::SuperBlock;
use wlog_format::units::{Lb, LogUuid, Lsid};

use file::Stored;
use history::History;
pub use history::Unknown;
pub(crate) use keeper::RegionKeeper;
use map::RegionMap;

/// Physical blocks logged since the map began, over all log resets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position(u64);

impl Position {
    /// `blocks` further. 2^64 blocks are never written.
    const fn plus(self, blocks: u64) -> Self {
        Self(self.0.saturating_add(blocks))
    }
}

/// What was written since a position of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenRegions {
    /// The granularity in bytes.
    pub region_bytes: u64,
    /// Ranges of bytes, ascending and not touching.
    pub ranges: Vec<Range<u64>>,
}

/// The map of one volume, and the logs that its positions belong to.
#[derive(Clone, Debug)]
pub(crate) struct Regions {
    map: Arc<RegionMap>,
    history: History,
}

impl Regions {
    /// A map that knows nothing of what was before `written` of this log.
    fn begin(super_block: &SuperBlock, why: String) -> Self {
        let map = Arc::new(RegionMap::new(super_block.device_size));
        Self { map, history: History::begin(super_block.uuid, super_block.written, why) }
    }

    /// Goes on with what was stored, as far as it fits the log that is there.
    fn resume(stored: Stored, super_block: &SuperBlock) -> Self {
        let Stored { map, mut history, covered } = stored;
        if let Err(why) = history.resume(super_block.uuid, super_block.written, covered) {
            return Self::begin(super_block, why);
        }
        Self { map: Arc::new(map), history }
    }

    /// Redo has marked everything up to `end`, where the present log ends now. The volume has
    /// `size` blocks; it may have grown when the map was not stored any more.
    fn settle(&mut self, size: Lb, end: Lsid, covered: Position) {
        if self.history.position(end) < covered {
            self.history.went_back(covered);
        }
        self.grow(size, end);
    }

    /// A write of a pack that ends at `end` of the present log. No lock, no allocation.
    pub(crate) fn mark(&self, start: Lb, blocks: Lb, end: Lsid) {
        self.map.mark(start, blocks, self.history.position(end));
    }

    /// Everything counts as written after `latest`.
    pub(crate) fn mark_all(&self, latest: Lsid) {
        self.map.mark_all(self.history.position(latest).plus(1));
    }

    /// The volume has `size` blocks from now on; what is new counts as written after `latest`.
    pub(crate) fn grow(&mut self, size: Lb, latest: Lsid) {
        if size > self.map.size() {
            let written = self.history.position(latest).plus(1);
            self.map = Arc::new(self.map.grown(size, written));
        }
    }

    /// A new log follows on the present one, which ends at `latest`.
    pub(crate) fn begin_log(&mut self, uuid: LogUuid, latest: Lsid) {
        self.history.begin_log(uuid, latest);
    }

    /// What was written at or after `since` of the log `uuid`. The present log ends at `latest`.
    pub(crate) fn since(
        &self,
        uuid: LogUuid,
        since: Lsid,
        latest: Lsid,
        size: Lb,
    ) -> Result<WrittenRegions, Unknown> {
        let position = self.history.find(uuid, since, latest)?;
        let ranges = self.map.since(position, size.bytes());
        Ok(WrittenRegions { region_bytes: self.map.region_bytes(), ranges })
    }
}

#[cfg(test)]
mod tests;
