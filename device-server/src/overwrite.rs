//! The content of a volume is replaced from outside: a restore to the device.
//!
//! Between begin and end nobody may read or write the volume, for it is half one thing and half
//! another. A device role that is killed in between must not forget that: with the old log it would
//! serve the mixture as if nothing had happened, and backup would go on as if it were the old
//! content. So the state is a file ([`OverwriteMark`]), durable before the first byte is replaced,
//! and removed only after the log reset that tells every backup of the volume to start anew. A kill
//! between the two repeats the reset, which harms nobody.
//!
//! Order of the beginning: writes are held, what is pending goes to the data device, checkpoint (so
//! redo finds nothing to write over the new content), all regions marked, the mark, refusal. Of the
//! end: flush of the data device, log reset, the mark removed, service.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use server_kit::durable::{DurableDir, DurableError, StateFile};
use server_kit::{blocking, clock};
use wlog_format::units::{LogUuid, Lsid};

use crate::core::{Core, Kept};
use crate::error::{OpenError, VolumeError};
use crate::regions::{RegionKeeper, Unknown, WrittenRegions};
use crate::volume::Volume;

/// The name of the file.
const FILE: &str = "overwriting";

/// What the file says, for people: that it is there is what counts.
#[derive(Serialize, Deserialize)]
struct Record {
    /// When it began.
    since_s: u64,
    /// The log that the volume had then.
    log_uuid: String,
}

/// A file that is there while the content is being replaced.
pub(crate) struct OverwriteMark {
    file: Arc<StateFile<Record>>,
    volume: String,
}

impl OverwriteMark {
    /// Was the role killed while the content was being replaced? A file that is damaged was once
    /// written, so it counts.
    pub(crate) async fn is_set(&self) -> Result<bool, OpenError> {
        let (file, path) = (Arc::clone(&self.file), self.file.path());
        let read = blocking::run(move || match file.load() {
            Err(DurableError::Damaged { .. }) => Ok(true),
            other => other.map(|record| record.is_some()),
        });
        let set = read.await.map_err(|error| OpenError::State(error.full_message()))?;
        if set {
            tracing::error!(
                volume = %self.volume, file = %path.display(),
                "the content is half replaced: {}", VolumeError::Overwriting
            );
        }
        Ok(set)
    }

    async fn set(&self, log_uuid: LogUuid) -> Result<(), VolumeError> {
        let record = Record { since_s: clock::unix_seconds(), log_uuid: log_uuid.to_string() };
        let file = Arc::clone(&self.file);
        let stored = blocking::run(move || file.store(&record)).await;
        stored.map_err(|error| VolumeError::State(error.full_message().into()))
    }

    async fn remove(&self) -> Result<(), VolumeError> {
        let file = Arc::clone(&self.file);
        let removed = blocking::run(move || file.remove()).await;
        removed.map_err(|error| VolumeError::State(error.full_message().into()))
    }
}

impl Kept {
    /// What the volume `name` keeps in its state directory.
    pub(crate) fn new(dir: Arc<dyn DurableDir>, name: &str) -> Self {
        let file = Arc::new(StateFile::new(Arc::clone(&dir), FILE));
        Self {
            regions: RegionKeeper::new(dir, name),
            overwrite: OverwriteMark { file, volume: name.to_owned() },
        }
    }
}

impl Volume {
    /// The content is about to be replaced from outside. When this returns, everything that was
    /// acknowledged is on the data device, and reads and writes fail until
    /// [`Volume::end_overwrite`], also after a restart. Beginning again is no error.
    ///
    /// # Errors
    /// When the volume is frozen, has no state directory, or a device or the directory fails; it
    /// stays in service then.
    pub async fn begin_overwrite(&self) -> Result<(), VolumeError> {
        self.to_the_end(|core| async move { core.begin_overwrite().await }).await
    }

    /// The content is whole again: starts a new log and takes the volume into service.
    ///
    /// # Errors
    /// When there was no beginning, or a device or the directory fails; it can be tried again.
    pub async fn end_overwrite(&self) -> Result<(), VolumeError> {
        self.to_the_end(|core| async move { core.end_overwrite().await }).await
    }

    /// Which parts of the volume were written at or after `since` of the log `uuid`, at most.
    /// Writes that are not acknowledged yet may be missing.
    ///
    /// # Errors
    /// When that is not known: everything may have been written.
    pub fn regions_since(&self, uuid: LogUuid, since: Lsid) -> Result<WrittenRegions, Unknown> {
        let (regions, latest, size) = {
            let state = self.core().state.lock();
            (state.regions.clone(), state.positions.latest, state.size)
        };
        regions.ok_or(Unknown::NoStateDir)?.since(uuid, since, latest, size)
    }
}

impl Core {
    async fn begin_overwrite(&self) -> Result<(), VolumeError> {
        let kept = self.kept.as_ref().ok_or(VolumeError::NoStateDir)?;
        let _held = self.hold()?;
        if self.state.lock().overwriting {
            return Ok(());
        }
        self.drain().await?;
        self.checkpoint().await?;
        let super_block = self.super_block.lock().await;
        let regions = self.state.lock().regions.clone();
        if let Some(regions) = &regions {
            regions.mark_all(super_block.written);
            kept.regions.store(regions, super_block.written).await;
        }
        if let Err(error) = kept.overwrite.set(super_block.uuid).await {
            // It may be there all the same, and would surprise the next start.
            let _best_effort = kept.overwrite.remove().await;
            return Err(error);
        }
        self.state.lock().overwriting = true;
        self.publish();
        tracing::warn!(volume = %self.name, "the content is being replaced: no reads and writes");
        Ok(())
    }

    async fn end_overwrite(&self) -> Result<(), VolumeError> {
        let kept = self.kept.as_ref().ok_or(VolumeError::NotOverwriting)?;
        let _held = self.hold()?;
        if !self.state.lock().overwriting {
            return Err(VolumeError::NotOverwriting);
        }
        if let Err(error) = self.data.flush().await {
            self.fail_io("flush of the data device failed", &error);
            return self.state.lock().check_sound();
        }
        {
            let state = self.state.lock();
            let latest = state.positions.latest;
            state.regions.iter().for_each(|regions| regions.mark_all(latest));
        }
        self.start_new_log().await?;
        kept.overwrite.remove().await?;
        self.state.lock().overwriting = false;
        self.publish();
        tracing::warn!(volume = %self.name, "the content was replaced: a new log, back in service");
        Ok(())
    }
}
