//! Who reads which wdiffs (I12), and what is marked for deletion: a file that somebody reads is not
//! deleted under him.
//!
//! Marking is one durable step: the file takes a name that says so and since when
//! ([`deleter`](crate::deleter)), which no catalogue has. A file that is read may get another name,
//! by that or since its flags change: readers open it through their lease, which knows the name of
//! the moment. What is marked gets no new readers, so what nobody reads then may go at any time.
//!
//! A lease is the list of its diffs, whose names are made when they are needed: to take one costs
//! the same for ten files and for a hundred thousand.

use crate::deleter::{self, Wake};
use parking_lot::Mutex;
use server_kit::clock;
use server_kit::durable::{DurableDir, DurableError};
use server_kit::error::RoleError;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use wdiff_format::diff_set::Order;
use wdiff_format::gid::Diff;
use wdiff_format::name;

/// The files that one lease keeps.
struct Kept {
    /// As they were when the lease was taken; they ascend.
    diffs: Arc<Vec<Diff>>,
    /// The names of those that were renamed since.
    renamed: BTreeMap<usize, String>,
}

impl Kept {
    /// The name of the moment. A diff without one is in no catalogue; nothing has an empty name.
    fn name(&self, number: usize) -> String {
        let made = || self.diffs.get(number).and_then(|d| name::to_file_name(d).ok());
        self.renamed.get(&number).cloned().or_else(made).unwrap_or_default()
    }

    /// Which one has this name.
    fn find(&self, name: &str) -> Option<usize> {
        // A file keeps its gids under all of its names.
        let first = name.split_inclusive(name::SUFFIX).next()?;
        let wanted = Order::of(&name::parse(first).ok()?);
        let number = self.diffs.binary_search_by_key(&wanted, Order::of).ok()?;
        (self.name(number) == name).then_some(number)
    }
}

/// A file that is marked for deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Marked {
    since_s: u64,
    bytes: u64,
    /// Leases that have it.
    readers: usize,
}

/// Files that are marked, and not deleted yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    /// Some of them nobody reads.
    pub(crate) is_unread: bool,
}

#[derive(Default)]
struct Inner {
    taken: u64,
    kept: BTreeMap<u64, Kept>,
    /// By the names that say so. The directory has no others.
    marked: BTreeMap<String, Marked>,
}

/// The leases of one volume. Clones share them.
#[derive(Clone)]
pub(crate) struct Leases {
    dir: Arc<dyn DurableDir>,
    wake: Wake,
    inner: Arc<Mutex<Inner>>,
}

/// Keeps some files of a volume from being deleted, until the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Lease(Arc<Held>);

struct Held {
    leases: Leases,
    number: u64,
    diffs: Arc<Vec<Diff>>,
}

impl Leases {
    /// Nobody reads, nothing is marked; `wake` is told when there is something to delete.
    pub(crate) fn new(dir: Arc<dyn DurableDir>, wake: Wake) -> Self {
        Self { dir, wake, inner: Arc::default() }
    }

    /// What is marked in the directory, whose names these are. Blocks.
    pub(crate) fn find_marked(&self, names: &[String]) -> Result<(), RoleError> {
        for name in names {
            let Some(since_s) = deleter::marked_since(name) else { continue };
            let Some(info) = self.dir.look_at(name)? else { continue };
            let marked = Marked { since_s, bytes: info.len_bytes, readers: 0 };
            self.inner.lock().marked.insert(name.clone(), marked);
        }
        Ok(())
    }

    /// Keeps the files of these diffs, which ascend, until the lease is dropped. Take it under the
    /// lock that they came from.
    pub(crate) fn take(&self, diffs: impl Into<Vec<Diff>>) -> Lease {
        let diffs = Arc::new(diffs.into());
        debug_assert!(diffs.is_sorted_by_key(Order::of), "files are found by their order");
        let mut inner = self.inner.lock();
        inner.taken += 1;
        let number = inner.taken;
        inner.kept.insert(number, Kept { diffs: diffs.clone(), renamed: BTreeMap::new() });
        Lease(Arc::new(Held { leases: self.clone(), number, diffs }))
    }

    /// Marks files for deletion, durable; one that is not there is no error. Nobody may find them
    /// in the catalogue any more. Blocks.
    pub(crate) fn mark(&self, names: &[String]) -> Result<(), RoleError> {
        if names.is_empty() {
            return Ok(());
        }
        let now_s = clock::unix_seconds();
        let mark = |name: &String| {
            let failed = |e| {
                let step = "when the disk works, restart the archive: it finds what is needless";
                let path = self.dir.path().join(name);
                RoleError::io("mark for deletion", path, e).with_next_step(step)
            };
            self.mark_one(name, now_s).map_err(failed)
        };
        let done = names.iter().try_for_each(mark);
        let synced = self.dir.sync().map_err(|e| RoleError::io("sync", self.dir.path(), e));
        self.wake.wake();
        done.and(synced)
    }

    fn mark_one(&self, name: &str, now_s: u64) -> io::Result<()> {
        let mut inner = self.inner.lock();
        let bytes = match self.dir.info(name) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            info => info?.len_bytes,
        };
        // An earlier file of this name may wait as well.
        let mut names = (now_s..).map(|since_s| (since_s, deleter::marked_name(name, since_s)));
        let free = names.find(|(_, marked)| !inner.marked.contains_key(marked));
        let Some((since_s, marked)) = free else { return Ok(()) };
        self.dir.rename(name, &marked)?;
        let readers = inner.call(name, &marked);
        inner.marked.insert(marked, Marked { since_s, bytes, readers });
        Ok(())
    }

    /// The marked files that nobody reads and for which it is time.
    pub(crate) fn due(&self, is_time: impl Fn(u64) -> bool) -> Vec<String> {
        let inner = self.inner.lock();
        let due = inner.marked.iter().filter(|(_, m)| m.readers == 0 && is_time(m.since_s));
        due.map(|(name, _)| name.clone()).collect()
    }

    /// Marked files are gone.
    pub(crate) fn gone(&self, names: &[String]) {
        let mut inner = self.inner.lock();
        for name in names {
            inner.marked.remove(name);
        }
    }

    /// What is marked.
    pub(crate) fn waiting(&self) -> Waiting {
        let inner = self.inner.lock();
        let mut waiting = Waiting { files: inner.marked.len() as u64, ..Waiting::default() };
        for marked in inner.marked.values() {
            waiting.bytes += marked.bytes;
            waiting.is_unread |= marked.readers == 0;
        }
        waiting
    }

    /// `commit` puts another file under the name `name`; the old one, if there is one (true), is
    /// called `aside` from then on, also for those who read it. The name is never without a file.
    pub(crate) fn set_aside(
        &self,
        name: &str,
        aside: &str,
        commit: impl FnOnce() -> Result<(), DurableError>,
    ) -> Result<bool, DurableError> {
        let mut inner = self.inner.lock();
        let kept = self.dir.hard_link(name, &self.dir.path().join(aside)).is_ok();
        commit()?;
        inner.call(name, aside);
        Ok(kept)
    }

    /// Gives a file another name, not durable by itself. Call it under the lock that names come
    /// from. Blocks for a moment.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner.lock();
        self.dir.rename(from, to)?;
        inner.call(from, to);
        Ok(())
    }
}

impl Inner {
    /// Those who read a file know it by another name from now on; how many they are.
    fn call(&mut self, from: &str, to: &str) -> usize {
        let mut readers = 0;
        for kept in self.kept.values_mut() {
            if let Some(number) = kept.find(from) {
                kept.renamed.insert(number, to.to_owned());
                readers += 1;
            }
        }
        readers
    }

    /// A reader lets go; whether a marked file has one less.
    fn let_go(&mut self, number: u64) -> bool {
        let Some(kept) = self.kept.remove(&number) else { return false };
        let mut any = false;
        // What was marked was renamed.
        for name in kept.renamed.values() {
            if let Some(marked) = self.marked.get_mut(name) {
                marked.readers = marked.readers.saturating_sub(1);
                any = true;
            }
        }
        any
    }
}

impl Lease {
    /// The diffs whose files these are, as they were when the lease was taken.
    pub(crate) fn diffs(&self) -> &[Diff] {
        &self.0.diffs
    }

    /// Number of files.
    pub(crate) fn len(&self) -> usize {
        self.0.diffs.len()
    }

    /// Opens some of the files by `open`, which gets their names; no name changes in between.
    pub(crate) fn open<T>(&self, which: Range<usize>, open: impl FnOnce(&[String]) -> T) -> T {
        let Held { leases, number, .. } = &*self.0;
        let inner = leases.inner.lock();
        let kept = inner.kept.get(number);
        let names: Vec<String> =
            kept.map(|kept| which.map(|file| kept.name(file)).collect()).unwrap_or_default();
        open(&names)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.leases.inner.lock().let_go(self.number) {
            self.leases.wake.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server_kit::durable::RealDir;
    use std::path::Path;
    use wdiff_format::gid::Gid;

    fn diff(gid: u64) -> Diff {
        Diff::clean(Gid(gid), Gid(gid + 1)).unwrap()
    }

    fn named(diff: &Diff) -> String {
        name::to_file_name(diff).unwrap()
    }

    fn leases(dir: &Path, diffs: &[Diff]) -> Leases {
        for diff in diffs {
            std::fs::write(dir.join(named(diff)), named(diff)).unwrap();
        }
        Leases::new(Arc::new(RealDir::open(dir).unwrap()), Wake::default())
    }

    /// Whose content the files are that can go.
    fn due(dir: &Path, leases: &Leases) -> Vec<String> {
        let due = leases.due(|_| true);
        due.iter().map(|name| std::fs::read_to_string(dir.join(name)).unwrap()).collect()
    }

    #[test]
    fn a_marked_file_is_due_when_its_last_reader_has_let_go() {
        let tmp = tempfile::tempdir().unwrap();
        let (a, b) = (diff(0), diff(1));
        let leases = leases(tmp.path(), &[a, b]);
        let exists = |diff: &Diff| tmp.path().join(named(diff)).exists();
        let first = leases.take([a]);
        let second = leases.take([a]);
        leases.mark(&[named(&a), named(&b), named(&diff(7))]).unwrap();
        assert!(!exists(&a) && !exists(&b));
        assert_eq!(due(tmp.path(), &leases), [named(&b)]);
        assert!(leases.due(|_| false).is_empty());
        drop(first);
        assert_eq!(due(tmp.path(), &leases), [named(&b)]);
        let bytes = (named(&a).len() + named(&b).len()) as u64;
        assert_eq!(leases.waiting(), Waiting { files: 2, bytes, is_unread: true });
        leases.gone(&leases.due(|_| true));
        assert!(!leases.waiting().is_unread);
        drop(second);
        assert_eq!(due(tmp.path(), &leases), [named(&a)]);
        leases.gone(&leases.due(|_| true));
        let inner = leases.inner.lock();
        assert!(inner.kept.is_empty() && inner.marked.is_empty());
    }

    #[test]
    fn a_reader_finds_its_file_under_every_new_name() {
        let tmp = tempfile::tempdir().unwrap();
        let (a, b) = (diff(0), diff(1));
        let c = b.with_mergeable(true);
        let leases = leases(tmp.path(), &[a, b]);
        let lease = leases.take([a, b]);
        leases.rename(&named(&b), &named(&c)).unwrap();
        assert!(leases.rename(&named(&diff(5)), &named(&diff(6))).is_err());
        let read = |lease: &Lease| -> Vec<String> {
            let read_one = |name: &String| std::fs::read_to_string(tmp.path().join(name)).unwrap();
            lease.open(0..lease.len(), |names| names.iter().map(read_one).collect())
        };
        assert_eq!(read(&lease), [named(&a), named(&b)]);
        // It is marked by its new name, and by no other reader's end than the last is it due.
        let other = leases.take([c]);
        leases.mark(&[named(&c)]).unwrap();
        assert_eq!((read(&lease), read(&other)), (vec![named(&a), named(&b)], vec![named(&b)]));
        drop(lease);
        assert!(leases.due(|_| true).is_empty());
        drop(other);
        assert_eq!(due(tmp.path(), &leases), [named(&b)]);
    }

    #[test]
    fn files_of_one_name_that_are_marked_in_one_second_stay_two() {
        let tmp = tempfile::tempdir().unwrap();
        let a = diff(0);
        let leases = leases(tmp.path(), &[a]);
        let lease = leases.take([a]);
        for round in 0..3 {
            leases.mark(&[named(&a)]).unwrap();
            std::fs::write(tmp.path().join(named(&a)), format!("newer {round}")).unwrap();
        }
        let read = |names: &[String]| std::fs::read_to_string(tmp.path().join(&names[0])).unwrap();
        assert_eq!(lease.open(0..1, read), named(&a));
        let mut others = due(tmp.path(), &leases);
        others.sort();
        assert_eq!(others, ["newer 0", "newer 1"]);
        // Who comes after a restart finds them all, as they were marked.
        let again = Leases::new(Arc::new(RealDir::open(tmp.path()).unwrap()), Wake::default());
        let names = again.dir.list().unwrap();
        again.find_marked(&names).unwrap();
        let (now, found) = (leases.inner.lock(), again.inner.lock());
        assert_eq!(found.marked.len(), 3);
        for (name, marked) in &found.marked {
            assert_eq!(*marked, Marked { readers: 0, ..now.marked[name] });
        }
    }
}
