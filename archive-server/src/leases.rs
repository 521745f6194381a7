//! Who reads which wdiffs (I12): a file that somebody reads is not deleted under him, but as soon
//! as the last reader has let go.
//!
//! A file that waits for its deletion is no longer in the catalogue; should the process die first,
//! the next start finds the file behind the base image, or inside the diff that it was merged into,
//! and deletes it. A file that is read may get another name (its flags are in there): readers open
//! it through their lease, which knows the name of the moment.
//!
//! A lease is the list of its diffs, whose names are made when they are needed: to take one costs
//! the same for ten files and for a hundred thousand.

use parking_lot::Mutex;
use server_kit::durable::{DurableDir, DurableError};
use server_kit::error::RoleError;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use wdiff_format::diff_set::Order;
use wdiff_format::gid::Diff;
use wdiff_format::name;

/// The files that one lease keeps.
struct Kept {
    /// As they were when the lease was taken; they ascend.
    diffs: Arc<[Diff]>,
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
        if let Some((number, _)) = self.renamed.iter().find(|(_, now)| *now == name) {
            return Some(*number);
        }
        let wanted = Order::of(&name::parse(name).ok()?);
        let number = self.diffs.binary_search_by_key(&wanted, Order::of).ok()?;
        (self.name(number) == name).then_some(number)
    }
}

#[derive(Default)]
struct Inner {
    taken: u64,
    kept: BTreeMap<u64, Kept>,
    /// Files that go with their last reader.
    doomed: BTreeSet<String>,
}

/// The leases of one volume. Clones share them.
#[derive(Clone)]
pub(crate) struct Leases {
    dir: Arc<dyn DurableDir>,
    inner: Arc<Mutex<Inner>>,
}

/// Keeps some files of a volume from being deleted, until the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Lease(Arc<Held>);

struct Held {
    leases: Leases,
    number: u64,
    diffs: Arc<[Diff]>,
}

impl Leases {
    pub(crate) fn new(dir: Arc<dyn DurableDir>) -> Self {
        Self { dir, inner: Arc::default() }
    }

    /// Keeps the files of these diffs, which ascend, until the lease is dropped. Take it under the
    /// lock that they came from.
    pub(crate) fn take(&self, diffs: impl Into<Arc<[Diff]>>) -> Lease {
        let diffs = diffs.into();
        debug_assert!(diffs.is_sorted_by_key(Order::of), "files are found by their order");
        let mut inner = self.inner.lock();
        inner.taken += 1;
        let number = inner.taken;
        inner.kept.insert(number, Kept { diffs: diffs.clone(), renamed: BTreeMap::new() });
        Lease(Arc::new(Held { leases: self.clone(), number, diffs }))
    }

    /// Whether somebody reads the file that has this name, or had it when it was doomed.
    pub(crate) fn is_read(&self, name: &str) -> bool {
        self.inner.lock().is_read(name)
    }

    /// Deletes the files, now or when their last reader lets go. Blocks.
    pub(crate) fn delete(&self, names: Vec<String>) -> Result<(), RoleError> {
        let mut inner = self.inner.lock();
        let (doomed, free) = names.into_iter().partition(|name| inner.is_read(name));
        let doomed: Vec<String> = doomed;
        inner.doomed.extend(doomed);
        drop(inner);
        Ok(self.dir.remove_all(&free)?)
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
    /// Those who read a file know it by another name from now on.
    fn call(&mut self, from: &str, to: &str) {
        for kept in self.kept.values_mut() {
            if let Some(number) = kept.find(from) {
                kept.renamed.insert(number, to.to_owned());
            }
        }
    }

    fn is_read(&self, name: &str) -> bool {
        self.kept.values().any(|kept| kept.find(name).is_some())
    }

    /// A reader lets go; the names of the files that shall go now.
    fn let_go(&mut self, number: u64) -> Vec<String> {
        let Some(kept) = self.kept.remove(&number) else { return Vec::new() };
        let had = self.doomed.iter().filter(|name| kept.find(name).is_some());
        let free: Vec<String> = had.filter(|name| !self.is_read(name)).cloned().collect();
        for name in &free {
            self.doomed.remove(name);
        }
        free
    }
}

impl Lease {
    /// The diffs whose files these are, as they were when the lease was taken.
    pub(crate) fn diffs(&self) -> &Arc<[Diff]> {
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
        let free = self.leases.inner.lock().let_go(self.number);
        if let Err(error) = self.leases.dir.remove_all(&free) {
            tracing::warn!(%error, "cannot delete wdiffs that are no longer needed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server_kit::durable::RealDir;
    use wdiff_format::gid::Gid;

    fn diff(gid: u64) -> Diff {
        Diff::clean(Gid(gid), Gid(gid + 1)).unwrap()
    }

    fn named(diff: &Diff) -> String {
        name::to_file_name(diff).unwrap()
    }

    fn leases(dir: &std::path::Path, diffs: &[Diff]) -> Leases {
        for diff in diffs {
            std::fs::write(dir.join(named(diff)), named(diff)).unwrap();
        }
        Leases::new(Arc::new(RealDir::open(dir).unwrap()))
    }

    #[test]
    fn a_file_goes_when_its_last_reader_does() {
        let tmp = tempfile::tempdir().unwrap();
        let (a, b) = (diff(0), diff(1));
        let leases = leases(tmp.path(), &[a, b]);
        let exists = |diff: &Diff| tmp.path().join(named(diff)).exists();
        let first = leases.take([a]);
        let second = leases.take([a]);
        leases.delete(vec![named(&a), named(&b)]).unwrap();
        assert!(exists(&a) && !exists(&b));
        drop(first);
        assert!(exists(&a));
        drop(second);
        assert!(!exists(&a));
        let inner = leases.inner.lock();
        assert!(inner.kept.is_empty() && inner.doomed.is_empty());
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
        let read_one = |name: &String| std::fs::read_to_string(tmp.path().join(name));
        let read = |names: &[String]| names.iter().map(read_one).collect();
        let found: Vec<io::Result<String>> = lease.open(0..2, read);
        let found: Vec<String> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, [named(&a), named(&b)]);
        // It is deleted by its new name, and by no other reader's end than the last.
        let other = leases.take([c]);
        leases.delete(vec![named(&c)]).unwrap();
        drop(lease);
        assert!(tmp.path().join(named(&c)).exists());
        drop(other);
        assert!(!tmp.path().join(named(&c)).exists());
        assert!(tmp.path().join(named(&a)).exists());
        let inner = leases.inner.lock();
        assert!(inner.kept.is_empty() && inner.doomed.is_empty());
    }
}
