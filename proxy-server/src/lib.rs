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
use server_kit::durable::RealDir;
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
    let listen = Settings::required(settings.listen.clone(), "listen")?;
    let listener = Listener::bind(&listen, settings.insecure).await?;
    serve_on(listener, &settings, Arc::new(RealConnector), shutdown).await?;
    Ok(())
}

/// [`serve`] with the seams handed in: the bound socket, and the way to archives.
///
/// # Errors
/// As [`serve`].
pub async fn serve_on(
    listener: Listener,
    settings: &Settings,
    connector: Arc<dyn Connector>,
    shutdown: Shutdown,
) -> Result<(), RoleError> {
    let id = Settings::required(settings.id.clone(), "id")?;
    let base = Settings::required(settings.base.clone(), "base")?;
    let env = Arc::new(Env::new(id.clone(), settings.limits()?, connector, shutdown.clone()));
    let runtime = tokio::runtime::Handle::current();
    let known = Some(base.clone());
    let proxy = blocking::run(move || {
        // Volumes start tasks.
        let _runtime = runtime.enter();
        Proxy::load(RealDir::open_base(base, "proxy")?, env)
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
