//! The archive that another one replicates to (`semantics.md` §2.14 step 1, §5.13): it decides what
//! kind of transfer comes next, by what it has.
//!
//! Invariants: what is here is given up only when a resync was allowed, and begins; an announced
//! transfer holds the volume for a while and no longer (`sessions`); the log is told along, so that
//! equal gids of different logs are never taken for the same (I13).

use crate::archive::{Archive, refused};
use crate::full_sync::{self, Source};
use crate::hash_sync::{Hold, Prepared, Purpose};
use crate::jobs::RESYNC;
use crate::record::{Kept, Replica};
use crate::resize::grow_for;
use crate::state::State;
use crate::upkeep;
use crate::volume::Volume;
use proto::v1::{PrepareReplicationReply, PrepareReplicationRequest, ReplicationKind};
use server_kit::blocking;
use server_kit::error::{Reason, RoleError};
use std::sync::Arc;
use wdiff_format::gid::BaseState;
use wlog_format::units::{Lb, LogUuid};

/// What the source says of itself.
struct Asked {
    source_id: String,
    archive_uuid: LogUuid,
    size: Lb,
    resync: bool,
    base: BaseState,
}

/// Says what comes next, and prepares for it.
pub(crate) async fn prepare(
    archive: &Arc<Archive>,
    request: PrepareReplicationRequest,
) -> Result<PrepareReplicationReply, RoleError> {
    let volume = archive.volume(&request.volume)?;
    if let Some(said) = &request.complete {
        upkeep::heard(archive, std::slice::from_ref(said))?;
    }
    let asked = asked(&volume, request)?;
    // Of an attempt that did not come back.
    let is_resync = |p: &Prepared| matches!(p.purpose, Purpose::Resync { .. });
    archive.sessions.drop_if(&volume.name, full_sync::Prepared::is_of_archive);
    archive.hash_sessions.drop_if(&volume.name, is_resync);
    match volume.cell.state() {
        State::SyncReady if asked.resync && has_image(&volume).await? => {
            resync(archive, &volume, &asked, State::SyncReady).await
        }
        State::SyncReady => full(archive, &volume, &asked).await,
        State::Archived | State::WdiffRecv => {
            let lineage = volume.with(|c| c.record.archive_uuid);
            if lineage == asked.archive_uuid && !asked.resync {
                return continued(archive, &volume, &asked).await;
            }
            if !asked.resync {
                return Err(needs_resync(
                    &volume,
                    &format!("its history here is another one than at {}", asked.source_id),
                    (&asked.source_id, archive.id.as_str()),
                ));
            }
            resync(archive, &volume, &asked, State::Archived).await
        }
        state @ (State::FullSync | State::HashSync | State::ReplSync | State::Resync) => {
            let message = format!("cannot replicate to volume {}: it is {state}", volume.name);
            Err(RoleError::busy(&volume.name, message).with_next_step("replicate again"))
        }
        _ => {
            let allowed = [State::SyncReady, State::Archived];
            volume.require(&allowed, "replicate to")?;
            Err(RoleError::busy(&volume.name, "its state has just changed"))
        }
    }
}

/// The refusal that only a resync helps against; `sides` are the source and the destination.
pub(crate) fn needs_resync(volume: &Volume, why: &str, sides: (&str, &str)) -> RoleError {
    let (name, (from, to)) = (&volume.name, sides);
    let message = format!("cannot replicate volume {name} without a resync: {why}");
    RoleError::new(Reason::NeedsResync, message)
        .with_volume(name)
        .with_next_step(format!("walbc replicate {from} {name} {to} --resync"))
}

fn asked(volume: &Volume, request: PrepareReplicationRequest) -> Result<Asked, RoleError> {
    let bad = |why: String| {
        let message = format!("cannot replicate to volume {}: {why}", volume.name);
        RoleError::bad_request(message).with_volume(&volume.name)
    };
    let archive_uuid = proto::convert::uuid(&request.archive_uuid)
        .map_err(|e| bad(format!("archive_uuid: {e}")))?;
    let base = request.base.ok_or_else(|| bad("the source has no base image".into()))?;
    let base = BaseState::try_from(base).map_err(|e| bad(e.to_string()))?;
    let (source_id, size, resync) = (request.source_id, Lb(request.size_lb), request.resync);
    Ok(Asked { source_id, archive_uuid, size, resync, base })
}

async fn has_image(volume: &Arc<Volume>) -> Result<bool, RoleError> {
    let here = volume.clone();
    blocking::run(move || here.images.found().map(|found| found.is_some())).await
}

fn reply(volume: &Volume, kind: ReplicationKind, session: String) -> PrepareReplicationReply {
    let (latest, log_uuid) = volume.with(|c| (c.latest.0, c.record.log_uuid));
    PrepareReplicationReply {
        kind: kind.into(),
        session,
        start_bytes: 0,
        latest: Some(latest.into()),
        log_uuid: proto::convert::uuid_bytes(log_uuid),
    }
}

async fn full(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    asked: &Asked,
) -> Result<PrepareReplicationReply, RoleError> {
    let Asked { archive_uuid, size, base, .. } = *asked;
    let source = Source::Archive(Replica { archive_uuid, base });
    let (session, start_bytes) = full_sync::announce(archive, volume, size, source).await?;
    Ok(PrepareReplicationReply { start_bytes, ..reply(volume, ReplicationKind::Full, session) })
}

async fn resync(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    asked: &Asked,
    from: State,
) -> Result<PrepareReplicationReply, RoleError> {
    let name = volume.name.as_str();
    not_larger(volume, asked.size).await?;
    archive.hash_sessions.drop_session(&volume.name);
    let change = volume.cell.begin(&[from], State::Resync);
    let change = change.map_err(|e| refused(volume, e, "replicate to"))?;
    volume.mounts.none(name, "resync")?;
    // Nobody may read what is given up.
    let job = volume.jobs.begin_alone(name, RESYNC)?;
    let purpose = Purpose::Resync { hold: Hold { change, job } };
    let prepared = Prepared { volume: volume.clone(), size: asked.size, purpose };
    let silence = archive.settings.silence;
    let session = archive.hash_sessions.announce(&volume.name, prepared, silence);
    Ok(reply(volume, ReplicationKind::Resync, session))
}

/// Gives up the history that is here: from now on the image is a mixture, until all of the other
/// archive's has arrived. Its transaction ends in `SyncReady` then, whatever happens.
pub(crate) async fn give_up(volume: &Arc<Volume>, hold: Hold, size: Lb) -> Result<Hold, RoleError> {
    let Hold { change, job } = hold;
    // A restore that copies the image ends first.
    let _gate = volume.image_gate.write().await;
    volume.mounts.none(volume.name.as_str(), "resync")?;
    let here = volume.clone();
    let give_up = move || -> Result<(), RoleError> {
        here.progress.remove()?;
        here.store(|record| record.state = Kept::SyncReady)?;
        here.doom(|c| std::mem::take(&mut c.diffs).iter().copied().collect())?;
        here.images.grow(size)
    };
    blocking::run(give_up).await?;
    let change = change.commit_and_begin(State::SyncReady, State::Resync);
    Ok(Hold { change, job })
}

async fn continued(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    asked: &Asked,
) -> Result<PrepareReplicationReply, RoleError> {
    not_larger(volume, asked.size).await?;
    grow_for(volume, asked.size).await?;
    let from = volume.with(|c| c.latest.0);
    let prepared =
        Prepared { volume: volume.clone(), size: asked.size, purpose: Purpose::Replica { from } };
    let silence = archive.settings.silence;
    let session = archive.hash_sessions.announce(&volume.name, prepared, silence);
    Ok(reply(volume, ReplicationKind::HashOrDiff, session))
}

/// Fails when the image here is larger than that of the source: images do not shrink.
async fn not_larger(volume: &Arc<Volume>, size: Lb) -> Result<(), RoleError> {
    let here = volume.clone();
    let has = blocking::run(move || here.images.found()).await?.unwrap_or(0);
    if has <= size.bytes() {
        return Ok(());
    }
    let name = &volume.name;
    let message = format!(
        "cannot replicate to volume {name}: its image here has {has} bytes, that of the source {}",
        size.bytes()
    );
    let step = format!("grow the volume at the source: walbc resize {name} {has}");
    Err(RoleError::wrong_size(message).with_volume(name).with_next_step(step))
}
