//! The proxy role: receives wlogs, turns them into wdiffs, stages them, fans them out to archives
//! (design.md §6, semantics.md §4).
//!
//! ```text
//!  storage --wlog--> receive -> convert -> stage --+--> queue a0 -> sender: merge -> archive a0
//!                                  |               |
//!                            one file, durable,    +--> queue a1 -> sender: merge -> archive a1
//!                            linked to each queue
//! ```
//!
//! Invariants: a wlog is acknowledged when its wdiff is durable in the queue of every archive (I5);
//! a queue drops a wdiff only after its archive said that it has it or will never need it; whatever
//! the archive answers is an enum, and `reaction` decides by a table; a volume that is idle costs a
//! sleeping task per archive and no wake-ups.
#![forbid(unsafe_code)]

mod archive;
mod complete;
mod convert;
mod disk;
mod env;
mod merge;
mod proxy;
mod queue;
mod reaction;
mod receive;
mod sender;
mod service;
mod settings;
mod volume;

use clap::Args;
use env::Env;
use proto::v1::Role;
use proto::v1::proxy_server::ProxyServer;
use proxy::Proxy;
use server_kit::durable::{OpenDir, claim_base, real_dirs};
use server_kit::error::RoleError;
use server_kit::net::{Connector, Listener, RealConnector};
use server_kit::operations::Operations;
use server_kit::role::RoleServer;
use server_kit::shutdown::Shutdown;
use server_kit::{blocking, config};
use service::ProxyService;
pub use settings::Settings;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::service::Routes;

/// Flags of `walb-proxy serve`.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// TOML file with the keys below; flags win over it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Everything else.
    #[command(flatten)]
    pub settings: Settings,
}

impl ServeArgs {
    /// Whether flags or file ask for a log in JSON; a file that cannot be read is for [`serve`] to
    /// complain about.
    #[must_use]
    pub fn log_json(&self) -> bool {
        let settings = config::load(self.config.as_deref(), self.settings.clone());
        settings.is_ok_and(|s| s.log_json)
    }
}

/// Runs the role until shutdown.
///
/// # Errors
/// Settings that cannot be used, a base directory that cannot be read, an address that is taken.
pub async fn serve(args: ServeArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let settings = config::load(args.config.as_deref(), args.settings)?;
    let listen = config::required(settings.listen.clone(), "listen")?;
    config::required(settings.id.as_ref(), "id")?;
    config::required(settings.base.as_ref(), "base")?;
    let listener = Listener::bind(&listen, settings.insecure).await?;
    serve_on(listener, &settings, World::real(), shutdown).await?;
    Ok(())
}

/// The world outside, as a proxy sees it; tests and the simulator bring their own.
#[derive(Clone)]
pub struct World {
    /// How its base directory is opened, and with it everything below.
    pub open_dir: OpenDir,
    /// How archives are reached.
    pub connector: Arc<dyn Connector>,
}

impl World {
    /// The real one.
    #[must_use]
    pub fn real() -> Self {
        Self { open_dir: real_dirs(), connector: Arc::new(RealConnector) }
    }
}

/// [`serve`] with the seams handed in: the bound socket, and the world.
///
/// # Errors
/// As [`serve`].
pub async fn serve_on(
    listener: Listener,
    settings: &Settings,
    world: World,
    shutdown: Shutdown,
) -> Result<(), RoleError> {
    let id = Settings::required(settings.id.clone(), "id")?;
    let base = Settings::required(settings.base.clone(), "base")?;
    let World { open_dir, connector } = world;
    let env = Arc::new(Env::new(id.clone(), settings.limits()?, connector, shutdown.clone()));
    let runtime = tokio::runtime::Handle::current();
    let known = Some(base.clone());
    let proxy = blocking::run(move || {
        // Volumes start tasks.
        let _runtime = runtime.enter();
        let dir = open_dir(&base)?;
        claim_base(&dir, "proxy")?;
        Proxy::load(dir, env)
    });
    let proxy = Arc::new(proxy.await?);
    let senders = proxy.env().senders.clone();
    let routes = Routes::new(ProxyServer::new(ProxyService(proxy)));
    let operations = Operations::new();
    let server = RoleServer { role: Role::Proxy, id, base: known, listener, operations, shutdown };
    let served = server.run(routes).await;
    senders.close();
    senders.wait().await;
    served
}
