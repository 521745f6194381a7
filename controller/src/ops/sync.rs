//! Which archives a volume is sent to: a volume is *synchronizing* with an archive when every
//! proxy has that archive on its list (semantics.md §1.2, §6.5).

use proto::v1;

use super::look::CLEAR;
use super::setup;
use crate::client::{At, Controller, or_clear, volume_ref};
use crate::error::ControlError;
use crate::group::ServerRole;

/// Compression that proxies use towards archives unless told otherwise.
pub const DEFAULT_COMPRESSION: &str = "zstd:1";

/// What a proxy knows of a volume; state `Clear` and no queues when it does not know it.
///
/// # Errors
/// Unknown or unreachable proxy.
pub async fn proxy_volume(
    ctl: &Controller,
    proxy: &str,
    volume: &str,
) -> Result<v1::ProxyVolume, ControlError> {
    let (server, mut client) = ctl.proxy(proxy)?;
    let clear = v1::ProxyVolume { state: CLEAR.to_owned(), ..Default::default() };
    or_clear(client.get(volume_ref(volume)).await.at(server), clear)
}

fn entry<'a>(volume: &'a v1::ProxyVolume, archive: &str) -> Option<&'a v1::ArchiveInfo> {
    let infos = volume.queues.iter().filter_map(|queue| queue.archive.as_ref());
    infos.into_iter().find(|info| info.name == archive)
}

/// The archives on a proxy's list for a volume.
///
/// # Errors
/// Unknown or unreachable proxy.
pub async fn archive_infos(
    ctl: &Controller,
    proxy: &str,
    volume: &str,
) -> Result<Vec<v1::ArchiveInfo>, ControlError> {
    let volume = proxy_volume(ctl, proxy, volume).await?;
    Ok(volume.queues.into_iter().filter_map(|queue| queue.archive).collect())
}

/// Stops the volume at the proxy if need be, runs `change`, and starts it again.
async fn while_stopped<F>(
    ctl: &Controller,
    proxy: &str,
    volume: &str,
    change: F,
) -> Result<(), ControlError>
where
    F: AsyncFnOnce() -> Result<(), ControlError>,
{
    let was_started = setup::state(ctl, proxy, volume).await? == "Started";
    if was_started {
        setup::stop(ctl, proxy, volume, v1::StopMode::Graceful).await?;
    }
    let changed = change().await;
    // The last archive taken away leaves nothing to start.
    if setup::state(ctl, proxy, volume).await? == "Stopped" {
        setup::start(ctl, proxy, volume).await?;
    }
    changed
}

/// Puts an archive on a proxy's list, or changes its entry there.
///
/// # Errors
/// What the proxy's stop, update and start give.
pub async fn put_archive_info(
    ctl: &Controller,
    proxy: &str,
    volume: &str,
    info: &v1::ArchiveInfo,
) -> Result<(), ControlError> {
    let listed = entry(&proxy_volume(ctl, proxy, volume).await?, &info.name).is_some();
    let request = || v1::ArchiveInfoRequest { volume: volume.to_owned(), info: Some(info.clone()) };
    while_stopped(ctl, proxy, volume, async || {
        let (server, mut client) = ctl.proxy(proxy)?;
        if listed {
            client.update_archive(request()).await.at(server).map(drop)
        } else {
            client.add_archive(request()).await.at(server).map(drop)
        }
    })
    .await
}

/// Takes an archive off a proxy's list; its queue goes with it. Nothing to do where it is not.
///
/// # Errors
/// What the proxy's stop, delete and start give.
pub async fn delete_archive_info(
    ctl: &Controller,
    proxy: &str,
    volume: &str,
    archive: &str,
) -> Result<(), ControlError> {
    if entry(&proxy_volume(ctl, proxy, volume).await?, archive).is_none() {
        return Ok(());
    }
    while_stopped(ctl, proxy, volume, async || {
        let (server, mut client) = ctl.proxy(proxy)?;
        let request = v1::ArchiveInfoRef { volume: volume.to_owned(), name: archive.to_owned() };
        client.delete_archive(request).await.at(server).map(drop)
    })
    .await
}

/// Copies a proxy's list for a volume to another proxy and starts the volume there.
///
/// # Errors
/// Unknown or unreachable proxies, and what the second one answers.
pub async fn copy_archive_info(
    ctl: &Controller,
    from: &str,
    volume: &str,
    to: &str,
) -> Result<usize, ControlError> {
    let infos = archive_infos(ctl, from, volume).await?;
    for info in &infos {
        put_archive_info(ctl, to, volume, info).await?;
    }
    Ok(infos.len())
}

/// Puts the archive on every proxy's list and wakes the storage servers.
///
/// # Errors
/// The first proxy or storage server that fails; calling again goes on from there.
pub async fn start_synchronizing(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<(), ControlError> {
    let server = ctl.group().server_of(archive, ServerRole::Archive)?;
    let info = v1::ArchiveInfo {
        name: server.name.clone(),
        address: server.address.to_string(),
        compression: DEFAULT_COMPRESSION.to_owned(),
        send_delay_ms: 0,
    };
    for proxy in ctl.names(ServerRole::Proxy) {
        put_archive_info(ctl, &proxy, volume, &info).await?;
    }
    super::recover::kick_storages(ctl, volume).await
}

/// Takes the archive off every proxy's list: wdiffs that wait for it are dropped.
///
/// # Errors
/// The first proxy or storage server that fails; calling again goes on from there.
pub async fn stop_synchronizing(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<(), ControlError> {
    ctl.group().server_of(archive, ServerRole::Archive)?;
    for proxy in ctl.names(ServerRole::Proxy) {
        delete_archive_info(ctl, &proxy, volume, archive).await?;
    }
    super::recover::kick_storages(ctl, volume).await
}

/// Whether every proxy has the archive on its list.
///
/// # Errors
/// Some have it and some have not: [`ControlError::Precondition`] names them.
pub async fn is_synchronizing(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<bool, ControlError> {
    ctl.group().server_of(archive, ServerRole::Archive)?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for proxy in ctl.names(ServerRole::Proxy) {
        let listed = entry(&proxy_volume(ctl, &proxy, volume).await?, archive).is_some();
        if listed { with.push(proxy) } else { without.push(proxy) }
    }
    if !with.is_empty() && !without.is_empty() {
        return Err(ControlError::Precondition {
            message: format!(
                "{archive} is on the list of {} but not of {} for {volume}",
                with.join(", "),
                without.join(", ")
            ),
            next_step: format!("`walbc start-synchronizing {archive} {volume}` puts it on all"),
        });
    }
    Ok(!with.is_empty())
}
