//! The real directory: each step of [`DurableDir`] is one call of the system, and nothing more.
use super::{DurableDir, DurableError, DurableFile, FileInfo, failed};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use wdiff_format::io_at::ReadObject;

/// How a role comes to a directory that it knows by its path: it is made, with its missing parents,
/// and opened.
pub type OpenDir = Arc<dyn Fn(&Path) -> Result<Arc<dyn DurableDir>, DurableError> + Send + Sync>;

/// Directories of the file system.
#[must_use]
pub fn real_dirs() -> OpenDir {
    Arc::new(|path| Ok(Arc::new(RealDir::create(path)?)))
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
}

struct RealFile {
    file: File,
    path: PathBuf,
}

impl Write for RealFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl DurableFile for RealFile {
    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
    fn discard(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl DurableDir for RealDir {
    fn path(&self) -> &Path {
        &self.path
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DurableFile>> {
        let path = self.path.join(name);
        Ok(Box::new(RealFile { file: File::create(&path)?, path }))
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
    fn open_file(&self, name: &str) -> io::Result<ReadObject> {
        Ok(Arc::new(File::open(self.path.join(name))?))
    }
    fn info(&self, name: &str) -> io::Result<FileInfo> {
        let meta = fs::metadata(self.path.join(name))?;
        let since = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let modified_s = since.map_or(0, |t| t.as_secs());
        Ok(FileInfo { is_dir: meta.is_dir(), len_bytes: meta.len(), modified_s })
    }
    fn set_len(&self, name: &str, len_bytes: u64) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        options.create(true).truncate(false).write(true);
        options.open(self.path.join(name))?.set_len(len_bytes)
    }
    fn sync_file(&self, name: &str) -> io::Result<()> {
        File::open(self.path.join(name))?.sync_all()
    }
    fn reflink(&self, name: &str, into: &dyn DurableDir, new: &str) -> io::Result<()> {
        reflink_copy::reflink(self.path.join(name), into.path().join(new))
    }
    fn make_dir(&self, name: &str) -> io::Result<()> {
        fs::create_dir(self.path.join(name))
    }
    fn remove_tree(&self, name: &str) -> io::Result<()> {
        fs::remove_dir_all(self.path.join(name))
    }
    fn open_dir(&self, name: &str) -> Result<Arc<dyn DurableDir>, DurableError> {
        Ok(Arc::new(Self::open(self.path.join(name))?))
    }
    fn free_bytes(&self) -> Result<u64, DurableError> {
        let stat = nix::sys::statvfs::fstatvfs(&self.handle)
            .map_err(|e| failed("measure the free space of", &self.path, e.into()))?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }
}
