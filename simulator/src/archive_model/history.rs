//! What an archive must have: for each snapshot that can be restored its content, block by block,
//! its time and whether it is kept; and what each operation makes of that. Nothing here is taken
//! from the product: rules are those of `semantics.md` §2 and of the manual of retention.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;
/// Blocks of the volume at first.
pub(super) const BLOCKS: usize = 64;
/// Blocks that it may grow to.
pub(super) const BLOCKS_MAX: usize = 96;

/// What each block holds; 0 is zeros. Always [`BLOCKS_MAX`]: what a volume has not yet is zeros.
pub(super) type Image = Vec<u64>;

/// The content of a block.
pub(super) fn block(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 8)
}

/// Fails unless `bytes` are the first `blocks` blocks of the image.
pub(super) fn compare(bytes: &[u8], image: &Image, blocks: usize) -> Result<(), String> {
    if bytes.len() != blocks * BLOCK {
        return Err(format!("{} bytes instead of {blocks} blocks", bytes.len()));
    }
    for (index, (data, value)) in bytes.chunks(BLOCK).zip(image).enumerate() {
        let word = value.to_le_bytes();
        if !data.chunks(8).all(|found| found == word) {
            let mut first = [0; 8];
            first.copy_from_slice(&data[..8]);
            let found = u64::from_le_bytes(first);
            return Err(format!("block {index} is {found} instead of {value}"));
        }
    }
    Ok(())
}

/// A snapshot that can be restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    pub(super) image: Image,
    pub(super) time_s: u64,
    /// The diff that begins here says that the snapshot is kept.
    pub(super) explicit: bool,
    /// The diff that leads here was made by comparing: it does not merge.
    pub(super) compared: bool,
}

/// A snapshot as the archive lists it: gid, time, whether it is kept.
pub(super) type Line = (u64, u64, bool);

/// Rules of a policy, in seconds: all of `all_s`, then one of each interval for so long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    pub(super) all_s: u64,
    pub(super) rules: &'static [(u64, u64)],
}

impl Policy {
    pub(super) fn text(&self) -> String {
        let rules = self.rules.iter().map(|(every, age)| format!(", every {every}s {age}s"));
        std::iter::once(format!("all {}s", self.all_s)).chain(rules).collect()
    }

    /// How old a snapshot may be.
    fn span_s(&self) -> u64 {
        self.rules.last().map_or(self.all_s, |(_, age)| *age)
    }

    /// Whether a snapshot goes that has a later one at `next_s`: a rule has its whole interval, and
    /// the later one is in there, too. The coarsest rule that has it counts.
    fn thins(&self, time_s: u64, next_s: u64, now_s: u64) -> bool {
        let before = std::iter::once(self.all_s).chain(self.rules.iter().map(|(_, age)| *age));
        let ends = |every: u64, at: u64| (at / every + 1) * every;
        let has =
            |(finer_s, (every, _)): &(u64, (u64, u64))| ends(*every, time_s) + finer_s <= now_s;
        let coarsest = before.zip(self.rules.iter().copied()).filter(has).last();
        coarsest.is_some_and(|(_, (every, _))| ends(every, time_s) == ends(every, next_s))
    }
}

/// All that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct History {
    /// By gid; the first one is the base image's.
    pub(super) snapshots: BTreeMap<u64, Snapshot>,
    pub(super) blocks: usize,
}

impl History {
    /// What a full backup brings.
    pub(super) fn full(gid: u64, image: Image, time_s: u64) -> Self {
        let first = Snapshot { image, time_s, explicit: false, compared: false };
        Self { snapshots: BTreeMap::from([(gid, first)]), blocks: BLOCKS }
    }

    pub(super) fn gids(&self) -> Vec<u64> {
        self.snapshots.keys().copied().collect()
    }

    pub(super) fn latest(&self) -> (u64, &Snapshot) {
        let (gid, snapshot) = self.snapshots.last_key_value().expect("there is a base image");
        (*gid, snapshot)
    }

    /// As the archive lists it: the latest one is always kept.
    pub(super) fn lines(&self) -> Vec<Line> {
        let latest = self.latest().0;
        let line = |(gid, s): (&u64, &Snapshot)| (*gid, s.time_s, s.explicit || *gid == latest);
        self.snapshots.iter().map(line).collect()
    }

    /// With a diff from `begin` to a new snapshot: what lay between is in there.
    pub(super) fn received(&self, begin: u64, kept: bool, (gid, new): (u64, Snapshot)) -> Self {
        let mut after = self.clone();
        after.snapshots.retain(|at, _| *at <= begin);
        after.snapshots.get_mut(&begin).expect("it begins at a snapshot").explicit = kept;
        after.snapshots.insert(gid, new);
        after
    }

    fn between(&self, begin: u64, end: u64) -> impl Iterator<Item = (&u64, &Snapshot)> {
        self.snapshots.range((Excluded(begin), Excluded(end.max(begin + 1))))
    }

    /// Whether the diffs between two snapshots can be made one; `None`: no snapshot is between.
    pub(super) fn merges(&self, begin: u64, end: u64) -> Option<bool> {
        let mut inside = self.between(begin, end).peekable();
        inside.peek()?;
        let mut diffs = self.snapshots.range((Excluded(begin), Included(end)));
        Some(!inside.any(|(_, s)| s.explicit) && !diffs.any(|(_, s)| s.compared))
    }

    pub(super) fn merged(&self, begin: u64, end: u64) -> Self {
        let mut after = self.clone();
        after.snapshots.retain(|gid, _| *gid <= begin || *gid >= end);
        after
    }

    pub(super) fn applied(&self, gid: u64) -> Self {
        let mut after = self.clone();
        after.snapshots.retain(|at, _| *at >= gid);
        after
    }

    /// What a policy leaves at `now_s`.
    pub(super) fn thinned(&self, policy: &Policy, now_s: u64) -> Self {
        let lines = self.lines();
        let oldest = lines.iter().rposition(|(_, at, _)| at + policy.span_s() <= now_s);
        let oldest = oldest.unwrap_or(0);
        let first = lines.iter().take(oldest).position(|(_, _, kept)| *kept).unwrap_or(oldest);
        let mut after = self.applied(lines[first].0);
        let rest = &lines[first..];
        // A diff that was made by comparing stays, with both of its ends.
        let compared = |line: Option<&Line>| {
            line.is_some_and(|(gid, _, _)| after.snapshots.get(gid).is_some_and(|s| s.compared))
        };
        let goes = |at: usize| {
            let (_, time_s, kept) = rest[at];
            let next = rest.get(at + 1);
            let pinned = kept || compared(rest.get(at)) || compared(next);
            at > 0 && !pinned && next.is_some_and(|n| policy.thins(time_s, n.1, now_s))
        };
        let gone: Vec<u64> = (0..rest.len()).filter(|at| goes(*at)).map(|at| rest[at].0).collect();
        after.snapshots.retain(|gid, _| !gone.contains(gid));
        after
    }

    pub(super) fn kept(&self, gids: &[u64], explicit: bool) -> Self {
        let mut after = self.clone();
        for gid in gids {
            if let Some(snapshot) = after.snapshots.get_mut(gid) {
                snapshot.explicit = explicit;
            }
        }
        after
    }

    pub(super) fn resized(&self, blocks: usize) -> Self {
        Self { blocks, ..self.clone() }
    }
}

/// What a kill in the middle of an operation may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steps {
    /// All of it or nothing.
    One,
    /// Snapshots go one after the other, or flags change so.
    Many,
    /// Snapshots go from the oldest on.
    OldestFirst,
}

/// Which of the histories that an operation may leave when it is broken off this is.
pub(super) fn left(
    before: &History,
    after: &History,
    steps: Steps,
    (found, blocks): (&[Line], usize),
) -> Result<History, String> {
    let sizes = [before, after].into_iter().find(|h| h.blocks == blocks);
    let blocks = sizes.ok_or_else(|| format!("a size of {blocks} blocks"))?.blocks;
    for whole in [after, before] {
        if found == whole.lines() {
            return Ok(whole.resized(blocks));
        }
    }
    let (was, shall) = (before.lines(), after.lines());
    let known = |(gid, time_s, kept): &Line| {
        let same = |line: &&Line| line.0 == *gid && line.1 == *time_s;
        let mut ways = was.iter().chain(&shall).filter(same).peekable();
        before.snapshots.contains_key(gid) && ways.any(|line| line.2 == *kept)
    };
    let gids: Vec<u64> = found.iter().map(|line| line.0).collect();
    let nothing_lost = after.snapshots.keys().all(|gid| gids.contains(gid));
    let in_order = || before.gids().ends_with(&gids);
    let fits = match steps {
        Steps::One => false,
        Steps::Many => true,
        Steps::OldestFirst => in_order(),
    };
    if !fits || !nothing_lost || !found.iter().all(known) {
        return Err(format!("{found:?} is neither {was:?} nor {shall:?} nor on the way there"));
    }
    let mut left = before.resized(blocks);
    left.snapshots.retain(|gid, _| gids.contains(gid));
    let latest = left.latest().0;
    for (gid, _, kept) in found.iter().filter(|line| line.0 != latest) {
        left = left.kept(&[*gid], *kept);
    }
    Ok(left)
}
