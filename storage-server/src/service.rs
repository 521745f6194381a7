//! The `Storage` service: requests to commands, volumes to messages.
//!
//! Invariant: a request that is no good is answered with a typed error and changes nothing; a
//! command that has begun runs to its end, whether or not the client waits.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use proto::v1::storage_server::Storage;
use proto::v1::{
    Empty, FullBackupRequest, HashBackupRequest, InitStorageRequest, KickReply, KickStorageRequest,
    Operation, Peers, ResetStorageRequest, ResizeRequest, RestoreToDeviceRequest, SnapshotReply,
    StartStorageRequest, StopMode, StopRequest, StorageMode, StorageVolume, StorageVolumeList,
    VolumeRef,
};
use server_kit::error::{Reason, RoleError};
use server_kit::volume_name::VolumeName;
use tonic::{Request, Response, Status};
use wdiff_format::gid::Gid;
use wlog_format::units::Lb;

use crate::backup::{full, hash};
use crate::device::address::DeviceAddress;
use crate::peers::PeerNames;
use crate::registry::Registry;
use crate::restore;
use crate::shared::Shared;
use crate::view::describe;
use crate::volume::Volume;

/// Volumes that a listing asks at once.
const LIST_PARALLEL: usize = 32;

/// The service. Clones share the volumes.
#[derive(Clone)]
pub struct StorageService {
    registry: Arc<Registry>,
    shared: Arc<Shared>,
}

impl StorageService {
    /// Serves these volumes.
    #[must_use]
    pub fn new(registry: Arc<Registry>, shared: Arc<Shared>) -> Self {
        Self { registry, shared }
    }

    fn volume(&self, name: &str) -> Result<Arc<Volume>, RoleError> {
        self.registry.volume(&parse(name)?)
    }
}

fn parse(name: &str) -> Result<VolumeName, RoleError> {
    name.parse().map_err(|e| RoleError::bad_request(format!("{e}")))
}

/// Runs a command to its end, also when the client goes away.
async fn detached<T: Send + 'static>(
    command: impl Future<Output = Result<T, RoleError>> + Send + 'static,
) -> Result<Response<T>, Status> {
    match tokio::spawn(command).await {
        Ok(result) => Ok(Response::new(result?)),
        Err(error) => Err(RoleError::new(Reason::Io, "the command broke off (see the log)")
            .with_source(error)
            .into()),
    }
}

#[tonic::async_trait]
impl Storage for StorageService {
    async fn init(&self, r: Request<InitStorageRequest>) -> Result<Response<Empty>, Status> {
        let InitStorageRequest { volume, device } = r.into_inner();
        let name = parse(&volume)?;
        let address = DeviceAddress::parse(&device, Some(&volume))
            .map_err(|e| RoleError::bad_request(e.to_string()).with_volume(&volume))?;
        let registry = Arc::clone(&self.registry);
        detached(async move { registry.init(name, address).await.map(|()| Empty {}) }).await
    }

    async fn clear(&self, r: Request<VolumeRef>) -> Result<Response<Empty>, Status> {
        let name = parse(&r.get_ref().volume)?;
        let registry = Arc::clone(&self.registry);
        detached(async move { registry.clear(&name).await.map(|()| Empty {}) }).await
    }

    async fn reset(&self, r: Request<ResetStorageRequest>) -> Result<Response<Empty>, Status> {
        let ResetStorageRequest { volume, gid } = r.into_inner();
        let volume = self.volume(&volume)?;
        detached(async move { volume.reset(Gid(gid)).await.map(|()| Empty {}) }).await
    }

    async fn start(&self, r: Request<StartStorageRequest>) -> Result<Response<Empty>, Status> {
        let StartStorageRequest { volume, mode } = r.into_inner();
        let mode = StorageMode::try_from(mode)
            .map_err(|_| RoleError::bad_request(format!("there is no storage mode {mode}")))?;
        let volume = self.volume(&volume)?;
        detached(async move {
            match mode {
                StorageMode::Target => volume.start_target().await?,
                StorageMode::Standby => volume.start_standby().await?,
            }
            Ok(Empty {})
        })
        .await
    }

    async fn stop(&self, r: Request<StopRequest>) -> Result<Response<Empty>, Status> {
        let StopRequest { volume, mode } = r.into_inner();
        let force = match StopMode::try_from(mode) {
            Ok(StopMode::Graceful) => false,
            Ok(StopMode::Force) => true,
            Ok(StopMode::Empty) | Err(_) => {
                let message = "a storage server has no queue that could be sent first";
                return Err(RoleError::bad_request(message)
                    .with_volume(volume)
                    .with_next_step("use graceful or force")
                    .into());
            }
        };
        let volume = self.volume(&volume)?;
        detached(async move { volume.stop(force).await.map(|()| Empty {}) }).await
    }

    async fn full_backup(
        &self,
        r: Request<FullBackupRequest>,
    ) -> Result<Response<Operation>, Status> {
        let FullBackupRequest { volume, bulk_bytes, resume, scan_bytes_per_s } = r.into_inner();
        let volume = self.volume(&volume)?;
        let options = full::Options { bulk_bytes, resume, scan_bytes_per_s };
        Ok(Response::new(full::start(&volume, options)?))
    }

    async fn hash_backup(
        &self,
        r: Request<HashBackupRequest>,
    ) -> Result<Response<Operation>, Status> {
        let HashBackupRequest { volume, scan_bytes_per_s, everything } = r.into_inner();
        let volume = self.volume(&volume)?;
        let options = hash::Options { scan_bytes_per_s, everything };
        detached(async move {
            let operation = hash::start(&volume, options)?;
            // Whoever asks for one wants it to go on, should it be interrupted.
            volume.hold(false).await?;
            Ok(operation)
        })
        .await
    }

    async fn forget_backup(&self, r: Request<VolumeRef>) -> Result<Response<Empty>, Status> {
        let volume = self.volume(&r.get_ref().volume)?;
        detached(async move { volume.forget_backup().await.map(|()| Empty {}) }).await
    }

    async fn resize(&self, r: Request<ResizeRequest>) -> Result<Response<Empty>, Status> {
        let ResizeRequest { volume, size_lb } = r.into_inner();
        let volume = self.volume(&volume)?;
        detached(async move { volume.resize(Lb(size_lb)).await.map(|()| Empty {}) }).await
    }

    async fn restore_to_device(
        &self,
        r: Request<RestoreToDeviceRequest>,
    ) -> Result<Response<Operation>, Status> {
        let (registry, shared) = (Arc::clone(&self.registry), Arc::clone(&self.shared));
        detached(async move { restore::start(&registry, &shared, r.into_inner()).await }).await
    }

    async fn get_peers(&self, _: Request<Empty>) -> Result<Response<Peers>, Status> {
        Ok(Response::new(self.shared.peers.describe().await))
    }

    async fn set_peers(&self, r: Request<Peers>) -> Result<Response<Empty>, Status> {
        let names = PeerNames::parse(r.into_inner())?;
        let (shared, registry) = (Arc::clone(&self.shared), Arc::clone(&self.registry));
        detached(async move {
            shared.peers.set(names).await?;
            for volume in registry.volumes() {
                volume.archive.forget();
                volume.wake.notify_one();
            }
            Ok(Empty {})
        })
        .await
    }

    async fn take_snapshot(
        &self,
        r: Request<VolumeRef>,
    ) -> Result<Response<SnapshotReply>, Status> {
        let volume = self.volume(&r.get_ref().volume)?;
        detached(async move {
            let mark = volume.snapshot().await?;
            let (gid, lsid) = (mark.gid.0, mark.lsid.0);
            Ok(SnapshotReply { gid, lsid, timestamp_s: mark.timestamp_s })
        })
        .await
    }

    async fn get(&self, r: Request<VolumeRef>) -> Result<Response<StorageVolume>, Status> {
        let name = parse(&r.get_ref().volume)?;
        match self.registry.entry(&name) {
            Some(entry) => Ok(Response::new(describe(name, entry).await)),
            None => Err(RoleError::unknown_volume(name).into()),
        }
    }

    async fn list(&self, _: Request<Empty>) -> Result<Response<StorageVolumeList>, Status> {
        let entries = stream::iter(self.registry.entries());
        let views = entries.map(|(name, entry)| describe(name, entry)).buffered(LIST_PARALLEL);
        Ok(Response::new(StorageVolumeList { volumes: views.collect().await }))
    }

    async fn kick(&self, r: Request<KickStorageRequest>) -> Result<Response<KickReply>, Status> {
        let name = &r.get_ref().volume;
        let volumes = match name.as_str() {
            "" => self.registry.volumes(),
            name => vec![self.volume(name)?],
        };
        self.shared.peers.now().proxies.kick();
        let kicked = volumes.iter().filter(|v| v.kick()).map(|v| v.name.to_string()).collect();
        Ok(Response::new(KickReply { kicked }))
    }
}
