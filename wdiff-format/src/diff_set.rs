//! The diffs of one volume, ordered, and every question that is asked about them (`semantics.md`
//! §2.8-§2.14): which diffs lead from a snapshot to another one, which merge, which are garbage.
//!
//! Picking the next diff takes O(log n). `all` holds every diff by its gids. `reach` holds those
//! normal diffs that can be picked at all: no other starts at or before them and goes further.
//! Sorted by start, their ends never go back, so the pick at gid g is simply the last one that
//! starts at or before g. Invariants: `reach` and `comparisons` are subsets of `all`; no two diffs
//! of the set are equal.

use crate::gid::{BaseState, Diff, Gid, GidError, Snapshot};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound;

/// Order of diffs: where a diff starts, then where it ends. The diffs of a walk ascend in it, and
/// equal diffs have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Order {
    begin: Gid,
    end: Gid,
    begin_dirty: Gid,
    end_dirty: Gid,
}

impl Order {
    /// That of a diff.
    #[must_use]
    pub fn of(diff: &Diff) -> Self {
        let (b, e) = (diff.begin(), diff.end());
        Self { begin: b.begin(), end: e.begin(), begin_dirty: b.end(), end_dirty: e.end() }
    }

    /// Gids of the diff: begin and end of the snapshot that it is from, then of the one that it
    /// leads to.
    #[must_use]
    pub const fn gids(&self) -> [Gid; 4] {
        [self.begin, self.begin_dirty, self.end, self.end_dirty]
    }

    /// Before every key that starts at `gid`.
    const fn first_at(gid: Gid) -> Self {
        Self { begin: gid, end: Gid(0), begin_dirty: Gid(0), end_dirty: Gid(0) }
    }

    /// Behind every key that starts at `gid`.
    const fn last_at(gid: Gid) -> Self {
        let max = Gid(u64::MAX);
        Self { begin: gid, end: max, begin_dirty: max, end_dirty: max }
    }
}

/// Why a set does not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiffSetError {
    /// An equal diff is in the set.
    #[error("diff {0} is there already")]
    Exists(Diff),
    /// No such snapshot can be made from this base image.
    #[error("gid {0} is no snapshot that {1} and its diffs lead to")]
    NoSnapshot(Gid, BaseState),
    /// The snapshot is a mixture of times: it cannot be restored.
    #[error("{0} is no clean snapshot")]
    Dirty(Snapshot),
    /// No diff starts at the gid, so its flag cannot be changed.
    #[error("no diff starts at gid {0}")]
    NoStart(Gid),
    /// The rules of single diffs.
    #[error(transparent)]
    Gid(#[from] GidError),
}

/// A snapshot that can be restored (§2.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestorePoint {
    /// The snapshot.
    pub gid: Gid,
    /// Its time in Unix seconds.
    pub timestamp: u64,
    /// Taken on purpose, or the latest one: merging keeps it.
    pub explicit: bool,
    /// Bytes of the diffs since the entry before.
    pub change_bytes: u64,
}

/// What there is to say of the diffs of a restore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestoreSummary {
    /// How many they are.
    pub count: usize,
    /// Sum of their sizes.
    pub bytes: u64,
    /// The time of the snapshot in Unix seconds.
    pub timestamp: u64,
    /// The first of them.
    pub first: Vec<Diff>,
}

/// The diffs of one volume.
#[derive(Clone, Debug, Default)]
pub struct DiffSet {
    all: BTreeMap<Order, Diff>,
    reach: BTreeMap<Order, Diff>,
    comparisons: BTreeMap<Order, Diff>,
    bytes: u64,
}

impl DiffSet {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of diffs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Sum of the sizes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.bytes
    }

    /// All diffs, by start.
    pub fn iter(&self) -> impl Iterator<Item = &Diff> {
        self.all.values()
    }

    /// All diffs behind `last` in their order; all for `None`.
    pub fn after(&self, last: Option<Order>) -> impl Iterator<Item = &Diff> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.all.range((from, Bound::Unbounded)).map(|(_, d)| d)
    }

    /// The diffs with `from <= start < to`.
    pub fn range(&self, from: Gid, to: Gid) -> impl Iterator<Item = &Diff> {
        let to = to.max(from);
        self.all.range(Order::first_at(from)..Order::first_at(to)).map(|(_, d)| d)
    }

    /// The stored diff that is equal to `diff`, with its own flags and time.
    #[must_use]
    pub fn get(&self, diff: &Diff) -> Option<&Diff> {
        self.all.get(&Order::of(diff))
    }

    /// Adds a diff; fails when an equal one is there.
    pub fn insert(&mut self, diff: Diff) -> Result<(), DiffSetError> {
        let key = Order::of(&diff);
        match self.all.entry(key) {
            Entry::Occupied(_) => return Err(DiffSetError::Exists(diff)),
            Entry::Vacant(slot) => slot.insert(diff),
        };
        self.bytes = self.bytes.saturating_add(diff.size);
        if diff.comparison {
            self.comparisons.insert(key, diff);
        } else {
            self.extend_reach(key, diff);
        }
        Ok(())
    }

    /// Takes a diff out; the one that was stored.
    pub fn remove(&mut self, diff: &Diff) -> Option<Diff> {
        let key = Order::of(diff);
        let removed = self.all.remove(&key)?;
        self.bytes = self.bytes.saturating_sub(removed.size);
        self.comparisons.remove(&key);
        if self.reach.remove(&key).is_some() {
            // What it hid starts before it ends.
            let hidden = self.all.range(Order::first_at(key.begin)..Order::first_at(key.end));
            let hidden: Vec<_> =
                hidden.filter(|(_, d)| !d.comparison).map(|(k, d)| (*k, *d)).collect();
            for (key, diff) in hidden {
                self.extend_reach(key, diff);
            }
        }
        Some(removed)
    }

    fn extend_reach(&mut self, key: Order, diff: Diff) {
        let before = self.reach.range(..key).next_back();
        let same_start = self.reach.range(key..=Order::last_at(key.begin)).next_back();
        if same_start.or(before).is_some_and(|(k, _)| k.end > key.end) {
            return;
        }
        let hidden = self.reach.range(key..).take_while(|(k, _)| k.end < key.end);
        let hidden: Vec<Order> = hidden.map(|(k, _)| *k).collect();
        for k in hidden {
            self.reach.remove(&k);
        }
        let shorter = self.reach.range(Order::first_at(key.begin)..key);
        let shorter: Vec<Order> =
            shorter.filter(|(k, _)| k.end < key.end).map(|(k, _)| *k).collect();
        for k in shorter {
            self.reach.remove(&k);
        }
        self.reach.insert(key, diff);
    }

    /// The diff to take next at `at`: of those that apply the one that goes furthest, then the one
    /// that starts last (§2.8).
    #[must_use]
    pub fn pick(&self, at: Snapshot) -> Option<Diff> {
        self.chain(at).next().map(|(diff, _)| diff)
    }

    /// The greedy walk from `from`: each diff with the snapshot after it. Whole walks take O(n).
    pub fn chain(&self, from: Snapshot) -> impl Iterator<Item = (Diff, Snapshot)> {
        let mut at = from;
        let start = Order::last_at(from.begin());
        let mut normal = self.reach.range(..=start).next_back();
        // The gids of a walk only grow, so all of them are passed once.
        let mut ahead = self.reach.range((Bound::Excluded(start), Bound::Unbounded)).peekable();
        let mut compared = self.comparisons.range(Order::first_at(from.begin())..).peekable();
        std::iter::from_fn(move || {
            let gid = at.begin();
            while let Some(next) = ahead.next_if(|(k, _)| k.begin <= gid) {
                normal = Some(next);
            }
            let mut best = normal.filter(|(k, _)| k.end > gid);
            while let Some(next) = compared.next_if(|(k, _)| k.begin <= gid) {
                // It applies to its own start only, from where no normal one starts later.
                let further = best.is_none_or(|(k, _)| k.end <= next.0.end);
                if next.0.begin == gid && further {
                    best = Some(next);
                }
            }
            let (_, diff) = best?;
            at = at.apply(diff).ok()?;
            Some((*diff, at))
        })
    }

    /// The walk from `from` while it stays at or below `gid`.
    #[must_use]
    pub fn up_to(&self, from: Snapshot, gid: Gid) -> Vec<Diff> {
        self.chain(from).take_while(|(_, at)| at.begin() <= gid).map(|(d, _)| d).collect()
    }

    /// The walk from `from` while its diffs are not later than `timestamp`.
    #[must_use]
    pub fn by_time(&self, from: Snapshot, timestamp: u64) -> Vec<Diff> {
        self.chain(from).map(|(d, _)| d).take_while(|d| d.timestamp <= timestamp).collect()
    }

    /// The diffs that an unfinished apply still needs, all together (§2.8).
    #[must_use]
    pub fn minimum(&self, base: &BaseState) -> Vec<Diff> {
        base.applying_to().map_or_else(Vec::new, |to| self.up_to(base.snapshot(), to.begin()))
    }

    /// The latest snapshot that `base` and the diffs lead to, with its time.
    #[must_use]
    pub fn latest(&self, base: &BaseState) -> (Snapshot, u64) {
        let last = self.chain(base.snapshot()).last();
        last.map_or((base.snapshot(), base.timestamp), |(d, at)| (at, d.timestamp))
    }

    /// The diffs that make the clean snapshot `gid` of a copy of the base image (§2.9).
    pub fn restore_list(&self, base: &BaseState, gid: Gid) -> Result<Vec<Diff>, DiffSetError> {
        let (list, reached) = self.list_to(base, gid)?;
        if reached.is_clean() { Ok(list) } else { Err(DiffSetError::Dirty(reached)) }
    }

    /// What there is to say of [`Self::restore_list`], with its first `most` diffs. Where the list
    /// is long, making it takes longer than the walk: fresh memory is slow.
    pub fn restore_summary(
        &self,
        base: &BaseState,
        gid: Gid,
        most: usize,
    ) -> Result<RestoreSummary, DiffSetError> {
        let (count, bytes, first, timestamp) = (0, 0, Vec::new(), base.timestamp);
        let mut summary = RestoreSummary { count, bytes, timestamp, first };
        let reached = self.walk_to(base, gid, |diff| {
            summary.count += 1;
            summary.bytes = summary.bytes.saturating_add(diff.size);
            summary.timestamp = diff.timestamp;
            if summary.first.len() < most {
                summary.first.push(diff);
            }
        })?;
        if reached.is_clean() { Ok(summary) } else { Err(DiffSetError::Dirty(reached)) }
    }

    /// As [`Self::restore_list`], but a dirty snapshot will do (virtual scan, §2.9).
    pub fn scan_list(&self, base: &BaseState, gid: Gid) -> Result<Vec<Diff>, DiffSetError> {
        self.list_to(base, gid).map(|(list, _)| list)
    }

    /// The diffs that lead to the snapshot that begins at `gid`, and that snapshot.
    fn list_to(&self, base: &BaseState, gid: Gid) -> Result<(Vec<Diff>, Snapshot), DiffSetError> {
        // No more than start before it.
        let mut list = Vec::with_capacity(self.reach.len() + self.comparisons.len());
        let reached = self.walk_to(base, gid, |diff| list.push(diff))?;
        Ok((list, reached))
    }

    /// Takes each diff that leads to the snapshot that begins at `gid`; that snapshot.
    fn walk_to(
        &self,
        base: &BaseState,
        gid: Gid,
        mut take: impl FnMut(Diff),
    ) -> Result<Snapshot, DiffSetError> {
        let mut reached = base.snapshot();
        for (diff, after) in self.chain(reached).take_while(|(_, after)| after.begin() <= gid) {
            take(diff);
            reached = after;
        }
        let whole = base.applying_to().is_none_or(|to| to.begin() <= reached.begin());
        if whole && reached.begin() == gid {
            Ok(reached)
        } else {
            Err(DiffSetError::NoSnapshot(gid, *base))
        }
    }

    /// The diffs to apply to the base image to come to `gid`, never less than what an unfinished
    /// apply needs; empty when there is nothing to do. `max` diffs at most, 0: no limit (§2.9).
    #[must_use]
    pub fn apply_list(&self, base: &BaseState, gid: Gid, max: usize) -> Vec<Diff> {
        let mut list = self.up_to(base.snapshot(), gid);
        if max > 0 {
            list.truncate(max);
        }
        let minimum = self.minimum(base);
        if minimum.len() > list.len() { minimum } else { list }
    }

    /// The longest run of diffs from the first start at or after `gid` that merge into one (§2.8).
    #[must_use]
    pub fn mergeable_from(&self, gid: Gid) -> Vec<Diff> {
        let first = self.all.range(Order::first_at(gid)..).next().map(|(k, _)| k.begin);
        let first = first.and_then(|b| self.all.range(..=Order::last_at(b)).next_back());
        let Some((_, &first)) = first else { return Vec::new() };
        let mut run = vec![first];
        let mut merged = first;
        let mut next = self.all.range(Order::first_at(first.begin().begin())..).peekable();
        let mut best: Option<Diff> = None;
        loop {
            // `merged` only grows, so each diff is looked at once.
            while let Some((_, d)) = next.next_if(|(k, _)| k.begin <= merged.end().begin()) {
                let further = best.is_none_or(|b| b.end().begin() <= d.end().begin());
                if d.mergeable && !d.comparison && further {
                    best = Some(*d);
                }
            }
            let Some(Ok(grown)) = best.map(|d| merged.merge(&d)) else { return run };
            run.extend(best);
            merged = grown;
        }
    }

    /// [`Self::mergeable_from`] cut before the sizes exceed `max_bytes`; the first diff always
    /// stays.
    #[must_use]
    pub fn mergeable_up_to_size(&self, gid: Gid, max_bytes: u64) -> Vec<Diff> {
        let mut total = 0_u64;
        let mut list = self.mergeable_from(gid);
        let fits = |d: &Diff| {
            total = total.saturating_add(d.size);
            total <= max_bytes
        };
        let kept = list.iter().copied().take_while(fits).count();
        list.truncate(kept.max(1));
        list
    }

    /// [`Self::mergeable_from`] cut at the first diff that starts at or after `end`.
    #[must_use]
    pub fn mergeable_up_to(&self, gid: Gid, end: Gid) -> Vec<Diff> {
        let list = self.mergeable_from(gid);
        list.into_iter().take_while(|d| d.begin().begin() < end).collect()
    }

    /// The longest start of the walk from `from` that merges into one diff (diff replication).
    #[must_use]
    pub fn applicable_and_mergeable(&self, from: Snapshot) -> Vec<Diff> {
        let mut merged: Option<Diff> = None;
        let mut list = Vec::new();
        for (diff, _) in self.chain(from) {
            merged = match merged.map(|m| m.merge(&diff)) {
                None => Some(diff),
                Some(Ok(grown)) => Some(grown),
                Some(Err(_)) => break,
            };
            list.push(diff);
        }
        list
    }

    /// The oldest clean snapshot that `base` can be brought to (§2.9).
    #[must_use]
    pub fn oldest_clean(&self, base: &BaseState) -> Option<(Snapshot, u64)> {
        self.states(base).find(|(at, _, _)| at.is_clean()).map(|(at, time, _)| (at, time))
    }

    /// Every state of the image from the end of an unfinished apply on: snapshot, time, and the
    /// diff before it.
    fn states(&self, base: &BaseState) -> impl Iterator<Item = (Snapshot, u64, Option<Diff>)> {
        let needed = self.minimum(base).len();
        let start = (base.snapshot(), base.timestamp, None);
        let steps = self.chain(base.snapshot()).map(|(d, at)| (at, d.timestamp, Some(d)));
        let unfinished = base.applying_to();
        let all = std::iter::once(start).chain(steps).skip(needed);
        all.skip_while(move |(at, _, _)| unfinished.is_some_and(|to| at.begin() < to.begin()))
    }

    /// The clean snapshots that can be restored, oldest first; without `all` only the explicit ones
    /// and the first (§2.11). The first says whether it was taken on purpose as the others do.
    #[must_use]
    pub fn restorable(&self, base: &BaseState, all: bool) -> Vec<RestorePoint> {
        let mut points = Vec::new();
        let mut states = self.states(base).peekable();
        let (mut first, mut change_bytes) = (true, 0_u64);
        while let Some((at, timestamp, diff)) = states.next() {
            change_bytes = change_bytes.saturating_add(diff.map_or(0, |d| d.size));
            let next = states.peek().and_then(|(_, _, diff)| *diff);
            let explicit = next.is_none_or(|d| !d.mergeable);
            if at.is_clean() && (all || explicit || first) {
                points.push(RestorePoint { gid: at.begin(), timestamp, explicit, change_bytes });
                change_bytes = 0;
            }
            first = false;
        }
        points
    }

    /// The last clean snapshot not later than `timestamp`.
    #[must_use]
    pub fn restorable_at(&self, base: &BaseState, timestamp: u64) -> Option<RestorePoint> {
        self.restorable(base, true).into_iter().rfind(|p| p.timestamp <= timestamp)
    }

    /// The diffs that change when snapshot `gid` is kept (`keep`) or given up, as (old, new): their
    /// files are to be renamed, then [`Self::replace`] tells the set (§2.12).
    pub fn keep_changes(&self, gid: Gid, keep: bool) -> Result<Vec<(Diff, Diff)>, DiffSetError> {
        let mut starts = self.all.range(Order::first_at(gid)..=Order::last_at(gid)).peekable();
        starts.peek().ok_or(DiffSetError::NoStart(gid))?;
        let changed = starts.map(|(_, d)| *d).filter(|d| d.mergeable == keep);
        Ok(changed.map(|d| (d, d.with_mergeable(!keep))).collect())
    }

    /// Puts `diff` in the place of the equal one, with other flags, time or size.
    pub fn replace(&mut self, diff: Diff) -> Option<Diff> {
        let old = self.remove(&diff)?;
        self.insert(diff).ok()?;
        Some(old)
    }

    /// The diffs that the walk from `from` does not use: leftovers of merges, and whatever lies
    /// behind a gap (§2.13).
    #[must_use]
    pub fn garbage(&self, from: Snapshot) -> Vec<Diff> {
        let mut walk = self.chain(from).map(|(diff, _)| Order::of(&diff)).peekable();
        let mut unused = |key: &Order| {
            // Both ascend.
            while walk.next_if(|used| used < key).is_some() {}
            walk.next_if_eq(key).is_none()
        };
        self.all.iter().filter(|(key, _)| unused(key)).map(|(_, diff)| *diff).collect()
    }

    /// The part of [`Self::garbage`] whose content is surely elsewhere: what `from` has already,
    /// and what a diff of the walk contains. Diffs behind a gap are not among them.
    #[must_use]
    pub fn superseded(&self, from: Snapshot) -> Vec<Diff> {
        let garbage = self.garbage(from);
        if garbage.is_empty() {
            return garbage;
        }
        let reached = self.chain(from).last().map_or(from, |(_, at)| at).begin();
        let chain: BTreeMap<Gid, Diff> =
            self.chain(from).map(|(d, _)| (d.begin().begin(), d)).collect();
        let contained = |d: &Diff| {
            let start = d.begin().begin();
            let by = chain.range(..=start).next_back();
            d.end().begin() <= from.begin() || by.is_some_and(|(_, c)| c.contains(d))
        };
        garbage.into_iter().filter(|d| d.end().begin() <= reached && contained(d)).collect()
    }

    /// The diffs inside a merged diff from `a` to `b`, but for the merged one itself (§2.13).
    #[must_use]
    pub fn garbage_in(&self, a: Gid, b: Gid) -> Vec<Diff> {
        let inside = self.range(a, b).filter(|d| d.end().begin() <= b);
        inside.filter(|d| (d.begin().begin(), d.end().begin()) != (a, b)).copied().collect()
    }

    /// The diffs that an image at `gid` has (§2.13).
    #[must_use]
    pub fn done_at(&self, gid: Gid) -> Vec<Diff> {
        // What ends at or before `gid` starts before it.
        let before = self.range(Gid(0), gid);
        before.filter(|d| d.end().begin() <= gid).copied().collect()
    }
}
