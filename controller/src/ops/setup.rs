//! Setting volumes up and taking them down: init, clear, reset, start, stop (semantics.md §6.2).

use proto::v1;

use super::{look, sync};
use crate::client::{At, Controller, volume_ref};
use crate::error::ControlError;
use crate::group::ServerRole;

/// Makes `volume` known at a storage server and lets it run as standby.
///
/// `device` is `CONTROL[#NAME]`: the control socket of the device role and the volume's name there.
///
/// # Errors
/// Unknown or unreachable server; the volume exists already; the device does not answer.
pub async fn init_storage(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    device: &str,
) -> Result<(), ControlError> {
    let (server, mut client) = ctl.storage(storage)?;
    let request = v1::InitStorageRequest { volume: volume.to_owned(), device: device.to_owned() };
    client.init(request).await.at(server)?;
    start_storage(ctl, storage, volume, v1::StorageMode::Standby).await
}

/// The state of `volume` at any server of the group.
///
/// # Errors
/// Unknown or unreachable server.
pub async fn state(ctl: &Controller, name: &str, volume: &str) -> Result<String, ControlError> {
    Ok(match ctl.group().server(name)?.role {
        ServerRole::Storage => look::storage_volume(ctl, name, volume).await?.state,
        ServerRole::Proxy => sync::proxy_volume(ctl, name, volume).await?.state,
        ServerRole::Archive => look::archive_volume(ctl, name, volume).await?.state,
    })
}

/// Starts `volume`: a storage server as target, a proxy or an archive to take part again.
///
/// # Errors
/// The volume's state does not allow it; the error names the states that do.
pub async fn start(ctl: &Controller, name: &str, volume: &str) -> Result<(), ControlError> {
    let server = ctl.group().server(name)?;
    match server.role {
        ServerRole::Storage => start_storage(ctl, name, volume, v1::StorageMode::Target).await,
        ServerRole::Proxy => {
            let (server, mut client) = ctl.proxy(name)?;
            client.start(volume_ref(volume)).await.at(server).map(drop)
        }
        ServerRole::Archive => {
            let (server, mut client) = ctl.archive(name)?;
            client.start(volume_ref(volume)).await.at(server).map(drop)
        }
    }
}

async fn start_storage(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    mode: v1::StorageMode,
) -> Result<(), ControlError> {
    let (server, mut client) = ctl.storage(storage)?;
    let request = v1::StartStorageRequest { volume: volume.to_owned(), mode: mode.into() };
    client.start(request).await.at(server).map(drop)
}

/// Stops `volume` at any server; returns when it has stopped.
///
/// # Errors
/// The volume's state does not allow it; the mode is not one of that role.
pub async fn stop(
    ctl: &Controller,
    name: &str,
    volume: &str,
    mode: v1::StopMode,
) -> Result<(), ControlError> {
    let server = ctl.group().server(name)?;
    let request = v1::StopRequest { volume: volume.to_owned(), mode: mode.into() };
    match server.role {
        ServerRole::Storage => {
            let (server, mut client) = ctl.storage(name)?;
            client.stop(request).await.at(server).map(drop)
        }
        ServerRole::Proxy => {
            let (server, mut client) = ctl.proxy(name)?;
            client.stop(request).await.at(server).map(drop)
        }
        ServerRole::Archive => {
            let (server, mut client) = ctl.archive(name)?;
            client.stop(request).await.at(server).map(drop)
        }
    }
}

/// Back to `SyncReady`: a storage server gives up its unsent log, an archive its image.
///
/// # Errors
/// The volume's state does not allow it; the server is a proxy.
pub async fn reset(ctl: &Controller, name: &str, volume: &str) -> Result<(), ControlError> {
    let server = ctl.group().server(name)?;
    match server.role {
        ServerRole::Storage => {
            let (server, mut client) = ctl.storage(name)?;
            let request = v1::ResetStorageRequest { volume: volume.to_owned(), gid: 0 };
            client.reset(request).await.at(server).map(drop)
        }
        ServerRole::Archive => {
            let (server, mut client) = ctl.archive(name)?;
            let request = v1::ResetArchiveRequest { volume: volume.to_owned() };
            client.reset(request).await.at(server).map(drop)
        }
        ServerRole::Proxy => Err(ControlError::Precondition {
            message: format!("a proxy such as {name} has nothing to reset"),
            next_step: format!("`walbc clear {name} {volume}` removes the volume there"),
        }),
    }
}

/// Removes `volume` from a server, stopping it first; nothing to do where it is not known.
///
/// # Errors
/// What the server's stop, reset or clear gives.
pub async fn clear(ctl: &Controller, name: &str, volume: &str) -> Result<(), ControlError> {
    let role = ctl.group().server(name)?.role;
    let mut now = state(ctl, name, volume).await?;
    if now == look::CLEAR {
        return Ok(());
    }
    if matches!(now.as_str(), "Target" | "Standby" | "Started" | "Archived") {
        stop(ctl, name, volume, v1::StopMode::Force).await?;
        now = state(ctl, name, volume).await?;
    }
    if role == ServerRole::Storage && now == "Stopped" {
        reset(ctl, name, volume).await?;
    }
    match role {
        ServerRole::Storage => {
            let (server, mut client) = ctl.storage(name)?;
            client.clear(volume_ref(volume)).await.at(server).map(drop)
        }
        ServerRole::Proxy => {
            let (server, mut client) = ctl.proxy(name)?;
            client.clear(volume_ref(volume)).await.at(server).map(drop)
        }
        ServerRole::Archive => {
            let (server, mut client) = ctl.archive(name)?;
            client.clear(volume_ref(volume)).await.at(server).map(drop)
        }
    }
}

/// Makes the storage server's leg a standby: its log is discarded from now on.
///
/// A target loses what was not shipped; the primary archive stops following it first.
///
/// # Errors
/// The volume is in none of `Standby`, `SyncReady`, `Stopped`, `Target`.
pub async fn go_standby(ctl: &Controller, storage: &str, volume: &str) -> Result<(), ControlError> {
    let now = state(ctl, storage, volume).await?;
    match now.as_str() {
        "Standby" => return Ok(()),
        "SyncReady" => {}
        "Target" => {
            stop(ctl, storage, volume, v1::StopMode::Force).await?;
            let primary = ctl.group().primary()?.name.clone();
            sync::stop_synchronizing(ctl, &primary, volume).await?;
            reset(ctl, storage, volume).await?;
        }
        "Stopped" => reset(ctl, storage, volume).await?,
        other => {
            return Err(ControlError::Precondition {
                message: format!("{volume} is {other} at {storage}"),
                next_step: "wait until that has ended, or initialise the volume there".to_owned(),
            });
        }
    }
    start_storage(ctl, storage, volume, v1::StorageMode::Standby).await
}
