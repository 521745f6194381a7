//! Setting volumes up and taking them down: init, clear, reset, start, stop (semantics.md §6.2).

use proto::v1;

use super::{look, lost, sync};
use crate::client::{At, Controller, volume_ref};
use crate::error::ControlError;
use crate::group::ServerRole;

/// Makes `volume` known at a storage server and lets it run as standby. Where that was begun before
/// on the same device, it goes on.
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
    let (server, client) = ctl.storage(storage)?;
    let full = if device.contains('#') { device.to_owned() } else { format!("{device}#{volume}") };
    let leg = look::storage_volume(ctl, storage, volume).await?;
    if leg.device == full && leg.state == "Standby" {
        return Ok(());
    }
    if !(leg.device == full && is_new(&leg)) {
        let request = v1::InitStorageRequest { volume: volume.to_owned(), device: full };
        let init = async || client.clone().init(request.clone()).await.at(server).map(drop);
        let known = async || has_become(ctl, storage, volume, &["SyncReady"]).await;
        lost::surely(init, known).await?;
    }
    start_storage(ctl, storage, volume, v1::StorageMode::Standby).await
}

/// The volume was made known and nothing else.
fn is_new(leg: &v1::StorageVolume) -> bool {
    leg.state == "SyncReady" && leg.latest_gid == 0 && leg.gap_since_s == 0 && !leg.backup_resumable
}

/// Makes `volume` known at an archive; nothing to do where it is.
///
/// # Errors
/// Unknown or unreachable archive.
pub async fn init_archive(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<(), ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let known = async || Ok((state(ctl, archive, volume).await? != look::CLEAR).then_some(()));
    if known().await?.is_some() {
        return Ok(());
    }
    let init = async || client.clone().init(volume_ref(volume)).await.at(server).map(drop);
    lost::surely(init, known).await
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

/// Whether the volume is in one of these states by now, for calls whose answer was lost.
async fn has_become(
    ctl: &Controller,
    name: &str,
    volume: &str,
    states: &[&str],
) -> Result<Option<()>, ControlError> {
    Ok(states.contains(&state(ctl, name, volume).await?.as_str()).then_some(()))
}

/// Starts `volume`: a storage server as target, a proxy or an archive to take part again. Where it
/// runs there is nothing to do.
///
/// # Errors
/// The volume's state does not allow it; the error names the states that do.
pub async fn start(ctl: &Controller, name: &str, volume: &str) -> Result<(), ControlError> {
    let role = ctl.group().server(name)?.role;
    let running: &[&str] = match role {
        ServerRole::Storage => &["Target"],
        ServerRole::Proxy => &["Started", "WlogRecv"],
        ServerRole::Archive => &["Archived", "WdiffRecv"],
    };
    if has_become(ctl, name, volume, running).await?.is_some() {
        return Ok(());
    }
    if role == ServerRole::Storage {
        return start_storage(ctl, name, volume, v1::StorageMode::Target).await;
    }
    let call = async || {
        if role == ServerRole::Proxy {
            let (server, mut client) = ctl.proxy(name)?;
            return client.start(volume_ref(volume)).await.at(server).map(drop);
        }
        let (server, mut client) = ctl.archive(name)?;
        client.start(volume_ref(volume)).await.at(server).map(drop)
    };
    lost::surely(call, async || has_become(ctl, name, volume, running).await).await
}

async fn start_storage(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    mode: v1::StorageMode,
) -> Result<(), ControlError> {
    let (server, client) = ctl.storage(storage)?;
    let request = v1::StartStorageRequest { volume: volume.to_owned(), mode: mode.into() };
    let goal = match mode {
        v1::StorageMode::Target => "Target",
        v1::StorageMode::Standby => "Standby",
    };
    let call = async || client.clone().start(request.clone()).await.at(server).map(drop);
    lost::surely(call, async || has_become(ctl, storage, volume, &[goal]).await).await
}

/// Stops `volume` at any server; returns when it has stopped. Nothing to do where it has.
///
/// # Errors
/// The volume's state does not allow it; the mode is not one of that role.
pub async fn stop(
    ctl: &Controller,
    name: &str,
    volume: &str,
    mode: v1::StopMode,
) -> Result<(), ControlError> {
    let role = ctl.group().server(name)?.role;
    let still: &[&str] = match role {
        ServerRole::Storage => &["Stopped", "SyncReady"],
        ServerRole::Proxy | ServerRole::Archive => &["Stopped"],
    };
    if has_become(ctl, name, volume, still).await?.is_some() {
        return Ok(());
    }
    let request = || v1::StopRequest { volume: volume.to_owned(), mode: mode.into() };
    let call = async || match role {
        ServerRole::Storage => {
            let (server, mut client) = ctl.storage(name)?;
            client.stop(request()).await.at(server).map(drop)
        }
        ServerRole::Proxy => {
            let (server, mut client) = ctl.proxy(name)?;
            client.stop(request()).await.at(server).map(drop)
        }
        ServerRole::Archive => {
            let (server, mut client) = ctl.archive(name)?;
            client.stop(request()).await.at(server).map(drop)
        }
    };
    // A standby, and a leg whose backup was aborted, are SyncReady when they have stopped.
    let stopped = ["Stopped", "SyncReady"];
    lost::surely(call, async || has_become(ctl, name, volume, &stopped).await).await
}

/// Back to `SyncReady`: a storage server gives up its unsent log, an archive its image.
///
/// # Errors
/// The volume's state does not allow it; the server is a proxy.
pub async fn reset(ctl: &Controller, name: &str, volume: &str) -> Result<(), ControlError> {
    let role = ctl.group().server(name)?.role;
    let call = async || match role {
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
    };
    lost::surely(call, async || has_become(ctl, name, volume, &["SyncReady"]).await).await
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
    if matches!(
        now.as_str(),
        "Target"
            | "Standby"
            | "FullSync"
            | "HashSync"
            | "Started"
            | "WlogRecv"
            | "Archived"
            | "WdiffRecv"
    ) {
        stop(ctl, name, volume, v1::StopMode::Force).await?;
        now = state(ctl, name, volume).await?;
    }
    if role == ServerRole::Storage && now == "Stopped" {
        reset(ctl, name, volume).await?;
    }
    let call = async || match role {
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
    };
    lost::surely(call, async || has_become(ctl, name, volume, &[look::CLEAR]).await).await
}

/// Makes the storage server's leg a standby: its log is discarded from now on.
///
/// A target loses what it has not shipped. What it has shipped stays in the proxies' queues and
/// goes to the archives: it is history that no later backup needs to lose.
///
/// # Errors
/// The volume is in none of `Standby`, `SyncReady`, `Stopped`, `Target`.
pub async fn go_standby(ctl: &Controller, storage: &str, volume: &str) -> Result<(), ControlError> {
    match state(ctl, storage, volume).await?.as_str() {
        "Standby" => return Ok(()),
        "SyncReady" => {}
        "Target" => {
            stop(ctl, storage, volume, v1::StopMode::Force).await?;
            reset(ctl, storage, volume).await?;
        }
        "Stopped" => reset(ctl, storage, volume).await?,
        look::CLEAR => {
            return Err(ControlError::Precondition {
                message: format!("{storage} does not know a volume {volume:?}"),
                next_step: format!("`walbc init-storage {storage} {volume} --device CONTROL#NAME`"),
            });
        }
        other => {
            return Err(ControlError::Precondition {
                message: format!("{volume} is {other} at {storage}"),
                next_step: "`walbc operations` shows what runs; wait for it or cancel it"
                    .to_owned(),
            });
        }
    }
    start_storage(ctl, storage, volume, v1::StorageMode::Standby).await
}
