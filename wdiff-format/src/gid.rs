//! Snapshots and the diffs between them (`semantics.md` §2): what may be applied to what, what
//! merges with what, and what comes out of it. Pure values; nothing here knows of files.
//!
//! Invariants, held by the constructors: a snapshot has `begin <= end`; a diff makes progress
//! (`begin.begin < end.begin` and `begin.end <= end.end`, §2.2); a base image that is being applied
//! makes progress as well.

use std::fmt;

/// Generation id: a position in the history of a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid(pub u64);

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a value of the algebra cannot exist, or an operation on two of them is not allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GidError {
    /// A snapshot that ends before it begins.
    #[error("no snapshot |{0},{1}|: it ends before it begins")]
    Backwards(Gid, Gid),
    /// A diff that breaks the progress rule (§2.2).
    #[error("no diff {0}-->{1}: it makes no progress")]
    NoProgress(Snapshot, Snapshot),
    /// A diff that is older or newer than the snapshot, or a comparison diff of another one.
    #[error("diff {1} cannot be applied to {0}")]
    NotApplicable(Snapshot, Diff),
    /// Two diffs that do not merge (§2.5).
    #[error("diff {1} cannot be merged into {0}")]
    NotMergeable(Diff, Diff),
}

/// The state of an image: exact when clean, else each block is of some time within the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Snapshot {
    begin: Gid,
    end: Gid,
}

impl Snapshot {
    /// Fails when `end < begin`.
    pub fn new(begin: Gid, end: Gid) -> Result<Self, GidError> {
        if begin <= end { Ok(Self { begin, end }) } else { Err(GidError::Backwards(begin, end)) }
    }

    /// The exact point in time `gid`.
    #[must_use]
    pub const fn clean(gid: Gid) -> Self {
        Self { begin: gid, end: gid }
    }

    /// The gid up to which every write is in the image.
    #[must_use]
    pub const fn begin(self) -> Gid {
        self.begin
    }

    /// The gid after which no write is in the image.
    #[must_use]
    pub const fn end(self) -> Gid {
        self.end
    }

    /// Whether this is an exact point in time.
    #[must_use]
    pub fn is_clean(self) -> bool {
        self.begin == self.end
    }

    /// Where `diff` stands to this snapshot (§2.3).
    #[must_use]
    pub fn relation(self, diff: &Diff) -> Relation {
        if diff.comparison {
            return if diff.begin.begin == self.begin {
                Relation::Applicable
            } else {
                Relation::OtherStart
            };
        }
        if diff.begin.begin > self.begin {
            Relation::TooNew
        } else if diff.end.begin <= self.begin {
            Relation::TooOld
        } else {
            Relation::Applicable
        }
    }

    /// The snapshot after `diff` (§2.4); fails when it is not applicable.
    pub fn apply(self, diff: &Diff) -> Result<Self, GidError> {
        if self.relation(diff) != Relation::Applicable {
            return Err(GidError::NotApplicable(self, *diff));
        }
        Ok(diff.end_after(self.end))
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            write!(f, "|{}|", self.begin)
        } else {
            write!(f, "|{},{}|", self.begin, self.end)
        }
    }
}

/// Where a diff stands to a snapshot (§2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It leads from the snapshot to a later one.
    Applicable,
    /// The snapshot has all of it.
    TooOld,
    /// Something between the snapshot and the diff is missing.
    TooNew,
    /// A comparison diff that was made from another snapshot.
    OtherStart,
}

/// The metadata of a wdiff: it leads from `begin` to `end`.
///
/// Two diffs are equal when their ends are; flags, time and size do not count (§2.1).
#[derive(Clone, Copy, Debug)]
pub struct Diff {
    begin: Snapshot,
    end: Snapshot,
    /// The snapshot at `begin` need not be kept: this diff may be merged into its predecessor.
    pub mergeable: bool,
    /// Made by comparing two images: applies to exactly its own start and never merges.
    pub comparison: bool,
    /// Unix seconds of the snapshot *after* applying it.
    pub timestamp: u64,
    /// Bytes of the file; advisory.
    pub size: u64,
}

impl Diff {
    /// A diff that is not mergeable, of no comparison, with time and size 0. Fails when it would
    /// make no progress (§2.2).
    pub fn new(begin: Snapshot, end: Snapshot) -> Result<Self, GidError> {
        if begin.begin < end.begin && begin.end <= end.end {
            Ok(Self { begin, end, mergeable: false, comparison: false, timestamp: 0, size: 0 })
        } else {
            Err(GidError::NoProgress(begin, end))
        }
    }

    /// [`Diff::new`] between two clean snapshots.
    pub fn clean(begin: Gid, end: Gid) -> Result<Self, GidError> {
        Self::new(Snapshot::clean(begin), Snapshot::clean(end))
    }

    /// The same diff with another flag.
    #[must_use]
    pub const fn with_mergeable(mut self, mergeable: bool) -> Self {
        self.mergeable = mergeable;
        self
    }

    /// The snapshot that it was made from.
    #[must_use]
    pub const fn begin(&self) -> Snapshot {
        self.begin
    }

    /// The snapshot that it leads to.
    #[must_use]
    pub const fn end(&self) -> Snapshot {
        self.end
    }

    /// Whether both ends are clean.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.begin.is_clean() && self.end.is_clean()
    }

    /// Whether `next` may be merged onto this diff (§2.5). The flag of `self` is not consulted.
    #[must_use]
    pub fn merges_with(&self, next: &Self) -> bool {
        next.mergeable
            && !self.comparison
            && !next.comparison
            && self.begin.begin <= next.begin.begin
            && next.begin.begin <= self.end.begin
            && self.end.begin < next.end.begin
    }

    /// This diff with `next` on top (§2.5); the size of the result is 0 until it is written.
    pub fn merge(&self, next: &Self) -> Result<Self, GidError> {
        if !self.merges_with(next) {
            return Err(GidError::NotMergeable(*self, *next));
        }
        let mut merged = Self::new(self.begin, next.end_after(self.end.end))?;
        merged.mergeable = self.mergeable;
        merged.timestamp = next.timestamp;
        Ok(merged)
    }

    /// Whether `other` is redundant next to this diff (§2.6).
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.begin.begin <= other.begin.begin && other.end.begin <= self.end.begin
    }

    /// The snapshot after this diff on an image that may hold writes up to `end`.
    fn end_after(&self, end: Gid) -> Snapshot {
        if self.is_clean() {
            Snapshot { begin: self.end.begin, end: self.end.begin.max(end) }
        } else {
            self.end
        }
    }
}

impl PartialEq for Diff {
    fn eq(&self, other: &Self) -> bool {
        (self.begin, self.end) == (other.begin, other.end)
    }
}

impl Eq for Diff {}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-->{}", self.begin, self.end)
    }
}

/// The state of a base image (`MetaState`, §2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaseState {
    snapshot: Snapshot,
    applying_to: Option<Snapshot>,
    /// Unix seconds of the snapshot that it is at, or is going to.
    pub timestamp: u64,
}

impl BaseState {
    /// An image that is at `snapshot`.
    #[must_use]
    pub const fn at(snapshot: Snapshot, timestamp: u64) -> Self {
        Self { snapshot, applying_to: None, timestamp }
    }

    /// An image on its way from `from` to `to`: its blocks are of both. Fails without progress.
    pub fn applying(from: Snapshot, to: Snapshot, timestamp: u64) -> Result<Self, GidError> {
        if from.begin < to.begin {
            Ok(Self { snapshot: from, applying_to: Some(to), timestamp })
        } else {
            Err(GidError::NoProgress(from, to))
        }
    }

    /// Where the image is, or started from while it is being applied.
    #[must_use]
    pub const fn snapshot(&self) -> Snapshot {
        self.snapshot
    }

    /// Where an unfinished apply goes to.
    #[must_use]
    pub const fn applying_to(&self) -> Option<Snapshot> {
        self.applying_to
    }

    /// Whether `diffs`, applied one after the other, make a whole image (§2.7).
    #[must_use]
    pub fn can_apply(&self, diffs: &[Diff]) -> bool {
        match walk(self.snapshot, diffs) {
            Ok(after) => self.applying_to.is_none_or(|to| to.begin <= after.begin),
            Err(_) => false,
        }
    }

    /// The state while `diffs` are written; the start of an unfinished apply stays.
    pub fn begin_apply(&self, diffs: &[Diff]) -> Result<Self, GidError> {
        let timestamp = diffs.last().map_or(self.timestamp, |d| d.timestamp);
        Self::applying(self.snapshot, walk(self.snapshot, diffs)?, timestamp)
    }

    /// The state after `diffs` have been written.
    pub fn end_apply(&self, diffs: &[Diff]) -> Result<Self, GidError> {
        let timestamp = diffs.last().map_or(self.timestamp, |d| d.timestamp);
        Ok(Self::at(walk(self.snapshot, diffs)?, timestamp))
    }
}

impl fmt::Display for BaseState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.applying_to {
            Some(to) => write!(f, "<{}-->{to}>", self.snapshot),
            None => write!(f, "<{}>", self.snapshot),
        }
    }
}

/// The snapshot after all of `diffs`, one after the other.
pub fn walk(from: Snapshot, diffs: &[Diff]) -> Result<Snapshot, GidError> {
    diffs.iter().try_fold(from, |at, diff| at.apply(diff))
}
