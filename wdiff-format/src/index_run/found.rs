//! From the entries that hold a range to what is seen of them.

use wlog_format::units::Lb;

use super::RunError;
use super::entry::Entry;
use super::run::{Reach, Run, Wanted};
use crate::locate::StoredImage;
use crate::record::RecordKind;
use crate::split::{CutRule, MaxIo, Overlay, Span};

/// An entry that may be seen, and the position of its diff among the wanted ones.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) position: u32,
    pub(super) entry: Entry,
}

/// Blocks that one record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First logical block.
    pub start: Lb,
    /// Logical blocks, at least 1.
    pub blocks: u64,
    /// Position of the diff among the wanted ones.
    pub position: u32,
    /// What the blocks hold.
    pub kind: RecordKind,
    /// The data that they are a part of.
    pub image: StoredImage,
    /// Where in it the piece begins, in logical blocks.
    pub skip: u32,
}

impl Piece {
    /// The block after the last one.
    #[must_use]
    pub const fn end(&self) -> Lb {
        Lb(self.start.0 + self.blocks)
    }

    /// Whether `next` goes on where this one ends, in the same data.
    fn goes_on(&self, next: &Self) -> bool {
        let one = self.end() == next.start && self.kind == next.kind;
        let here = u64::from(self.skip) + self.blocks;
        match self.kind {
            RecordKind::Normal => {
                one && (self.position, self.image) == (next.position, next.image)
                    && here == next.skip.into()
            }
            RecordKind::AllZero | RecordKind::Discard => one,
        }
    }
}

/// A part of an entry.
struct Part {
    blocks: u32,
    before: u32,
    of: Candidate,
}

impl Span for Part {
    fn blocks(&self) -> u32 {
        self.blocks
    }

    fn cut(&self, skip: u32, blocks: u32) -> Self {
        Self { blocks, before: self.before + skip, of: self.of }
    }
}

/// What the wanted diffs of some runs say of the blocks `from..to`: disjoint pieces, ascending.
/// What lies between them no wanted diff has.
///
/// # Errors
/// A run cannot be read, is damaged, or out of `reach`.
pub fn overlay<'a>(
    runs: impl IntoIterator<Item = (&'a Run, &'a Wanted)>,
    from: Lb,
    to: Lb,
    reach: Reach,
) -> Result<Vec<Piece>, RunError> {
    let mut found = Vec::new();
    for (run, wanted) in runs {
        run.find(wanted, (from, to), reach, &mut found)?;
    }
    // The same diff may be covered twice; what it has is the same then.
    found.sort_unstable_by_key(|c| (c.position, c.entry.key.address));
    let mut seen = Overlay::new();
    for candidate in found {
        let address = candidate.entry.key.address;
        let (start, end) =
            (address.max(from), Lb(address.0 + u64::from(candidate.entry.blocks())).min(to));
        // Both are inside of the entry, whose blocks have 32 bits.
        let before = u32::try_from(start.0 - address.0).unwrap_or(u32::MAX);
        let blocks = u32::try_from(end.0.saturating_sub(start.0)).unwrap_or(u32::MAX);
        if blocks > 0 {
            seen.insert(start, Part { blocks, before, of: candidate });
        }
    }
    let mut pieces: Vec<Piece> = Vec::new();
    for (start, Part { blocks, before, of }) in seen.into_records(CutRule::Sequential(MaxIo::NONE))
    {
        let Candidate { position, entry: Entry { kind, image, skip, .. } } = of;
        let skip = if kind == RecordKind::Normal { skip + before } else { 0 };
        let next = Piece { start: Lb(start), blocks: blocks.into(), position, kind, image, skip };
        match pieces.last_mut() {
            Some(last) if last.goes_on(&next) => last.blocks += next.blocks,
            _ => pieces.push(next),
        }
    }
    Ok(pieces)
}
