//! Full backup and snapshots (semantics.md §6.3).

use std::time::Duration;

use proto::v1;

use super::{archive, look, recover, run, setup, sync, wait_for};
use crate::client::{At, Controller, volume_ref};
use crate::error::ControlError;
use crate::group::ServerRole;

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
async fn prepare(ctl: &Controller, storage: &str, volume: &str) -> Result<(), ControlError> {
    ctl.storage(storage)?;
    if setup::state(ctl, storage, volume).await? == look::CLEAR {
        return Err(ControlError::Precondition {
            message: format!("{storage} does not know a volume {volume:?}"),
            next_step: format!(
                "`walbc init-storage {storage} {volume} --device CONTROL#{volume}` first"
            ),
        });
    }
    for other in ctl.names(ServerRole::Storage).into_iter().filter(|name| name != storage) {
        let state = setup::state(ctl, &other, volume).await?;
        if !matches!(state.as_str(), "Standby" | look::CLEAR) {
            return Err(ControlError::Precondition {
                message: format!("{volume} is {state} at {other}; only one leg may be shipped"),
                next_step: format!("`walbc go-standby {other} {volume}` first"),
            });
        }
    }
    let primary = ctl.group().primary()?.name.clone();
    match setup::state(ctl, &primary, volume).await?.as_str() {
        look::CLEAR => {
            let (server, mut client) = ctl.archive(&primary)?;
            client.init(volume_ref(volume)).await.at(server)?;
        }
        "SyncReady" => {}
        state => {
            return Err(ControlError::Precondition {
                message: format!(
                    "{volume} is {state} at {primary}: a full backup would replace its history"
                ),
                next_step: format!(
                    "to start anew: `walbc stop {primary} {volume}`, \
                     `walbc reset {primary} {volume}`"
                ),
            });
        }
    }
    match setup::state(ctl, storage, volume).await?.as_str() {
        "SyncReady" => {}
        "Standby" => setup::stop(ctl, storage, volume, v1::StopMode::Graceful).await?,
        "Stopped" => setup::reset(ctl, storage, volume).await?,
        state => {
            return Err(ControlError::Precondition {
                message: format!("{volume} is {state} at {storage}"),
                next_step: format!(
                    "a full backup starts from SyncReady, Standby or Stopped: \
                     `walbc stop {storage} {volume}` first"
                ),
            });
        }
    }
    for archive in ctl.names(ServerRole::Archive) {
        // A list that differs between proxies is mended by taking the archive off all of them.
        sync::stop_synchronizing(ctl, &archive, volume).await?;
    }
    sync::start_synchronizing(ctl, &primary, volume).await
}

/// Whether an interrupted backup can go on: the storage server has kept its log, and the proxies
/// what they were sent of it.
async fn is_resumable(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    primary: &str,
) -> Result<bool, ControlError> {
    let state = look::storage_volume(ctl, storage, volume).await?;
    Ok(state.backup_resumable && sync::is_synchronizing(ctl, primary, volume).await?)
}

/// Copies the whole volume to the primary archive, with continuous backup from then on.
///
/// An interrupted one goes on where the archive has its last block. Returns the gid of the first
/// restorable snapshot, when it is restorable.
///
/// # Errors
/// A server in the wrong state, unreachable, or too small; each names the next step.
pub async fn full_backup(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    options: FullBackupOptions,
    seen: &mut (dyn FnMut(&v1::Operation) + Send),
) -> Result<u64, ControlError> {
    let primary = ctl.group().primary()?.name.clone();
    let resume = is_resumable(ctl, storage, volume, &primary).await?;
    if !resume {
        prepare(ctl, storage, volume).await?;
    }
    let (server, mut client) = ctl.storage(storage)?;
    let bulk_bytes = options.bulk_bytes;
    let request = v1::FullBackupRequest { volume: volume.to_owned(), bulk_bytes, resume };
    let started = client.full_backup(request).await.at(server);
    if started.is_err() && !resume {
        // `prepare` dropped the proxies' queues: no earlier attempt may be resumed without them.
        sync::stop_synchronizing(ctl, &primary, volume).await?;
    }
    let operation = run::follow(ctl, server, started?, seen).await?;
    let gid = operation.gid.unwrap_or_default();
    for proxy in ctl.names(ServerRole::Proxy) {
        recover::kick_proxy(ctl, &proxy, volume, &primary).await?;
    }
    wait_restorable(ctl, &primary, volume, gid).await?;
    Ok(gid)
}

/// Takes an explicit snapshot of a target volume, durable at the storage server.
///
/// # Errors
/// The volume is not a target, or its log overflowed.
pub async fn snapshot(
    ctl: &Controller,
    storage: &str,
    volume: &str,
) -> Result<SnapshotTaken, ControlError> {
    let (server, mut client) = ctl.storage(storage)?;
    let taken = client.take_snapshot(volume_ref(volume)).await.at(server)?;
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
