//! The laws of `semantics.md` §2.16, checked against a model that has blocks: a device whose
//! history is known at every gid, log diffs and hash diffs made from it, an image that diffs are
//! written to. Each block of the image must hold a value that it had at some time within the
//! image's snapshot.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

use proptest::prelude::*;
use std::collections::BTreeMap;
use wdiff_format::diff_set::DiffSet;
use wdiff_format::gid::{BaseState, Diff, Gid, Snapshot, walk};
use wdiff_format::name::{parse, to_file_name};

const BLOCKS: usize = 6;
type Image = [u8; BLOCKS];
type Content = BTreeMap<usize, u8>;

/// One step of a volume's life.
#[derive(Clone, Debug)]
enum Step {
    /// Writes, then a log diff of them; its start goes back over `overlap` gids already shipped.
    Log { writes: Vec<Vec<(usize, u8)>>, mergeable: bool, overlap: u64 },
    /// Log lost: a hash backup while the device is written.
    Hash { lost: Vec<(usize, u8)>, during: Vec<Vec<(usize, u8)>>, when: Vec<usize> },
}

fn writes() -> impl Strategy<Value = Vec<(usize, u8)>> {
    prop::collection::vec((0..BLOCKS, 0..3_u8), 0..4)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let log = (prop::collection::vec(writes(), 1..4), any::<bool>(), 0..3_u64)
        .prop_map(|(writes, mergeable, overlap)| Step::Log { writes, mergeable, overlap });
    let during = prop::collection::vec(writes(), 1..4);
    let hash = (writes(), during, prop::collection::vec(0..8_usize, BLOCKS))
        .prop_map(|(lost, during, when)| Step::Hash { lost, during, when });
    prop::collection::vec(prop_oneof![5 => log, 1 => hash], 1..12)
}

/// The device, the diffs made from it and what they hold.
struct World {
    /// Device at each gid.
    history: Vec<Image>,
    base: (Snapshot, Image),
    set: DiffSet,
    content: BTreeMap<(Snapshot, Snapshot), Content>,
    /// The latest image that the diffs lead to.
    latest: (Snapshot, Image),
    /// No log before this gid is left.
    log_start: u64,
}

fn key(d: &Diff) -> (Snapshot, Snapshot) {
    (d.begin(), d.end())
}

fn write(image: &mut Image, content: &Content) {
    content.iter().for_each(|(&at, &value)| image[at] = value);
}

impl World {
    /// A full backup of an empty device while `during` is written; block i is read at gid
    /// `when[i]`.
    fn new(during: &[Vec<(usize, u8)>], when: &[usize]) -> Self {
        let base = (Snapshot::clean(Gid(0)), [0; BLOCKS]);
        let mut world = Self {
            history: vec![[0; BLOCKS]],
            latest: base,
            base,
            set: DiffSet::new(),
            content: BTreeMap::new(),
            log_start: 0,
        };
        during.iter().for_each(|w| world.device_writes(w));
        let end = world.now();
        let image = world.scan(0, when);
        world.base = (Snapshot::new(Gid(0), Gid(end)).unwrap(), image);
        world.latest = world.base;
        world
    }

    fn now(&self) -> u64 {
        self.history.len() as u64 - 1
    }

    fn device_writes(&mut self, writes: &[(usize, u8)]) {
        let mut image = *self.history.last().unwrap();
        writes.iter().for_each(|&(at, value)| image[at] = value);
        self.history.push(image);
    }

    /// Reads each block at some gid from `from` to now.
    fn scan(&self, from: u64, when: &[usize]) -> Image {
        let span = self.history.len() - from as usize;
        std::array::from_fn(|i| self.history[from as usize + when[i] % span][i])
    }

    fn add(&mut self, diff: Diff, content: Content) {
        if self.set.insert(diff).is_ok() {
            self.latest.0 = self.latest.0.apply(&diff).unwrap();
            write(&mut self.latest.1, &content);
            self.content.insert(key(&diff), content);
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Log { writes, mergeable, overlap } => {
                let start = self.latest.0.begin().0.saturating_sub(*overlap).max(self.log_start);
                writes.iter().for_each(|w| self.device_writes(w));
                // Catches up from the latest snapshot, perhaps not to the end of a dirty one.
                let end = self.latest.0.begin().0 + writes.len() as u64;
                let mut diff = Diff::clean(Gid(start), Gid(end)).unwrap();
                diff.mergeable = *mergeable;
                let content = self.log(start, end);
                self.add(diff, content);
            }
            Step::Hash { lost, during, when } => {
                let (found, image) = self.latest;
                while self.now() <= found.end().0 {
                    self.device_writes(lost);
                }
                let begin = found.end().0 + 1;
                // The log starts anew: what is the device now has gid `begin`.
                let current = *self.history.last().unwrap();
                self.history.truncate(begin as usize);
                self.history.push(current);
                during.iter().for_each(|w| self.device_writes(w));
                let end = Snapshot::new(Gid(begin), Gid(self.now())).unwrap();
                let scanned = self.scan(begin, when);
                let differing = (0..BLOCKS).filter(|&i| scanned[i] != image[i]);
                let content = differing.map(|i| (i, scanned[i])).collect();
                let mut diff = Diff::new(found, end).unwrap();
                diff.mergeable = !found.is_clean();
                self.log_start = begin;
                self.add(diff, content);
            }
        }
    }

    /// What the log from `start` to `end` wrote: a superset of what changed.
    fn log(&self, start: u64, end: u64) -> Content {
        let mut content = Content::new();
        for gid in start as usize..end as usize {
            let (a, b) = (&self.history[gid], &self.history[gid + 1]);
            (0..BLOCKS).filter(|&i| a[i] != b[i]).for_each(|i| {
                content.insert(i, b[i]);
            });
        }
        content
    }

    /// Every block of `image` had its value at some time within `at`.
    fn holds(&self, at: Snapshot, image: &Image) -> bool {
        let range = at.begin().0 as usize..=at.end().0 as usize;
        (0..BLOCKS).all(|i| self.history[range.clone()].iter().any(|h| h[i] == image[i]))
    }

    /// Merges some run of diffs as the merge command does; the parts stay unless `gc`.
    fn merge(&mut self, from: u64, len: usize, gc: bool) {
        let mut run = self.set.mergeable_from(Gid(from));
        run.truncate(len);
        if run.len() < 2 {
            return;
        }
        let mut merged = run[0];
        let mut content = self.content[&key(&merged)].clone();
        for d in &run[1..] {
            merged = merged.merge(d).unwrap();
            content.extend(self.content[&key(d)].clone());
        }
        assert!(run.iter().all(|d| merged.contains(d)), "a merged diff contains its parts");
        if self.set.insert(merged).is_ok() {
            self.content.insert(key(&merged), content);
        }
        if gc {
            for d in self.set.superseded(self.base.0) {
                self.set.remove(&d).unwrap();
            }
        }
    }
}

fn grown(steps: &[Step], when: &[usize], during: &[Vec<(usize, u8)>]) -> World {
    let mut world = World::new(during, when);
    steps.iter().for_each(|s| world.step(s));
    world
}

type Life = (Vec<Step>, Vec<usize>, Vec<Vec<(usize, u8)>>);

fn worlds() -> impl Strategy<Value = Life> {
    let during = prop::collection::vec(writes(), 0..4);
    (steps(), prop::collection::vec(0..8_usize, BLOCKS), during)
}

proptest! {
    #[test]
    fn every_image_on_the_way_is_of_its_snapshot(
        (steps, when, during) in worlds(),
        merges in prop::collection::vec((0..20_u64, 2..5_usize, any::<bool>()), 0..6),
    ) {
        let mut w = grown(&steps, &when, &during);
        let base = BaseState::at(w.base.0, 0);
        let latest = w.set.latest(&base).0;
        prop_assert_eq!(latest, w.latest.0);
        let explicit = |w: &World| w.set.restorable(&base, false);
        let count = explicit(&w).len();
        let mut all = w.set.restorable(&base, true).len();
        for (from, len, gc) in merges {
            w.merge(from, len, gc);
            prop_assert_eq!(w.set.latest(&base).0, latest, "merge and gc keep the latest");
            // Where diffs overlap, a longer one may hide or uncover the start of another.
            if steps.iter().all(|s| !matches!(s, Step::Log { overlap: 1.., .. })) {
                let now = w.set.restorable(&base, true).len();
                prop_assert_eq!(explicit(&w).len(), count, "merge keeps explicit snapshots");
                prop_assert!(now <= all, "merge makes no snapshots");
                all = now;
            }
            let (mut at, mut image) = w.base;
            prop_assert!(w.holds(at, &image));
            for (diff, after) in w.set.chain(at) {
                write(&mut image, &w.content[&key(&diff)]);
                at = after;
                prop_assert!(w.holds(at, &image), "{} after {}", at, diff);
            }
        }
    }

    #[test]
    fn a_restore_is_the_device_at_its_gid((steps, when, during) in worlds()) {
        let w = grown(&steps, &when, &during);
        let base = BaseState::at(w.base.0, 0);
        for point in w.set.restorable(&base, true) {
            let mut image = w.base.1;
            for d in w.set.restore_list(&base, point.gid).unwrap() {
                write(&mut image, &w.content[&key(&d)]);
            }
            prop_assert_eq!(image, w.history[point.gid.0 as usize], "gid {}", point.gid);
        }
    }

    #[test]
    fn an_interrupted_apply_is_mended_by_its_minimum(
        (steps, when, during) in worlds(),
        goal in 0..20_u64,
        torn in prop::collection::vec(any::<bool>(), BLOCKS),
        next in 0..20_u64,
    ) {
        let mut w = grown(&steps, &when, &during);
        let base = BaseState::at(w.base.0, 0);
        let list = w.set.apply_list(&base, Gid(goal), 0);
        prop_assume!(!list.is_empty());
        let applying = base.begin_apply(&list).unwrap();
        // Some blocks were written, some not.
        let mut full = w.base.1;
        list.iter().for_each(|d| write(&mut full, &w.content[&key(d)]));
        let mut image: Image = std::array::from_fn(|i| if torn[i] { full[i] } else { w.base.1[i] });
        let again = w.set.apply_list(&applying, Gid(next), 0);
        prop_assert!(applying.can_apply(&again), "{} with {:?}", applying, again);
        again.iter().for_each(|d| write(&mut image, &w.content[&key(d)]));
        let after = applying.end_apply(&again).unwrap();
        prop_assert!(w.holds(after.snapshot(), &image));
        for done in w.set.done_at(after.snapshot().begin()) {
            w.set.remove(&done).unwrap();
        }
        prop_assert_eq!(w.set.latest(&after).0, w.latest.0, "what was applied is not needed");
    }

    #[test]
    fn a_merged_diff_does_what_its_parts_do(
        parts in prop::collection::vec((0..12_u64, 1..6_u64, 0..3_u64, 0..3_u64), 1..5),
        at in (0..12_u64, 0..4_u64),
    ) {
        let at = Snapshot::new(Gid(at.0), Gid(at.0 + at.1)).unwrap();
        let diffs: Vec<Diff> = parts.iter().filter_map(|&(b, len, db, de)| {
            let begin = Snapshot::new(Gid(b), Gid(b + db)).unwrap();
            let end = Snapshot::new(Gid(b + len), Gid(b + len + de)).unwrap();
            Diff::new(begin, end).ok().map(|d| d.with_mergeable(true))
        }).collect();
        prop_assume!(!diffs.is_empty());
        let merged = diffs[1..].iter().try_fold(diffs[0], |m, d| m.merge(d));
        if let (Ok(merged), Ok(after)) = (merged, walk(at, &diffs)) {
            prop_assert_eq!(at.apply(&merged), Ok(after));
            prop_assert!(diffs.iter().all(|d| merged.contains(d)));
        }
    }

    #[test]
    fn without_merges_one_diff_applies_to_each_snapshot(
        lens in prop::collection::vec(1..4_u64, 1..20),
    ) {
        let mut set = DiffSet::new();
        let mut gid = 0;
        for len in lens {
            set.insert(Diff::clean(Gid(gid), Gid(gid + len)).unwrap()).unwrap();
            gid += len;
        }
        for (_, at) in set.chain(Snapshot::clean(Gid(0))) {
            let applicable = set.iter().filter(|d| at.apply(d).is_ok()).count();
            prop_assert_eq!(applicable, usize::from(at.begin() < Gid(gid)));
        }
    }

    /// The index of the set against a search of every diff.
    #[test]
    fn pick_is_the_naive_pick(
        ops in prop::collection::vec(
            (any::<bool>(), 0..15_u64, 1..8_u64, 0..2_u64, 0..6_u8), 1..60,
        ),
    ) {
        let mut set = DiffSet::new();
        let mut naive: Vec<Diff> = Vec::new();
        for (add, b, len, dirt, kind) in ops {
            let begin = Snapshot::clean(Gid(b));
            let end = Snapshot::new(Gid(b + len), Gid(b + len + dirt)).unwrap();
            let mut d = Diff::new(begin, end).unwrap();
            d.comparison = kind == 0;
            d.size = len;
            if add {
                prop_assert_eq!(set.insert(d).is_ok(), !naive.contains(&d));
                if !naive.contains(&d) { naive.push(d); }
            } else {
                prop_assert_eq!(set.remove(&d).is_some(), naive.contains(&d));
                naive.retain(|n| *n != d);
            }
            prop_assert_eq!(set.len(), naive.len());
            prop_assert_eq!(set.total_bytes(), naive.iter().map(|d| d.size).sum::<u64>());
            for gid in 0..25 {
                let at = Snapshot::clean(Gid(gid));
                let rank = |d: &Diff| (d.end().begin(), d.begin().begin());
                let best = naive.iter().filter(|d| at.apply(d).is_ok()).map(rank).max();
                prop_assert_eq!(set.pick(at).map(|d| rank(&d)), best, "at {}", gid);
            }
        }
    }

    #[test]
    fn names_come_back(
        b in any::<(u32, u8)>(), len in 1..u64::from(u32::MAX), dirt in 0..300_u64,
        mergeable: bool, comparison: bool, timestamp in 0..253_402_200_000_u64,
    ) {
        let begin = Snapshot::new(Gid(b.0.into()), Gid(u64::from(b.0) + u64::from(b.1))).unwrap();
        let end = Gid(begin.begin().0 + len);
        let end = Snapshot::new(end, Gid(end.0.max(begin.end().0) + dirt)).unwrap();
        let mut d = Diff::new(begin, end).unwrap();
        (d.mergeable, d.comparison, d.timestamp) = (mergeable, comparison, timestamp);
        let back = parse(&to_file_name(&d).unwrap()).unwrap();
        prop_assert_eq!(back, d);
        prop_assert_eq!((back.mergeable, back.comparison), (mergeable, comparison));
        prop_assert_eq!(back.timestamp, timestamp);
    }

    #[test]
    fn a_name_that_is_accepted_is_the_name(
        text in "[0-9]{14}-[M-][C-]-[0-9]{1,3}(-[0-9]{1,3}){1,3}\\.wdiff",
    ) {
        if let Ok(d) = parse(&text) {
            prop_assert_eq!(to_file_name(&d).unwrap(), text);
        }
    }
}

#[test]
fn a_hundred_thousand_diffs_are_asked_quickly() {
    let mut set = DiffSet::new();
    for g in 0..100_000 {
        let d = Diff::clean(Gid(g), Gid(g + 1)).unwrap().with_mergeable(g % 10 != 0);
        set.insert(d).unwrap();
    }
    let base = BaseState::at(Snapshot::clean(Gid(0)), 0);
    let start = std::time::Instant::now();
    for i in 0..100_000 {
        assert!(set.pick(Snapshot::clean(Gid(i * 7919 % 100_000))).is_some());
    }
    for g in (0..1000).step_by(10) {
        assert_eq!(set.restore_list(&base, Gid(g)).unwrap().len() as u64, g);
        assert_eq!(set.mergeable_from(Gid(g)).len(), 10);
    }
    // 250 000 index searches: a full scan for each would take minutes.
    assert!(start.elapsed() < std::time::Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(set.latest(&base).0, Snapshot::clean(Gid(100_000)));
}
