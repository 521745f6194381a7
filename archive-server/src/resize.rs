//! The image of a volume grows (`semantics.md` §5.14); the new part is a hole, which reads as
//! zeroes.
//!
//! Invariant: the record says that the image grows before it does, so a crash in between is
//! finished at the next start.

use crate::archive::Archive;
use crate::full_sync::SIZE_MAX;
use crate::jobs::{FULL_SYNC, HASH_SYNC, Job, READ, REPLICATE, RESIZE, RESYNC};
use crate::state::State;
use crate::volume::Volume;
use proto::v1::ResizeRequest;
use server_kit::blocking;
use server_kit::error::RoleError;
use std::sync::Arc;
use wlog_format::units::Lb;

/// What tells another server a size that it would not keep. Applies, restores and mounts go on with
/// the size that they began with.
const EXCLUDED: [&str; 6] = [FULL_SYNC, HASH_SYNC, READ, REPLICATE, RESIZE, RESYNC];

/// States in which the image may grow.
const ALLOWED: [State; 4] = [State::Archived, State::WdiffRecv, State::Stopped, State::SyncReady];

/// Grows a volume as somebody asked.
pub(crate) async fn resize(archive: &Archive, request: ResizeRequest) -> Result<(), RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require(&ALLOWED, RESIZE)?;
    let job = volume.jobs.begin(volume.name.as_str(), RESIZE, &EXCLUDED)?;
    grow(&volume, Lb(request.size_lb), job).await
}

/// Grows the image for a transfer that needs it larger; nothing to do when it is large enough.
pub(crate) async fn grow_for(volume: &Arc<Volume>, size: Lb) -> Result<(), RoleError> {
    if volume.size() >= size {
        return Ok(());
    }
    let job = volume.jobs.begin(volume.name.as_str(), RESIZE, &EXCLUDED)?;
    grow(volume, size, job).await
}

async fn grow(volume: &Arc<Volume>, size: Lb, job: Job) -> Result<(), RoleError> {
    let has = volume.size();
    let wrong = |why: String| {
        let message = format!("cannot resize volume {}: {why}", volume.name);
        RoleError::wrong_size(message).with_volume(&volume.name)
    };
    if size > SIZE_MAX || size == Lb(0) {
        return Err(wrong(format!("no image has {size} blocks")));
    }
    if size < has {
        return Err(wrong(format!("it has {has} blocks, and volumes only grow")));
    }
    // Without an image there is none to grow: the next full backup brings its size.
    if size == has || has == Lb(0) {
        return Ok(());
    }
    let here = volume.clone();
    blocking::run(move || {
        let _job = job;
        here.store(|record| record.growing_lb = Some(size.0))?;
        here.images.grow(size)?;
        here.store(|record| (record.size_lb, record.growing_lb) = (size.0, None))
    })
    .await?;
    tracing::info!(volume = %volume.name, from = has.0, to = size.0, "the image has grown");
    Ok(())
}
