//! Waking what waits: kicks end back-offs and send errors (semantics.md §3.6, §4.9).

use proto::v1;
use server_kit::error::Reason;

use crate::client::{At, Controller};
use crate::error::ControlError;
use crate::group::ServerRole;

/// Kicks one storage server; an empty `volume` means all of them. Returns the volumes kicked.
///
/// # Errors
/// Unknown or unreachable server.
pub async fn kick_storage(
    ctl: &Controller,
    storage: &str,
    volume: &str,
) -> Result<Vec<String>, ControlError> {
    let (server, mut client) = ctl.storage(storage)?;
    let request = v1::KickStorageRequest { volume: volume.to_owned() };
    Ok(client.kick(request).await.at(server)?.kicked)
}

/// Kicks the storage servers that know the volume. One that does not answer needs no kick: it
/// looks at everything when it comes back.
pub(crate) async fn kick_storages(ctl: &Controller, volume: &str) -> Result<(), ControlError> {
    for storage in ctl.names(ServerRole::Storage) {
        match kick_storage(ctl, &storage, volume).await {
            Ok(_) | Err(ControlError::Unreachable { .. }) => {}
            Err(ControlError::Refused { error, .. }) if error.reason() == Reason::UnknownVolume => {
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Kicks a proxy: one queue, all queues of a volume (`archive` empty), or all (both empty).
///
/// # Errors
/// Unknown or unreachable proxy, unknown volume or archive there.
pub async fn kick_proxy(
    ctl: &Controller,
    proxy: &str,
    volume: &str,
    archive: &str,
) -> Result<Vec<String>, ControlError> {
    let (server, mut client) = ctl.proxy(proxy)?;
    let request = v1::KickProxyRequest { volume: volume.to_owned(), archive: archive.to_owned() };
    Ok(client.kick(request).await.at(server)?.kicked)
}

/// One server with what was kicked there.
#[derive(Debug, serde::Serialize)]
pub struct Kicked {
    /// The server.
    pub server: String,
    /// Volumes (storage) or `VOLUME ARCHIVE` queues (proxy).
    pub kicked: Vec<String>,
}

/// Kicks the named servers; none named: all. Storage servers alone are kicked with every proxy, for
/// what waits may wait there.
///
/// # Errors
/// A name of another role; the first server that cannot be reached, after all others were tried.
pub async fn kick_all(ctl: &Controller, named: &[String]) -> Result<Vec<Kicked>, ControlError> {
    let (mut storages, mut proxies) = (Vec::new(), Vec::new());
    for name in named {
        if ctl.group().server(name)?.role == ServerRole::Storage {
            storages.push(name.clone());
        } else {
            ctl.proxy(name)?;
            proxies.push(name.clone());
        }
    }
    if proxies.is_empty() {
        proxies = ctl.names(ServerRole::Proxy);
        if storages.is_empty() {
            storages = ctl.names(ServerRole::Storage);
        }
    }
    let (mut done, mut failed) = (Vec::new(), None);
    for server in storages {
        match kick_storage(ctl, &server, "").await {
            Ok(kicked) => done.push(Kicked { server, kicked }),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    for server in proxies {
        match kick_proxy(ctl, &server, "", "").await {
            Ok(kicked) => done.push(Kicked { server, kicked }),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(done), Err)
}
