//! Which archives a volume is sent to: a volume is *synchronizing* with an archive when every
//! proxy has that archive on its list (semantics.md §1.2, §6.5).

use proto::v1;

use super::look::CLEAR;
use super::{lost, setup};
use crate::client::{At, Controller, or_clear, volume_ref};
use crate::error::ControlError;
use crate::group::{Server, ServerRole};

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
    if !matches!(setup::state(ctl, proxy, volume).await?.as_str(), "Stopped" | CLEAR) {
        setup::stop(ctl, proxy, volume, v1::StopMode::Graceful).await?;
    }
    let changed = change().await;
    start_if_stopped(ctl, proxy, volume).await?;
    changed
}

/// The last archive taken away leaves nothing to start. An earlier attempt that was killed half-way
/// may have left the volume stopped.
async fn start_if_stopped(ctl: &Controller, proxy: &str, volume: &str) -> Result<(), ControlError> {
    if setup::state(ctl, proxy, volume).await? == "Stopped" {
        setup::start(ctl, proxy, volume).await?;
    }
    Ok(())
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
    let (server, client) = ctl.proxy(proxy)?;
    while_stopped(ctl, proxy, volume, async || {
        let put = async || match listed {
            true => client.clone().update_archive(request()).await.at(server).map(drop),
            false => client.clone().add_archive(request()).await.at(server).map(drop),
        };
        lost::surely(put, async || {
            let now = proxy_volume(ctl, proxy, volume).await?;
            Ok(entry(&now, &info.name).filter(|now| *now == info).map(drop))
        })
        .await
    })
    .await
}

/// Puts an archive on a proxy's list unless it is there with this address, and sees to it that the
/// volume is started.
pub(crate) async fn ensure_listed(
    ctl: &Controller,
    proxy: &str,
    volume: &str,
    info: &v1::ArchiveInfo,
) -> Result<(), ControlError> {
    let now = proxy_volume(ctl, proxy, volume).await?;
    match entry(&now, &info.name) {
        Some(listed) if listed.address == info.address => {
            start_if_stopped(ctl, proxy, volume).await
        }
        _ => put_archive_info(ctl, proxy, volume, info).await,
    }
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
        return start_if_stopped(ctl, proxy, volume).await;
    }
    let (server, client) = ctl.proxy(proxy)?;
    let request = v1::ArchiveInfoRef { volume: volume.to_owned(), name: archive.to_owned() };
    while_stopped(ctl, proxy, volume, async || {
        let delete =
            async || client.clone().delete_archive(request.clone()).await.at(server).map(drop);
        lost::surely(delete, async || {
            let now = proxy_volume(ctl, proxy, volume).await?;
            Ok(entry(&now, archive).is_none().then_some(()))
        })
        .await
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

/// An archive of the group as a proxy's list wants it, with the usual settings.
pub(crate) fn info_of(archive: &Server) -> v1::ArchiveInfo {
    v1::ArchiveInfo {
        name: archive.name.clone(),
        address: archive.address.to_string(),
        compression: DEFAULT_COMPRESSION.to_owned(),
        send_delay_ms: 0,
    }
}

/// Puts the archive on every proxy's list and wakes the storage servers. An entry that is there
/// with the right address stays as it is.
///
/// # Errors
/// The first proxy that fails, after all others were asked; calling again goes on from there.
pub async fn start_synchronizing(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<(), ControlError> {
    let info = info_of(ctl.group().server_of(archive, ServerRole::Archive)?);
    at_each_proxy(ctl, async |proxy| ensure_listed(ctl, proxy, volume, &info).await).await?;
    super::recover::kick_storages(ctl, volume).await
}

/// Takes the archive off every proxy's list: wdiffs that wait for it are dropped.
///
/// # Errors
/// The first proxy that fails, after all others were asked; calling again goes on from there.
pub async fn stop_synchronizing(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<(), ControlError> {
    ctl.group().server_of(archive, ServerRole::Archive)?;
    at_each_proxy(ctl, async |proxy| delete_archive_info(ctl, proxy, volume, archive).await)
        .await?;
    super::recover::kick_storages(ctl, volume).await
}

/// Does the same at every proxy, also when one fails.
async fn at_each_proxy(
    ctl: &Controller,
    work: impl AsyncFn(&str) -> Result<(), ControlError>,
) -> Result<(), ControlError> {
    let mut result = Ok(());
    for proxy in ctl.names(ServerRole::Proxy) {
        result = result.and(work(&proxy).await);
    }
    result
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
