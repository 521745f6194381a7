//! A stub archive: receives full and hash backups into memory, resumes full ones, breaks off when
//! told to. It has what the proxies hold as soon as they hold it, unless it is told not to.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::v1::archive_server::{Archive, ArchiveServer};
use proto::v1::full_sync_request::Step;
use proto::v1::hash_sync_reply::Step as Told;
use proto::v1::hash_sync_request::Step as HashStep;
use proto::v1::*;
use server_kit::error::RoleError;
use server_kit::hash_sync::{self, Seed};
use server_kit::net::{Endpoint, Listener, serve};
use server_kit::scan;
use server_kit::shutdown::Shutdown;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use wdiff_format::redo::{BeyondEnd, Discards, RedoOptions, redo};
use wdiff_format::sorted_reader::SortedReader;
use wlog_format::units::Lb;

use super::Wire;

#[derive(Default)]
pub struct Disk {
    pub image: Vec<u8>,
    pub durable: usize,
    pub log_uuid: Bytes,
    /// Log uuid of the whole image.
    pub base_uuid: Bytes,
    pub base: Option<Snapshot>,
    pub syncs: Vec<PrepareFullSyncRequest>,
    /// Image bytes that came as data, not as a run of zeroes.
    pub data_bytes: u64,
    pub zero_runs: usize,
    /// Break off when so many bytes have arrived.
    pub break_at: Option<usize>,
    /// Wait for ever when so many bytes have arrived.
    pub hang_at: Option<usize>,
    pub lose_answer: bool,
    pub refuse: bool,
    /// Nothing beyond this gid arrives from the proxies.
    pub delivered_to: Option<u64>,
    /// Hash backups that were begun.
    pub hash_syncs: Vec<HashSyncStart>,
    /// The hash backup breaks off at its end.
    pub break_hash: bool,
    /// Snapshots that it has besides.
    pub kept: BTreeMap<u64, Vec<u8>>,
    /// A snapshot that is read breaks off after so many messages.
    pub break_read: Option<usize>,
    /// How often it was asked how the volume stands.
    pub asked: usize,
}

impl Disk {
    /// The base with what has arrived.
    fn latest(&self, wire: &Wire) -> Option<Snapshot> {
        let base = self.base?;
        let limit = self.delivered_to.unwrap_or(u64::MAX);
        let begin = wire.reachable(&self.base_uuid, base.gid_begin, limit);
        Some(Snapshot { gid_begin: begin, gid_end: base.gid_end.max(begin) })
    }

    fn restore(&self, wire: &Wire, uuid: &[u8], gid: u64) -> Vec<u8> {
        let from = self.base.map_or(0, |base| base.gid_begin);
        wire.restore(self.image.clone(), uuid, from, gid)
    }
}

#[derive(Clone)]
pub struct StubArchive {
    pub endpoint: Endpoint,
    pub disk: Arc<Mutex<Disk>>,
    pub hanging: Arc<Notify>,
    wire: Wire,
    _task: Arc<JoinHandle<()>>,
}

impl StubArchive {
    pub async fn start(dir: &Path, wire: &Wire) -> Self {
        Self::start_as(dir, "a0", wire).await
    }

    pub async fn start_as(dir: &Path, name: &str, wire: &Wire) -> Self {
        let endpoint = Endpoint::Unix(dir.join(format!("{name}.sock")));
        let (disk, hanging): (Arc<Mutex<Disk>>, Arc<Notify>) = Default::default();
        let listener = Listener::bind(&endpoint, false).await.unwrap();
        let service =
            Service { disk: Arc::clone(&disk), hanging: Arc::clone(&hanging), wire: wire.clone() };
        let routes = Routes::new(ArchiveServer::new(service));
        let task = tokio::spawn(async move {
            serve(listener, routes, &Shutdown::new()).await.unwrap();
        });
        Self { endpoint, disk, hanging, wire: wire.clone(), _task: Arc::new(task) }
    }

    pub fn image(&self) -> Vec<u8> {
        self.disk.lock().image.clone()
    }

    /// The newest that it can restore.
    pub fn latest(&self) -> Snapshot {
        self.disk.lock().latest(&self.wire).unwrap()
    }

    /// Its image with what the proxies hold of this log.
    pub fn restore(&self, uuid: &[u8], gid: u64) -> Vec<u8> {
        self.disk.lock().restore(&self.wire, uuid, gid)
    }

    pub fn change(&self, change: impl FnOnce(&mut Disk)) {
        change(&mut self.disk.lock());
    }
}

struct Service {
    disk: Arc<Mutex<Disk>>,
    hanging: Arc<Notify>,
    wire: Wire,
}

type Replies = tonic::codegen::BoxStream<HashSyncReply>;

/// What the sender says in a hash sync, until its end.
async fn gather(
    mut requests: Streaming<HashSyncRequest>,
    refs: mpsc::Sender<BulkRefs>,
) -> Option<(Vec<u8>, Snapshot)> {
    let mut data = Vec::new();
    while let Ok(Some(message)) = requests.message().await {
        match message.step.unwrap() {
            HashStep::Start(_) => panic!("a second start"),
            HashStep::Wanted(wanted) => refs.try_send(wanted).unwrap(),
            HashStep::Data(chunk) => {
                data.extend_from_slice(&server_kit::chunks::decode(chunk).unwrap());
            }
            HashStep::End(end) => {
                assert_eq!(end.total_bytes, data.len() as u64);
                let Some(hash_sync_end::Result::Backup(backup)) = end.result else { panic!() };
                return Some((data, backup));
            }
        }
    }
    None
}

/// The image with a wdiff.
fn applied(image: &[u8], wdiff: &[u8]) -> Vec<u8> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(image).unwrap();
    let options = RedoOptions {
        discards: Discards::Zero,
        beyond_end: BeyondEnd::Fail,
        image_blocks: Lb(image.len() as u64 / 512),
        threads: 1,
    };
    redo(SortedReader::new(wdiff, "sent").unwrap(), &file, &options).unwrap();
    let mut result = vec![0; image.len()];
    file.read_exact_at(&mut result, 0).unwrap();
    result
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
                disk.data_bytes += data.len() as u64;
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
                delivered_to: disk.delivered_to,
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

    async fn read_snapshot(
        &self,
        request: Request<ReadSnapshotRequest>,
    ) -> Result<Response<tonic::codegen::BoxStream<SnapshotBulk>>, Status> {
        let gid = request.into_inner().gid;
        let disk = self.disk.lock();
        let image = match disk.kept.get(&gid) {
            Some(image) => image.clone(),
            None if disk.latest(&self.wire).is_some_and(|latest| latest.gid_begin >= gid) => {
                disk.restore(&self.wire, &disk.base_uuid, gid)
            }
            None => return Err(RoleError::unknown_snapshot("vol", "not here").into()),
        };
        let size_bytes = image.len() as u64;
        let mut messages = Vec::new();
        for (i, piece) in image.chunks(1 << 18).enumerate() {
            let offset_bytes = (i as u64) << 18;
            let (chunk, zeros_bytes) = match piece.iter().all(|b| *b == 0) {
                true => (None, piece.len() as u64),
                false => (Some(server_kit::chunks::encode(Bytes::copy_from_slice(piece))), 0),
            };
            messages.push(Ok(SnapshotBulk { offset_bytes, chunk, zeros_bytes, size_bytes }));
        }
        if let Some(at) = disk.break_read {
            messages.truncate(at);
            messages.push(Err(Status::unavailable("the stub breaks off")));
        }
        Ok(Response::new(Box::pin(futures::stream::iter(messages))))
    }

    async fn prepare_hash_sync(
        &self,
        _: Request<PrepareHashSyncRequest>,
    ) -> Result<Response<PrepareHashSyncReply>, Status> {
        let disk = self.disk.lock();
        if disk.refuse {
            return Err(RoleError::no_space("the stub is full").into());
        }
        let Some(latest) = disk.latest(&self.wire) else {
            return Err(RoleError::wrong_state("vol", "compare", "SyncReady", &[]).into());
        };
        Ok(Response::new(PrepareHashSyncReply {
            session: "h".into(),
            latest: Some(latest),
            log_uuid: disk.base_uuid.clone(),
        }))
    }

    async fn hash_sync(
        &self,
        request: Request<Streaming<HashSyncRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let mut requests = request.into_inner();
        let Some(HashStep::Start(start)) = requests.message().await?.unwrap().step else {
            panic!("no start")
        };
        assert_eq!(start.session, "h");
        let (image, breaks) = {
            let mut disk = self.disk.lock();
            disk.hash_syncs.push(start.clone());
            let latest = disk.latest(&self.wire).unwrap();
            let image = disk.restore(&self.wire, &disk.base_uuid, latest.gid_begin);
            (image, disk.break_hash)
        };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &image).unwrap();
        let options = block_io::OpenOptions { direct: false, ..Default::default() };
        let device = block_io::open(file.path(), options).unwrap();
        let cells = scan::cells(device, hash_sync::spans(&start).unwrap(), 0);
        let (replies, receiver) = mpsc::channel(8);
        let (refs, asked) = mpsc::channel(hash_sync::QUESTIONS_MAX);
        let seed = Seed::of(&start).unwrap();
        tokio::spawn(hash_sync::answer(seed, cells, asked, replies.clone()));
        let disk = Arc::clone(&self.disk);
        tokio::spawn(async move {
            let _file = file;
            let Some((wdiff, backup)) = gather(requests, refs).await else { return };
            let answer = if breaks {
                Err(Status::unavailable("the stub breaks off"))
            } else {
                let mut disk = disk.lock();
                disk.image = applied(&image, &wdiff);
                (disk.base, disk.base_uuid) = (Some(backup), start.log_uuid);
                let done = HashSyncDone { wdiff_bytes: wdiff.len() as u64 };
                match disk.lose_answer {
                    true => Err(Status::unavailable("the answer is lost")),
                    false => Ok(HashSyncReply { step: Some(Told::Done(done)) }),
                }
            };
            let _ = replies.send(answer).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn get(&self, request: Request<VolumeRef>) -> Result<Response<ArchiveVolume>, Status> {
        let mut disk = self.disk.lock();
        disk.asked += 1;
        if disk.lose_answer {
            return Err(Status::unavailable("cut off"));
        }
        let latest = disk.latest(&self.wire);
        let state = if disk.base.is_some() { "Archived" } else { "SyncReady" };
        Ok(Response::new(ArchiveVolume {
            volume: request.into_inner().volume,
            state: state.into(),
            log_uuid: disk.base_uuid.clone(),
            latest,
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
    ) -> Result<Response<tonic::codegen::BoxStream<RestorableList>>, Status> {
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
    async fn list_diffs(
        &self,
        _: Request<VolumeRef>,
    ) -> Result<Response<tonic::codegen::BoxStream<DiffList>>, Status> {
        not_here()
    }
    async fn apply(&self, _: Request<ApplyRequest>) -> Result<Response<Operation>, Status> {
        not_here()
    }
}
