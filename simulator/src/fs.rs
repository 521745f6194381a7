//! The file system of a simulated host: what was not synced may be lost, or kept, or torn.
//!
//! After a power cut a directory has the names that were synced and some of the changes after that,
//! in their order (a journal); a file has, sector by sector, what was synced or what was written
//! after that. After the kill of a process everything is there, and nothing that the dead process
//! still tries (destructors) reaches the disk.

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use server_kit::clock::unix_seconds;
use server_kit::durable::{DurableDir, DurableError, DurableFile, FileInfo, OpenDir};
use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wdiff_format::io_at::{ReadAt, ReadObject};

use crate::defect::{Defect, Defects};
use crate::life::Life;

const SECTOR: usize = 512;

type Names = BTreeMap<String, usize>;

enum Node {
    Dir { names: Names, synced: Names, changes: Vec<Vec<(String, Option<usize>)>> },
    File { content: Vec<u8>, synced: Vec<u8>, modified_s: u64 },
}

struct Tree {
    nodes: Vec<Node>,
    rng: StdRng,
    /// Whether writes fail for want of space.
    full: bool,
    /// The process dies at this many changes from now.
    dies_in: Option<u32>,
}

/// The file system of one host. Clones are the same.
#[derive(Clone)]
pub(crate) struct Fs(Arc<Mutex<Tree>>);

fn missing() -> io::Error {
    ErrorKind::NotFound.into()
}

fn empty_dir() -> Node {
    Node::Dir { names: Names::new(), synced: Names::new(), changes: Vec::new() }
}

impl Tree {
    fn names(&self, dir: usize) -> io::Result<&Names> {
        match &self.nodes[dir] {
            Node::Dir { names, .. } => Ok(names),
            Node::File { .. } => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn find(&self, dir: usize, name: &str) -> io::Result<usize> {
        self.names(dir)?.get(name).copied().ok_or_else(missing)
    }

    fn change(&mut self, dir: usize, change: Vec<(String, Option<usize>)>) {
        let Node::Dir { names, changes, .. } = &mut self.nodes[dir] else { return };
        apply(names, &change);
        changes.push(change);
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn file(&mut self, node: usize) -> io::Result<(&mut Vec<u8>, &mut Vec<u8>, &mut u64)> {
        match &mut self.nodes[node] {
            Node::File { content, synced, modified_s } => Ok((content, synced, modified_s)),
            Node::Dir { .. } => Err(ErrorKind::IsADirectory.into()),
        }
    }

    fn new_file(&mut self) -> usize {
        let modified_s = unix_seconds();
        self.add(Node::File { content: Vec::new(), synced: Vec::new(), modified_s })
    }

    fn lookup(&self, path: &Path) -> io::Result<usize> {
        let parts = path.components().filter_map(|c| match c {
            std::path::Component::Normal(part) => part.to_str(),
            _ => None,
        });
        parts.into_iter().try_fold(0, |dir, name| self.find(dir, name))
    }
}

fn apply(names: &mut Names, change: &[(String, Option<usize>)]) {
    for (name, node) in change {
        match node {
            Some(node) => names.insert(name.clone(), *node),
            None => names.remove(name),
        };
    }
}

impl Fs {
    pub(crate) fn new(seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self(Arc::new(Mutex::new(Tree {
            nodes: vec![empty_dir()],
            rng,
            full: false,
            dies_in: None,
        })))
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    /// The process dies at the `steps`-th change from now.
    pub(crate) fn die_in(&self, steps: Option<u32>) {
        self.0.lock().dies_in = steps;
    }

    /// Cuts the power; the next process finds what has survived.
    pub(crate) fn power_cut(&self) {
        let Tree { nodes, rng, .. } = &mut *self.0.lock();
        for node in nodes {
            match node {
                Node::Dir { names, synced, changes } => {
                    let kept = rng.random_range(0..=changes.len());
                    changes.iter().take(kept).for_each(|change| apply(synced, change));
                    names.clone_from(synced);
                    changes.clear();
                }
                Node::File { content, synced, .. } if content != synced => {
                    *synced = torn(synced, content, rng);
                    content.clone_from(synced);
                }
                Node::File { .. } => {}
            }
        }
    }

    /// All that was written is durable.
    pub(crate) fn settle(&self) {
        for node in &mut self.0.lock().nodes {
            match node {
                Node::Dir { names, synced, changes } => {
                    synced.clone_from(names);
                    changes.clear();
                }
                Node::File { content, synced, .. } => synced.clone_from(content),
            }
        }
    }

    /// The whole content of a file.
    pub(crate) fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut tree = self.0.lock();
        let node = tree.lookup(path)?;
        Ok(tree.file(node)?.0.clone())
    }

    /// What a process of a host sees.
    pub(crate) fn open_dir(&self, life: &Life, defects: &Defects) -> OpenDir {
        let (fs, life, defects) = (self.clone(), life.clone(), defects.clone());
        Arc::new(move |path| {
            let mut dir: Arc<dyn DurableDir> = Arc::new(SimDir {
                fs: fs.clone(),
                node: 0,
                path: PathBuf::from("/"),
                life: life.clone(),
                defects: defects.clone(),
            });
            for part in path.iter().skip(1).filter_map(|p| p.to_str()) {
                dir = dir.create_dir(part)?;
            }
            Ok(dir)
        })
    }

    /// An image in a file, as a block device.
    pub(crate) fn open_image(
        &self,
        path: &Path,
        life: &Life,
        defects: &Defects,
    ) -> io::Result<SimImage> {
        let mut tree = self.0.lock();
        let node = tree.lookup(path)?;
        tree.file(node)?;
        let (path, life, defects) = (path.to_owned(), life.clone(), defects.clone());
        Ok(SimImage { fs: self.clone(), node, path, life, defects, writes: Mutex::new(0) })
    }

    fn change(&self, life: &Life, grows: bool) -> io::Result<parking_lot::MutexGuard<'_, Tree>> {
        let mut tree = self.0.lock();
        life.check()?;
        if let Some(left) = tree.dies_in {
            tree.dies_in = left.checked_sub(1);
            if left == 0 {
                life.end();
                life.check()?;
            }
        }
        if grows && tree.full {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(tree)
    }
}

/// What a cut leaves of a file.
fn torn(old: &[u8], new: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut left = match rng.random_range(0..3) {
        0 => return new.to_vec(),
        1 => return old.to_vec(),
        _ => new.to_vec(),
    };
    for (index, sector) in left.chunks_mut(SECTOR).enumerate() {
        if rng.random() {
            let at = index * SECTOR;
            for (offset, byte) in sector.iter_mut().enumerate() {
                *byte = old.get(at + offset).copied().unwrap_or(0);
            }
        }
    }
    if rng.random() {
        left.truncate(old.len().max(rng.random_range(0..=new.len())));
    }
    left
}

struct SimDir {
    fs: Fs,
    node: usize,
    path: PathBuf,
    life: Life,
    defects: Defects,
}

impl SimDir {
    fn new_name(&self, name: &str, node: fn(&mut Tree) -> usize) -> io::Result<usize> {
        let mut tree = self.fs.change(&self.life, true)?;
        let node = node(&mut tree);
        tree.change(self.node, vec![(name.to_owned(), Some(node))]);
        Ok(node)
    }
}

impl DurableDir for SimDir {
    fn path(&self) -> &Path {
        &self.path
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DurableFile>> {
        let node = self.new_name(name, Tree::new_file)?;
        let (fs, life, name) = (self.fs.clone(), self.life.clone(), name.to_owned());
        let defects = self.defects.clone();
        Ok(Box::new(SimFile { fs, node, life, dir: self.node, name, defects }))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut tree = self.fs.change(&self.life, false)?;
        let node = tree.find(self.node, from)?;
        let taken = tree.find(self.node, to).ok();
        if taken
            .is_some_and(|n| matches!(&tree.nodes[n], Node::Dir { names, .. } if !names.is_empty()))
        {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        tree.change(self.node, vec![(from.to_owned(), None), (to.to_owned(), Some(node))]);
        Ok(())
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut tree = self.fs.change(&self.life, false)?;
        let node = tree.find(self.node, name)?;
        tree.file(node)?;
        tree.change(self.node, vec![(name.to_owned(), None)]);
        Ok(())
    }
    fn hard_link(&self, name: &str, target: &Path) -> io::Result<()> {
        let mut tree = self.fs.change(&self.life, true)?;
        let node = tree.find(self.node, name)?;
        let dir = tree.lookup(target.parent().ok_or_else(missing)?)?;
        let new = target.file_name().and_then(|n| n.to_str()).ok_or_else(missing)?;
        if tree.find(dir, new).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        tree.change(dir, vec![(new.to_owned(), Some(node))]);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        let mut tree = self.fs.change(&self.life, false)?;
        if self.defects.has(Defect::NoDirectorySync) {
            return Ok(());
        }
        let Node::Dir { names, synced, changes } = &mut tree.nodes[self.node] else {
            return Err(ErrorKind::NotADirectory.into());
        };
        synced.clone_from(names);
        changes.clear();
        Ok(())
    }
    fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        let mut tree = self.fs.0.lock();
        let node = tree.find(self.node, name)?;
        Ok(tree.file(node)?.0.clone())
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.fs.0.lock().names(self.node)?.keys().cloned().collect())
    }
    fn open_file(&self, name: &str) -> io::Result<ReadObject> {
        let mut tree = self.fs.0.lock();
        let node = tree.find(self.node, name)?;
        tree.file(node)?;
        if self.defects.has(Defect::GoneAfterReading) {
            tree.change(self.node, vec![(name.to_owned(), None)]);
        }
        Ok(Arc::new(SimReader { fs: self.fs.clone(), node }))
    }
    fn info(&self, name: &str) -> io::Result<FileInfo> {
        let tree = self.fs.0.lock();
        Ok(match &tree.nodes[tree.find(self.node, name)?] {
            Node::Dir { .. } => FileInfo { is_dir: true, len_bytes: 0, modified_s: 0 },
            Node::File { content, modified_s, .. } => {
                FileInfo { is_dir: false, len_bytes: content.len() as u64, modified_s: *modified_s }
            }
        })
    }
    fn set_len(&self, name: &str, len_bytes: u64) -> io::Result<()> {
        if self.fs.0.lock().find(self.node, name).is_err() {
            self.new_name(name, Tree::new_file)?;
        }
        let mut tree = self.fs.change(&self.life, true)?;
        let node = tree.find(self.node, name)?;
        tree.file(node)?.0.resize(usize::try_from(len_bytes).unwrap(), 0);
        Ok(())
    }
    fn sync_file(&self, name: &str) -> io::Result<()> {
        let node = self.fs.0.lock().find(self.node, name)?;
        sync_file(&self.fs, &self.life, node, &self.defects)
    }
    fn reflink(&self, _: &str, _: &dyn DurableDir, _: &str) -> io::Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
    fn make_dir(&self, name: &str) -> io::Result<()> {
        if self.fs.0.lock().find(self.node, name).is_ok() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.new_name(name, |tree| tree.add(empty_dir())).map(drop)
    }
    fn remove_tree(&self, name: &str) -> io::Result<()> {
        let mut tree = self.fs.change(&self.life, false)?;
        tree.find(self.node, name)?;
        tree.change(self.node, vec![(name.to_owned(), None)]);
        Ok(())
    }
    fn open_dir(&self, name: &str) -> Result<Arc<dyn DurableDir>, DurableError> {
        let path = self.path.join(name);
        let tree = self.fs.0.lock();
        let found = tree.find(self.node, name).and_then(|n| tree.names(n).map(|_| n));
        let node = found.map_err(|source| DurableError::Io {
            attempt: "open directory",
            file: path.clone(),
            source,
        })?;
        let (fs, life, defects) = (self.fs.clone(), self.life.clone(), self.defects.clone());
        Ok(Arc::new(SimDir { fs, node, path, life, defects }))
    }
    fn free_bytes(&self) -> Result<u64, DurableError> {
        Ok(if self.fs.0.lock().full { 0 } else { 1 << 40 })
    }
}

fn sync_file(fs: &Fs, life: &Life, node: usize, defects: &Defects) -> io::Result<()> {
    let mut tree = fs.change(life, false)?;
    if !defects.has(Defect::NoFileSync) {
        let (content, synced, _) = tree.file(node)?;
        synced.clone_from(content);
    }
    Ok(())
}

struct SimFile {
    fs: Fs,
    node: usize,
    life: Life,
    dir: usize,
    name: String,
    defects: Defects,
}

impl Write for SimFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut tree = self.fs.change(&self.life, true)?;
        let (content, _, modified_s) = tree.file(self.node)?;
        content.extend_from_slice(data);
        *modified_s = unix_seconds();
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DurableFile for SimFile {
    fn sync(&mut self) -> io::Result<()> {
        sync_file(&self.fs, &self.life, self.node, &self.defects)
    }
    fn discard(&mut self) {
        let Ok(mut tree) = self.fs.change(&self.life, false) else { return };
        if tree.find(self.dir, &self.name).is_ok_and(|node| node == self.node) {
            tree.change(self.dir, vec![(self.name.clone(), None)]);
        }
    }
}

struct SimReader {
    fs: Fs,
    node: usize,
}

impl ReadAt for SimReader {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut tree = self.fs.0.lock();
        let from = usize::try_from(offset).unwrap();
        let found = tree.file(self.node)?.0.get(from..from + buf.len());
        buf.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.fs.0.lock().file(self.node)?.0.len() as u64)
    }
}

/// An image in a file. Writes are seen at once and last after a flush.
pub(crate) struct SimImage {
    fs: Fs,
    node: usize,
    path: PathBuf,
    life: Life,
    defects: Defects,
    /// Counted when every fifth one is to be lost.
    writes: Mutex<u32>,
}

impl SimImage {
    fn put(&self, offset: u64, len: u64, data: Option<&[Bytes]>) -> io::Result<()> {
        if self.defects.has(Defect::LostImageWrite) {
            let mut count = self.writes.lock();
            *count += 1;
            if (*count).is_multiple_of(5) {
                return Ok(());
            }
        }
        let mut tree = self.fs.change(&self.life, data.is_some())?;
        let content = tree.file(self.node)?.0;
        let (from, len) = (usize::try_from(offset).unwrap(), usize::try_from(len).unwrap());
        let target = content.get_mut(from..from + len).ok_or(ErrorKind::InvalidInput)?;
        match data {
            None => target.fill(0),
            Some(pieces) => target.copy_from_slice(&pieces.concat()),
        }
        Ok(())
    }
}

impl block_io::device::BlockDevice for SimImage {
    fn size_bytes(&self) -> u64 {
        self.fs.0.lock().file(self.node).map_or(0, |f| f.0.len() as u64)
    }
    fn block_bytes(&self) -> u32 {
        512
    }
    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let mut tree = self.fs.0.lock();
            let from = usize::try_from(offset).unwrap();
            let found = tree.file(self.node)?.0.get(from..from + len);
            Ok(Bytes::copy_from_slice(found.ok_or(ErrorKind::InvalidInput)?))
        })
    }
    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            let len = bufs.iter().map(|b| b.len() as u64).sum();
            self.put(offset, len, Some(&bufs))
        })
    }
    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            if self.defects.has(Defect::NoImageFlush) {
                return Ok(());
            }
            sync_file(&self.fs, &self.life, self.node, &Defects::default())
        })
    }
    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.put(offset, len, None) })
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move { self.put(offset, len, None) })
    }
    fn path_hint(&self) -> String {
        self.path.display().to_string()
    }
}
