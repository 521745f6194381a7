//! Who reads which wdiffs (I12): a file that somebody reads is not deleted under him, but as soon
//! as the last reader has let go.
//!
//! A file that waits for its deletion is no longer in the catalogue; should the process die first,
//! the next start finds the file behind the base image, or inside the diff that it was merged into,
//! and deletes it. A file that is read may get another name (its flags are in there): readers open
//! it through their lease, which knows the name of the moment.

use parking_lot::Mutex;
use server_kit::durable::{DurableDir, DurableError};
use server_kit::error::RoleError;
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// A file that somebody reads.
struct Leased {
    name: String,
    readers: usize,
    doomed: bool,
}

#[derive(Default)]
struct Inner {
    taken: u64,
    files: BTreeMap<u64, Leased>,
    /// The files that are not doomed, by the name of the moment.
    by_name: BTreeMap<String, u64>,
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
    names: Vec<String>,
    files: Vec<u64>,
}

impl Leases {
    pub(crate) fn new(dir: Arc<dyn DurableDir>) -> Self {
        Self { dir, inner: Arc::default() }
    }

    /// Keeps these files until the lease is dropped. Take it under the lock that the names came
    /// from.
    pub(crate) fn take(&self, names: Vec<String>) -> Lease {
        let mut inner = self.inner.lock();
        let files = names.iter().map(|name| inner.read(name)).collect();
        Lease(Arc::new(Held { leases: self.clone(), names, files }))
    }

    /// Whether somebody reads the file that has this name, or had it when it was doomed.
    pub(crate) fn is_read(&self, name: &str) -> bool {
        self.inner.lock().files.values().any(|file| file.name == name)
    }

    /// Deletes the files, now or when their last reader lets go. Blocks.
    pub(crate) fn delete(&self, names: Vec<String>) -> Result<(), RoleError> {
        let mut free = Vec::new();
        let mut inner = self.inner.lock();
        for name in names {
            let leased = inner.by_name.remove(&name);
            match leased.and_then(|number| inner.files.get_mut(&number)) {
                Some(file) => file.doomed = true,
                None => free.push(name),
            }
        }
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
        if let Some(number) = inner.by_name.remove(name) {
            inner.by_name.insert(aside.to_owned(), number);
            if let Some(file) = inner.files.get_mut(&number) {
                aside.clone_into(&mut file.name);
            }
        }
        Ok(kept)
    }

    /// Gives a file another name, not durable by itself. Call it under the lock that names come
    /// from. Blocks for a moment.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.inner.lock();
        self.dir.rename(from, to)?;
        if let Some(number) = inner.by_name.remove(from) {
            inner.by_name.insert(to.to_owned(), number);
            if let Some(file) = inner.files.get_mut(&number) {
                to.clone_into(&mut file.name);
            }
        }
        Ok(())
    }
}

impl Inner {
    /// One more reader of the file that has this name.
    fn read(&mut self, name: &str) -> u64 {
        let number = self.by_name.get(name).copied().unwrap_or_else(|| {
            self.taken += 1;
            self.by_name.insert(name.to_owned(), self.taken);
            let file = Leased { name: name.to_owned(), readers: 0, doomed: false };
            self.files.insert(self.taken, file);
            self.taken
        });
        if let Some(file) = self.files.get_mut(&number) {
            file.readers += 1;
        }
        number
    }

    /// One reader less; the name of the file if it shall go now.
    fn let_go(&mut self, number: u64) -> Option<String> {
        let file = self.files.get_mut(&number)?;
        file.readers -= 1;
        if file.readers > 0 {
            return None;
        }
        let file = self.files.remove(&number)?;
        if !file.doomed {
            self.by_name.remove(&file.name);
        }
        file.doomed.then_some(file.name)
    }
}

impl Lease {
    /// The files, as they were called when the lease was taken.
    pub(crate) fn names(&self) -> &[String] {
        &self.0.names
    }

    /// Opens some of the files by `open`, which gets their names; no name changes in between.
    pub(crate) fn open<T>(&self, which: Range<usize>, open: impl FnOnce(&[String]) -> T) -> T {
        let Held { leases, files, .. } = &*self.0;
        let inner = leases.inner.lock();
        let wanted = files.get(which).unwrap_or_default();
        let found = wanted.iter().filter_map(|number| inner.files.get(number));
        let names: Vec<String> = found.map(|file| file.name.clone()).collect();
        open(&names)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut inner = self.leases.inner.lock();
        let free: Vec<String> = self.files.iter().filter_map(|f| inner.let_go(*f)).collect();
        drop(inner);
        if let Err(error) = self.leases.dir.remove_all(&free) {
            tracing::warn!(%error, "cannot delete wdiffs that are no longer needed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use server_kit::durable::RealDir;

    fn leases(dir: &std::path::Path, names: &[&str]) -> Leases {
        for name in names {
            std::fs::write(dir.join(name), name).unwrap();
        }
        Leases::new(Arc::new(RealDir::open(dir).unwrap()))
    }

    #[test]
    fn a_file_goes_when_its_last_reader_does() {
        let tmp = tempfile::tempdir().unwrap();
        let leases = leases(tmp.path(), &["a", "b"]);
        let exists = |name: &str| tmp.path().join(name).exists();
        let first = leases.take(vec!["a".into()]);
        let second = leases.take(vec!["a".into()]);
        leases.delete(vec!["a".into(), "b".into()]).unwrap();
        assert!(exists("a") && !exists("b"));
        drop(first);
        assert!(exists("a"));
        drop(second);
        assert!(!exists("a"));
        assert!(leases.inner.lock().files.is_empty());
    }

    #[test]
    fn a_reader_finds_its_file_under_every_new_name() {
        let tmp = tempfile::tempdir().unwrap();
        let leases = leases(tmp.path(), &["a", "b"]);
        let lease = leases.take(vec!["a".into(), "b".into()]);
        leases.rename("b", "c").unwrap();
        assert!(leases.rename("gone", "d").is_err());
        let read_one = |name: &String| std::fs::read_to_string(tmp.path().join(name));
        let read = |names: &[String]| names.iter().map(read_one).collect();
        let found: Vec<io::Result<String>> = lease.open(0..2, read);
        let found: Vec<String> = found.into_iter().map(Result::unwrap).collect();
        assert_eq!(found, ["a", "b"]);
        // It is deleted by its new name, and by no other reader's end than the last.
        let other = leases.take(vec!["c".into()]);
        leases.delete(vec!["c".into()]).unwrap();
        drop(lease);
        assert!(tmp.path().join("c").exists());
        drop(other);
        assert!(!tmp.path().join("c").exists());
        assert!(tmp.path().join("a").exists());
        let inner = leases.inner.lock();
        assert!(inner.files.is_empty() && inner.by_name.is_empty());
    }
}
