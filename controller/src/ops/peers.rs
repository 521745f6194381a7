//! Whom the storage servers talk to: the primary archive and the proxies in order of priority.
//!
//! Invariant: the storage server decides which archive is the primary, for it is the one that
//! backs up; the group file says what it should be, and `status` tells when the two differ.

use proto::v1;
use serde::Serialize;
use server_kit::error::Reason;
use server_kit::net::Endpoint;

use super::{Event, Watch, look, lost, recover, sync};
use crate::client::{At, Controller};
use crate::error::ControlError;
use crate::group::{Group, Server, ServerRole};

/// The peers of one storage server, by name where the group file has one, else by address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoragePeers {
    /// The storage server.
    pub server: String,
    /// Its primary archive.
    pub archive: String,
    /// Its proxies in order.
    pub proxies: Vec<String>,
    /// How that differs from the group file; `None`: it does not.
    pub differs: Option<String>,
}

/// The server of the group that a storage server means: by its address, else by its name.
fn server_of<'a>(group: &'a Group, role: ServerRole, peer: &v1::Peer) -> Option<&'a Server> {
    let address = peer.address.parse::<Endpoint>().ok();
    let of = || group.of_role(role);
    let by_address = of().find(|server| Some(&server.address) == address.as_ref());
    by_address.or_else(|| of().find(|server| !peer.id.is_empty() && server.name == peer.id))
}

fn name_of(group: &Group, role: ServerRole, peer: &v1::Peer) -> String {
    server_of(group, role, peer).map_or_else(|| peer.address.clone(), |s| s.name.clone())
}

fn peer(server: &Server) -> v1::Peer {
    v1::Peer { id: server.name.clone(), address: server.address.to_string() }
}

async fn ask(ctl: &Controller, storage: &str) -> Result<v1::Peers, ControlError> {
    let (server, mut client) = ctl.storage(storage)?;
    client.get_peers(v1::Empty {}).await.at(server)
}

/// The primary archive of a storage server: the one that it names, or the first of the group file
/// when it names none.
///
/// # Errors
/// Unknown or unreachable storage server; its archive is not in the group file.
pub async fn primary<'a>(ctl: &'a Controller, storage: &str) -> Result<&'a Server, ControlError> {
    let named = match ask(ctl, storage).await {
        Ok(peers) => peers.archive,
        // An older server does not know the question.
        Err(ControlError::Refused { error, .. }) if error.reason() == Reason::WrongPeer => None,
        Err(error) => return Err(error),
    };
    let Some(peer) = named else { return Ok(ctl.group().primary()?) };
    server_of(ctl.group(), ServerRole::Archive, &peer).ok_or_else(|| ControlError::Precondition {
        message: format!(
            "{storage} backs up to {}, which is no archive of the group file",
            peer.address
        ),
        next_step: format!(
            "add it to the group file, or `walbc set-peers {storage}` tells {storage} the archive \
             and the proxies of the group file"
        ),
    })
}

/// The peers of a storage server, compared with the group file.
///
/// # Errors
/// Unknown or unreachable storage server.
pub async fn peers(ctl: &Controller, storage: &str) -> Result<StoragePeers, ControlError> {
    let group = ctl.group();
    let found = ask(ctl, storage).await?;
    let archive = found.archive.unwrap_or_default();
    let archive = name_of(group, ServerRole::Archive, &archive);
    let proxies: Vec<_> =
        found.proxies.iter().map(|peer| name_of(group, ServerRole::Proxy, peer)).collect();
    let (primary, listed) = (&group.primary()?.name, ctl.names(ServerRole::Proxy));
    let archive_differs = (archive != *primary).then(|| {
        format!("backs up to {archive}, the first archive of the group file is {primary}")
    });
    let proxies_differ = (proxies != listed).then(|| {
        format!("ships to {}, the group file has {}", proxies.join(", "), listed.join(", "))
    });
    let differs: Vec<_> = archive_differs.into_iter().chain(proxies_differ).collect();
    let differs = (!differs.is_empty()).then(|| differs.join("; "));
    Ok(StoragePeers { server: storage.to_owned(), archive, proxies, differs })
}

/// Tells storage servers (all of the group when none is named) their primary archive and their
/// proxies in order; what is not given is taken from the group file.
///
/// # Errors
/// A name that is not in the group; the first server that fails, after all others were told.
pub async fn set_peers(
    ctl: &Controller,
    storages: &[String],
    archive: Option<&str>,
    proxies: &[String],
) -> Result<Vec<StoragePeers>, ControlError> {
    let group = ctl.group();
    let archive = match archive {
        Some(name) => group.server_of(name, ServerRole::Archive)?,
        None => group.primary()?,
    };
    let proxies = match proxies {
        [] => ctl.names(ServerRole::Proxy),
        named => named.to_vec(),
    };
    let proxies: Result<Vec<_>, _> =
        proxies.iter().map(|name| group.server_of(name, ServerRole::Proxy).map(peer)).collect();
    let wanted = v1::Peers { archive: Some(peer(archive)), proxies: proxies? };
    if wanted.proxies.is_empty() {
        return Err(crate::group::GroupError::NoServer(ServerRole::Proxy).into());
    }
    let storages = storages_or_all(ctl, storages)?;
    let told = storages.into_iter().map(|storage| (storage, wanted.clone())).collect();
    tell(ctl, told).await
}

fn storages_or_all(ctl: &Controller, named: &[String]) -> Result<Vec<String>, ControlError> {
    for name in named {
        ctl.storage(name)?;
    }
    match named {
        [] => Ok(ctl.names(ServerRole::Storage)),
        named => Ok(named.to_vec()),
    }
}

/// Tells each storage server its peers; one that fails does not keep the others from hearing it.
async fn tell(
    ctl: &Controller,
    wanted: Vec<(String, v1::Peers)>,
) -> Result<Vec<StoragePeers>, ControlError> {
    let (mut done, mut failed) = (Vec::new(), None);
    for (storage, peers_wanted) in wanted {
        let told = async {
            lost::again(async || {
                let (server, mut client) = ctl.storage(&storage)?;
                client.set_peers(peers_wanted.clone()).await.at(server).map(drop)
            })
            .await?;
            recover::kick_storage(ctl, &storage, "").await?;
            peers(ctl, &storage).await
        };
        match told.await {
            Ok(peers) => done.push(peers),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(done), Err)
}

/// Makes an archive the primary of every storage server of the group; their proxies stay.
///
/// Nothing is copied: a note names each target volume that the archive does not hold the history
/// of, with the command that brings it there.
///
/// # Errors
/// Unknown archive; the first storage server that cannot be told, after all others were.
pub async fn promote(
    ctl: &Controller,
    archive: &str,
    watch: Watch<'_>,
) -> Result<Vec<StoragePeers>, ControlError> {
    let group = ctl.group();
    let new = group.server_of(archive, ServerRole::Archive)?;
    let listed: Vec<_> = group.of_role(ServerRole::Proxy).map(peer).collect();
    let (mut wanted, mut failed) = (Vec::new(), None);
    for storage in ctl.names(ServerRole::Storage) {
        match ask(ctl, &storage).await {
            Ok(now) => {
                let proxies = if now.proxies.is_empty() { listed.clone() } else { now.proxies };
                wanted.push((storage, v1::Peers { archive: Some(peer(new)), proxies }));
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let done = tell(ctl, wanted).await?;
    for told in &done {
        note_what_is_missing(ctl, &told.server, archive, watch).await?;
    }
    if group.primary()?.name != archive {
        let note = format!(
            "put {archive} before the other archives in the group file, and into --archive of the \
             storage servers"
        );
        watch(Event::Note(&note));
    }
    failed.map_or(Ok(done), Err)
}

/// Says which target volumes of a storage server the archive does not follow yet.
async fn note_what_is_missing(
    ctl: &Controller,
    storage: &str,
    archive: &str,
    watch: Watch<'_>,
) -> Result<(), ControlError> {
    let (server, mut client) = ctl.storage(storage)?;
    let volumes = client.list(v1::Empty {}).await.at(server)?.volumes;
    for leg in volumes.iter().filter(|leg| leg.state == "Target") {
        let volume = &leg.volume;
        let held = look::archive_volume(ctl, archive, volume).await?;
        let note = if held.log_uuid != leg.log_uuid {
            format!(
                "{archive} does not hold the history of {volume} (it is {} there): \
                 `walbc replicate A {volume} {archive} --synchronizing` from an archive that does, \
                 else `walbc stop {storage} {volume}` and `walbc full-backup {storage} {volume}`",
                held.state
            )
        } else if !matches!(sync::is_synchronizing(ctl, archive, volume).await, Ok(true)) {
            format!(
                "{volume} is not sent to {archive} by every proxy: \
                 `walbc start-synchronizing {archive} {volume}`"
            )
        } else {
            continue;
        };
        watch(Event::Note(&note));
    }
    Ok(())
}
