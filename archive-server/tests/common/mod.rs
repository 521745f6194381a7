//! An archive in this process on a Unix socket, a client, and a device whose whole history is
//! known.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod hooked;
pub mod outside;
pub mod pair;
pub mod slow;
pub mod sync;

use archive_server::{BackendChoice, FileImages, Images, Server, Settings, World};
use bytes::Bytes;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::full_sync_request::Step as FullStep;
use proto::v1::host_client::HostClient;
use proto::v1::wdiff_transfer_request::Step as WdiffStep;
use proto::v1::{
    ApplyRequest, ArchiveVolume, Chunk, DiffEntry, DiffMeta, FullSyncBulk, FullSyncEnd,
    FullSyncReply, FullSyncRequest, FullSyncStart, MergeRequest, Operation, OperationRef,
    OperationStatus, PrepareFullSyncRequest, Restorable, RestorableRequest, RestoreRequest,
    Snapshot, SnapshotRef, VolumeRef, WdiffEnd, WdiffStart, WdiffTransferReply,
    WdiffTransferRequest, restore_request::Point,
};
use server_kit::net::{Connector, Endpoint, Listener, RealConnector};
use server_kit::shutdown::Shutdown;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::transport::Channel;
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::record::{DiffRecord, Payload};
use wdiff_format::retention::Policy;
use wdiff_format::sorted_writer::SortedWriter;
use wlog_format::units::{Lb, LogUuid};

pub const VOLUME: &str = "vol0";
pub const UUID: LogUuid = LogUuid([7; 16]);
pub const LIMIT: Duration = Duration::from_secs(30);

/// A server that can be killed.
pub struct Archive {
    pub base: PathBuf,
    pub socket: PathBuf,
    pub shutdown: Shutdown,
    kill: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

pub fn settings() -> Settings {
    Settings { reserve_bytes: 1 << 20, grace: Duration::ZERO, ..Settings::default() }
}

impl Archive {
    pub fn start(dir: &TempDir) -> Self {
        Self::with(dir, settings(), Arc::new(FileImages))
    }

    pub fn with(dir: &TempDir, settings: Settings, images: Arc<dyn Images>) -> Self {
        Self::within(dir, settings, World::with_images(images))
    }

    pub fn within(dir: &TempDir, settings: Settings, world: World) -> Self {
        Self::on(dir.path(), settings, (BackendChoice::File, None), world)
    }

    /// With a backend, and a policy for new volumes.
    pub fn on(
        dir: &Path,
        settings: Settings,
        (backend, retention): (BackendChoice, Option<Policy>),
        world: World,
    ) -> Self {
        let (base, socket) = (dir.join("a0"), dir.join("a0.sock"));
        let shutdown = Shutdown::new();
        let (kill, killed) = tokio::sync::oneshot::channel();
        let (bound, is_bound) = std::sync::mpsc::channel();
        let (at, root, asked) = (Endpoint::Unix(socket.clone()), base.clone(), shutdown.clone());
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = Listener::bind(&at, false).await.unwrap();
                bound.send(()).unwrap();
                let id = "a0".parse().unwrap();
                let server = Server { base: root, id, settings, backend, retention, world };
                tokio::select! {
                    done = server.run(listener, asked) => done.unwrap(),
                    _ = killed => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(10));
        });
        is_bound.recv().unwrap();
        Self { base, socket, shutdown, kill: Some(kill), thread: Some(thread) }
    }

    /// Everything stops where it is.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(kill) = self.kill.take() {
            let _ = kill.send(());
        }
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub fn channel(&self) -> Channel {
        RealConnector.channel(&Endpoint::Unix(self.socket.clone()))
    }

    pub fn client(&self) -> Client {
        Client::new(self.channel())
    }

    pub fn volume_dir(&self) -> PathBuf {
        self.base.join(VOLUME)
    }

    /// Names in the volume's directory that end so.
    pub fn files(&self, suffix: &str) -> Vec<String> {
        files(&self.volume_dir(), suffix)
    }

    /// Names of the volume's files that are marked for deletion.
    pub fn marked(&self) -> Vec<String> {
        let mut names = self.files("");
        names.retain(|name| name.contains(".wdiff.doomed-"));
        names
    }

    /// Waits until all of those are gone.
    pub async fn all_deleted(&self) {
        until("the deletion", || async { self.marked().is_empty().then_some(()) }).await;
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn files(dir: &Path, suffix: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|n| n.ends_with(suffix)).collect();
    names.sort();
    names
}

/// Polls until `done` answers.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut done: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = done().await {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A device of 512-byte blocks, with its content at every gid.
pub struct Device {
    pub history: Vec<Vec<u8>>,
    /// What was written on the way to each gid.
    steps: Vec<Vec<DiffRecord>>,
    seed: u64,
}

impl Device {
    pub fn new(blocks: usize, seed: u64) -> Self {
        let mut device = Self { history: vec![vec![0; blocks * 512]], steps: vec![vec![]], seed };
        // Some data, a hole in the middle.
        let mut image = vec![0; blocks * 512];
        device.fill(&mut image[..blocks * 128]);
        device.fill(&mut image[blocks * 384..]);
        device.history[0] = image;
        device
    }

    pub fn random(&mut self, below: usize) -> usize {
        // xorshift64
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 11) as usize % below
    }

    fn fill(&mut self, data: &mut [u8]) {
        data.iter_mut().for_each(|b| *b = self.random(251) as u8);
    }

    pub fn size_lb(&self) -> u64 {
        self.now().len() as u64 / 512
    }

    pub fn now(&self) -> &[u8] {
        self.history.last().unwrap()
    }

    pub fn gid(&self) -> u64 {
        self.history.len() as u64 - 1
    }

    /// Writes `count` disjoint runs of up to 16 blocks: data, zeros and discards.
    pub fn write(&mut self, count: usize) {
        let mut image = self.now().to_vec();
        let blocks = image.len() / 512;
        let span = blocks / count;
        let mut records = Vec::new();
        for i in 0..count {
            let len = 1 + self.random(16.min(span - 1));
            let at = i * span + self.random(span - len);
            let range = at * 512..(at + len) * 512;
            let kind = self.random(4);
            let data = &mut image[range];
            data.fill(0);
            let address = Lb(at as u64);
            let payload = if kind == 0 { Payload::Discard } else { Payload::AllZero };
            let mut record = DiffRecord { address, blocks: len as u32, payload };
            if kind > 1 {
                let mut fresh = vec![0; len * 512];
                self.fill(&mut fresh);
                data.copy_from_slice(&fresh);
                record = DiffRecord::from_raw(address, Bytes::from(fresh)).unwrap();
            }
            records.push(record);
        }
        self.history.push(image);
        self.steps.push(records);
    }

    /// Discards a range of blocks, as one record.
    pub fn discard(&mut self, blocks: std::ops::Range<usize>) {
        let mut image = self.now().to_vec();
        image[blocks.start * 512..blocks.end * 512].fill(0);
        let (address, payload) = (Lb(blocks.start as u64), Payload::Discard);
        self.history.push(image);
        self.steps.push(vec![DiffRecord { address, blocks: blocks.len() as u32, payload }]);
    }

    /// Becomes an image of the same size, by writes of 4 KiB.
    pub fn become_image(&mut self, image: Vec<u8>) {
        assert_eq!(image.len(), self.now().len());
        let pairs = image.chunks(4096).zip(self.now().chunks(4096)).enumerate();
        let record = |(n, (new, _)): (usize, (&[u8], &[u8]))| {
            let data = Bytes::copy_from_slice(new);
            DiffRecord::from_raw(Lb(n as u64 * 8), data).unwrap()
        };
        let changed = pairs.filter(|(_, (new, old))| new != old).map(record).collect();
        self.steps.push(changed);
        self.history.push(image);
    }

    /// The wdiff from `gid - 1` to `gid`.
    pub fn wdiff(&self, gid: u64) -> Vec<u8> {
        wdiff(&self.steps[gid as usize], UUID)
    }

    /// Other data in the place of all that the last step wrote.
    pub fn rewrite(&mut self, compressible: bool) {
        let mut image = self.history.pop().unwrap();
        let mut step = self.steps.pop().unwrap();
        for record in &mut step {
            let Payload::Data(_) = record.payload else { continue };
            let mut fresh = vec![0; record.blocks as usize * 512];
            if compressible {
                fresh.fill(0x33);
            } else {
                self.fill(&mut fresh);
            }
            let at = record.address.bytes() as usize;
            image[at..at + fresh.len()].copy_from_slice(&fresh);
            *record = DiffRecord::from_raw(record.address, Bytes::from(fresh)).unwrap();
        }
        self.history.push(image);
        self.steps.push(step);
    }
}

pub fn wdiff(records: &[DiffRecord], uuid: LogUuid) -> Vec<u8> {
    let mut codec = Codec::new(Compression::default());
    let mut writer = SortedWriter::new(Vec::new(), uuid).unwrap();
    for record in records {
        writer.write(&record.encode(&mut codec).unwrap()).unwrap();
    }
    writer.finish().unwrap()
}

pub fn meta(begin: u64, end: u64) -> DiffMeta {
    let clean = |gid| Some(Snapshot { gid_begin: gid, gid_end: gid });
    DiffMeta {
        begin: clean(begin),
        end: clean(end),
        timestamp_s: 1_700_000_000 + end * 10,
        ..DiffMeta::default()
    }
}

pub fn start_of(diff: DiffMeta, size_lb: u64) -> WdiffStart {
    WdiffStart {
        volume: VOLUME.into(),
        sender_id: "p0".into(),
        log_uuid: Bytes::copy_from_slice(&UUID.0),
        size_lb,
        diff: Some(diff),
        ..WdiffStart::default()
    }
}

/// The messages of a transfer, in chunks of `chunk` bytes.
pub fn messages(start: WdiffStart, file: &[u8], chunk: usize) -> Vec<WdiffTransferRequest> {
    let end = WdiffStep::End(WdiffEnd { total_bytes: file.len() as u64 });
    let chunks = file
        .chunks(chunk)
        .map(|c| WdiffStep::Chunk(server_kit::chunks::encode(Bytes::copy_from_slice(c))));
    let steps = std::iter::once(WdiffStep::Start(start)).chain(chunks).chain([end]);
    steps.map(|s| WdiffTransferRequest { step: Some(s) }).collect()
}

pub fn full(step: FullStep) -> FullSyncRequest {
    FullSyncRequest { step: Some(step) }
}

/// A piece of a full backup: data, or zeros where there is nothing else.
pub fn bulk(offset: usize, data: &[u8]) -> FullSyncRequest {
    let zeros = data.iter().all(|b| *b == 0);
    let chunk = server_kit::chunks::encode(Bytes::copy_from_slice(data));
    full(FullStep::Bulk(FullSyncBulk {
        offset_bytes: offset as u64,
        chunk: (!zeros).then_some(chunk),
        zeros_bytes: if zeros { data.len() as u64 } else { 0 },
    }))
}

#[derive(Clone)]
pub struct Client {
    pub archive: ArchiveClient<Channel>,
    pub host: HostClient<Channel>,
}

pub type Answer<T> = Result<T, tonic::Status>;

impl Client {
    pub fn new(channel: Channel) -> Self {
        let archive = ArchiveClient::new(channel.clone());
        Self { archive, host: HostClient::new(channel) }
    }

    pub async fn init(&mut self) {
        self.archive.init(volume()).await.unwrap();
    }

    pub async fn get(&mut self) -> ArchiveVolume {
        self.archive.get(volume()).await.unwrap().into_inner()
    }

    /// The snapshots that can be restored.
    pub async fn restorable(&mut self, all: bool) -> Vec<Restorable> {
        let request = RestorableRequest { volume: VOLUME.into(), all };
        let pages = self.archive.list_restorable(request).await.unwrap().into_inner();
        let pages = server_kit::pages::all(pages).await.unwrap();
        pages.into_iter().flat_map(|page| page.snapshots).collect()
    }

    /// The wdiffs.
    pub async fn diffs(&mut self) -> Vec<DiffEntry> {
        let pages = self.archive.list_diffs(volume()).await.unwrap().into_inner();
        let pages = server_kit::pages::all(pages).await.unwrap();
        pages.into_iter().flat_map(|page| page.diffs).collect()
    }

    /// Removes needless wdiffs; their names.
    pub async fn gc(&mut self) -> Vec<String> {
        let pages = self.archive.gc(volume()).await.unwrap().into_inner();
        let pages = server_kit::pages::all(pages).await.unwrap();
        pages.into_iter().flat_map(|page| page.removed).collect()
    }

    /// Announces a full backup: session and first byte.
    pub async fn prepare(&mut self, size_lb: u64, resume: &[u8]) -> Answer<(String, u64)> {
        let request = PrepareFullSyncRequest {
            volume: VOLUME.into(),
            size_lb,
            started_s: 1_700_000_000,
            resume_uuid: Bytes::copy_from_slice(resume),
        };
        let reply = self.archive.prepare_full_sync(request).await?.into_inner();
        Ok((reply.session, reply.start_bytes))
    }

    /// A whole full backup of `image`; the base is `|0,end|`.
    pub async fn full_sync(&mut self, image: &[u8], end: u64) -> Answer<FullSyncReply> {
        let (session, start) = self.prepare(image.len() as u64 / 512, &[]).await?;
        let mut messages = vec![full(FullStep::Start(full_start(session)))];
        let mut at = start as usize;
        for piece in image[at..].chunks(100 * 512) {
            messages.push(bulk(at, piece));
            at += piece.len();
        }
        messages.push(full(full_end(0, end)));
        let reply = self.archive.full_sync(tokio_stream::iter(messages)).await?;
        Ok(reply.into_inner())
    }

    pub async fn send(
        &mut self,
        messages: Vec<WdiffTransferRequest>,
    ) -> Answer<WdiffTransferReply> {
        let reply = self.archive.wdiff_transfer(tokio_stream::iter(messages)).await?;
        Ok(reply.into_inner())
    }

    /// Sends the wdiff that leads to `gid`.
    pub async fn send_step(&mut self, device: &Device, gid: u64) -> Answer<WdiffTransferReply> {
        let start = start_of(meta(gid - 1, gid), device.size_lb());
        self.send(messages(start, &device.wdiff(gid), 1000)).await
    }

    /// Waits for an operation.
    pub async fn finish(&mut self, id: &str) -> Operation {
        let watched = self.host.watch_operation(OperationRef { id: id.to_owned() }).await;
        let mut watched = watched.unwrap().into_inner();
        let mut last = None;
        while let Some(operation) = watched.message().await.unwrap() {
            last = Some(operation);
        }
        last.unwrap()
    }

    pub async fn restore_to(&mut self, point: Point, to: &str) -> Answer<Operation> {
        let request = RestoreRequest {
            volume: VOLUME.into(),
            point: Some(point),
            to_path: to.to_owned(),
            dry_run: false,
        };
        let reply = self.archive.restore(request).await?.into_inner();
        Ok(self.finish(&reply.operation.unwrap().id).await)
    }

    /// The restored image of `gid`, which is deleted again.
    pub async fn restored(&mut self, gid: u64) -> Vec<u8> {
        let operation = self.restore_to(Point::Gid(gid), "").await.unwrap();
        assert_eq!(operation.status(), OperationStatus::Done, "{operation:?}");
        assert_eq!(operation.gid, Some(gid));
        let image = std::fs::read(&operation.path).unwrap();
        let restored = SnapshotRef { volume: VOLUME.into(), gid };
        self.archive.delete_restored(restored).await.unwrap();
        image
    }

    pub async fn apply(&mut self, gid: u64) -> Answer<Operation> {
        let operation = self.archive.apply(apply_to(gid)).await?.into_inner();
        Ok(self.finish(&operation.id).await)
    }
}

pub fn apply_to(gid: u64) -> ApplyRequest {
    let point = Some(proto::v1::apply_request::Point::Gid(gid));
    ApplyRequest { volume: VOLUME.into(), point, ..ApplyRequest::default() }
}

pub fn merge_of(gid_begin: u64, until: Option<proto::v1::merge_request::Until>) -> MergeRequest {
    MergeRequest { volume: VOLUME.into(), gid_begin, until, ..MergeRequest::default() }
}

pub fn volume() -> VolumeRef {
    VolumeRef { volume: VOLUME.into() }
}

pub fn full_start(session: String) -> FullSyncStart {
    let log_uuid = Bytes::copy_from_slice(&UUID.0);
    FullSyncStart { volume: VOLUME.into(), session, log_uuid, ..FullSyncStart::default() }
}

pub fn full_end(begin: u64, end: u64) -> FullStep {
    FullStep::End(FullSyncEnd {
        base: Some(Snapshot { gid_begin: begin, gid_end: end }),
        timestamp_s: 0,
    })
}

/// Equal, without printing megabytes when not.
pub fn same(left: &[u8], right: &[u8], what: &str) {
    if left == right {
        return;
    }
    let differs = left.iter().zip(right).position(|(l, r)| l != r);
    assert_eq!(left.len(), right.len(), "{what}: lengths");
    panic!("{what}: byte {differs:?} differs");
}

/// A server with a volume that has a full backup of `device` at gid 0 and wdiffs up to its last
/// gid.
pub async fn filled(archive: &Archive, device: &Device) -> Client {
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&device.history[0], 0).await.unwrap();
    for gid in 1..=device.gid() {
        let reply = client.send_step(device, gid).await.unwrap();
        assert_eq!(reply.result(), proto::v1::WdiffResult::Stored, "{reply:?}");
    }
    client
}

pub fn bad_chunk(data: &[u8]) -> Chunk {
    Chunk { data: Bytes::copy_from_slice(data), crc32: 1, raw_bytes: 0 }
}

pub fn reason(status: &tonic::Status) -> server_kit::error::Reason {
    server_kit::error::RoleError::from_status("a0", status).reason()
}
