//! A directory that stops to change after so many steps, as if the process had been killed there:
//! how tests kill a role at every step to its disk (I9).

use super::{DurableDir, DurableError, DurableFile, FileInfo, OpenDir, real_dirs};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use wdiff_format::io_at::ReadObject;

/// Steps that still reach the disk. Clones share them.
#[derive(Debug, Clone)]
pub struct Fuse(Arc<AtomicI64>);

impl Fuse {
    /// So many steps, and no more.
    #[must_use]
    pub fn new(steps: i64) -> Self {
        Self(Arc::new(AtomicI64::new(steps)))
    }

    /// Every step, until something else is said.
    #[must_use]
    pub fn whole() -> Self {
        Self::new(i64::MAX / 2)
    }

    /// From now on so many steps, and no more.
    pub fn set(&self, steps: i64) {
        self.0.store(steps, Ordering::SeqCst);
    }

    /// The disk works again.
    pub fn mend(&self) {
        self.set(i64::MAX / 2);
    }

    /// Whether a step was wanted that did not reach the disk.
    #[must_use]
    pub fn is_blown(&self) -> bool {
        self.0.load(Ordering::SeqCst) < 0
    }

    /// Directories of the file system behind this fuse.
    #[must_use]
    pub fn dirs(&self) -> OpenDir {
        let (fuse, real) = (self.clone(), real_dirs());
        Arc::new(move |path| Ok(Arc::new(FusedDir(real(path)?, fuse.clone()))))
    }

    fn step(&self) -> io::Result<()> {
        // At once, so that a disk that works again meanwhile stays so.
        let left = |left: i64| Some(if left > 0 { left - 1 } else { -1 });
        match self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left) {
            Ok(1..) => Ok(()),
            _ => Err(io::Error::other("killed here")),
        }
    }
}

struct FusedDir(Arc<dyn DurableDir>, Fuse);
struct FusedFile(Box<dyn DurableFile>, Fuse);

impl io::Write for FusedFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl DurableFile for FusedFile {
    fn sync(&mut self) -> io::Result<()> {
        self.1.step()?;
        self.0.sync()
    }
    fn discard(&mut self) {
        // Who is killed removes nothing.
        if !self.1.is_blown() {
            self.0.discard();
        }
    }
}

impl DurableDir for FusedDir {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DurableFile>> {
        self.1.step()?;
        Ok(Box::new(FusedFile(self.0.create(name)?, self.1.clone())))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.rename(from, to)
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.unlink(name)
    }
    fn hard_link(&self, name: &str, target: &Path) -> io::Result<()> {
        self.1.step()?;
        self.0.hard_link(name, target)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.step()?;
        self.0.sync()
    }
    fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.read_file(name)
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }
    fn open_file(&self, name: &str) -> io::Result<ReadObject> {
        self.0.open_file(name)
    }
    fn info(&self, name: &str) -> io::Result<FileInfo> {
        self.0.info(name)
    }
    fn set_len(&self, name: &str, len_bytes: u64) -> io::Result<()> {
        self.1.step()?;
        self.0.set_len(name, len_bytes)
    }
    fn sync_file(&self, name: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.sync_file(name)
    }
    fn reflink(&self, name: &str, into: &dyn DurableDir, new: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.reflink(name, into, new)
    }
    fn make_dir(&self, name: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.make_dir(name)
    }
    fn remove_tree(&self, name: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.remove_tree(name)
    }
    fn open_dir(&self, name: &str) -> Result<Arc<dyn DurableDir>, DurableError> {
        Ok(Arc::new(FusedDir(self.0.open_dir(name)?, self.1.clone())))
    }
    fn free_bytes(&self) -> Result<u64, DurableError> {
        self.0.free_bytes()
    }
}
