//! Who reads which wdiffs (I12): a file that somebody reads is not deleted under him, but as soon
//! as the last reader has let go.
//!
//! A file that waits for its deletion is no longer in the catalogue; should the process die first,
//! the next start finds the file behind the base image and deletes it.

use parking_lot::Mutex;
use server_kit::durable::{DurableDir, RealDir};
use server_kit::error::RoleError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Default)]
struct Inner {
    readers: BTreeMap<String, usize>,
    doomed: BTreeSet<String>,
}

/// The leases of one volume. Clones share them.
#[derive(Clone)]
pub(crate) struct Leases {
    dir: Arc<RealDir>,
    inner: Arc<Mutex<Inner>>,
}

/// Keeps some files of a volume from being deleted.
pub(crate) struct Lease {
    leases: Leases,
    names: Vec<String>,
}

impl Leases {
    pub(crate) fn new(dir: Arc<RealDir>) -> Self {
        Self { dir, inner: Arc::default() }
    }

    /// Keeps these files until the lease is dropped. Take it under the lock that the names came
    /// from.
    pub(crate) fn take(&self, names: Vec<String>) -> Lease {
        let mut inner = self.inner.lock();
        for name in &names {
            *inner.readers.entry(name.clone()).or_default() += 1;
        }
        Lease { leases: self.clone(), names }
    }

    /// Deletes the files, now or when their last reader lets go. Blocks.
    pub(crate) fn delete(&self, names: Vec<String>) -> Result<(), RoleError> {
        let free = {
            let mut inner = self.inner.lock();
            let (kept, free): (Vec<_>, Vec<_>) =
                names.into_iter().partition(|n| inner.readers.contains_key(n));
            inner.doomed.extend(kept);
            free
        };
        Ok(self.dir.remove_all(&free)?)
    }
}

impl Lease {
    /// The files.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut free = Vec::new();
        let mut inner = self.leases.inner.lock();
        for name in &self.names {
            let Some(count) = inner.readers.get_mut(name) else { continue };
            *count -= 1;
            if *count == 0 {
                inner.readers.remove(name);
                free.extend(inner.doomed.take(name));
            }
        }
        drop(inner);
        if let Err(error) = self.leases.dir.remove_all(&free) {
            tracing::warn!(%error, "cannot delete wdiffs that are no longer needed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_when_its_last_reader_does() {
        let tmp = tempfile::tempdir().unwrap();
        let leases = Leases::new(Arc::new(RealDir::open(tmp.path()).unwrap()));
        let exists = |name: &str| tmp.path().join(name).exists();
        for name in ["a", "b"] {
            std::fs::write(tmp.path().join(name), "x").unwrap();
        }
        let first = leases.take(vec!["a".into()]);
        let second = leases.take(vec!["a".into()]);
        leases.delete(vec!["a".into(), "b".into()]).unwrap();
        assert!(exists("a") && !exists("b"));
        drop(first);
        assert!(exists("a"));
        drop(second);
        assert!(!exists("a"));
    }
}
