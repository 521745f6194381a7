//! `walb-storage serve`: settings, and the life of the server.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use proto::v1::Role;
use proto::v1::storage_server::StorageServer;
use serde::{Deserialize, Serialize};
use server_kit::config;
use server_kit::net::{Connector, Endpoint, Listener, RealConnector};
use server_kit::role::RoleServer;
use server_kit::shutdown::Shutdown;
use server_kit::units::{parse_duration, parse_size};
use server_kit::volume_name::ServerId;
use tonic::service::Routes;

use crate::device::control::ControlDevices;
use crate::registry::{OpenDir, Registry, real_dirs};
use crate::service::StorageService;
use crate::shared::{Config, Shared};

/// The smallest `max_wlog_send`: a pack must fit.
const MIN_WLOG_SEND: u64 = 1 << 20;

/// Settings of the storage role; each is also a key of the configuration file.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
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
    pub max_wlog_send: Option<String>,
    /// Shortest time between implicit snapshots [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub snapshot_interval: Option<String>,
    /// First pause after a failed transfer, doubled by each further one [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub retry_min: Option<String>,
    /// Longest pause after failed transfers [default: 1m]
    #[arg(long, value_name = "TIME")]
    pub retry_max: Option<String>,
    /// Memory for log and backup data of all volumes [default: 256M]
    #[arg(long, value_name = "SIZE")]
    pub buffer_memory: Option<String>,
    /// Listen on addresses that others can reach, without encryption
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Log as JSON
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub log_json: bool,
}

fn size(text: Option<&str>, key: &str, default: u64, min: u64) -> anyhow::Result<u64> {
    let Some(text) = text else { return Ok(default) };
    let size = parse_size(text).map_err(anyhow::Error::msg).with_context(|| key.to_owned())?;
    anyhow::ensure!(size >= min, "{key}: {text} is too small, at least {min} bytes are needed");
    Ok(size)
}

fn time(text: Option<&str>, key: &str, default: Duration) -> anyhow::Result<Duration> {
    let Some(text) = text else { return Ok(default) };
    let time = parse_duration(text).map_err(anyhow::Error::msg).with_context(|| key.to_owned())?;
    anyhow::ensure!(!time.is_zero(), "{key} must not be zero");
    Ok(time)
}

impl ServeArgs {
    /// The settings, complete and checked.
    ///
    /// # Errors
    /// Names the key that is missing or wrong.
    pub fn checked(&self) -> anyhow::Result<Config> {
        let missing = |key: &str| format!("{key} is missing: give --{key} or put it in the file");
        anyhow::ensure!(!self.proxy.is_empty(), missing("proxy"));
        Ok(Config {
            id: self.id.clone().with_context(|| missing("id"))?,
            archive: self.archive.clone().with_context(|| missing("archive"))?,
            proxies: self.proxy.clone(),
            max_wlog_send: size(
                self.max_wlog_send.as_deref(),
                "max_wlog_send",
                128 << 20,
                MIN_WLOG_SEND,
            )?,
            snapshot_interval: time(
                self.snapshot_interval.as_deref(),
                "snapshot_interval",
                Duration::from_secs(1),
            )?,
            retry_min: time(self.retry_min.as_deref(), "retry_min", Duration::from_secs(1))?,
            retry_max: time(self.retry_max.as_deref(), "retry_max", Duration::from_secs(60))?,
            buffer_memory: size(
                self.buffer_memory.as_deref(),
                "buffer_memory",
                256 << 20,
                16 << 20,
            )?,
        })
    }
}

/// A server that is ready to run: bound, its volumes found.
pub struct StorageRole {
    server: RoleServer,
    registry: Arc<Registry>,
    shared: Arc<Shared>,
}

impl StorageRole {
    /// Binds, and finds the volumes. `connector` and `open_dir` are the world outside.
    ///
    /// # Errors
    /// Settings, the address or the base directory cannot be used.
    pub async fn open(
        args: &ServeArgs,
        connector: Arc<dyn Connector>,
        open_dir: OpenDir,
        shutdown: Shutdown,
    ) -> anyhow::Result<Self> {
        let config = args.checked()?;
        let base = args.base.clone().context("base is missing: give --base")?;
        let listen = args.listen.clone().context("listen is missing: give --listen")?;
        let listener = Listener::bind(&listen, args.insecure).await?;
        let devices = Arc::new(ControlDevices::new(Arc::clone(&connector)));
        let id = config.id.clone();
        let shared = Arc::new(Shared::new(config, &*connector, devices, shutdown.clone()));
        let registry = Arc::new(Registry::open(base, Arc::clone(&shared), open_dir).await?);
        let operations = shared.operations.clone();
        let server = RoleServer { role: Role::Storage, id, listener, operations, shutdown };
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
    StorageRole::open(&args, Arc::new(RealConnector), real_dirs(), shutdown).await?.run().await
}
