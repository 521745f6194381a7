//! A stub archive: receives full backups into memory, resumes them, breaks off when told to.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::v1::archive_server::{Archive, ArchiveServer};
use proto::v1::full_sync_request::Step;
use proto::v1::*;
use server_kit::error::RoleError;
use server_kit::net::{Endpoint, Listener, serve};
use server_kit::shutdown::Shutdown;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

#[derive(Default)]
pub struct Disk {
    pub image: Vec<u8>,
    pub durable: usize,
    pub log_uuid: Bytes,
    /// Log uuid of the whole image.
    pub base_uuid: Bytes,
    pub base: Option<Snapshot>,
    pub syncs: Vec<PrepareFullSyncRequest>,
    pub chunks: usize,
    pub zero_runs: usize,
    /// Break off when so many bytes have arrived.
    pub break_at: Option<usize>,
    /// Wait for ever when so many bytes have arrived.
    pub hang_at: Option<usize>,
    pub lose_answer: bool,
    pub refuse: bool,
}

#[derive(Clone)]
pub struct StubArchive {
    pub endpoint: Endpoint,
    pub disk: Arc<Mutex<Disk>>,
    pub hanging: Arc<Notify>,
    _task: Arc<JoinHandle<()>>,
}

impl StubArchive {
    pub async fn start(dir: &Path) -> Self {
        Self::start_as(dir, "a0").await
    }

    pub async fn start_as(dir: &Path, name: &str) -> Self {
        let endpoint = Endpoint::Unix(dir.join(format!("{name}.sock")));
        let (disk, hanging): (Arc<Mutex<Disk>>, Arc<Notify>) = Default::default();
        let listener = Listener::bind(&endpoint, false).await.unwrap();
        let service = Service { disk: Arc::clone(&disk), hanging: Arc::clone(&hanging) };
        let routes = Routes::new(ArchiveServer::new(service));
        let task = tokio::spawn(async move {
            serve(listener, routes, &Shutdown::new()).await.unwrap();
        });
        Self { endpoint, disk, hanging, _task: Arc::new(task) }
    }

    pub fn image(&self) -> Vec<u8> {
        self.disk.lock().image.clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut Disk)) {
        change(&mut self.disk.lock());
    }
}

struct Service {
    disk: Arc<Mutex<Disk>>,
    hanging: Arc<Notify>,
}

impl Service {
    /// Takes one piece; whether to go on, or to hang.
    fn take(&self, bulk: FullSyncBulk) -> Result<bool, Status> {
        let disk = &mut *self.disk.lock();
        let offset = usize::try_from(bulk.offset_bytes).unwrap();
        assert_eq!(offset, disk.durable, "a gap or an overlap in the image");
        match bulk.chunk {
            Some(chunk) => {
                let data = server_kit::chunks::decode(chunk).unwrap();
                disk.image[offset..offset + data.len()].copy_from_slice(&data);
                disk.durable += data.len();
                disk.chunks += 1;
            }
            None => {
                let len = usize::try_from(bulk.zeros_bytes).unwrap();
                disk.image[offset..offset + len].fill(0);
                disk.durable += len;
                disk.zero_runs += 1;
            }
        }
        if disk.break_at.is_some_and(|at| disk.durable >= at) {
            return Err(Status::unavailable("the stub breaks off"));
        }
        Ok(disk.hang_at.is_none_or(|at| disk.durable < at))
    }
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a stub"))
}

#[tonic::async_trait]
impl Archive for Service {
    async fn prepare_full_sync(
        &self,
        request: Request<PrepareFullSyncRequest>,
    ) -> Result<Response<PrepareFullSyncReply>, Status> {
        let request = request.into_inner();
        let mut disk = self.disk.lock();
        if disk.refuse {
            return Err(RoleError::no_space("the stub is full").into());
        }
        let size = usize::try_from(request.size_lb * 512).unwrap();
        if request.resume_uuid.is_empty() || request.resume_uuid != disk.log_uuid {
            *disk = Disk {
                image: vec![0xee; size],
                syncs: std::mem::take(&mut disk.syncs),
                base_uuid: std::mem::take(&mut disk.base_uuid),
                break_at: disk.break_at,
                hang_at: disk.hang_at,
                lose_answer: disk.lose_answer,
                ..Disk::default()
            };
        }
        disk.syncs.push(request);
        let start_bytes = disk.durable as u64;
        Ok(Response::new(PrepareFullSyncReply { session: "s".into(), start_bytes }))
    }

    async fn full_sync(
        &self,
        request: Request<Streaming<FullSyncRequest>>,
    ) -> Result<Response<FullSyncReply>, Status> {
        let mut stream = request.into_inner();
        while let Some(message) = stream.message().await? {
            match message.step.unwrap() {
                Step::Start(start) => {
                    assert_eq!(start.session, "s");
                    self.disk.lock().log_uuid = start.log_uuid;
                }
                Step::Bulk(bulk) => {
                    if !self.take(bulk)? {
                        self.hanging.notify_one();
                        std::future::pending::<()>().await;
                    }
                }
                Step::End(end) => {
                    let mut disk = self.disk.lock();
                    assert_eq!(disk.durable, disk.image.len(), "the image is not whole");
                    (disk.base, disk.base_uuid) = (end.base, disk.log_uuid.clone());
                    if disk.lose_answer {
                        return Err(Status::unavailable("the answer is lost"));
                    }
                    return Ok(Response::new(FullSyncReply { archive_uuid: Bytes::new() }));
                }
            }
        }
        Err(Status::aborted("the stream has no end"))
    }

    async fn get(&self, request: Request<VolumeRef>) -> Result<Response<ArchiveVolume>, Status> {
        let disk = self.disk.lock();
        if disk.lose_answer {
            return Err(Status::unavailable("cut off"));
        }
        let state = if disk.base.is_some() { "Archived" } else { "SyncReady" };
        Ok(Response::new(ArchiveVolume {
            volume: request.into_inner().volume,
            state: state.into(),
            log_uuid: disk.base_uuid.clone(),
            ..ArchiveVolume::default()
        }))
    }

    async fn init(&self, _: Request<VolumeRef>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn clear(&self, _: Request<VolumeRef>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn reset(&self, _: Request<ResetArchiveRequest>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn start(&self, _: Request<VolumeRef>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn wdiff_transfer(
        &self,
        _: Request<Streaming<WdiffTransferRequest>>,
    ) -> Result<Response<WdiffTransferReply>, Status> {
        not_here()
    }
    async fn list(&self, _: Request<Empty>) -> Result<Response<ArchiveVolumeList>, Status> {
        not_here()
    }
    async fn list_restorable(
        &self,
        _: Request<RestorableRequest>,
    ) -> Result<Response<RestorableList>, Status> {
        not_here()
    }
    async fn restore(&self, _: Request<RestoreRequest>) -> Result<Response<RestoreReply>, Status> {
        not_here()
    }
    async fn list_restored(&self, _: Request<VolumeRef>) -> Result<Response<RestoredList>, Status> {
        not_here()
    }
    async fn delete_restored(&self, _: Request<SnapshotRef>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn list_diffs(&self, _: Request<VolumeRef>) -> Result<Response<DiffList>, Status> {
        not_here()
    }
    async fn apply(&self, _: Request<SnapshotRef>) -> Result<Response<Operation>, Status> {
        not_here()
    }
}
