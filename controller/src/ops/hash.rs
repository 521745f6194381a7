//! Hash backup (semantics.md §6.3): the way back from lost logs. What differs between the volume
//! and the archive's newest snapshot is copied, and the log is shipped from then on.

use proto::v1;

use super::prepare::{self, Earlier, Kind, LegStep};
use super::{Event, Watch, backup, drain, look, lost, peers, run, setup};
use crate::client::{At, Controller};
use crate::error::ControlError;
use crate::group::Server;

/// Options of [`hash_backup`].
#[derive(Clone, Copy, Debug, Default)]
pub struct HashBackupOptions {
    /// Compares the whole volume, whatever the device says was written.
    pub everything: bool,
    /// Bytes per second that are read for it; 0: as fast as it goes.
    pub scan_bytes_per_s: u64,
}

/// Brings the primary archive's history forward to the volume as it is now, with continuous backup
/// from then on. Returns the gid of the new snapshot, when it is restorable.
///
/// A backup that runs already is waited for; after one that has ended there is nothing to do,
/// unless something was lost since. Other archives that follow stay on the proxies' lists; the
/// storage server has the primary replicate to them when the backup has ended.
///
/// # Errors
/// A server in the wrong state, unreachable, or too small; each names the next step.
pub async fn hash_backup(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    options: HashBackupOptions,
    watch: Watch<'_>,
) -> Result<u64, ControlError> {
    let primary = peers::primary(ctl, storage).await?;
    let before = prepare::newest_restorable(ctl, &primary.name, volume).await?;
    let gid = match prepare::earlier(ctl, storage, volume, Kind::Hash, primary).await? {
        Earlier::Ended { gid, arrives } => {
            backup::arrive(ctl, primary, volume, arrives).await?;
            return Ok(gid);
        }
        Earlier::Runs(operation) => watch_running(ctl, storage, *operation, watch).await?,
        Earlier::None => match anew(ctl, storage, volume, (options, primary), watch).await {
            Ok(gid) => gid,
            // The storage server may have begun to heal the gap by itself meanwhile.
            Err(error) => match prepare::earlier(ctl, storage, volume, Kind::Hash, primary).await {
                Ok(Earlier::Runs(operation)) => {
                    watch_running(ctl, storage, *operation, watch).await?
                }
                Ok(Earlier::Ended { gid, .. }) => Some(gid),
                _ => return Err(error),
            },
        },
    };
    let larger = before.map_or(0, |before| before + 1);
    let newest = backup::arrive(ctl, primary, volume, gid.unwrap_or(larger)).await?;
    Ok(gid.unwrap_or(newest))
}

async fn watch_running(
    ctl: &Controller,
    storage: &str,
    operation: v1::Operation,
    watch: Watch<'_>,
) -> Result<Option<u64>, ControlError> {
    let (server, _) = ctl.storage(storage)?;
    Ok(run::follow(ctl, server, operation, watch).await?.gid)
}

/// All steps of a backup that was not begun before.
async fn anew(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    (options, primary): (HashBackupOptions, &Server),
    watch: Watch<'_>,
) -> Result<Option<u64>, ControlError> {
    let step = check(ctl, storage, volume, primary).await?;
    empty_queues(ctl, volume, primary, watch).await?;
    let others = prepare::make_lists(ctl, volume, Kind::Hash, primary, watch).await?;
    prepare::note_others(&others, volume, Kind::Hash, &primary.name, watch);
    prepare::ready_leg(ctl, storage, volume, step).await?;
    start(ctl, storage, volume, options, watch).await
}

/// Looks at everything that could be in the way; nothing is changed.
async fn check(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    primary: &Server,
) -> Result<LegStep, ControlError> {
    let leg = look::storage_volume(ctl, storage, volume).await?;
    let step = prepare::leg_step(Kind::Hash, &leg.state, storage, volume)?;
    prepare::others_are_quiet(ctl, storage, volume).await?;
    let image = look::archive_volume(ctl, &primary.name, volume).await?;
    archive_can_compare(&image, &primary.name, storage, volume)?;
    if leg.size_lb > image.size_lb {
        return Err(ControlError::Precondition {
            message: format!(
                "{volume} has {} bytes at {storage}, its image at {} only {}",
                leg.size_lb * 512,
                primary.name,
                image.size_lb * 512
            ),
            next_step: format!("`walbc resize {volume} {}` first", leg.size_lb * 512),
        });
    }
    Ok(step)
}

/// The decision about the archive: it must have a history that can go on.
pub(crate) fn archive_can_compare(
    image: &v1::ArchiveVolume,
    archive: &str,
    storage: &str,
    volume: &str,
) -> Result<(), ControlError> {
    let next_step = match image.state.as_str() {
        // An attempt whose storage server died is replaced by the next one.
        "Archived" | "WdiffRecv" | "HashSync" => return Ok(()),
        look::CLEAR | "SyncReady" => {
            format!("nothing can be compared with: `walbc full-backup {storage} {volume}`")
        }
        "Stopped" => format!("`walbc start {archive} {volume}` first"),
        _ => format!("`walbc status {volume}` shows what runs or is wrong there"),
    };
    let message = format!("{volume} is {} at {archive}", image.state);
    Err(ControlError::Precondition { message, next_step })
}

/// Lets the archive have what it can still get of the old log: after the backup it refuses that.
async fn empty_queues(
    ctl: &Controller,
    volume: &str,
    primary: &Server,
    watch: Watch<'_>,
) -> Result<(), ControlError> {
    for line in drain::drain(ctl, volume, &primary.name).await? {
        watch(Event::Note(&format!("{line}; the hash backup makes them useless")));
    }
    Ok(())
}

/// Runs the backup; its gid, or none where the storage server was restarted just when it had ended.
async fn start(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    options: HashBackupOptions,
    watch: Watch<'_>,
) -> Result<Option<u64>, ControlError> {
    let (server, client) = ctl.storage(storage)?;
    let request = v1::HashBackupRequest {
        volume: volume.to_owned(),
        scan_bytes_per_s: options.scan_bytes_per_s,
        everything: options.everything,
    };
    let call = async || client.clone().hash_backup(request.clone()).await.at(server);
    let kind = (Kind::Hash.verb(), volume);
    match lost::start_and_follow(ctl, server, kind, watch, call).await {
        Ok(ended) => Ok(ended.gid),
        Err(error @ ControlError::Forgotten { .. }) => {
            let is_target = setup::state(ctl, storage, volume).await? == "Target";
            if is_target { Ok(None) } else { Err(error) }
        }
        Err(error) => Err(error),
    }
}
