//! The real directory: what is half-made goes away, what is linked stays, names cannot leave it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
use server_kit::durable::{DurableDir, DurableError, DurableFile, FileInfo, RealDir};
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use wdiff_format::io_at::ReadObject;

#[test]
fn a_dropped_tmp_file_leaves_nothing_and_a_committed_one_only_its_name() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = RealDir::create(tmp.path().join("a/b/c")).unwrap();
    let mut file = dir.create_tmp().unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(file);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let mut file = dir.create_tmp().unwrap();
    file.write_all(b"whole").unwrap();
    dir.commit(file, "name").unwrap();
    assert_eq!(dir.list().unwrap(), ["name"]);
    assert_eq!(dir.read("name").unwrap().unwrap(), b"whole");
}

#[test]
fn leftovers_of_a_killed_process_are_removed_by_name() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = RealDir::create(tmp.path()).unwrap();
    fs::write(tmp.path().join("12-3.tmp"), b"x").unwrap();
    fs::write(tmp.path().join("kept"), b"x").unwrap();
    fs::create_dir_all(tmp.path().join("vol.tmp/deep")).unwrap();
    assert_eq!(dir.list().unwrap(), ["kept"], "half-made files are never listed");
    dir.remove_tmp_dirs().unwrap();
    dir.remove_tmp_files().unwrap();
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
}

#[test]
fn a_linked_file_survives_removal_at_its_first_place_and_linking_twice_is_fine() {
    let tmp = tempfile::tempdir().unwrap();
    let from = RealDir::create(tmp.path().join("received")).unwrap();
    let to = RealDir::create(tmp.path().join("sendto")).unwrap();
    from.write_atomic("w", b"data").unwrap();
    from.link("w", &to).unwrap();
    from.link("w", &to).unwrap();
    from.remove("w").unwrap();
    from.remove("w").unwrap();
    assert_eq!(to.read("w").unwrap().unwrap(), b"data");
    assert_eq!(from.read("w").unwrap(), None);
}

#[test]
fn names_that_lead_out_of_the_directory_are_errors() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = RealDir::create(tmp.path()).unwrap();
    for name in ["", ".", "..", "../x", "a/b", "a\0"] {
        let error = dir.write_atomic(name, b"x").unwrap_err();
        assert!(matches!(error, DurableError::BadName { .. }), "{name:?}: {error}");
        assert!(dir.read(name).is_err());
        assert!(dir.remove(name).is_err());
    }
}

#[test]
fn a_directory_is_removed_as_a_whole_and_free_space_is_known() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = RealDir::create(tmp.path()).unwrap();
    let inner = RealDir::create(tmp.path().join("vol/queue")).unwrap();
    inner.write_atomic("w", b"x").unwrap();
    dir.remove_dir("vol").unwrap();
    dir.remove_dir("vol").unwrap();
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    assert!(dir.free_bytes().unwrap() > 0);
    assert!(RealDir::open(tmp.path().join("vol")).is_err());
}

/// A directory that writes down the steps that are done to it.
struct Traced(RealDir, &'static str, Arc<Mutex<Vec<String>>>);
struct TracedFile(Box<dyn DurableFile>, Arc<Mutex<Vec<String>>>);

impl Write for TracedFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
impl DurableFile for TracedFile {
    fn sync(&mut self) -> io::Result<()> {
        self.1.lock().unwrap().push("sync file".into());
        self.0.sync()
    }
    fn discard(&mut self) {
        self.0.discard();
    }
}
impl DurableDir for Traced {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DurableFile>> {
        Ok(Box::new(TracedFile(self.0.create(name)?, Arc::clone(&self.2))))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        self.0.unlink(name)
    }
    fn hard_link(&self, name: &str, target: &Path) -> io::Result<()> {
        let dir = target.parent().unwrap().file_name().unwrap().to_str().unwrap();
        self.2.lock().unwrap().push(format!("link {dir}"));
        self.0.hard_link(name, target)
    }
    fn sync(&self) -> io::Result<()> {
        self.2.lock().unwrap().push(format!("sync {}", self.1));
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
        self.0.set_len(name, len_bytes)
    }
    fn sync_file(&self, name: &str) -> io::Result<()> {
        self.0.sync_file(name)
    }
    fn reflink(&self, name: &str, into: &dyn DurableDir, new: &str) -> io::Result<()> {
        self.0.reflink(name, into, new)
    }
    fn make_dir(&self, name: &str) -> io::Result<()> {
        self.0.make_dir(name)
    }
    fn remove_tree(&self, name: &str) -> io::Result<()> {
        self.0.remove_tree(name)
    }
    fn open_dir(&self, name: &str) -> Result<Arc<dyn DurableDir>, DurableError> {
        self.0.open_dir(name)
    }
    fn free_bytes(&self) -> Result<u64, DurableError> {
        self.0.free_bytes()
    }
}

#[test]
fn a_published_file_is_durable_in_every_directory_before_anybody_is_told() {
    let (tmp, steps) = (tempfile::tempdir().unwrap(), Arc::default());
    let dir = |name: &'static str| {
        Traced(RealDir::create(tmp.path().join(name)).unwrap(), name, Arc::clone(&steps))
    };
    let (received, a0, a1) = (dir("received"), Arc::new(dir("a0")), Arc::new(dir("a1")));
    let into: [Arc<dyn DurableDir>; 2] = [a0.clone(), a1.clone()];
    for content in ["first", "second"] {
        let mut file = received.create_tmp().unwrap();
        file.write_all(content.as_bytes()).unwrap();
        received.publish(file, "w", &into).unwrap();
        let done = std::mem::take(&mut *steps.lock().unwrap());
        assert_eq!(done, ["sync file", "link a0", "sync a0", "link a1", "sync a1"]);
    }
    assert_eq!(a0.read("w").unwrap().unwrap(), b"first", "what has a name is kept");
    assert_eq!(a1.read("w").unwrap().unwrap(), b"first");
    assert_eq!(fs::read_dir(received.path()).unwrap().count(), 0, "nothing half-made stays");
}
