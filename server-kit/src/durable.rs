//! Small files and directories that survive a crash at any instant (design.md §10).
//!
//! A file changes by: write `*.tmp`, fsync it, rename it over the name, fsync the directory. Nobody
//! else renames files. Invariants: after a crash a name holds its old or its new content, whole;
//! when a call has returned, what it did is on the disk; a `*.tmp` file is never read, only removed
//! (I9); a file that fails its check is an error that names it, never a guess (I8).
//!
//! [`DurableDir`] is the seam: its required methods are single steps of the operating system, its
//! provided methods the orders of steps that are safe. [`RealDir`] is the disk; a simulation loses
//! and tears what was not synced.
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

mod base;
mod state_file;
pub use base::ROLE_FILE;
pub use state_file::StateFile;

/// How the names of half-made files end.
pub const TMP_SUFFIX: &str = ".tmp";

/// A failure of a durable directory.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// The operating system refused a step.
    #[error("cannot {attempt} {}", file.display())]
    Io {
        /// What was attempted, as a verb phrase.
        attempt: &'static str,
        /// On what.
        file: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The content of a file fails its check.
    #[error("{} is damaged: {why}; restore the file, or clear the volume and set it up again",
        file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// Which check it fails.
        why: String,
    },
    /// A base directory that is not this role's.
    #[error("{} belongs to {owner}; give this role a directory of its own", dir.display())]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// Whose it is.
        owner: String,
    },
    /// Not the name of a file inside a directory.
    #[error("{name:?} cannot be the name of a file in {}", dir.display())]
    BadName {
        /// The name.
        name: String,
        /// The directory.
        dir: PathBuf,
    },
}

/// A file of a [`DurableDir`] that is being written.
pub trait DurableFile: Write + Send {
    /// Content and length on the disk (fsync).
    ///
    /// # Errors
    /// What the system says; nothing may be assumed about the file then.
    fn sync(&mut self) -> io::Result<()>;
}

/// A half-made file. Write it, then [`DurableDir::commit`] it; dropped, it leaves nothing behind.
pub struct TmpFile {
    name: String,
    file: Box<dyn DurableFile>,
    /// Set by the first failed write: what is in the file is unknown, so it can never be committed.
    poisoned: bool,
    remove_on_drop: Option<PathBuf>,
}

impl TmpFile {
    /// All that was written is on the disk; `target` is what it shall become, for messages.
    fn settle(&mut self, target: &Path) -> Result<(), DurableError> {
        if self.poisoned {
            let source = io::Error::other("an earlier write to it failed");
            return Err(failed("commit", target, source));
        }
        self.file.flush().map_err(|e| failed("write", target, e))?;
        self.file.sync().map_err(|e| failed("sync", target, e))
    }
}

impl Write for TmpFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data);
        self.poisoned |= matches!(&written, Err(e) if e.kind() != io::ErrorKind::Interrupted);
        written
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().inspect_err(|_| self.poisoned = true)
    }
}

impl Drop for TmpFile {
    fn drop(&mut self) {
        if let Some(path) = &self.remove_on_drop {
            // Best effort: what stays is removed at the next start by its name.
            let _ = fs::remove_file(path);
        }
    }
}

/// A directory whose changes last. Blocking: async code calls it through [`crate::blocking`].
pub trait DurableDir: Send + Sync + 'static {
    /// Where it is (for messages, and to open large files in it for reading).
    fn path(&self) -> &Path;
    /// Step: an empty file of this name, open for writing.
    ///
    /// # Errors
    /// What the system says.
    fn create(&self, name: &str) -> io::Result<Box<dyn DurableFile>>;
    /// Step: `from` takes the name `to`, replacing what had it. Not durable by itself.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Step: the name is gone. Not durable by itself.
    ///
    /// # Errors
    /// What the system says.
    fn unlink(&self, name: &str) -> io::Result<()>;
    /// Step: a second name for the file, in another directory. Not durable by itself.
    ///
    /// # Errors
    /// What the system says.
    fn hard_link(&self, name: &str, target: &Path) -> io::Result<()>;
    /// Step: all names of this directory as they are now are durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&self) -> io::Result<()>;
    /// Step: the whole content.
    ///
    /// # Errors
    /// What the system says.
    fn read_file(&self, name: &str) -> io::Result<Vec<u8>>;
    /// Step: all names, in no order.
    ///
    /// # Errors
    /// What the system says.
    fn names(&self) -> io::Result<Vec<String>>;

    /// The content of a file, or `None` when there is none of that name.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DurableError> {
        match self.read_file(&checked(self.path(), name)?) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed("read", self.path().join(name), source)),
        }
    }

    /// All names but those of half-made files, sorted.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn list(&self) -> Result<Vec<String>, DurableError> {
        let mut names = self.names().map_err(|e| failed("list", self.path(), e))?;
        names.retain(|n| !n.ends_with(TMP_SUFFIX));
        names.sort_unstable();
        Ok(names)
    }

    /// A new half-made file.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn create_tmp(&self) -> Result<TmpFile, DurableError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}{TMP_SUFFIX}", std::process::id());
        let path = self.path().join(&name);
        let file = self.create(&name).map_err(|e| failed("create", &path, e))?;
        Ok(TmpFile { name, file, poisoned: false, remove_on_drop: Some(path) })
    }

    /// The half-made file becomes `name`, durable: fsync file, rename, fsync directory. A file
    /// that had the name is replaced.
    ///
    /// # Errors
    /// [`DurableError::Io`]: the name may then hold old or new content, each of them whole.
    fn commit(&self, mut tmp: TmpFile, name: &str) -> Result<(), DurableError> {
        let name = checked(self.path(), name)?;
        let path = self.path().join(&name);
        tmp.settle(&path)?;
        self.rename(&tmp.name, &name).map_err(|e| failed("rename to", &path, e))?;
        tmp.remove_on_drop = None;
        self.sync().map_err(|e| failed("sync", self.path(), e))
    }

    /// Replaces the content of `name` as a whole, durable.
    ///
    /// # Errors
    /// As [`DurableDir::commit`].
    fn write_atomic(&self, name: &str, content: &[u8]) -> Result<(), DurableError> {
        let mut tmp = self.create_tmp()?;
        tmp.write_all(content).map_err(|e| failed("write", self.path().join(name), e))?;
        self.commit(tmp, name)
    }

    /// Removes the names, durable; a name that is not there is no error.
    ///
    /// # Errors
    /// [`DurableError::Io`]: any of them may then still be there.
    fn remove_all(&self, names: &[String]) -> Result<(), DurableError> {
        for name in names {
            match self.unlink(&checked(self.path(), name)?) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed("remove", self.path().join(name), e)),
                Ok(()) => {}
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        self.sync().map_err(|e| failed("sync", self.path(), e))
    }

    /// Removes one name, durable.
    ///
    /// # Errors
    /// As [`DurableDir::remove_all`].
    fn remove(&self, name: &str) -> Result<(), DurableError> {
        self.remove_all(&[name.to_owned()])
    }

    /// The half-made file becomes `name` in every directory of `into`, durable in all of them when
    /// this returns: fsync file, link, fsync directory. A file that has the name already is kept:
    /// whatever has a name is whole.
    ///
    /// # Errors
    /// [`DurableError::Io`]: some of the directories may then have the file, whole.
    fn publish(
        &self,
        mut tmp: TmpFile,
        name: &str,
        into: &[Arc<dyn DurableDir>],
    ) -> Result<(), DurableError> {
        let name = checked(self.path(), name)?;
        tmp.settle(&self.path().join(&name))?;
        for dir in into {
            let target = dir.path().join(&name);
            match self.hard_link(&tmp.name, &target) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("link", target, e));
                }
                _ => dir.sync().map_err(|e| failed("sync", dir.path(), e))?,
            }
        }
        Ok(())
    }

    /// Gives the file a second name in `other`, durable; a file that is there already is kept.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn link(&self, name: &str, other: &dyn DurableDir) -> Result<(), DurableError> {
        let target = other.path().join(checked(self.path(), name)?);
        match self.hard_link(name, &target) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("link", target, e));
            }
            _ => {}
        }
        other.sync().map_err(|e| failed("sync", other.path(), e))
    }

    /// Removes what a killed process left half-made; done once at start (I9).
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn remove_tmp_files(&self) -> Result<(), DurableError> {
        let mut names = self.names().map_err(|e| failed("list", self.path(), e))?;
        names.retain(|n| n.ends_with(TMP_SUFFIX));
        self.remove_all(&names)
    }
}

fn failed(attempt: &'static str, file: impl Into<PathBuf>, source: io::Error) -> DurableError {
    DurableError::Io { attempt, file: file.into(), source }
}

/// A name is one component of a path, or it could lead out of the directory.
fn checked(dir: &Path, name: &str) -> Result<String, DurableError> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if plain {
        return Ok(name.to_owned());
    }
    Err(DurableError::BadName { name: name.to_owned(), dir: dir.to_owned() })
}

/// A directory of the file system.
#[derive(Debug)]
pub struct RealDir {
    path: PathBuf,
    handle: File,
}

impl RealDir {
    /// Opens a directory that exists.
    ///
    /// # Errors
    /// [`DurableError::Io`], also when it is not a directory.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, DurableError> {
        let path = path.into();
        let handle = File::open(&path).map_err(|e| failed("open directory", &path, e))?;
        let meta = handle.metadata().map_err(|e| failed("open directory", &path, e))?;
        if !meta.is_dir() {
            let source = io::Error::from(io::ErrorKind::NotADirectory);
            return Err(failed("open directory", path, source));
        }
        Ok(Self { path, handle })
    }

    /// Makes the directory and its missing parents, durable, and opens it. One that exists is fine.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    pub fn create(path: impl Into<PathBuf>) -> Result<Self, DurableError> {
        let path = path.into();
        if !path.is_dir() {
            let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
            let parent = Self::create(parent.unwrap_or_else(|| Path::new(".")))?;
            match fs::create_dir(&path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create directory", path, e));
                }
                _ => parent.sync().map_err(|e| failed("sync", &parent.path, e))?,
            }
        }
        Self::open(path)
    }

    /// Removes a directory and everything in it, durable; one that is not there is no error. It
    /// takes a `*.tmp` name first, so that a crash half-way leaves something that is recognised.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    pub fn remove_dir(&self, name: &str) -> Result<(), DurableError> {
        let path = self.path.join(checked(&self.path, name)?);
        let doomed = format!("{name}{TMP_SUFFIX}");
        match self.rename(name, &doomed) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed("remove", path, e)),
            Ok(()) => {}
        }
        self.sync().map_err(|e| failed("sync", &self.path, e))?;
        let doomed = self.path.join(doomed);
        fs::remove_dir_all(&doomed).map_err(|e| failed("remove", doomed, e))?;
        self.sync().map_err(|e| failed("sync", &self.path, e))
    }

    /// The directory `tmp`, complete and synced inside, takes the name `name`, durable.
    ///
    /// # Errors
    /// [`DurableError::Io`], also when something has the name.
    pub fn commit_dir(&self, tmp: &str, name: &str) -> Result<(), DurableError> {
        let path = self.path.join(checked(&self.path, name)?);
        self.rename(tmp, name).map_err(|e| failed("rename to", path, e))?;
        self.sync().map_err(|e| failed("sync", &self.path, e))
    }

    /// Removes half-removed or half-made directories (`*.tmp`); done once at start (I9).
    ///
    /// # Errors
    /// [`DurableError::Io`].
    pub fn remove_tmp_dirs(&self) -> Result<(), DurableError> {
        for name in self.names().map_err(|e| failed("list", &self.path, e))? {
            let path = self.path.join(&name);
            if name.ends_with(TMP_SUFFIX) && path.is_dir() {
                fs::remove_dir_all(&path).map_err(|e| failed("remove", path, e))?;
            }
        }
        Ok(())
    }

    /// Bytes that an ordinary user can still write to this file system.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    pub fn free_bytes(&self) -> Result<u64, DurableError> {
        let stat = nix::sys::statvfs::fstatvfs(&self.handle)
            .map_err(|e| failed("measure the free space of", &self.path, e.into()))?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}

struct RealFile(File);

impl Write for RealFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl DurableFile for RealFile {
    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_all()
    }
}

impl DurableDir for RealDir {
    fn path(&self) -> &Path {
        &self.path
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DurableFile>> {
        Ok(Box::new(RealFile(File::create(self.path.join(name))?)))
    }
    #[expect(clippy::disallowed_methods, reason = "this is the one place that renames")]
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }
    fn hard_link(&self, name: &str, target: &Path) -> io::Result<()> {
        fs::hard_link(self.path.join(name), target)
    }
    fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }
    fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path.join(name))
    }
    fn names(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(&self.path)?;
        // A name that is not UTF-8 is none of ours: it is left alone.
        entries.filter_map(|e| e.map(|e| e.file_name().into_string().ok()).transpose()).collect()
    }
}
