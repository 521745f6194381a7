//! Index runs: which record of which wdiff holds a block, for any snapshot, found without reading
//! the wdiffs.
//!
//! A run covers some diffs of a volume and has an entry for each piece of each of their records,
//! also for those that newer diffs hide: whoever reads says which diffs count. Records are cut into
//! pieces of 2^class blocks that lie at multiples of their size, and entries are sorted by class,
//! address, and newest diff first. So the entry of a class that holds a block is at one address
//! only, and the first one there whose diff counts hides all others of its class. A read looks for
//! it in each class that a run has, and lays what it found over each other, oldest first
//! ([`overlay`]).
//!
//! ```text
//!  wdiff --locate--> entries --RunWriter--> run --+--merge--> run
//!                                           run --+
//!                                            `--Run::newest--> candidates --overlay--> pieces
//! ```
//!
//! Invariants: keys ascend without equals; the diffs of a run ascend in the order of
//! [`DiffSet`](crate::diff_set::DiffSet), which is that in which they are applied; every block of a
//! run is checked before its content is used (I8). Runs can be made again from the wdiffs, so a run
//! of another version, or with any damage, is simply not used.

mod entry;
mod found;
mod layout;
mod merge;
mod run;
mod writer;

pub use entry::{Covered, Entry, Key};
pub use found::{Piece, overlay};
pub use layout::BLOCK_BYTES;
pub use merge::{Input, merge};
pub use run::{BlockCache, Reach, Run, Wanted};
pub use writer::RunWriter;

use std::io;
use std::sync::Arc;

/// What is wrong with a run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The operating system says so.
    #[error("{file}: reading block {block} failed")]
    Io {
        /// The name that the run was opened under.
        file: Arc<str>,
        /// Number of the block.
        block: u64,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// It contradicts a checksum or the format, or is of another version.
    #[error("{file}: block {block}: {what}")]
    Unusable {
        /// The name that the run was opened under.
        file: Arc<str>,
        /// Number of the block.
        block: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// What is needed of it is not in memory, and the disk must not be waited for.
    #[error("a block of an index run is not in memory")]
    OutOfReach,
    /// It cannot be written.
    #[error("an index run cannot be written")]
    Write(#[source] io::Error),
    /// Entries were given in an order that no run can have: a bug of ours.
    #[error("the entries of an index run do not ascend at block {0}")]
    Order(u64),
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]
mod tests;
