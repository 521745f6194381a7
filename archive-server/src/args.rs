//! The flags of `walb-archive serve`, which are also the keys of its configuration file, and
//! serving.

use crate::archive::{Archive, Settings};
use crate::service::Service;
use crate::world::World;
use proto::v1::Role;
use proto::v1::archive_server::ArchiveServer;
use serde::{Deserialize, Serialize};
use server_kit::config::required;
use server_kit::error::RoleError;
use server_kit::net::{Endpoint, Listener};
use server_kit::operations::Operations;
use server_kit::role::RoleServer;
use server_kit::shutdown::Shutdown;
use server_kit::units::parse_size;
use server_kit::volume_name::ServerId;
use std::path::PathBuf;
use tonic::service::Routes;

/// Where base images live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Sparse files below the base directory, cloned where the file system can.
    #[default]
    File,
}

/// What `walb-archive serve` needs to know.
#[derive(Debug, Clone, Default, Serialize, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ServeArgs {
    /// Take what is not said here from this TOML file; its keys are the names of these flags
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of everything that the archive keeps; made when it is missing
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Where to listen: unix:PATH or HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<Endpoint>,
    /// Name of this archive
    #[arg(long, value_name = "ID")]
    pub id: Option<ServerId>,
    /// Where base images live
    #[arg(long, value_enum, value_name = "BACKEND")]
    pub backend: Option<Backend>,
    /// Listen without TLS where others can reach it
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure: bool,
    /// Space that stays free: wdiffs are refused below it [default: 32M]
    #[arg(long, value_name = "SIZE")]
    pub reserve: Option<String>,
    /// A full backup can be resumed every so much [default: 1G]
    #[arg(long, value_name = "SIZE")]
    pub flush_interval: Option<String>,
    /// Write the log as JSON
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub log_json: bool,
}

impl ServeArgs {
    fn settings(&self) -> Result<Settings, RoleError> {
        let default = Settings::default();
        let size = |text: &Option<String>, default| match text {
            Some(text) => parse_size(text).map_err(RoleError::bad_request),
            None => Ok(default),
        };
        let reserve_bytes = size(&self.reserve, default.reserve_bytes)?;
        let flush_bytes = size(&self.flush_interval, default.flush_bytes)?.max(1);
        Ok(Settings { reserve_bytes, flush_bytes, insecure: self.insecure, ..default })
    }
}

/// Serves an archive until shutdown, as the flags and their configuration file say.
///
/// # Errors
/// Settings that cannot be used, a base directory or an address that cannot be had.
pub async fn serve(args: ServeArgs, shutdown: Shutdown) -> anyhow::Result<()> {
    let args = server_kit::config::load(args.config.clone().as_deref(), args)?;
    let base = required(args.base.clone(), "base")?;
    let listen = required(args.listen.clone(), "listen")?;
    let id = required(args.id.clone(), "id")?;
    let listener = Listener::bind(&listen, args.insecure).await?;
    let server = Server { base, id, settings: args.settings()?, world: World::real() };
    server.run(listener, shutdown).await?;
    Ok(())
}

/// An archive that is about to serve, with its seams.
pub struct Server {
    /// Directory of everything that it keeps.
    pub base: PathBuf,
    /// Its name.
    pub id: ServerId,
    /// What can be set.
    pub settings: Settings,
    /// The world outside.
    pub world: World,
}

impl Server {
    /// Loads all volumes and serves until shutdown.
    ///
    /// # Errors
    /// The base directory or the transport fails.
    pub async fn run(self, listener: Listener, shutdown: Shutdown) -> Result<(), RoleError> {
        let Self { base, id, settings, world } = self;
        let operations = Operations::new();
        let ending = shutdown.requested();
        let operated = operations.clone();
        let archive = Archive::open(&base, id.clone(), settings, operated, world, ending).await?;
        let routes = Routes::new(ArchiveServer::new(Service(archive)));
        let base = Some(base);
        RoleServer { role: Role::Archive, id, base, listener, operations, shutdown }
            .run(routes)
            .await
    }
}
