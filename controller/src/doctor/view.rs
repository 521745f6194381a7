//! What doctor has before its eyes: one look at every server, and the same sorted by volume.
//!
//! Invariant: a server that does not answer is [`Sight::Dark`], never "does not know the volume":
//! nothing is concluded from silence but the silence.

use proto::v1;

use crate::group::{Leg, ServerRole};

/// What one server of the group said.
#[derive(Clone, Debug)]
pub struct ServerLook {
    /// Its name in the group.
    pub name: String,
    /// Its role in the group.
    pub role: ServerRole,
    /// Where it should listen.
    pub address: String,
    /// What it said, or why it said nothing.
    pub seen: Result<Seen, String>,
}

/// What a server says when it answers.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Who it is.
    pub info: v1::HostInfo,
    /// Its long jobs, those that ended too.
    pub operations: Vec<v1::Operation>,
    /// Whom a storage server talks to.
    pub peers: v1::Peers,
    /// Its volumes, if it is a storage server.
    pub storages: Vec<v1::StorageVolume>,
    /// Its volumes, if it is a proxy.
    pub proxies: Vec<v1::ProxyVolume>,
    /// Its volumes, if it is an archive.
    pub archives: Vec<v1::ArchiveVolume>,
}

/// One look at the whole group.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Every server, in the order of the group file.
    pub servers: Vec<ServerLook>,
    /// Where volumes belong, as far as the group file says so.
    pub legs: Vec<Leg>,
    /// Only this volume matters.
    pub only: Option<String>,
}

/// A volume at one server.
#[derive(Debug)]
pub enum Sight<'a, T> {
    /// The server does not answer.
    Dark,
    /// The server does not know the volume.
    Clear,
    /// What it says.
    Known(&'a T),
}

// By hand: a derive would want `T: Copy`, of which there is only a reference here.
impl<T> Clone for Sight<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Sight<'_, T> {}

impl<'a, T> Sight<'a, T> {
    /// What the server says, if it knows the volume.
    pub fn known(self) -> Option<&'a T> {
        match self {
            Self::Known(volume) => Some(volume),
            Self::Dark | Self::Clear => None,
        }
    }

    /// Whether the server answers and does not know the volume.
    pub fn is_clear(self) -> bool {
        matches!(self, Self::Clear)
    }

    /// Whether the server does not answer.
    pub fn is_dark(self) -> bool {
        matches!(self, Self::Dark)
    }
}

/// A server and a volume there.
pub type At<'a, T> = (&'a str, Sight<'a, T>);

/// One volume at all servers.
#[derive(Clone, Debug)]
pub struct Case<'a> {
    /// The volume.
    pub volume: &'a str,
    /// At the storage servers.
    pub storages: Vec<At<'a, v1::StorageVolume>>,
    /// At the proxies.
    pub proxies: Vec<At<'a, v1::ProxyVolume>>,
    /// At the archives.
    pub archives: Vec<At<'a, v1::ArchiveVolume>>,
    /// The archive that backups go to.
    pub primary: Option<&'a str>,
    /// The jobs of all servers on this volume: (server, job).
    pub operations: Vec<(&'a str, &'a v1::Operation)>,
    /// Where the group file says that it belongs.
    pub legs: Vec<&'a Leg>,
    /// The other volumes of the storage servers, for what they tell about their hosts.
    pub neighbours: Vec<(&'a str, &'a v1::StorageVolume)>,
    /// Who the servers are that answer.
    pub hosts: Vec<(&'a str, &'a v1::HostInfo)>,
}

/// Whether this server knows nothing: some list volumes in state `Clear`.
fn sight<'a, T>(volumes: &'a [T], named: impl Fn(&T) -> (&str, &str), name: &str) -> Sight<'a, T> {
    let found = volumes.iter().find(|v| named(v).0 == name);
    found.filter(|v| named(v).1 != "Clear").map_or(Sight::Clear, Sight::Known)
}

impl Look {
    /// The servers of one role.
    pub fn of_role(&self, role: ServerRole) -> impl Iterator<Item = &ServerLook> {
        self.servers.iter().filter(move |server| server.role == role)
    }

    /// The names of all volumes that somebody knows, or that the group file names.
    #[must_use]
    pub fn volumes(&self) -> Vec<&str> {
        let seen = self.servers.iter().filter_map(|server| server.seen.as_ref().ok());
        let mut names: Vec<&str> = seen
            .flat_map(|seen| {
                let storages = seen.storages.iter().map(|v| v.volume.as_str());
                let proxies = seen.proxies.iter().map(|v| v.volume.as_str());
                storages.chain(proxies).chain(seen.archives.iter().map(|v| v.volume.as_str()))
            })
            .chain(self.legs.iter().map(|leg| leg.volume.as_str()))
            .filter(|name| self.only.as_deref().is_none_or(|only| only == *name))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The archive that backups go to: what the storage servers say, else the group file's first.
    #[must_use]
    pub fn primary(&self) -> Option<&str> {
        let peers = self.of_role(ServerRole::Storage).filter_map(|s| s.seen.as_ref().ok());
        let told = peers.filter_map(|seen| seen.peers.archive.as_ref()).find_map(|peer| {
            self.of_role(ServerRole::Archive)
                .find(|a| a.address == peer.address || (!peer.id.is_empty() && a.name == peer.id))
        });
        told.or_else(|| self.of_role(ServerRole::Archive).next()).map(|a| a.name.as_str())
    }

    /// One volume at all servers.
    #[must_use]
    pub fn case<'a>(&'a self, volume: &'a str) -> Case<'a> {
        let storages = self.at(ServerRole::Storage, |seen| {
            sight(&seen.storages, |v| (&v.volume, &v.state), volume)
        });
        let proxies = self
            .at(ServerRole::Proxy, |seen| sight(&seen.proxies, |v| (&v.volume, &v.state), volume));
        let archives = self.at(ServerRole::Archive, |seen| {
            sight(&seen.archives, |v| (&v.volume, &v.state), volume)
        });
        let seen =
            || self.servers.iter().filter_map(|s| Some((s.name.as_str(), s.seen.as_ref().ok()?)));
        let operations = seen()
            .flat_map(|(name, seen)| seen.operations.iter().map(move |op| (name, op)))
            .filter(|(_, op)| op.volume == volume)
            .collect();
        let neighbours = seen()
            .flat_map(|(name, seen)| seen.storages.iter().map(move |v| (name, v)))
            .filter(|(_, v)| v.volume != volume)
            .collect();
        Case {
            volume,
            storages,
            proxies,
            archives,
            primary: self.primary(),
            operations,
            legs: self.legs.iter().filter(|leg| leg.volume == volume).collect(),
            neighbours,
            hosts: seen().map(|(name, seen)| (name, &seen.info)).collect(),
        }
    }

    fn at<'a, T>(
        &'a self,
        role: ServerRole,
        find: impl Fn(&'a Seen) -> Sight<'a, T>,
    ) -> Vec<At<'a, T>> {
        let sight = |server: &'a ServerLook| match &server.seen {
            Ok(seen) => (server.name.as_str(), find(seen)),
            Err(_) => (server.name.as_str(), Sight::Dark),
        };
        self.of_role(role).map(sight).collect()
    }
}

/// The states of a leg whose log is shipped, or was until something happened.
const SHIPPED: [&str; 4] = ["Target", "StartTarget", "StopTarget", "Stopped"];
/// The states of a leg that a backup runs on.
const BACKUP: [&str; 2] = ["FullSync", "HashSync"];

impl<'a> Case<'a> {
    /// The leg that is, or should be, backed up: the one that is shipped, else the one of which a
    /// backup runs or broke off.
    #[must_use]
    pub fn leg(&self) -> Option<(&'a str, &'a v1::StorageVolume)> {
        let with = |states: &[&str]| {
            let mut known = self.storages.iter().filter_map(|(s, v)| Some((*s, v.known()?)));
            known.find(|(_, v)| states.contains(&v.state.as_str()))
        };
        with(&SHIPPED).or_else(|| with(&BACKUP)).or_else(|| with(&["SyncReady"]))
    }

    /// The leg whose log is shipped, or was until something happened.
    #[must_use]
    pub fn shipped(&self) -> Option<(&'a str, &'a v1::StorageVolume)> {
        self.leg().filter(|(_, v)| SHIPPED.contains(&v.state.as_str()))
    }

    /// Whether a backup runs on some leg.
    #[must_use]
    pub fn in_backup(&self) -> bool {
        let known = self.storages.iter().filter_map(|(_, v)| v.known());
        known.into_iter().any(|v| BACKUP.contains(&v.state.as_str()))
    }

    /// What the primary archive says.
    #[must_use]
    pub fn primary_sight(&self) -> Option<Sight<'a, v1::ArchiveVolume>> {
        self.primary.and_then(|name| self.archive(name))
    }

    /// What an archive says.
    #[must_use]
    pub fn archive(&self, name: &str) -> Option<Sight<'a, v1::ArchiveVolume>> {
        self.archives.iter().find(|(archive, _)| *archive == name).map(|(_, sight)| *sight)
    }

    /// The proxies that know the volume.
    pub fn known_proxies(&self) -> impl Iterator<Item = (&'a str, &'a v1::ProxyVolume)> {
        self.proxies.iter().filter_map(|(name, sight)| Some((*name, sight.known()?)))
    }

    /// The queues for an archive: (proxy, queue).
    pub fn queues(&self, archive: &str) -> impl Iterator<Item = (&'a str, &'a v1::ProxyQueue)> {
        self.known_proxies().flat_map(move |(proxy, volume)| {
            let queues = volume.queues.iter().filter(move |q| queue_name(q) == archive);
            queues.map(move |queue| (proxy, queue))
        })
    }

    /// Whether some proxy sends the volume to the archive.
    #[must_use]
    pub fn is_listed(&self, archive: &str) -> bool {
        self.queues(archive).next().is_some()
    }

    /// Whether every proxy that answers, and at least one, sends the volume to the archive.
    #[must_use]
    pub fn is_synchronizing(&self, archive: &str) -> bool {
        let lists = |v: &v1::ProxyVolume| v.queues.iter().any(|q| queue_name(q) == archive);
        self.is_listed(archive)
            && self.proxies.iter().all(|(_, sight)| match sight {
                Sight::Dark => true,
                Sight::Clear => false,
                Sight::Known(volume) => lists(volume),
            })
    }

    /// The job of these kinds that began last, with its server. A server lists its jobs in the
    /// order in which they began: of several in one second the last one counts.
    #[must_use]
    pub fn last_operation(&self, kinds: &[&str]) -> Option<(&'a str, &'a v1::Operation)> {
        let of_kinds = self.operations.iter().filter(|(_, op)| kinds.contains(&op.kind.as_str()));
        of_kinds.max_by_key(|(_, op)| op.started_s).copied()
    }

    /// Whether a job of that kind runs.
    #[must_use]
    pub fn runs(&self, kind: &str) -> bool {
        let running = |op: &v1::Operation| op.status() == v1::OperationStatus::Running;
        self.operations.iter().any(|(_, op)| op.kind == kind && running(op))
    }

    /// `CONTROL#NAME` of the volume's device at a storage server: from the group file, else as its
    /// neighbours there have it.
    #[must_use]
    pub fn device_at(&self, storage: &str) -> Option<String> {
        let told = self.legs.iter().find(|leg| leg.storage == storage);
        let guess = || {
            let neighbour = self.neighbours.iter().find(|(name, _)| *name == storage)?;
            let (control, _) = neighbour.1.device.split_once('#')?;
            Some(format!("{control}#{}", self.volume))
        };
        told.map(|leg| leg.device.clone()).or_else(guess)
    }
}

/// The archive of a queue.
#[must_use]
pub fn queue_name(queue: &v1::ProxyQueue) -> &str {
    queue.archive.as_ref().map_or("?", |archive| archive.name.as_str())
}

/// Whether the archive has a base image.
#[must_use]
pub fn has_image(volume: &v1::ArchiveVolume) -> bool {
    volume.latest.is_some() && volume.state != "SyncReady"
}
