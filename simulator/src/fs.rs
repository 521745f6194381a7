//! The file system of a simulated host: what was not synced may be lost, or kept, or torn.
//!
//! After a power cut a directory has the names that were synced and some of the changes after that,
//! in their order (a journal); a file has, sector by sector, what was synced or what was written
//! after that. After the kill of a process everything is there, and nothing that the dead process
//! still tries (destructors) reaches the disk.

use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use server_kit::clock::unix_seconds;
use server_kit::durable::{DurableDir, DurableError, DurableFile, FileInfo, OpenDir};
use std::collections::{BTreeMap, BTreeSet};
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

pub(crate) struct Tree {
    nodes: Vec<Node>,
    rng: StdRng,
    /// Places of nodes that nobody can reach any more.
    free: Vec<usize>,
    /// Whether writes fail for want of space.
    full: bool,
    /// How often that has happened.
    refused: u64,
    /// Writes to restored images take their time.
    slow_restores: bool,
    /// What files were before they were last replaced, where that is remembered.
    older: BTreeMap<(usize, String), usize>,
    /// Reads that return damaged data before this stops.
    damaged_reads: u32,
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
        if let Some(free) = self.free.pop() {
            self.nodes[free] = node;
            return free;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// What can be reached from a directory, now or after a power cut.
    fn reach(&self, node: usize, reached: &mut BTreeSet<usize>) {
        if !reached.insert(node) {
            return;
        }
        let Node::Dir { names, synced, changes } = &self.nodes[node] else { return };
        let changed = changes.iter().flatten().filter_map(|(_, node)| *node);
        let below = names.values().chain(synced.values()).copied().chain(changed);
        below.for_each(|node| self.reach(node, reached));
    }

    pub(crate) fn file(
        &mut self,
        node: usize,
    ) -> io::Result<(&mut Vec<u8>, &mut Vec<u8>, &mut u64)> {
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
            free: Vec::new(),
            full: false,
            refused: 0,
            slow_restores: false,
            older: BTreeMap::new(),
            damaged_reads: 0,
            dies_in: None,
        })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Tree> {
        self.0.lock()
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.0.lock().full = full;
    }

    /// How often the disk was full.
    pub(crate) fn refused(&self) -> u64 {
        self.0.lock().refused
    }

    pub(crate) fn slow_restores(&self, slow: bool) {
        self.0.lock().slow_restores = slow;
    }

    /// The next reads of files return damaged data.
    pub(crate) fn damage_reads(&self, count: u32) {
        self.0.lock().damaged_reads = count;
    }

    pub(crate) fn is_slow(&self, image: &Path) -> bool {
        self.0.lock().slow_restores && image.components().any(|c| c.as_os_str() == "restored")
    }

    /// The disk is replaced by an empty one.
    pub(crate) fn wipe(&self) {
        let mut tree = self.0.lock();
        tree.nodes = vec![empty_dir()];
        tree.free.clear();
        tree.older.clear();
    }

    pub(crate) fn file_at(&self, path: &Path) -> io::Result<usize> {
        let mut tree = self.0.lock();
        let node = tree.lookup(path)?;
        tree.file(node).map(|_| node)
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

    /// Gives up what no name leads to any more. Nobody may have a file open.
    pub(crate) fn forget_unreachable(&self) {
        let mut tree = self.0.lock();
        let mut reached = BTreeSet::new();
        tree.reach(0, &mut reached);
        let gone = (0..tree.nodes.len()).rev().filter(|node| !reached.contains(node));
        tree.free = gone.collect();
        for node in tree.free.clone() {
            tree.nodes[node] = empty_dir();
        }
    }

    /// The names in a directory.
    pub(crate) fn names(&self, path: &Path) -> io::Result<Vec<String>> {
        let tree = self.0.lock();
        Ok(tree.names(tree.lookup(path)?)?.keys().cloned().collect())
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
        self.dirs(life, defects, false)
    }

    /// The same, for one who has no effect but that it marks and deletes wdiffs.
    pub(crate) fn open_dir_to_delete(&self, life: &Life, defects: &Defects) -> OpenDir {
        self.dirs(life, defects, true)
    }

    fn dirs(&self, life: &Life, defects: &Defects, only_deletes: bool) -> OpenDir {
        let (fs, life, defects) = (self.clone(), life.clone(), defects.clone());
        Arc::new(move |path| {
            let mut dir: Arc<dyn DurableDir> = Arc::new(SimDir {
                fs: fs.clone(),
                node: 0,
                path: PathBuf::from("/"),
                life: life.clone(),
                defects: defects.clone(),
                only_deletes,
            });
            for part in path.iter().skip(1).filter_map(|p| p.to_str()) {
                dir = dir.create_dir(part)?;
            }
            Ok(dir)
        })
    }

    pub(crate) fn change(&self, life: &Life, grows: bool) -> io::Result<MutexGuard<'_, Tree>> {
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
            tree.refused += 1;
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
    only_deletes: bool,
}

impl SimDir {
    fn may_change(&self) -> io::Result<()> {
        if self.only_deletes { Err(ErrorKind::PermissionDenied.into()) } else { Ok(()) }
    }

    /// Whether this would mark a wdiff for deletion.
    fn marks(to: &str) -> bool {
        to.contains(".wdiff.doomed-")
    }

    fn new_name(&self, name: &str, node: fn(&mut Tree) -> usize) -> io::Result<usize> {
        self.may_change()?;
        let mut tree = self.fs.change(&self.life, !self.defects.has(Defect::FullSwallows))?;
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
        if !Self::marks(to) {
            self.may_change()?;
        }
        let mut tree = self.fs.change(&self.life, false)?;
        let node = tree.find(self.node, from)?;
        let taken = tree.find(self.node, to).ok();
        if taken
            .is_some_and(|n| matches!(&tree.nodes[n], Node::Dir { names, .. } if !names.is_empty()))
        {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        if let Some(before) = taken.filter(|_| self.defects.has(Defect::OldRecords)) {
            tree.older.insert((self.node, to.to_owned()), before);
        }
        tree.change(self.node, vec![(from.to_owned(), None), (to.to_owned(), Some(node))]);
        Ok(())
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        if self.only_deletes && !Self::marks(name) {
            return Ok(());
        }
        let mut tree = self.fs.change(&self.life, false)?;
        let node = tree.find(self.node, name)?;
        tree.file(node)?;
        tree.change(self.node, vec![(name.to_owned(), None)]);
        Ok(())
    }
    fn hard_link(&self, name: &str, target: &Path) -> io::Result<()> {
        let mut tree = self.fs.change(&self.life, !self.defects.has(Defect::FullSwallows))?;
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
        let mut node = tree.find(self.node, name)?;
        if self.defects.has(Defect::OldRecords) {
            node = tree.older.get(&(self.node, name.to_owned())).copied().unwrap_or(node);
        }
        Ok(tree.file(node)?.0.clone())
    }
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.fs.0.lock().names(self.node)?.keys().cloned().collect())
    }
    fn open_file(&self, name: &str) -> io::Result<ReadObject> {
        let mut tree = self.fs.0.lock();
        let node = tree.find(self.node, name)?;
        tree.file(node)?;
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
        self.may_change()?;
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
        let only_deletes = self.only_deletes;
        Ok(Arc::new(SimDir { fs, node, path, life, defects, only_deletes }))
    }
    fn free_bytes(&self) -> Result<u64, DurableError> {
        let full = self.fs.0.lock().full && !self.defects.has(Defect::FullSwallows);
        Ok(if full { 0 } else { 1 << 40 })
    }
}

pub(crate) fn sync_file(fs: &Fs, life: &Life, node: usize, defects: &Defects) -> io::Result<()> {
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
        let swallows = self.defects.has(Defect::FullSwallows);
        let mut tree = self.fs.change(&self.life, !swallows)?;
        if tree.full {
            return Ok(data.len());
        }
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
        if tree.damaged_reads > 0
            && let Some(byte) = buf.first_mut()
        {
            tree.damaged_reads -= 1;
            *byte ^= 4;
        }
        Ok(())
    }
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.fs.0.lock().file(self.node)?.0.len() as u64)
    }
}
