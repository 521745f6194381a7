//! A volume on disk (semantics.md §4.2):
//!
//! | item | content |
//! |---|---|
//! | `state` | whether it was started, the largest device size seen, the identity of the directory |
//! | `ARCHIVE.archive` | archive-info; an archive is on the list while its record is there |
//! | `received/` | half-made wdiffs only |
//! | `sendto/ARCHIVE/` | links to the wdiffs that this archive has not acknowledged |
//!
//! Invariants: a wdiff in a send directory is whole and durable (I5), its name is its metadata; it
//! occupies space once and goes when the last archive drops it. What is half-made or half-deleted
//! has a `*.tmp` name; anything else that is incomplete is damage, which is told and not removed.
use crate::archive::{Archive, ArchiveRecord, RECORD_SUFFIX};
use serde::{Deserialize, Serialize};
use server_kit::durable::{DurableDir, DurableError, StateFile, TMP_SUFFIX, TmpFile};
use server_kit::error::RoleError;
use server_kit::volume_name::{ServerId, VolumeName};
use std::path::PathBuf;
use std::sync::Arc;
use wdiff_format::gid::Diff;
use wdiff_format::header::FileHeader;
use wdiff_format::io_at::ReadAt;
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
    /// Identity of this directory, 32 hexadecimal digits: another one means that what was staged
    /// is gone. Empty in directories of older versions, until they are opened.
    #[serde(default)]
    pub(crate) store: String,
}

impl VolumeState {
    /// A new one, of a directory that is being made.
    fn new() -> Self {
        Self { store: LogUuid::random().to_string(), ..Self::default() }
    }

    /// The identity of the directory.
    pub(crate) fn store_uuid(&self) -> Option<LogUuid> {
        let value = u128::from_str_radix(&self.store, 16).ok()?;
        (self.store.len() == 32).then_some(LogUuid(value.to_be_bytes()))
    }
}

/// A wdiff that waits: its metadata, and the log that it came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Staged {
    pub(crate) diff: Diff,
    pub(crate) uuid: LogUuid,
}

/// The directory of one volume.
pub(crate) struct VolumeDir {
    root: Arc<dyn DurableDir>,
    received: Arc<dyn DurableDir>,
    sendto: Arc<dyn DurableDir>,
    state: StateFile<VolumeState>,
}

impl VolumeDir {
    /// A new volume with its first archive; nothing of it has its name before it is complete.
    pub(crate) fn create(
        base: &dyn DurableDir,
        volume: &VolumeName,
        archive: &Archive,
    ) -> Result<(Self, VolumeState), RoleError> {
        let half_made = format!("{volume}{TMP_SUFFIX}");
        base.remove_tmp_dirs()?;
        let dir = Self::layout(base, &half_made)?;
        dir.add_archive(archive)?;
        let state = VolumeState::new();
        dir.store(&state)?;
        base.commit_dir(&half_made, volume.as_str())?;
        Ok((Self::layout(base, volume.as_str())?, state))
    }

    /// The volume that is there.
    pub(crate) fn open(
        base: &dyn DurableDir,
        volume: &VolumeName,
    ) -> Result<(Self, VolumeState), RoleError> {
        let dir = Self::layout(base, volume.as_str())?;
        let Some(mut state) = dir.state.load()? else {
            let file = dir.state.path().display().to_string();
            return Err(RoleError::damaged(format!("volume {volume}: {file} is missing"))
                .with_file(file)
                .with_next_step("restore the file, or clear the volume"));
        };
        dir.received.remove_tmp_files()?;
        dir.root.remove_tmp_files()?;
        dir.settle_deletions()?;
        if state.store_uuid().is_none() {
            state.store = VolumeState::new().store;
            dir.store(&state)?;
        }
        Ok((dir, state))
    }

    fn layout(base: &dyn DurableDir, name: &str) -> Result<Self, RoleError> {
        let root = base.create_dir(name)?;
        let (received, sendto) = (root.create_dir(RECEIVED)?, root.create_dir(SENDTO)?);
        let state = StateFile::new(Arc::clone(&root), STATE);
        Ok(Self { root, received, sendto, state })
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
        StateFile::new(Arc::clone(&self.root), name)
    }

    /// Stores a new or changed entry.
    pub(crate) fn store_archive(&self, archive: &Archive) -> Result<(), RoleError> {
        Ok(self.record(&Archive::record_name(&archive.name)).store(&archive.into())?)
    }

    /// An empty queue and its record, in this order: without the record the queue is none.
    pub(crate) fn add_archive(&self, archive: &Archive) -> Result<Arc<dyn DurableDir>, RoleError> {
        let queue = self.queue_dir(&archive.name)?;
        self.store_archive(archive)?;
        Ok(queue)
    }

    /// The queue gets out of the way, the record goes, then the queue: until the record is gone
    /// nothing has happened.
    pub(crate) fn delete_archive(&self, name: &ServerId) -> Result<(), RoleError> {
        let doomed = format!("{name}{TMP_SUFFIX}");
        self.sendto.commit_dir(name.as_str(), &doomed)?;
        if let Err(error) = self.record(&Archive::record_name(name)).remove() {
            self.sendto.commit_dir(&doomed, name.as_str())?;
            return Err(error.into());
        }
        Ok(self.sendto.remove_tmp_dirs()?)
    }

    /// Deletions that were cut short: those whose record is there did not happen.
    fn settle_deletions(&self) -> Result<(), RoleError> {
        let list = |e| RoleError::io("list", self.sendto.path(), e);
        for name in self.sendto.names().map_err(list)? {
            let Some(archive) = name.strip_suffix(TMP_SUFFIX) else { continue };
            if self.root.read(&format!("{archive}{RECORD_SUFFIX}"))?.is_some() {
                self.sendto.commit_dir(&name, archive)?;
            }
        }
        Ok(self.sendto.remove_tmp_dirs()?)
    }

    pub(crate) fn queue_dir(&self, name: &ServerId) -> Result<Arc<dyn DurableDir>, RoleError> {
        Ok(self.sendto.create_dir(name.as_str())?)
    }

    /// All entries of the list.
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
                self.remove_unlisted(&queue)?;
            }
        }
        Ok(archives)
    }

    /// A queue without record: empty, its creation was cut short; else the record was lost, and
    /// nothing may be sent as if this archive had never been.
    fn remove_unlisted(&self, queue: &str) -> Result<(), RoleError> {
        if self.sendto.open_dir(queue)?.list()?.is_empty() {
            return Ok(self.sendto.remove_dir(queue)?);
        }
        let file = self.root.path().join(format!("{queue}{RECORD_SUFFIX}")).display().to_string();
        Err(RoleError::damaged(format!("{file} is missing, but wdiffs wait for {queue}"))
            .with_file(file)
            .with_next_step("restore the file, or take the queue's directory away"))
    }
}

/// The wdiffs of a queue, by name, so by time. A file whose header cannot be read is taken for one
/// of the log of its neighbour: sending it will fail and say which file it is.
pub(crate) fn list_queue(dir: &dyn DurableDir) -> Result<Vec<Staged>, RoleError> {
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
        let io = |e| RoleError::io("read", dir.path().join(&file), e);
        diff.size = dir.info(&file).map_err(io)?.len_bytes;
        let uuid = uuid_of(dir, &file);
        neighbour = uuid.or(neighbour);
        staged.push((diff, uuid.or(neighbour)));
    }
    let first = staged.iter().find_map(|(_, uuid)| *uuid).unwrap_or_default();
    let known =
        |(diff, uuid): (Diff, Option<LogUuid>)| Staged { diff, uuid: uuid.unwrap_or(first) };
    Ok(staged.into_iter().map(known).collect())
}

fn uuid_of(dir: &dyn DurableDir, file: &str) -> Option<LogUuid> {
    let mut header = [0; FileHeader::BYTES];
    dir.open_file(file).ok()?.read_exact_at(&mut header, 0).ok()?;
    FileHeader::decode(&header).ok().map(|h| h.uuid)
}

/// Removes wdiffs that their archive has. Not synced: one that comes back after a power cut is
/// sent again and found too old.
pub(crate) fn drop_files(dir: &dyn DurableDir, names: &[String]) -> Result<(), RoleError> {
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
