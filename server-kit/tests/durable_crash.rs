//! A crash between any two steps of a write leaves the old or the new content, on a simulated
//! directory that loses and tears everything that was not synced.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
use proptest::prelude::*;
use server_kit::durable::{DurableDir, DurableFile};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

#[derive(Clone, Default)]
struct Inode {
    seen: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Clone)]
enum NameChange {
    Set(String, usize),
    Gone(String),
}

#[derive(Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    unsynced: Vec<NameChange>,
    steps_left: Option<usize>,
}

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        match &mut self.steps_left {
            Some(0) => Err(io::Error::other("power is off")),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn change(&mut self, change: NameChange) {
        apply(&mut self.names, &change);
        self.unsynced.push(change);
    }

    /// What the disk may hold after a power cut: `keep` of the last name changes reached it, and
    /// `torn` says how much of unsynced content did.
    fn content_after_cut(&self, name: &str, keep: usize, torn: usize) -> Option<Vec<u8>> {
        let mut names = self.synced_names.clone();
        self.unsynced.iter().take(keep).for_each(|c| apply(&mut names, c));
        let inode = &self.inodes[*names.get(name)?];
        if inode.seen == inode.synced {
            return Some(inode.seen.clone());
        }
        Some(inode.seen[..torn.min(inode.seen.len())].to_vec())
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Set(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Gone(name) => {
            names.remove(name);
        }
    }
}

#[derive(Clone, Default)]
struct SimDir(Arc<Mutex<Disk>>);

struct SimFile(SimDir, usize);

impl Write for SimFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut disk = self.0.0.lock().unwrap();
        disk.step()?;
        let part = data.len().min(7);
        disk.inodes[self.1].seen.extend_from_slice(&data[..part]);
        Ok(part)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DurableFile for SimFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.0.0.lock().unwrap();
        disk.step()?;
        disk.inodes[self.1].synced = disk.inodes[self.1].seen.clone();
        Ok(())
    }
}

impl DurableDir for SimDir {
    fn path(&self) -> &Path {
        Path::new("/simulated")
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DurableFile>> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.inodes.push(Inode::default());
        let inode = disk.inodes.len() - 1;
        disk.change(NameChange::Set(name.into(), inode));
        Ok(Box::new(SimFile(self.clone(), inode)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        let inode = *disk.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        disk.change(NameChange::Set(to.into(), inode));
        disk.change(NameChange::Gone(from.into()));
        Ok(())
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.change(NameChange::Gone(name.into()));
        Ok(())
    }
    fn hard_link(&self, _: &str, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.step()?;
        disk.synced_names = disk.names.clone();
        disk.unsynced.clear();
        Ok(())
    }
    fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        let disk = self.0.lock().unwrap();
        let inode = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(disk.inodes[inode].seen.clone())
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().unwrap().names.keys().cloned().collect())
    }
}

proptest! {
    #[test]
    fn a_crash_leaves_old_or_new_content_and_a_finished_write_lasts(
        old in prop::collection::vec(any::<u8>(), 0..40),
        new in prop::collection::vec(any::<u8>(), 0..40),
        steps in 0usize..20, keep in 0usize..8, torn in 0usize..40,
    ) {
        let dir = SimDir::default();
        dir.write_atomic("state", &old).unwrap();
        dir.0.lock().unwrap().steps_left = Some(steps);
        let done = dir.write_atomic("state", &new).is_ok();
        let found = dir.0.lock().unwrap().content_after_cut("state", keep, torn);
        let found = found.expect("the name never goes away");
        if done {
            prop_assert_eq!(found, new);
        } else {
            prop_assert!(found == old || found == new, "neither old nor new: {:?}", found);
        }
    }

    #[test]
    fn a_removed_name_stays_removed(keep in 0usize..8) {
        let dir = SimDir::default();
        dir.write_atomic("state", b"x").unwrap();
        dir.remove("state").unwrap();
        prop_assert_eq!(dir.0.lock().unwrap().content_after_cut("state", keep, 0), None);
    }
}
