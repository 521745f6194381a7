//! An archive as a process: its volumes are loaded, then it is served. What drives an archive in
//! its own process (the simulator) stops in between, and reaches it without a network.

use crate::archive::{Archive, Settings};
use crate::backend::BackendChoice;
use crate::mount::inside::Inside;
use crate::service::Service;
use crate::world::World;
use proto::v1::Role;
use proto::v1::archive_server::ArchiveServer;
use server_kit::error::RoleError;
use server_kit::net::Listener;
use server_kit::operations::Operations;
use server_kit::role::RoleServer;
use server_kit::shutdown::Shutdown;
use server_kit::volume_name::ServerId;
use std::path::PathBuf;
use std::sync::Arc;
use tonic::service::Routes;
use wdiff_format::gid::Gid;
use wdiff_format::retention::Policy;

/// An archive that is about to serve, with its seams.
pub struct Server {
    /// Directory of everything that it keeps.
    pub base: PathBuf,
    /// Its name.
    pub id: ServerId,
    /// What can be set.
    pub settings: Settings,
    /// Where base images live.
    pub backend: BackendChoice,
    /// The policy of new volumes.
    pub retention: Option<Policy>,
    /// The world outside.
    pub world: World,
}

/// An archive with its volumes, which works but is not served yet.
pub struct Loaded {
    archive: Arc<Archive>,
    base: PathBuf,
    shutdown: Shutdown,
}

impl Server {
    /// Loads all volumes and serves until shutdown.
    ///
    /// # Errors
    /// The base directory or the transport fails.
    pub async fn run(self, listener: Listener, shutdown: Shutdown) -> Result<(), RoleError> {
        let Loaded { archive, base, shutdown } = self.load(shutdown).await?;
        let (id, operations) = (archive.id.clone(), archive.operations.clone());
        let routes = Routes::new(ArchiveServer::new(Service(archive)));
        let (role, base) = (Role::Archive, Some(base));
        RoleServer { role, id, base, listener, operations, shutdown }.run(routes).await
    }

    /// Loads all volumes; from then on the archive goes on with what it has to do by itself.
    ///
    /// # Errors
    /// The base directory cannot be used.
    pub async fn load(self, shutdown: Shutdown) -> Result<Loaded, RoleError> {
        let Self { base, id, settings, backend, retention, world } = self;
        let (ending, operations) = (shutdown.requested(), Operations::new());
        let (settings, outside) = ((settings, retention), (backend, world));
        let archive = Archive::open(&base, id, settings, operations, outside, ending).await?;
        Ok(Loaded { archive, base, shutdown })
    }
}

impl Loaded {
    /// What answers requests.
    #[must_use]
    pub fn routes(&self) -> Routes {
        Routes::new(ArchiveServer::new(Service(self.archive.clone())))
    }

    /// Its operations.
    #[must_use]
    pub fn operations(&self) -> &Operations {
        &self.archive.operations
    }

    /// Opens a clean snapshot as a mount does.
    ///
    /// # Errors
    /// There is none of this gid, or what it is made of cannot be opened.
    pub async fn open_snapshot(&self, volume: &str, gid: u64) -> Result<Inside, RoleError> {
        let volume = self.archive.volume(volume)?;
        Inside::open(&self.archive, &volume, Gid(gid)).await
    }
}
