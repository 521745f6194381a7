//! The `Storage` service: requests to commands, volumes to messages.
//!
//! Invariant: a request that is no good is answered with a typed error and changes nothing; a
//! command that has begun runs to its end, whether or not the client waits.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use proto::convert::uuid_bytes;
use proto::v1::storage_server::Storage;
use proto::v1::{
    Empty, FullBackupRequest, InitStorageRequest, KickReply, KickStorageRequest, Operation, Peers,
    ResetStorageRequest, ResizeRequest, SnapshotReply, StartStorageRequest, StopMode, StopRequest,
    StorageMode, StorageVolume, StorageVolumeList, VolumeRef,
};
use server_kit::error::{Reason, RoleError};
use server_kit::volume_name::VolumeName;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use wdiff_format::gid::Gid;
use wlog_format::units::Lb;

use crate::backup;
use crate::book::Record;
use crate::device::Info;
use crate::device::address::DeviceAddress;
use crate::peers::PeerNames;
use crate::registry::{Entry, Registry, damaged};
use crate::shared::Shared;
use crate::state::State;
use crate::volume::{Volume, gap_text, heal_step};

/// Volumes that a listing asks at once.
const LIST_PARALLEL: usize = 32;

/// How long a listing waits for a device.
const DEVICE_TIMEOUT: Duration = Duration::from_secs(3);

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
        let FullBackupRequest { volume, bulk_bytes, resume } = r.into_inner();
        let volume = self.volume(&volume)?;
        Ok(Response::new(backup::start(&volume, bulk_bytes, resume)?))
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

    async fn get_peers(&self, _: Request<Empty>) -> Result<Response<Peers>, Status> {
        Ok(Response::new(self.shared.peers.describe().await))
    }

    async fn set_peers(&self, r: Request<Peers>) -> Result<Response<Empty>, Status> {
        let names = PeerNames::parse(r.into_inner())?;
        let (shared, registry) = (Arc::clone(&self.shared), Arc::clone(&self.registry));
        detached(async move {
            shared.peers.set(names).await?;
            registry.volumes().iter().for_each(|v| v.wake.notify_one());
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

/// The volume as a message. A device that does not answer is an error in it.
async fn describe(name: VolumeName, entry: Entry) -> StorageVolume {
    let volume = match entry {
        Entry::Volume(volume) => volume,
        Entry::Damaged(why) => {
            return StorageVolume {
                error: damaged(&name, &why).full_message(),
                error_reason: Reason::Damaged.into(),
                state: State::Damaged.to_string(),
                volume: name.to_string(),
                ..StorageVolume::default()
            };
        }
    };
    let info = match tokio::time::timeout(DEVICE_TIMEOUT, volume.device_info()).await {
        Ok(info) => info,
        Err(_) => Err(RoleError::unreachable(volume.device.address(), "no answer in time")),
    };
    let record = volume.book.read(Clone::clone);
    let mut message = StorageVolume {
        volume: name.to_string(),
        state: volume.cell.state().to_string(),
        device: record.device.to_string(),
        ..StorageVolume::default()
    };
    add_progress(&mut message, &volume);
    match &info {
        Ok(info) => {
            add_device(&mut message, info);
            let is_ready = volume.cell.state() == State::SyncReady;
            message.backup_resumable = is_ready && backup::resumable(&volume, info).is_some();
        }
        Err(error) => {
            message.error = error.full_message();
            message.error_reason = error.reason().into();
            // Without its device nothing is offered to a proxy.
            message.refusals.clear();
        }
    }
    add_record(&mut message, &record);
    message
}

fn add_progress(message: &mut StorageVolume, volume: &Volume) {
    let view = volume.progress.view();
    message.error = view.error.unwrap_or_default();
    message.error_reason = view.reason.unwrap_or_default().into();
    message.refusals = view.refusals;
    message.last_sent_s = view.last_sent_s;
    message.last_proxy = view.last_proxy;
    let left = view.retry_at.map(|at| at.saturating_duration_since(Instant::now()).as_millis());
    message.retry_in_ms = left.and_then(|ms| u64::try_from(ms).ok()).unwrap_or_default();
}

fn add_device(message: &mut StorageVolume, info: &Info) {
    let positions = &info.status.positions;
    message.size_lb = info.status.size.0;
    message.overflow = info.status.overflow;
    message.log_usage_pb = positions.latest.distance_from(positions.oldest).0;
    message.log_capacity_pb = info.ring_size.0;
    message.physical_block_bytes = info.block_size.bytes();
    message.permanent_lsid = positions.permanent.0;
    message.latest_lsid = positions.latest.0;
    message.log_uuid = uuid_bytes(info.status.log_uuid);
}

/// The record has the last word: a gap must be seen, whatever else is wrong (I11).
fn add_record(message: &mut StorageVolume, record: &Record) {
    if let Some(history) = &record.history {
        let marks = &history.marks;
        message.log_uuid = uuid_bytes(history.log_uuid);
        message.done_lsid = marks.done.lsid.0;
        message.done_gid = marks.done.gid.0;
        message.latest_gid = marks.newest().gid.0;
        message.queued_snapshots = marks.queue().len() as u64;
    }
    if let Some(gap) = &record.gap {
        message.gap_since_s = gap.since_s;
        message.error_reason = Reason::Overflow.into();
        let name = &message.volume;
        message.error = format!("{}; heal it: {}", gap_text(name, &gap.why), heal_step(name));
    }
}
