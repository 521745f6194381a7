//! A state directory in memory that is as bad as a real one may be: names and contents that were
//! not synced may be lost by a power cut, and every step is an event of the trace of the disks.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use block_io::sim::{Survival, Trace};
use parking_lot::Mutex;
use server_kit::durable::{DurableDir, DurableFile};

/// Marks of a trace from here on are steps of the directory.
pub const DIR_STEP: u64 = 1 << 40;

/// Contents by name.
pub type Files = BTreeMap<String, Vec<u8>>;

#[derive(Clone, Default)]
struct Inode {
    seen: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    trace: Option<Trace>,
    /// What is durable, and what is seen, after each step.
    steps: Vec<(Files, Files)>,
    /// Steps until everything fails.
    steps_left: Option<usize>,
}

impl Disk {
    fn begin(&mut self) -> io::Result<()> {
        match &mut self.steps_left {
            Some(0) => Err(io::Error::other("the state directory fails here")),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn end(&mut self) {
        let content = |names: &BTreeMap<String, usize>, of: fn(&Inode) -> &Vec<u8>| {
            names.iter().map(|(name, at)| (name.clone(), of(&self.inodes[*at]).clone())).collect()
        };
        let durable = content(&self.synced_names, |inode| &inode.synced);
        let seen = content(&self.names, |inode| &inode.seen);
        self.steps.push((durable, seen));
        if let Some(trace) = &self.trace {
            trace.mark(DIR_STEP + self.steps.len() as u64 - 1);
        }
    }
}

#[derive(Clone, Default)]
pub struct StateDir(Arc<Mutex<Disk>>);

impl StateDir {
    /// A directory with these files, all durable, whose steps go into the trace.
    pub fn new(files: &Files, trace: Option<&Trace>) -> Arc<Self> {
        let dir = Self::default();
        for (name, content) in files {
            dir.write_atomic(name, content).unwrap();
        }
        dir.0.lock().steps.clear();
        dir.0.lock().trace = trace.cloned();
        dir.0.lock().end();
        Arc::new(dir)
    }

    /// From the `n`-th step on everything fails.
    pub fn fail_from(&self, n: Option<usize>) {
        self.0.lock().steps_left = n;
    }

    pub fn steps(&self) -> usize {
        self.0.lock().steps.len()
    }

    /// What is left after a power cut behind step `step`, or now.
    pub fn after_cut(&self, step: Option<usize>, survival: Survival) -> Files {
        let disk = self.0.lock();
        let (durable, seen) = &disk.steps[step.unwrap_or(disk.steps.len() - 1)];
        let everything = match survival {
            Survival::Nothing => false,
            Survival::Everything => true,
            Survival::Random(seed) => seed % 2 == 0,
        };
        if everything { seen.clone() } else { durable.clone() }
    }
}

struct StateFile(StateDir, usize);

impl Write for StateFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut disk = self.0.0.lock();
        disk.begin()?;
        disk.inodes[self.1].seen.extend_from_slice(data);
        disk.end();
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DurableFile for StateFile {
    fn sync(&mut self) -> io::Result<()> {
        let mut disk = self.0.0.lock();
        disk.begin()?;
        disk.inodes[self.1].synced = disk.inodes[self.1].seen.clone();
        disk.end();
        Ok(())
    }
}

impl DurableDir for StateDir {
    fn path(&self) -> &Path {
        Path::new("/simulated/state")
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DurableFile>> {
        let mut disk = self.0.lock();
        disk.begin()?;
        disk.inodes.push(Inode::default());
        let inode = disk.inodes.len() - 1;
        disk.names.insert(name.to_owned(), inode);
        disk.end();
        Ok(Box::new(StateFile(self.clone(), inode)))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.begin()?;
        let inode = disk.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        disk.names.insert(to.to_owned(), inode);
        disk.end();
        Ok(())
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.begin()?;
        disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        disk.end();
        Ok(())
    }
    fn hard_link(&self, _: &str, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn sync(&self) -> io::Result<()> {
        let mut disk = self.0.lock();
        disk.begin()?;
        disk.synced_names = disk.names.clone();
        disk.end();
        Ok(())
    }
    fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        let disk = self.0.lock();
        let inode = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(disk.inodes[inode].seen.clone())
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }
}
