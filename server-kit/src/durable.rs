//! Small files and directories that survive a crash at any instant (design.md §10).
//!
//! A file changes by: write `*.tmp`, fsync it, rename it over the name, fsync the directory. Nobody
//! else renames files. Invariants: after a crash a name holds its old or its new content, whole;
//! when a call has returned, what it did is on the disk; a `*.tmp` file is never read, only removed
//! (I9); a file that fails its check is an error that names it, never a guess (I8).
//!
//! [`DurableDir`] is the seam: its steps are single steps of the operating system, its other
//! methods the orders of steps that are safe. [`RealDir`] is the disk; a simulation loses and tears
//! what was not synced. Steps that are not for small files a directory may refuse (`Unsupported`).
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wdiff_format::io_at::ReadObject;

mod base;
mod fuse;
mod real;
mod state_file;
pub use base::{ROLE_FILE, claim_base};
pub use fuse::Fuse;
pub use real::{OpenDir, RealDir, real_dirs};
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
    /// Nobody wants the file: away with the name that it was created under. Best effort, what stays
    /// is removed at the next start by its name.
    fn discard(&mut self) {}
}

/// What a name in a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileInfo {
    /// A directory, and no file.
    pub is_dir: bool,
    /// Length of the file.
    pub len_bytes: u64,
    /// When it was changed last (unix seconds), for people.
    pub modified_s: u64,
}

/// A half-made file. Write it, then [`DurableDir::commit`] it; dropped, it leaves nothing behind.
pub struct TmpFile {
    name: String,
    file: Box<dyn DurableFile>,
    /// Set by the first failed write: what is in the file is unknown, so it can never be committed.
    poisoned: bool,
    /// It has another name, or a second one.
    committed: bool,
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
        if !self.committed {
            self.file.discard();
        }
    }
}

/// A directory whose changes last. Blocking: async code calls it through [`crate::blocking`].
pub trait DurableDir: Send + Sync + 'static {
    /// Where it is, for messages.
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
    /// Step: a file to be read piece by piece; it stays readable when its name goes.
    ///
    /// # Errors
    /// What the system says.
    fn open_file(&self, _name: &str) -> io::Result<ReadObject> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Step: what has this name.
    ///
    /// # Errors
    /// What the system says; `NotFound` when nothing has.
    fn info(&self, _name: &str) -> io::Result<FileInfo> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Step: gives a file, which is made if it is missing, this length; what is new is a hole.
    ///
    /// # Errors
    /// What the system says.
    fn set_len(&self, _name: &str, _len_bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Step: content and length of a file are on the disk.
    ///
    /// # Errors
    /// What the system says.
    fn sync_file(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Step: a new file in `into` that shares the blocks of this one. Not durable by itself.
    ///
    /// # Errors
    /// What the system says, also when it cannot do such a thing.
    fn reflink(&self, _name: &str, _into: &dyn DurableDir, _new: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Step: an empty directory. Not durable by itself.
    ///
    /// # Errors
    /// What the system says.
    fn make_dir(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Step: a directory with all that is in it is gone. Not durable by itself.
    ///
    /// # Errors
    /// What the system says.
    fn remove_tree(&self, _name: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// A directory in this one that exists.
    ///
    /// # Errors
    /// [`DurableError::Io`], also when it is not a directory.
    fn open_dir(&self, name: &str) -> Result<Arc<dyn DurableDir>, DurableError> {
        let source = io::ErrorKind::Unsupported.into();
        Err(failed("open directory", self.path().join(name), source))
    }
    /// Bytes that an ordinary user can still write to this file system.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn free_bytes(&self) -> Result<u64, DurableError> {
        let source = io::ErrorKind::Unsupported.into();
        Err(failed("measure the free space of", self.path(), source))
    }

    /// Whether a directory has this name.
    fn has_dir(&self, name: &str) -> bool {
        checked(self.path(), name).is_ok_and(|n| self.info(&n).is_ok_and(|i| i.is_dir))
    }

    /// What has this name, if anything.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn look_at(&self, name: &str) -> Result<Option<FileInfo>, DurableError> {
        match self.info(&checked(self.path(), name)?) {
            Ok(info) => Ok(Some(info)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("look at", self.path().join(name), e)),
        }
    }

    /// Makes the directory, durable, and opens it. One that exists is fine.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn create_dir(&self, name: &str) -> Result<Arc<dyn DurableDir>, DurableError> {
        let name = checked(self.path(), name)?;
        if !self.has_dir(&name) {
            match self.make_dir(&name) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create directory", self.path().join(name), e));
                }
                _ => self.sync().map_err(|e| failed("sync", self.path(), e))?,
            }
        }
        self.open_dir(&name)
    }

    /// Removes a directory and everything in it, durable; one that is not there is no error. It
    /// takes a `*.tmp` name first, so that a crash half-way leaves something that is recognised.
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn remove_dir(&self, name: &str) -> Result<(), DurableError> {
        let path = self.path().join(checked(self.path(), name)?);
        let doomed = format!("{name}{TMP_SUFFIX}");
        match self.rename(name, &doomed) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed("remove", path, e)),
            Ok(()) => {}
        }
        self.sync().map_err(|e| failed("sync", self.path(), e))?;
        self.remove_tree(&doomed).map_err(|e| failed("remove", self.path().join(&doomed), e))?;
        self.sync().map_err(|e| failed("sync", self.path(), e))
    }

    /// The file or directory `tmp`, complete and synced inside, takes the name `name`, durable.
    ///
    /// # Errors
    /// [`DurableError::Io`], also when a directory has the name.
    fn commit_dir(&self, tmp: &str, name: &str) -> Result<(), DurableError> {
        let path = self.path().join(checked(self.path(), name)?);
        self.rename(tmp, name).map_err(|e| failed("rename to", path, e))?;
        self.sync().map_err(|e| failed("sync", self.path(), e))
    }

    /// Removes half-removed or half-made directories (`*.tmp`); done once at start (I9).
    ///
    /// # Errors
    /// [`DurableError::Io`].
    fn remove_tmp_dirs(&self) -> Result<(), DurableError> {
        for name in self.names().map_err(|e| failed("list", self.path(), e))? {
            if name.ends_with(TMP_SUFFIX) && self.has_dir(&name) {
                let path = self.path().join(&name);
                self.remove_tree(&name).map_err(|e| failed("remove", path, e))?;
            }
        }
        Ok(())
    }

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
        Ok(TmpFile { name, file, poisoned: false, committed: false })
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
        tmp.committed = true;
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
