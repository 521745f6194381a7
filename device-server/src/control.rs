//! The control service: `walb.v1.DeviceControl`, for the storage role and the tools.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::StreamExt;
use proto::v1::device_control_server::{DeviceControl, DeviceControlServer};
use proto::{convert, v1};
use server_kit::error::{Reason, RoleError};
use server_kit::shutdown::Shutdown;
use tokio_stream::wrappers::WatchStream;
use tonic::codegen::BoxStream;
use tonic::{Request, Response};
use wlog_format::units::{Lb, Lsid};

use crate::admin::{FreezeTicket, MAX_FREEZE};
use crate::config::VolumeSpec;
use crate::core::Status;
use crate::error::VolumeError;
use crate::options::OverflowPolicy;
use crate::positions::Positions;
use crate::regions::WrittenRegions;
use crate::volume::Volume;

/// A volume and how it is reached.
#[derive(Clone)]
pub struct Served {
    /// The volume.
    pub volume: Arc<Volume>,
    /// NBD URIs.
    pub frontends: Vec<String>,
}

/// All volumes of the process, by name.
pub type ServedVolumes = BTreeMap<String, Served>;

/// What to do about a volume that cannot be served.
pub(crate) const MEND: &str = "mend that, then restart the device role";

/// A volume that could not be opened.
pub(crate) struct Unserved {
    pub(crate) spec: VolumeSpec,
    pub(crate) why: String,
}

/// Those volumes of the process that are not served, by name.
pub(crate) type UnservedVolumes = BTreeMap<String, Unserved>;

/// Serves `walb.v1.DeviceControl`.
pub struct ControlService {
    volumes: ServedVolumes,
    unserved: UnservedVolumes,
    shutdown: Shutdown,
}

type Answer<T> = Result<Response<T>, tonic::Status>;

impl ControlService {
    /// The service, ready for `Routes::new`. Watches end when shutdown is requested.
    #[must_use]
    pub fn server(volumes: ServedVolumes, shutdown: Shutdown) -> DeviceControlServer<Self> {
        Self::new(volumes, shutdown).into_server()
    }

    pub(crate) const fn new(volumes: ServedVolumes, shutdown: Shutdown) -> Self {
        Self { volumes, unserved: BTreeMap::new(), shutdown }
    }

    /// Tells of these volumes too.
    pub(crate) fn unserved(mut self, unserved: UnservedVolumes) -> Self {
        self.unserved = unserved;
        self
    }

    pub(crate) fn into_server(self) -> DeviceControlServer<Self> {
        DeviceControlServer::new(self)
    }

    fn find(&self, name: &str) -> Result<&Served, RoleError> {
        if let Some(Unserved { why, .. }) = self.unserved.get(name) {
            let error = RoleError::new(Reason::Io, why.as_str()).with_next_step(MEND);
            return Err(error.with_volume(name));
        }
        self.volumes.get(name).ok_or_else(|| {
            let known: Vec<_> = self.volumes.keys().map(String::as_str).collect();
            RoleError::unknown_volume(name)
                .with_next_step(format!("this device role serves: {}", known.join(", ")))
        })
    }

    /// The volumes of these names, each once, in the order of their names.
    fn group(&self, names: &[String]) -> Result<Vec<Arc<Volume>>, RoleError> {
        if names.is_empty() {
            return Err(RoleError::bad_request("freeze of no volume at all"));
        }
        let mut group = BTreeMap::new();
        for name in names {
            group.insert(name.as_str(), Arc::clone(&self.find(name)?.volume));
        }
        Ok(group.into_values().collect())
    }
}

/// Freezes all of these or none. They melt by themselves after `timeout`.
async fn freeze_group(group: Vec<Arc<Volume>>, timeout: Duration) -> Result<(), RoleError> {
    let mut frozen = Vec::with_capacity(group.len());
    for volume in group {
        match volume.freeze().await {
            Ok(ticket) => frozen.push((volume, ticket)),
            Err(error) => {
                melt(&frozen);
                return Err(refused(&volume, "freeze", error));
            }
        }
    }
    tokio::spawn(async move {
        tokio::time::sleep(timeout).await;
        melt(&frozen);
    });
    Ok(())
}

fn melt(frozen: &[(Arc<Volume>, FreezeTicket)]) {
    for (volume, ticket) in frozen {
        volume.melt_ticket(*ticket);
    }
}

#[tonic::async_trait]
impl DeviceControl for ControlService {
    async fn list(&self, _: Request<v1::Empty>) -> Answer<v1::DeviceVolumeList> {
        let unserved = self.unserved.values().map(describe_unserved);
        let volumes = self.volumes.values().map(describe).chain(unserved).collect();
        Ok(Response::new(v1::DeviceVolumeList { volumes }))
    }

    async fn get(&self, request: Request<v1::VolumeRef>) -> Answer<v1::DeviceVolume> {
        Ok(Response::new(describe(self.find(&request.get_ref().volume)?)))
    }

    async fn set_oldest(&self, request: Request<v1::SetOldestRequest>) -> Answer<v1::LogPositions> {
        let v1::SetOldestRequest { volume, oldest } = request.into_inner();
        let volume = &self.find(&volume)?.volume;
        let done = volume.set_oldest(Lsid(oldest)).await;
        done.map_err(|error| refused(volume, "release logs of", error))?;
        Ok(Response::new(positions(&volume.status().positions)))
    }

    async fn take_checkpoint(&self, request: Request<v1::VolumeRef>) -> Answer<v1::LogPositions> {
        let volume = &self.find(&request.get_ref().volume)?.volume;
        let done = volume.take_checkpoint().await;
        done.map_err(|error| refused(volume, "take a checkpoint of", error))?;
        Ok(Response::new(positions(&volume.status().positions)))
    }

    async fn reset_log(&self, request: Request<v1::VolumeRef>) -> Answer<v1::DeviceVolume> {
        let served = self.find(&request.get_ref().volume)?;
        let done = served.volume.reset_log().await;
        done.map_err(|error| refused(&served.volume, "reset the log of", error))?;
        Ok(Response::new(describe(served)))
    }

    async fn resize(&self, request: Request<v1::ResizeRequest>) -> Answer<v1::DeviceVolume> {
        let served = self.find(&request.get_ref().volume)?;
        let done = served.volume.resize(Lb(request.get_ref().size_lb)).await;
        done.map_err(|error| refused(&served.volume, "resize", error))?;
        Ok(Response::new(describe(served)))
    }

    async fn freeze(&self, request: Request<v1::FreezeRequest>) -> Answer<v1::Empty> {
        let v1::FreezeRequest { volumes, timeout_ms } = request.into_inner();
        let group = self.group(&volumes)?;
        let timeout = match timeout_ms {
            0 => MAX_FREEZE,
            ms => Duration::from_millis(ms).min(MAX_FREEZE),
        };
        // A task of its own: were it broken off because the client went away, the volumes would
        // stay frozen.
        let freezing = tokio::spawn(freeze_group(group, timeout));
        freezing.await.map_err(|error| RoleError::cancelled(error.to_string()))??;
        Ok(Response::new(v1::Empty {}))
    }

    async fn melt(&self, request: Request<v1::MeltRequest>) -> Answer<v1::Empty> {
        let mut volumes = Vec::new();
        for name in &request.get_ref().volumes {
            volumes.push(&self.find(name)?.volume);
        }
        volumes.iter().for_each(|volume| volume.melt());
        Ok(Response::new(v1::Empty {}))
    }

    async fn list_regions(&self, request: Request<v1::RegionsRequest>) -> Answer<v1::RegionsReply> {
        let v1::RegionsRequest { volume, log_uuid, since_lsid } = request.into_inner();
        let volume = &self.find(&volume)?.volume;
        let uuid = convert::uuid(&log_uuid)
            .map_err(|_| RoleError::bad_request("the uuid of a log has 16 bytes"))?;
        Ok(Response::new(match volume.regions_since(uuid, Lsid(since_lsid)) {
            Ok(written) => regions(written),
            Err(why) => {
                v1::RegionsReply { why_unknown: why.to_string(), ..v1::RegionsReply::default() }
            }
        }))
    }

    async fn begin_overwrite(&self, request: Request<v1::VolumeRef>) -> Answer<v1::DeviceVolume> {
        let served = self.find(&request.get_ref().volume)?;
        let done = served.volume.begin_overwrite().await;
        done.map_err(|error| refused(&served.volume, "replace the content of", error))?;
        Ok(Response::new(describe(served)))
    }

    async fn end_overwrite(&self, request: Request<v1::VolumeRef>) -> Answer<v1::DeviceVolume> {
        let served = self.find(&request.get_ref().volume)?;
        let done = served.volume.end_overwrite().await;
        done.map_err(|error| refused(&served.volume, "put back into service", error))?;
        Ok(Response::new(describe(served)))
    }

    async fn watch(&self, request: Request<v1::VolumeRef>) -> Answer<BoxStream<v1::DeviceEvent>> {
        let volume = &self.find(&request.get_ref().volume)?.volume;
        let changes = WatchStream::new(volume.watch());
        let until = self.shutdown.requested().cancelled_owned();
        Ok(Response::new(changes.map(|status| Ok(event(&status))).take_until(until).boxed()))
    }
}

fn positions(positions: &Positions) -> v1::LogPositions {
    v1::LogPositions {
        oldest: positions.oldest.0,
        prev_written: positions.prev_written.0,
        written: positions.written.0,
        permanent: positions.permanent.0,
        flush: positions.flush.0,
        completed: positions.completed.0,
        latest: positions.latest.0,
    }
}

fn regions(written: WrittenRegions) -> v1::RegionsReply {
    let range = |range: Range<u64>| v1::ByteRange { begin: range.start, end: range.end };
    v1::RegionsReply {
        known: true,
        region_bytes: written.region_bytes,
        ranges: written.ranges.into_iter().map(range).collect(),
        why_unknown: String::new(),
    }
}

fn event(status: &Status) -> v1::DeviceEvent {
    v1::DeviceEvent {
        positions: Some(positions(&status.positions)),
        overflow: status.overflow,
        size_lb: status.size.0,
        log_uuid: Bytes::copy_from_slice(&status.uuid.0),
        overwriting: status.overwriting,
    }
}

fn describe(served: &Served) -> v1::DeviceVolume {
    let volume = &served.volume;
    let status = volume.status();
    v1::DeviceVolume {
        name: volume.name().to_owned(),
        size_lb: status.size.0,
        physical_block_bytes: status.ring.block_size().bytes(),
        log_uuid: Bytes::copy_from_slice(&status.uuid.0),
        salt: status.salt.0,
        ring_size_pb: status.ring.size().0,
        positions: Some(positions(&status.positions)),
        overflow: status.overflow,
        frozen: status.frozen,
        policy: policy(volume.options().policy).into(),
        log_path: volume.log().path_hint(),
        data_path: volume.data().path_hint(),
        frontends: served.frontends.clone(),
        pending_bytes: status.pending_bytes,
        overwriting: status.overwriting,
        failure: status.failure.as_deref().unwrap_or_default().to_owned(),
    }
}

/// All that is known of a volume that could not be opened.
fn describe_unserved(Unserved { spec, why }: &Unserved) -> v1::DeviceVolume {
    v1::DeviceVolume {
        name: spec.name.to_string(),
        log_path: spec.log.display().to_string(),
        data_path: spec.data.display().to_string(),
        failure: format!("{why}; {MEND}"),
        ..v1::DeviceVolume::default()
    }
}

const fn policy(policy: OverflowPolicy) -> v1::OverflowPolicy {
    match policy {
        OverflowPolicy::Overwrite => v1::OverflowPolicy::Overwrite,
        OverflowPolicy::Stall => v1::OverflowPolicy::Stall,
        OverflowPolicy::Error => v1::OverflowPolicy::Error,
    }
}

/// The typed error of an operation that a volume refused.
fn refused(volume: &Volume, attempt: &str, error: VolumeError) -> RoleError {
    let name = volume.name();
    let message = format!("cannot {attempt} volume {name}: {error}");
    match error {
        VolumeError::Frozen => RoleError::new(Reason::WrongState, message)
            .with_state("frozen", &["not frozen".to_owned()])
            .with_next_step("melt it, or wait for the timeout of the freeze"),
        VolumeError::Stopping => RoleError::stopping(message),
        VolumeError::Overflow => RoleError::overflow(name, message)
            .with_next_step("take a hash backup: it starts with a log reset"),
        VolumeError::LogFull => RoleError::no_space(message),
        VolumeError::NoSpace(_) => RoleError::new(Reason::NoSpace, message),
        VolumeError::Overwriting => RoleError::new(Reason::WrongState, message)
            .with_state("overwriting", &["in service".to_owned()]),
        VolumeError::NotOverwriting => RoleError::new(Reason::WrongState, message)
            .with_state("in service", &["overwriting".to_owned()])
            .with_next_step("begin with BeginOverwrite"),
        VolumeError::NoStateDir => RoleError::new(Reason::WrongState, message)
            .with_state("without state directory", &["with one".to_owned()])
            .with_next_step("restart walb-device with --state-dir DIR"),
        VolumeError::BadSize { .. } => RoleError::wrong_size(message),
        VolumeError::Range { .. } | VolumeError::BadOldest { .. } => {
            RoleError::bad_request(message)
        }
        VolumeError::Failed(_) | VolumeError::Io(_) | VolumeError::State(_) => {
            RoleError::new(Reason::Io, message)
        }
    }
    .with_volume(name)
}
