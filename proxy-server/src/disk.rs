//! A volume on disk (semantics.md §4.2):
//!
//! | item | content |
//! |---|---|
//! | `state` | whether it was started, and the largest device size seen; written last at creation |
//! | `ARCHIVE.archive` | archive-info; an archive is on the list exactly while its record is there |
//! | `received/` | half-made wdiffs only |
//! | `sendto/ARCHIVE/` | links to the wdiffs that this archive has not acknowledged |
//!
//! Invariants: a wdiff in a send directory is whole and durable (I5), its name is its metadata; it
//! occupies space once and goes when the last archive drops it. A directory without `state` was
//! half-made, a send directory without record half-deleted.
use crate::archive::{Archive, ArchiveRecord, RECORD_SUFFIX};
use serde::{Deserialize, Serialize};
use server_kit::durable::{DurableDir, DurableError, RealDir, StateFile, TmpFile};
use server_kit::error::RoleError;
use server_kit::volume_name::{ServerId, VolumeName};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wdiff_format::gid::Diff;
use wdiff_format::header::FileHeader;
use wdiff_format::name;
use wlog_format::units::LogUuid;

const STATE: &str = "state";
const RECEIVED: &str = "received";
const SENDTO: &str = "sendto";

/// What of a volume survives a restart besides its queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VolumeState {
    /// It was started, and nobody stopped it.
    pub(crate) started: bool,
    /// Size of the device; only grows.
    pub(crate) size_lb: u64,
}

/// A wdiff that waits: its metadata, and the log that it came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Staged {
    pub(crate) diff: Diff,
    pub(crate) uuid: LogUuid,
}

/// The directory of one volume.
pub(crate) struct VolumeDir {
    root: Arc<RealDir>,
    received: Arc<RealDir>,
    sendto: Arc<RealDir>,
    state: StateFile<VolumeState>,
}

impl VolumeDir {
    /// A new volume with its first archive; nothing of it exists before this returns.
    pub(crate) fn create(
        base: &RealDir,
        volume: &VolumeName,
        archive: &Archive,
    ) -> Result<Self, RoleError> {
        // Left by a creation that was cut short: without its state it is no volume.
        base.remove_dir(volume.as_str())?;
        let dir = Self::layout(base, volume)?;
        dir.add_archive(archive)?;
        dir.store(&VolumeState::default())?;
        Ok(dir)
    }

    /// The volume that is there; `None` when its creation was cut short.
    pub(crate) fn open(
        base: &RealDir,
        volume: &VolumeName,
    ) -> Result<Option<(Self, VolumeState)>, RoleError> {
        let dir = Self::layout(base, volume)?;
        let Some(state) = dir.state.load()? else {
            if dir.has_wdiffs()? {
                let file = dir.state.path().display().to_string();
                return Err(RoleError::damaged(format!("volume {volume}: {file} is missing"))
                    .with_file(file)
                    .with_next_step("restore the file, or clear the volume"));
            }
            base.remove_dir(volume.as_str())?;
            return Ok(None);
        };
        dir.received.remove_tmp_files()?;
        dir.root.remove_tmp_files()?;
        dir.sendto.remove_tmp_dirs()?;
        Ok(Some((dir, state)))
    }

    fn layout(base: &RealDir, volume: &VolumeName) -> Result<Self, RoleError> {
        let path = base.path().join(volume.as_str());
        let root = Arc::new(RealDir::create(&path)?);
        let received = Arc::new(RealDir::create(path.join(RECEIVED))?);
        let sendto = Arc::new(RealDir::create(path.join(SENDTO))?);
        let state = StateFile::new(Arc::clone(&root) as Arc<dyn DurableDir>, STATE);
        Ok(Self { root, received, sendto, state })
    }

    fn has_wdiffs(&self) -> Result<bool, RoleError> {
        for queue in self.sendto.list()? {
            if !RealDir::open(self.sendto.path().join(queue))?.list()?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(crate) fn store(&self, state: &VolumeState) -> Result<(), RoleError> {
        Ok(self.state.store(state)?)
    }

    /// Bytes that can still be staged.
    pub(crate) fn free_bytes(&self) -> Result<u64, RoleError> {
        Ok(self.received.free_bytes()?)
    }

    /// Where wdiffs are received.
    pub(crate) fn received_path(&self) -> PathBuf {
        self.received.path().to_owned()
    }

    /// A wdiff to be received.
    pub(crate) fn create_tmp(&self) -> Result<TmpFile, RoleError> {
        Ok(self.received.create_tmp()?)
    }

    /// The received wdiff is in every queue of `into`, durable (I5).
    pub(crate) fn publish(
        &self,
        tmp: TmpFile,
        name: &str,
        into: &[Arc<dyn DurableDir>],
    ) -> Result<(), RoleError> {
        Ok(self.received.publish(tmp, name, into)?)
    }

    fn record(&self, name: &str) -> StateFile<ArchiveRecord> {
        StateFile::new(Arc::clone(&self.root) as Arc<dyn DurableDir>, name)
    }

    /// Stores a new or changed entry.
    pub(crate) fn store_archive(&self, archive: &Archive) -> Result<(), RoleError> {
        Ok(self.record(&Archive::record_name(&archive.name)).store(&archive.into())?)
    }

    /// An empty queue and its record, in this order: without the record the queue is none.
    pub(crate) fn add_archive(&self, archive: &Archive) -> Result<Arc<RealDir>, RoleError> {
        self.sendto.remove_dir(archive.name.as_str())?;
        let queue = self.queue_dir(&archive.name)?;
        self.store_archive(archive)?;
        Ok(queue)
    }

    /// The record goes first: an archive that is on the list has all of its queue.
    pub(crate) fn delete_archive(&self, name: &ServerId) -> Result<(), RoleError> {
        self.record(&Archive::record_name(name)).remove()?;
        Ok(self.sendto.remove_dir(name.as_str())?)
    }

    pub(crate) fn queue_dir(&self, name: &ServerId) -> Result<Arc<RealDir>, RoleError> {
        Ok(Arc::new(RealDir::create(self.sendto.path().join(name.as_str()))?))
    }

    /// All entries of the list. Queues without an entry are what a deletion left; they go.
    pub(crate) fn archives(&self) -> Result<Vec<Archive>, RoleError> {
        let mut archives = Vec::new();
        for name in self.root.list()?.iter().filter(|n| n.ends_with(RECORD_SUFFIX)) {
            let record = self.record(name);
            let Some(content) = record.load()? else { continue };
            let damaged = |e: RoleError| {
                let file = record.path().display().to_string();
                RoleError::damaged(format!("{file} is not usable")).with_file(file).with_source(e)
            };
            archives.push(Archive::try_from(content).map_err(damaged)?);
        }
        for queue in self.sendto.list()? {
            if !archives.iter().any(|a| a.name.as_str() == queue) {
                let dir = self.sendto.path().display();
                tracing::warn!(queue, %dir, "removing the rest of a deleted queue");
                self.sendto.remove_dir(&queue)?;
            }
        }
        Ok(archives)
    }
}

/// The wdiffs of a queue, by name, so by time. A file whose header cannot be read is taken for one
/// of the log of its neighbour: sending it will fail and say which file it is.
pub(crate) fn list_queue(dir: &RealDir) -> Result<Vec<Staged>, RoleError> {
    dir.remove_tmp_files()?;
    let mut staged = Vec::new();
    let mut neighbour = None;
    for file in dir.list()? {
        let mut diff = match name::parse(&file) {
            Ok(diff) => diff,
            Err(error) => {
                tracing::warn!(%error, dir = %dir.path().display(), "a file that is none of ours");
                continue;
            }
        };
        let path = dir.path().join(&file);
        let io = |e| RoleError::io("read", &path, e);
        diff.size = path.metadata().map_err(io)?.len();
        let uuid = uuid_of(&path);
        neighbour = uuid.or(neighbour);
        staged.push((diff, uuid.or(neighbour)));
    }
    let first = staged.iter().find_map(|(_, uuid)| *uuid).unwrap_or_default();
    let known =
        |(diff, uuid): (Diff, Option<LogUuid>)| Staged { diff, uuid: uuid.unwrap_or(first) };
    Ok(staged.into_iter().map(known).collect())
}

fn uuid_of(path: &Path) -> Option<LogUuid> {
    let mut header = [0; FileHeader::BYTES];
    File::open(path).ok()?.read_exact(&mut header).ok()?;
    FileHeader::decode(&header).ok().map(|h| h.uuid)
}

/// Removes wdiffs that their archive has. Not synced: one that comes back after a power cut is
/// sent again and found too old.
pub(crate) fn drop_files(dir: &RealDir, names: &[String]) -> Result<(), RoleError> {
    for name in names {
        match dir.unlink(name) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                let file = dir.path().join(name);
                return Err(DurableError::Io { attempt: "remove", file, source: e }.into());
            }
            _ => {}
        }
    }
    Ok(())
}
