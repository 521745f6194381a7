//! Whom this server talks to: the primary archive and the proxies in order of priority, which can
//! be changed while it runs (a secondary archive is promoted without a restart).
//!
//! Invariants: what [`Peers::now`] shows after a change is durable; the peers that were set win
//! over the flags for as long as the flags are those that were in force when they were set, so that
//! a restart does not undo a promotion and an edited configuration is not ignored.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use proto::v1;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::host_client::HostClient;
use serde::{Deserialize, Serialize};
use server_kit::blocking;
use server_kit::durable::{DurableDir, StateFile};
use server_kit::error::RoleError;
use server_kit::net::{Connector, Endpoint};
use server_kit::packing::Way;
use server_kit::volume_name::ServerId;
use tokio::sync::{Mutex, watch};
use tonic::transport::Channel;

use crate::proxies::ProxySet;

/// Name of the file in the base directory; with a dot, so that no volume can have it.
pub const FILE: &str = "storage.peers";

/// Proxies that a server may have.
const MAX_PROXIES: usize = 64;

/// How long a peer may take to tell its id.
const ID_TIMEOUT: Duration = Duration::from_secs(1);

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerName {
    /// Its id, when somebody has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ServerId>,
    /// Where it is.
    pub address: Endpoint,
}

impl PeerName {
    /// What a client names.
    ///
    /// # Errors
    /// An address or id that is none.
    pub fn parse(peer: v1::Peer) -> Result<Self, RoleError> {
        let address = peer.address.parse().map_err(|e| RoleError::bad_request(format!("{e}")))?;
        let id = Some(peer.id).filter(|id| !id.is_empty()).map(ServerId::try_from).transpose();
        Ok(Self { id: id.map_err(|e| RoleError::bad_request(format!("{e}")))?, address })
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerNames {
    /// The primary archive, to which backups go.
    pub archive: PeerName,
    /// The proxies in order of priority.
    pub proxies: Vec<PeerName>,
}

impl PeerNames {
    /// Peers of which only the addresses are known.
    #[must_use]
    pub fn at(archive: Endpoint, proxies: Vec<Endpoint>) -> Self {
        let nameless = |address| PeerName { id: None, address };
        Self { archive: nameless(archive), proxies: proxies.into_iter().map(nameless).collect() }
    }

    /// What a client asks for.
    ///
    /// # Errors
    /// An address or id that is none, no archive, no proxy, one proxy twice.
    pub fn parse(message: v1::Peers) -> Result<Self, RoleError> {
        let missing = || RoleError::bad_request("no archive is given");
        let archive = PeerName::parse(message.archive.ok_or_else(missing)?)?;
        let proxies: Vec<_> =
            message.proxies.into_iter().map(PeerName::parse).collect::<Result<_, _>>()?;
        if proxies.is_empty() || proxies.len() > MAX_PROXIES {
            let text = format!("{} proxies: give 1 to {MAX_PROXIES}", proxies.len());
            return Err(RoleError::bad_request(text));
        }
        let mut addresses: Vec<_> = proxies.iter().map(|p| p.address.to_string()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.len() < proxies.len() {
            return Err(RoleError::bad_request("a proxy is given twice"));
        }
        Ok(Self { archive, proxies })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    set: PeerNames,
    /// The flags that were in force then.
    flags: PeerNames,
}

/// An archive, mostly the primary one.
pub struct Primary {
    peer: PeerName,
    channel: Channel,
}

impl Primary {
    /// A client for one call or stream.
    #[must_use]
    pub fn client(&self) -> ArchiveClient<Channel> {
        ArchiveClient::new(self.channel.clone())
    }

    /// A client for its operations.
    #[must_use]
    pub fn host(&self) -> HostClient<Channel> {
        HostClient::new(self.channel.clone())
    }

    /// How data travels to it.
    #[must_use]
    pub fn way(&self) -> Way {
        Way::to(&self.peer.address)
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> String {
        self.peer.address.to_string()
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(&self) -> String {
        let PeerName { id, address } = &self.peer;
        match id {
            Some(id) => format!("archive {id} ({address})"),
            None => format!("archive {address}"),
        }
    }
}

/// The peers at one time.
pub struct PeerSet {
    names: PeerNames,
    /// Where backups go.
    pub primary: Arc<Primary>,
    /// Where logs go.
    pub proxies: ProxySet,
}

impl PeerSet {
    fn new(names: PeerNames, connector: &dyn Connector) -> Arc<Self> {
        let addresses: Vec<_> = names.proxies.iter().map(|p| p.address.clone()).collect();
        let peer = names.archive.clone();
        let primary = Arc::new(Primary { channel: connector.channel(&peer.address), peer });
        Arc::new(Self { proxies: ProxySet::new(connector, &addresses), primary, names })
    }
}

/// The peers, now and later.
pub struct Peers {
    connector: Arc<dyn Connector>,
    file: Arc<StateFile<Stored>>,
    flags: PeerNames,
    now: Arc<watch::Sender<Arc<PeerSet>>>,
    writer: Arc<Mutex<()>>,
}

impl Peers {
    /// The peers that were set and are kept in `dir`, or those of the flags. Blocking.
    ///
    /// # Errors
    /// The file is damaged, or cannot be read or removed.
    pub fn open(
        dir: Arc<dyn DurableDir>,
        flags: PeerNames,
        connector: Arc<dyn Connector>,
    ) -> Result<Self, RoleError> {
        dir.remove_tmp_files()?;
        let file: StateFile<Stored> = StateFile::new(dir, FILE);
        let path = file.path().display().to_string();
        let stored = file.load().map_err(|e| {
            RoleError::from(e).with_next_step(format!("remove {path}: then the flags are used"))
        })?;
        let names = match stored {
            Some(stored) if stored.flags == flags => {
                if stored.set != flags {
                    let archive = &stored.set.archive.address;
                    tracing::info!(%archive, file = path, "the peers that were set win over flags");
                }
                stored.set
            }
            Some(_) => {
                tracing::warn!(file = path, "the flags have changed and win over peers set before");
                file.remove()?;
                flags.clone()
            }
            None => flags.clone(),
        };
        let now = watch::Sender::new(PeerSet::new(names, &*connector));
        let (file, now) = (Arc::new(file), Arc::new(now));
        Ok(Self { connector, file, flags, now, writer: Arc::default() })
    }

    /// Another archive than the primary one.
    #[must_use]
    pub fn connect(&self, peer: PeerName) -> Primary {
        Primary { channel: self.connector.channel(&peer.address), peer }
    }

    /// The peers now.
    #[must_use]
    pub fn now(&self) -> Arc<PeerSet> {
        Arc::clone(&self.now.borrow())
    }

    /// Returns when `primary` is the primary archive no more.
    pub async fn demoted(&self, primary: &Primary) {
        let mut peers = self.now.subscribe();
        let other = |p: &Arc<PeerSet>| p.primary.peer.address != primary.peer.address;
        if peers.wait_for(other).await.is_err() {
            // The server ends.
            std::future::pending::<()>().await;
        }
    }

    /// Other peers from now on, durable when this returns.
    ///
    /// # Errors
    /// It cannot be written; then a restart may find these or the old ones.
    pub async fn set(&self, names: PeerNames) -> Result<(), RoleError> {
        let writer = Arc::clone(&self.writer).lock_owned().await;
        let (file, now) = (Arc::clone(&self.file), Arc::clone(&self.now));
        let stored = Stored { set: names.clone(), flags: self.flags.clone() };
        let peers = PeerSet::new(names, &*self.connector);
        blocking::run(move || {
            let _writer = writer;
            file.store(&stored)?;
            tracing::info!(archive = peers.primary.name(), "other peers are set");
            now.send_replace(peers);
            Ok::<_, RoleError>(())
        })
        .await
    }

    /// The peers as a message. Those whose id nobody has told are asked for it.
    pub async fn describe(&self) -> v1::Peers {
        let names = self.now().names.clone();
        let all = [names.archive].into_iter().chain(names.proxies);
        let mut described = stream::iter(all)
            .map(|peer| self.identified(peer))
            .buffered(MAX_PROXIES)
            .collect::<Vec<_>>()
            .await
            .into_iter();
        v1::Peers { archive: described.next(), proxies: described.collect() }
    }

    async fn identified(&self, peer: PeerName) -> v1::Peer {
        let address = peer.address.to_string();
        if let Some(id) = peer.id {
            return v1::Peer { id: id.to_string(), address };
        }
        let mut host = HostClient::new(self.connector.channel(&peer.address));
        let info = tokio::time::timeout(ID_TIMEOUT, host.info(v1::Empty {})).await;
        let id = match info {
            Ok(Ok(info)) => info.into_inner().id,
            _ => String::new(),
        };
        v1::Peer { id, address }
    }
}
