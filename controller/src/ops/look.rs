//! Looking at the whole group: liveness, one picture of all volumes, single questions.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proto::v1;
use serde::Serialize;

use super::health::{self, Problem};
use super::peers::{self, StoragePeers};
use super::{run, sync};
use crate::client::{At, Controller, or_clear, volume_ref};
use crate::error::{ControlError, Exit};
use crate::group::{Server, ServerRole};

/// The state of a volume at a server that does not know it.
pub const CLEAR: &str = "Clear";

/// How long a server may take before a picture of the group is drawn without it.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The answer of a server, or that it does not come: one that hangs must not keep the others from
/// being seen.
async fn in_time<T>(
    server: &Server,
    answer: impl Future<Output = Result<T, ControlError>>,
) -> Result<T, ControlError> {
    let late = |_| ControlError::Unreachable {
        server: server.name.clone(),
        address: server.address.to_string(),
        message: format!("no answer within {}", humantime::format_duration(ANSWER_LIMIT)),
    };
    tokio::time::timeout(ANSWER_LIMIT, answer).await.map_err(late)?
}

/// Whether a server of the group answers, and who it is.
#[derive(Debug, Serialize)]
pub struct Alive {
    /// Its name in the group.
    pub server: String,
    /// Its role in the group.
    pub role: ServerRole,
    /// Where it should listen.
    pub address: String,
    /// It answers.
    pub alive: bool,
    /// Its version, when it answers.
    pub version: Option<String>,
    /// What is wrong: no answer, or another server at that address.
    pub problem: Option<String>,
}

fn expected(role: ServerRole) -> v1::Role {
    match role {
        ServerRole::Storage => v1::Role::Storage,
        ServerRole::Proxy => v1::Role::Proxy,
        ServerRole::Archive => v1::Role::Archive,
    }
}

/// Asks every server of the group who it is.
pub async fn alive(ctl: &Controller) -> Vec<Alive> {
    let ask = async |server: &Server| {
        let answer = in_time(server, run::info(ctl, server)).await;
        let problem = match &answer {
            Ok(info) if info.role() != expected(server.role) || info.id != server.name => {
                Some(format!("{:?} {:?} answers at this address", info.role(), info.id))
            }
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        Alive {
            server: server.name.clone(),
            role: server.role,
            address: server.address.to_string(),
            alive: answer.is_ok(),
            version: answer.ok().map(|info| info.version),
            problem,
        }
    };
    futures::future::join_all(ctl.group().servers().iter().map(ask)).await
}

/// What one server says of one volume.
#[derive(Debug)]
pub enum View {
    /// A storage server.
    Storage(Box<v1::StorageVolume>),
    /// A proxy.
    Proxy(Box<v1::ProxyVolume>),
    /// An archive.
    Archive(Box<v1::ArchiveVolume>),
}

/// A volume as all servers see it.
#[derive(Debug)]
pub struct VolumeStatus {
    /// The volume.
    pub volume: String,
    /// Seconds since the newest point that some archive can restore; `None`: there is none.
    pub restorable_age_s: Option<u64>,
    /// Nothing was written since that point: the volume is idle, however old the point grows.
    pub up_to_date: bool,
    /// Each server that knows the volume, in the order of the group.
    pub views: Vec<(String, View)>,
    /// What is wrong beyond the errors that the servers report themselves.
    pub problems: Vec<Problem>,
}

/// The whole group.
#[derive(Debug)]
pub struct Status {
    /// All volumes, by name.
    pub volumes: Vec<VolumeStatus>,
    /// Servers that do not answer.
    pub unreachable: Vec<ControlError>,
    /// Whom the storage servers talk to.
    pub peers: Vec<StoragePeers>,
}

impl Status {
    /// Done when all is well, failed when something is wrong with a volume, unreachable when a
    /// server does not answer.
    #[must_use]
    pub fn exit(&self) -> Exit {
        if !self.unreachable.is_empty() {
            return Exit::Unreachable;
        }
        let ill = |v: &VolumeStatus| {
            !v.problems.is_empty() || v.views.iter().any(|(_, view)| view.error().is_some())
        };
        if self.volumes.iter().any(ill) { Exit::Failed } else { Exit::Done }
    }
}

impl View {
    /// What the server finds wrong with the volume.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        let text = match self {
            Self::Storage(v) => v.error.clone(),
            Self::Archive(v) => v.error.clone(),
            Self::Proxy(v) => {
                let queues = v.queues.iter().filter(|q| !q.error.is_empty());
                let queues = queues.map(|q| {
                    let name = q.archive.as_ref().map_or("?", |a| a.name.as_str());
                    format!("to {name}: {}", q.error)
                });
                let own = (!v.error.is_empty()).then(|| v.error.clone());
                own.into_iter().chain(queues).collect::<Vec<_>>().join("; ")
            }
        };
        (!text.is_empty()).then_some(text)
    }

    /// The role of the server that says so.
    #[must_use]
    pub fn role(&self) -> ServerRole {
        match self {
            Self::Storage(_) => ServerRole::Storage,
            Self::Proxy(_) => ServerRole::Proxy,
            Self::Archive(_) => ServerRole::Archive,
        }
    }

    fn volume(&self) -> &str {
        match self {
            Self::Storage(v) => &v.volume,
            Self::Proxy(v) => &v.volume,
            Self::Archive(v) => &v.volume,
        }
    }
}

/// Everything that one server says of its volumes.
async fn views(ctl: &Controller, server: &Server) -> Result<Vec<View>, ControlError> {
    Ok(match server.role {
        ServerRole::Storage => {
            let (server, mut client) = ctl.storage(&server.name)?;
            let list = client.list(v1::Empty {}).await.at(server)?;
            list.volumes.into_iter().map(|v| View::Storage(Box::new(v))).collect()
        }
        ServerRole::Proxy => {
            let (server, mut client) = ctl.proxy(&server.name)?;
            let list = client.list(v1::Empty {}).await.at(server)?;
            list.volumes.into_iter().map(|v| View::Proxy(Box::new(v))).collect()
        }
        ServerRole::Archive => {
            let (server, mut client) = ctl.archive(&server.name)?;
            let list = client.list(v1::Empty {}).await.at(server)?;
            list.volumes.into_iter().map(|v| View::Archive(Box::new(v))).collect()
        }
    })
}

/// The names of the volumes that a server knows.
///
/// # Errors
/// Unknown or unreachable server.
pub async fn volumes(ctl: &Controller, name: &str) -> Result<Vec<String>, ControlError> {
    let views = views(ctl, ctl.group().server(name)?).await?;
    Ok(views.iter().map(|view| view.volume().to_owned()).collect())
}

/// One picture of all servers and volumes, or of one volume.
pub async fn status(ctl: &Controller, only: Option<&str>) -> Status {
    let servers = ctl.group().servers();
    let answers = futures::future::join_all(servers.iter().map(|s| in_time(s, views(ctl, s))));
    let storages = ctl.group().of_role(ServerRole::Storage);
    let peers = storages.map(|s| in_time(s, peers::peers(ctl, &s.name)));
    let peers = futures::future::join_all(peers);
    let (answers, peers) = futures::future::join(answers, peers).await;
    let (mut all, mut answered, mut unreachable) = (Vec::new(), Vec::new(), Vec::new());
    for (server, answer) in servers.iter().zip(answers) {
        match answer {
            Ok(views) => {
                answered.push(server.name.as_str());
                all.extend(views.into_iter().map(|view| (server.name.clone(), view)));
            }
            Err(error) => unreachable.push(error),
        }
    }
    let mut names: BTreeSet<String> = all.iter().map(|(_, v)| v.volume().to_owned()).collect();
    names.extend(only.map(str::to_owned));
    names.retain(|name| only.is_none_or(|only| only == name));
    let volumes = names
        .into_iter()
        .map(|volume| {
            let views: Vec<_> = all.extract_if(.., |(_, view)| view.volume() == volume).collect();
            let problems = health::problems(&volume, &views, &answered);
            let (restorable_age_s, up_to_date) = (restorable_age(&views), is_up_to_date(&views));
            VolumeStatus { volume, restorable_age_s, up_to_date, views, problems }
        })
        .collect();
    // A storage server that does not answer is among the unreachable ones.
    let peers = peers.into_iter().flatten().collect();
    Status { volumes, unreachable, peers }
}

/// Unix seconds now.
#[must_use]
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

fn restorable_age(views: &[(String, View)]) -> Option<u64> {
    let newest = views.iter().filter_map(|(_, view)| match view {
        View::Archive(v) if v.newest_restorable_s > 0 => Some(v.newest_restorable_s),
        _ => None,
    });
    newest.max().map(|newest| now_s().saturating_sub(newest))
}

/// Whether an archive can restore the volume as it is: all that is in the log of a target was
/// shipped, and has arrived. What is written between the answers of the two makes it no lie.
fn is_up_to_date(views: &[(String, View)]) -> bool {
    let shipped = |leg: &v1::StorageVolume| {
        // The size of a block is known when the device has answered.
        let answered = leg.physical_block_bytes > 0;
        answered
            && leg.state == "Target"
            && leg.gap_since_s == 0
            && leg.done_lsid == leg.latest_lsid
    };
    let arrived = |leg: &v1::StorageVolume, image: &v1::ArchiveVolume| {
        image.log_uuid == leg.log_uuid
            && image.newest_restorable_s > 0
            && image.newest_restorable_gid >= leg.done_gid
    };
    let legs = views.iter().filter_map(|(_, view)| match view {
        View::Storage(leg) if shipped(leg) => Some(leg),
        _ => None,
    });
    let mut images = views.iter().filter_map(|(_, view)| match view {
        View::Archive(image) => Some(image),
        _ => None,
    });
    legs.into_iter().any(|leg| images.any(|image| arrived(leg, image)))
}

/// What a storage server says of a volume; state `Clear` when it does not know it.
///
/// # Errors
/// Unknown or unreachable storage server.
pub async fn storage_volume(
    ctl: &Controller,
    storage: &str,
    volume: &str,
) -> Result<v1::StorageVolume, ControlError> {
    let (server, mut client) = ctl.storage(storage)?;
    let clear = v1::StorageVolume { state: CLEAR.to_owned(), ..Default::default() };
    or_clear(client.get(volume_ref(volume)).await.at(server), clear)
}

/// What an archive says of a volume; state `Clear` when it does not know it.
///
/// # Errors
/// Unknown or unreachable archive.
pub async fn archive_volume(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<v1::ArchiveVolume, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let clear = v1::ArchiveVolume { state: CLEAR.to_owned(), ..Default::default() };
    or_clear(client.get(volume_ref(volume)).await.at(server), clear)
}

/// Whether logs of the volume were lost at the storage server.
///
/// # Errors
/// Unknown or unreachable storage server; the volume is not known there.
pub async fn is_overflow(
    ctl: &Controller,
    storage: &str,
    volume: &str,
) -> Result<bool, ControlError> {
    let found = storage_volume(ctl, storage, volume).await?;
    known(&found.state, volume, storage)?;
    Ok(found.overflow)
}

/// Whether a proxy has given up sending a volume to an archive.
///
/// # Errors
/// Unknown or unreachable proxy; the archive is not on its list for that volume.
pub async fn is_wdiff_send_error(
    ctl: &Controller,
    proxy: &str,
    volume: &str,
    archive: &str,
) -> Result<bool, ControlError> {
    let found = sync::proxy_volume(ctl, proxy, volume).await?;
    known(&found.state, volume, proxy)?;
    let queue = found.queues.iter().find(|q| q.archive.as_ref().is_some_and(|a| a.name == archive));
    queue.map(|queue| queue.send_error).ok_or_else(|| ControlError::Precondition {
        message: format!("{archive} is not on the list of {proxy} for {volume}"),
        next_step: format!("`walbc archive-info {proxy} {volume}` shows the list"),
    })
}

/// The log usage of one volume, or of all volumes of a storage server.
///
/// # Errors
/// Unknown or unreachable storage server; the volume is not known there.
pub async fn log_usage(
    ctl: &Controller,
    storage: &str,
    volume: Option<&str>,
) -> Result<Vec<v1::StorageVolume>, ControlError> {
    let Some(volume) = volume else {
        let (server, mut client) = ctl.storage(storage)?;
        return Ok(client.list(v1::Empty {}).await.at(server)?.volumes);
    };
    let found = storage_volume(ctl, storage, volume).await?;
    known(&found.state, volume, storage)?;
    Ok(vec![found])
}

/// The operations that an archive runs on a volume now.
///
/// # Errors
/// Unknown or unreachable archive; the volume is not known there.
pub async fn progress(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<Vec<v1::Operation>, ControlError> {
    let found = archive_volume(ctl, archive, volume).await?;
    known(&found.state, volume, archive)?;
    let server = ctl.group().server(archive)?;
    let list = ctl.host(server).list_operations(v1::Empty {}).await.at(server)?;
    let running = |op: &v1::Operation| op.status() == v1::OperationStatus::Running;
    Ok(list.operations.into_iter().filter(|op| op.volume == volume && running(op)).collect())
}

fn known(state: &str, volume: &str, server: &str) -> Result<(), ControlError> {
    if state != CLEAR {
        return Ok(());
    }
    Err(ControlError::Precondition {
        message: format!("{server} does not know a volume {volume:?}"),
        next_step: format!("`walbc list-volumes {server}` shows those it knows"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_up_to_date_when_all_that_was_written_has_arrived() {
        type Change = fn(&mut v1::StorageVolume, &mut v1::ArchiveVolume);
        let judged = |change: Change| {
            let mut leg = v1::StorageVolume {
                state: "Target".to_owned(),
                log_uuid: vec![7; 16].into(),
                physical_block_bytes: 4096,
                done_lsid: 30,
                latest_lsid: 30,
                done_gid: 4,
                ..Default::default()
            };
            let mut image = v1::ArchiveVolume {
                log_uuid: vec![7; 16].into(),
                newest_restorable_gid: 4,
                newest_restorable_s: 1,
                ..Default::default()
            };
            change(&mut leg, &mut image);
            let leg = ("s0".to_owned(), View::Storage(Box::new(leg)));
            is_up_to_date(&[leg, ("a0".to_owned(), View::Archive(Box::new(image)))])
        };
        assert!(judged(|_, _| {}), "idle since long ago");
        let behind: [(&str, Change); 7] = [
            ("written", |leg, _| leg.latest_lsid = 31),
            ("on its way", |_, image| image.newest_restorable_gid = 3),
            ("nothing can be restored", |_, image| image.newest_restorable_s = 0),
            ("another log", |_, image| image.log_uuid = vec![8; 16].into()),
            ("lost", |leg, _| leg.gap_since_s = 1),
            ("not shipped", |leg, _| leg.state = "Stopped".to_owned()),
            ("the device does not answer", |leg, _| {
                (leg.physical_block_bytes, leg.latest_lsid, leg.done_lsid) = (0, 0, 0);
            }),
        ];
        for (why, change) in behind {
            assert!(!judged(change), "{why}");
        }
    }
}
