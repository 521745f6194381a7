//! What redo does with each pack after a crash (`formats.md` §4.6), without doing it.
//!
//! The log of a device has no end mark: it ends at the first block that is not the header expected
//! there, or inside a pack whose data is damaged. Whoever redoes pushes the ring's bytes from
//! `written_lsid` on into a [`PackDecoder`] and asks for [`step`]s:
//!
//! 1. [`Step::Whole`]: apply its I/Os, go on.
//! 2. [`Step::Shrunk`]: apply its I/Os, write its header over the one in the ring; the log ends
//!    behind it.
//! 3. [`Step::End`]: the log ends here.
//!
//! Then all blocks of [`stale_span`] for which [`is_header_at`] holds are overwritten
//! with zeros. Packs that were written behind the damage stay valid in themselves; if the log
//! later grew to end just before one of them, the next redo would take it for the continuation and
//! apply writes that were never acknowledged (or long overwritten). The original has this fault.
//!
//! Order: data device flushed, ring flushed, and only then the super sector with `written` at the
//! end. Killed anywhere in between, redo finds the same end again.
//!
//! [`is_header_at`]: crate::pack::is_header_at

use crate::pack::PackError;
use crate::ring::Ring;
use crate::stream::{DecodeError, Pack, PackDecoder};
use crate::units::{Lsid, Pb};

/// What to do next.
#[derive(Debug)]
pub enum Step {
    /// A sound pack: apply it and go on.
    Whole(Pack),
    /// The sound part of the last pack: apply it, rewrite its header, then stop.
    Shrunk {
        /// The records before the damage, under the new header.
        pack: Pack,
        /// How many records were cut off.
        lost: usize,
    },
    /// The log ends at this lsid.
    End {
        /// The new `written_lsid`.
        lsid: Lsid,
        /// What was found there instead of a pack.
        reason: DecodeError,
    },
}

/// The next step, or `None` when the decoder needs more bytes ([`PackDecoder::missing_bytes`]).
///
/// An end block is an end like any other. After [`Step::Shrunk`] or [`Step::End`] nothing follows.
pub fn step(decoder: &mut PackDecoder) -> Option<Step> {
    let lsid = decoder.next_lsid();
    match decoder.next_pack() {
        Ok(Some(pack)) => Some(Step::Whole(pack)),
        Ok(None) if decoder.is_ended() => {
            let source = PackError::Terminator;
            Some(Step::End { lsid, reason: DecodeError::Header { lsid, source } })
        }
        Ok(None) => None,
        Err(DecodeError::Data(torn)) if torn.first_bad() > 0 => {
            let lost = torn.header().records().len() - torn.first_bad();
            torn.shrink().map(|pack| Step::Shrunk { pack, lost })
        }
        Err(reason) => Some(Step::End { lsid, reason }),
    }
}

/// How many blocks from the new `end` of the log on may hold stale headers: the whole ring but for
/// the blocks of the packs that redo has just read.
///
/// A writer that knows an upper bound of what it had in flight needs to look no further than that.
#[must_use]
pub fn stale_span(ring: &Ring, written: Lsid, end: Lsid) -> Pb {
    Pb(ring.size().0.saturating_sub(end.distance_from(written).0))
}
