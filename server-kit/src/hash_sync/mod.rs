//! Hash sync: one side has an image, the other one a device (or an image); what differs travels
//! (`semantics.md` §3.9, §5.12).
//!
//! ```text
//!   archive                                              sender
//!   image -> cells -> tree --hashes of bulks----------->  compares with the tree of its own cell
//!            [`answer`]    <--which bulks differ--------  [`send`]
//!                          --hashes of their parts----->
//!                          <--which parts differ--------
//!                          --hashes of their blocks---->
//!            sink          <--a sorted wdiff of the blocks that differ, in chunks
//! ```
//! A cell is hashed once, block by block; the hash of a larger range is the hash of the hashes in
//! it: 16 bytes for bulks, and 8 for the parts of a range that is known to differ; should all parts
//! of such a range look equal, all are sent. A range that is but one part is not asked about.
//!
//! The hash is HighwayHash with the session's seed, 32 random bytes, as key. Who writes to a volume
//! must not be able to make blocks that look equal here, and does not know the key; so a keyed
//! pseudorandom function is enough, and at 4 KiB this one hashes 10 GB/s a core where BLAKE3 hashes
//! 4. Faster ones (XXH3) take a seed, but are not made to keep it from anybody. Hashes that are
//! kept, or compared by more than two (drill, repair), have no secret key: they are BLAKE3.
//!
//! Why these sizes: with 1 % of 4 KiB blocks changed at random, what is not data on the wire must
//! stay below 5 % of what is. Each level a quarter of the one above, from 256 KiB to 4 KiB, costs
//! 2.7 %, as questions tell distances; two levels cost 5.4 % at best. The wdiff's own headers cost
//! 1.2 %, the frames of the connection up to 0.8 %. An equal volume costs 64 bytes per MiB.
//!
//! Invariants: memory is bounded on both sides ([`WINDOW_BYTES`], [`MEMORY_BYTES`]) however large
//! the device and however slow the peer is; cells are compared in order, so the wdiff is sorted;
//! both sides mean the same by what they say ([`PROTOCOL`]).

mod answer;
mod send;
mod tree;

pub use answer::{QUESTIONS_MAX, Replies, answer};
pub use send::{MEMORY_BYTES, Sending, Sent, send};
pub use tree::{BLOCK_BYTES, LEVELS, Seed};

use crate::error::RoleError;
use crate::scan;
use proto::v1::HashSyncStart;
use std::ops::Range;
use wlog_format::units::Lb;

/// How sessions compare; other numbers are refused. A change of the hash, of the levels, or of
/// what messages mean is another protocol.
pub const PROTOCOL: u32 = 1;

/// How much one side hashes ahead of what the other has compared.
pub const WINDOW_BYTES: u64 = 512 << 20;

/// What a session compares: runs of whole grains ([`scan::GRAIN_BYTES`]).
///
/// # Errors
/// The size is beyond what bytes can say.
pub fn spans(start: &HashSyncStart) -> Result<Vec<Range<u64>>, RoleError> {
    let size = start.size_lb.checked_mul(Lb(1).bytes());
    let beyond = || RoleError::wrong_size(format!("no device has {} blocks", start.size_lb));
    let size = size.ok_or_else(beyond)?;
    Ok(if start.only_ranges { scan::covering(&start.ranges, size) } else { scan::whole(size) })
}
