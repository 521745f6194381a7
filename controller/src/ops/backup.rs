//! Full backup and snapshots (semantics.md §6.3).

use std::time::Duration;

use proto::v1;

use super::prepare::{self, Earlier, Kind};
use super::{Watch, archive, look, lost, peers, recover, run, setup, sync, wait_for};
use crate::client::{At, Controller, volume_ref};
use crate::error::ControlError;
use crate::group::{Server, ServerRole};

/// How long a snapshot may take to become restorable before we say that it does not.
const RESTORABLE_LIMIT: Duration = Duration::from_secs(600);

/// Options of [`full_backup`].
#[derive(Clone, Copy, Debug, Default)]
pub struct FullBackupOptions {
    /// Bytes read at once; 0 lets the storage server choose.
    pub bulk_bytes: u64,
}

/// A snapshot that was taken.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct SnapshotTaken {
    /// Its generation id.
    pub gid: u64,
    /// Its position in the log, in physical blocks.
    pub lsid: u64,
    /// When, in Unix seconds.
    pub timestamp_s: u64,
}

/// Brings the servers into the state in which a full backup can start.
///
/// The storage server to `SyncReady`, the primary archive initialised and on every proxy's list.
/// An archive that holds history is not thrown away silently: that is an error with the command.
async fn prepare_full(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    primary: &Server,
    watch: Watch<'_>,
) -> Result<(), ControlError> {
    let state = setup::state(ctl, storage, volume).await?;
    let step = prepare::leg_step(Kind::Full, &state, storage, volume)?;
    prepare::others_are_quiet(ctl, storage, volume).await?;
    match archive_step(ctl, primary, volume).await? {
        ArchiveStep::Nothing => {}
        ArchiveStep::Init => setup::init_archive(ctl, &primary.name, volume).await?,
    }
    prepare::ready_leg(ctl, storage, volume, step).await?;
    // What an interrupted backup has shipped is dropped now: it must not be resumed any more, also
    // when nothing but this line and the next ones was reached.
    forget_backup(ctl, storage, volume).await?;
    let others = prepare::make_lists(ctl, volume, Kind::Full, primary, watch).await?;
    prepare::note_others(&others, volume, Kind::Full, &primary.name, watch);
    Ok(())
}

enum ArchiveStep {
    Nothing,
    Init,
}

async fn archive_step(
    ctl: &Controller,
    primary: &Server,
    volume: &str,
) -> Result<ArchiveStep, ControlError> {
    let primary = &primary.name;
    match setup::state(ctl, primary, volume).await?.as_str() {
        look::CLEAR => Ok(ArchiveStep::Init),
        "SyncReady" => Ok(ArchiveStep::Nothing),
        state => Err(ControlError::Precondition {
            message: format!(
                "{volume} is {state} at {primary}: a full backup would replace its history"
            ),
            next_step: format!(
                "to go on with it: `walbc hash-backup`; to start anew: \
                 `walbc stop {primary} {volume}`, `walbc reset {primary} {volume}`"
            ),
        }),
    }
}

async fn forget_backup(ctl: &Controller, storage: &str, volume: &str) -> Result<(), ControlError> {
    let (server, client) = ctl.storage(storage)?;
    let forget = async || client.clone().forget_backup(volume_ref(volume)).await.at(server);
    lost::again(forget).await.map(drop)
}

/// Whether an interrupted backup can go on: the storage server has kept its log, and the proxies
/// what they were sent of it.
async fn is_resumable(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    primary: &Server,
) -> Result<bool, ControlError> {
    let leg = look::storage_volume(ctl, storage, volume).await?;
    if !leg.backup_resumable {
        return Ok(false);
    }
    match sync::is_synchronizing(ctl, &primary.name, volume).await {
        Ok(listed) => Ok(listed),
        // Some proxies have dropped their queue, or one may be gone with it.
        Err(ControlError::Precondition { .. } | ControlError::Unreachable { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Copies the whole volume to the primary archive, with continuous backup from then on.
///
/// An interrupted one goes on where the archive has its last block; one that runs is waited for.
/// Returns the gid of the first restorable snapshot, when it is restorable.
///
/// # Errors
/// A server in the wrong state, unreachable, or too small; each names the next step.
pub async fn full_backup(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    options: FullBackupOptions,
    watch: Watch<'_>,
) -> Result<u64, ControlError> {
    let primary = peers::primary(ctl, storage).await?;
    let (server, client) = ctl.storage(storage)?;
    let gid = match prepare::earlier(ctl, storage, volume, Kind::Full, primary).await? {
        Earlier::Ended { gid, .. } => gid,
        Earlier::Runs(operation) => {
            let ended = run::follow(ctl, server, *operation, watch).await?;
            ended.gid.unwrap_or_default()
        }
        Earlier::None => {
            let resume = is_resumable(ctl, storage, volume, primary).await?;
            if !resume {
                prepare_full(ctl, storage, volume, primary, watch).await?;
            }
            let bulk_bytes = options.bulk_bytes;
            let request = v1::FullBackupRequest {
                volume: volume.to_owned(),
                bulk_bytes,
                resume,
                ..v1::FullBackupRequest::default()
            };
            let call = async || client.clone().full_backup(request.clone()).await.at(server);
            let kind = (Kind::Full.verb(), volume);
            let ended = lost::start_and_follow(ctl, server, kind, watch, call).await?;
            ended.gid.unwrap_or_default()
        }
    };
    arrive(ctl, primary, volume, gid).await?;
    Ok(gid)
}

/// Wakes the proxies and waits until the archive can restore a snapshot not older than `gid`;
/// returns the newest.
pub(crate) async fn arrive(
    ctl: &Controller,
    primary: &Server,
    volume: &str,
    gid: u64,
) -> Result<u64, ControlError> {
    for proxy in ctl.names(ServerRole::Proxy) {
        match recover::kick_proxy(ctl, &proxy, volume, &primary.name).await {
            // A kick only hurries; the status names a proxy that is down or lacks the archive.
            Ok(_) | Err(ControlError::Unreachable { .. } | ControlError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let archive = &primary.name;
    let what = format!("snapshot {gid} of {volume} becoming restorable at {archive}");
    let next_step = format!("`walbc status {volume}` shows which step is behind");
    wait_for(&what, &next_step, RESTORABLE_LIMIT, async || {
        let newest = prepare::newest_restorable(ctl, archive, volume).await?;
        Ok(newest.filter(|newest| *newest >= gid))
    })
    .await
}

/// Takes an explicit snapshot of a target volume, durable at the storage server. When an answer is
/// lost another one is taken: there may be one more than was asked for.
///
/// # Errors
/// The volume is not a target, or its log overflowed.
pub async fn snapshot(
    ctl: &Controller,
    storage: &str,
    volume: &str,
) -> Result<SnapshotTaken, ControlError> {
    let (server, client) = ctl.storage(storage)?;
    let take = async || client.clone().take_snapshot(volume_ref(volume)).await.at(server);
    let taken = lost::again(take).await?;
    Ok(SnapshotTaken { gid: taken.gid, lsid: taken.lsid, timestamp_s: taken.timestamp_s })
}

/// Waits until an archive can restore the snapshot.
///
/// # Errors
/// [`ControlError::Timeout`] after ten minutes; the archive cannot be reached.
pub async fn wait_restorable(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    gid: u64,
) -> Result<(), ControlError> {
    let what = format!("snapshot {gid} of {volume} becoming restorable at {archive}");
    let next_step = format!("`walbc status {volume}` shows which step is behind");
    wait_for(&what, &next_step, RESTORABLE_LIMIT, async || {
        let list = archive::restorable(ctl, archive, volume, true).await?;
        Ok(list.iter().any(|snapshot| snapshot.gid == gid).then_some(()))
    })
    .await
}
