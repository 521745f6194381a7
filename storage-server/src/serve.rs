//! `walb-storage serve`: settings, and the life of the server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use proto::v1::Role;
use proto::v1::storage_server::StorageServer;
use serde::{Deserialize, Serialize};
use server_kit::blocking;
use server_kit::config::{self, required};
use server_kit::durable::{OpenDir, claim_base, real_dirs};
use server_kit::net::{Connector, Endpoint, Listener, RealConnector};
use server_kit::role::RoleServer;
use server_kit::shutdown::Shutdown;
use server_kit::units::{Size, Span};
use server_kit::volume_name::ServerId;
use tonic::service::Routes;

use crate::archive_view;
use crate::device::Devices;
use crate::device::control::ControlDevices;
use crate::heartbeat;
use crate::peers::{PeerNames, Peers};
use crate::registry::Registry;
use crate::service::StorageService;
use crate::shared::{Config, Shared};

/// The smallest `max_wlog_send`: a pack must fit.
const MIN_WLOG_SEND: u64 = 1 << 20;

/// The least `buffer_memory`: one scan, one transfer.
const MIN_MEMORY: u64 = 32 << 20;

/// What happens with a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resync {
    /// A hash backup starts by itself
    #[default]
    Auto,
    /// A person starts one
    Manual,
}

/// Settings of the storage role; each is also a key of the configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ServeArgs {
    /// A TOML file with these settings; flags win over it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// The directory of this server's state
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Where to listen: unix:PATH or HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<Endpoint>,
    /// Id of this server
    #[arg(long)]
    pub id: Option<ServerId>,
    /// The primary archive, to which backups go
    #[arg(long, value_name = "ADDR")]
    pub archive: Option<Endpoint>,
    /// The proxies in order of priority
    #[arg(long, value_name = "ADDR,ADDR", value_delimiter = ',')]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy: Vec<Endpoint>,
    /// Most log of one transfer [default: 128M]
    #[arg(long, value_name = "SIZE")]
    pub max_wlog_send: Option<Size>,
    /// Shortest time between implicit snapshots [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub snapshot_interval: Option<Span>,
    /// First pause after a failed transfer, doubled by each further one [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub retry_min: Option<Span>,
    /// Longest pause after failed transfers [default: 1m]
    #[arg(long, value_name = "TIME")]
    pub retry_max: Option<Span>,
    /// How long a proxy may do nothing in a transfer before another one is tried [default: 1m]
    #[arg(long, value_name = "TIME")]
    pub send_timeout: Option<Span>,
    /// Memory for log and backup data of all volumes [default: 256M]
    #[arg(long, value_name = "SIZE")]
    pub buffer_memory: Option<Size>,
    /// Heal a gap in the history by a hash backup that starts by itself, or wait for a person
    /// [default: auto]
    #[arg(long, value_name = "MODE")]
    pub resync: Option<Resync>,
    /// How often the archive is asked what it has got, while something is new [default: 1m]
    #[arg(long, value_name = "TIME")]
    pub archive_poll: Option<Span>,
    /// Listen on addresses that others can reach, without encryption
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Log as JSON
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub log_json: bool,
}

fn size(given: Option<Size>, key: &str, default: u64, min: u64) -> anyhow::Result<u64> {
    let size = given.map_or(default, |Size(bytes)| bytes);
    anyhow::ensure!(size >= min, "{key} is too small: at least {min} bytes are needed");
    Ok(size)
}

fn time(given: Option<Span>, key: &str, default: Duration) -> anyhow::Result<Duration> {
    let time = given.map_or(default, |Span(time)| time);
    anyhow::ensure!(!time.is_zero(), "{key} must not be zero");
    Ok(time)
}

impl ServeArgs {
    /// Whether flags or file ask for a log in JSON; a file that cannot be read is for [`serve`] to
    /// complain about.
    #[must_use]
    pub fn log_json(&self) -> bool {
        let settings = config::load(self.config.as_deref(), self.clone());
        settings.is_ok_and(|s| s.log_json)
    }

    /// Whom the flags name.
    ///
    /// # Errors
    /// Names the key that is missing.
    pub fn peers(&self) -> anyhow::Result<PeerNames> {
        let proxies = Some(self.proxy.clone()).filter(|proxies| !proxies.is_empty());
        let archive = required(self.archive.clone(), "archive")?;
        Ok(PeerNames::at(archive, required(proxies, "proxy")?))
    }

    /// The settings, complete and checked.
    ///
    /// # Errors
    /// Names the key that is missing or wrong.
    pub fn checked(&self) -> anyhow::Result<Config> {
        let second = Duration::from_secs(1);
        Ok(Config {
            id: required(self.id.clone(), "id")?,
            max_wlog_send: size(self.max_wlog_send, "max-wlog-send", 128 << 20, MIN_WLOG_SEND)?,
            snapshot_interval: time(self.snapshot_interval, "snapshot-interval", second)?,
            retry_min: time(self.retry_min, "retry-min", second)?,
            send_timeout: time(self.send_timeout, "send-timeout", 60 * second)?,
            retry_max: time(self.retry_max, "retry-max", 60 * second)?,
            buffer_memory: size(self.buffer_memory, "buffer-memory", 256 << 20, MIN_MEMORY)?,
            archive_poll: time(self.archive_poll, "archive-poll", 60 * second)?,
            auto_resync: self.resync.unwrap_or_default() == Resync::Auto,
        })
    }
}

/// The world outside, as the server sees it; tests bring their own.
pub struct World {
    /// How servers are reached.
    pub connector: Arc<dyn Connector>,
    /// Where devices come from.
    pub devices: Arc<dyn Devices>,
    /// How state reaches the disk.
    pub open_dir: OpenDir,
}

impl World {
    /// The real one.
    #[must_use]
    pub fn real() -> Self {
        let connector: Arc<dyn Connector> = Arc::new(RealConnector);
        let devices = Arc::new(ControlDevices::new(Arc::clone(&connector)));
        Self { connector, devices, open_dir: real_dirs() }
    }
}

/// A server that is ready to run: bound, its volumes found.
pub struct StorageRole {
    server: RoleServer,
    registry: Arc<Registry>,
    shared: Arc<Shared>,
}

impl StorageRole {
    /// Binds, and finds the volumes.
    ///
    /// # Errors
    /// Settings, the address or the base directory cannot be used.
    pub async fn open(args: &ServeArgs, world: World, shutdown: Shutdown) -> anyhow::Result<Self> {
        let listen = required(args.listen.clone(), "listen")?;
        let listener = Listener::bind(&listen, args.insecure).await?;
        Self::open_on(listener, args, world, shutdown).await
    }

    /// [`StorageRole::open`] with the bound socket handed in too.
    ///
    /// # Errors
    /// Settings or the base directory cannot be used.
    pub async fn open_on(
        listener: Listener,
        args: &ServeArgs,
        world: World,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        let config = args.checked()?;
        let base = required(args.base.clone(), "base")?;
        let World { connector, devices, open_dir } = world;
        let id = config.id.clone();
        let (flags, path) = (args.peers()?, base.clone());
        let find = move || {
            let dir = open_dir(&path)?;
            claim_base(&dir, "storage")?;
            dir.remove_tmp_dirs()?;
            Peers::open(Arc::clone(&dir), flags, connector).map(|peers| (dir, peers))
        };
        let (dir, peers) = blocking::run(find).await?;
        let shared = Arc::new(Shared::new(config, peers, devices, shutdown.clone()));
        let known = Some(base.clone());
        let registry = Arc::new(Registry::open(dir, Arc::clone(&shared)).await?);
        let operations = shared.operations.clone();
        let server =
            RoleServer { role: Role::Storage, id, base: known, listener, operations, shutdown };
        Ok(Self { server, registry, shared })
    }

    /// Where clients reach it, with the real port.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        self.server.listener.endpoint()
    }

    /// Serves until shutdown.
    ///
    /// # Errors
    /// The transport fails.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { server, registry, shared } = self;
        let shutdown = server.shutdown.clone();
        let forced = shutdown.forced();
        registry.resume();
        tokio::spawn(archive_view::poll(Arc::clone(&registry), Arc::clone(&shared)));
        tokio::spawn(heartbeat::run(Arc::clone(&registry), Arc::clone(&shared)));
        let stopping = tokio::spawn(stop_all(Arc::clone(&registry), shutdown));
        let service = StorageServer::new(StorageService::new(Arc::clone(&registry), shared));
        let served = server.run(Routes::new(service)).await;
        stopping.abort();
        tokio::select! {
            () = registry.stop(false) => {}
            () = forced.cancelled() => registry.stop(true).await,
        }
        Ok(served?)
    }
}

/// Ends the volumes' tasks when shutdown is asked for.
async fn stop_all(registry: Arc<Registry>, shutdown: Shutdown) {
    shutdown.requested().cancelled().await;
    registry.stop(false).await;
}

/// Runs the storage role until shutdown.
///
/// # Errors
/// It cannot start, or its transport fails.
pub async fn serve(args: ServeArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let file = args.config.clone();
    let args = config::load(file.as_deref(), args)?;
    StorageRole::open(&args, World::real(), shutdown).await?.run().await
}
