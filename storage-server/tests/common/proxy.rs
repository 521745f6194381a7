//! Stub proxies: they take, refuse, break off or forget to answer, and write down what they got.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proto::v1::proxy_server::{Proxy, ProxyServer};
use proto::v1::wlog_transfer_request::Step;
use proto::v1::*;
use server_kit::error::{Reason, RoleError};
use server_kit::host::HostService;
use server_kit::net::{Endpoint, Listener, serve};
use server_kit::operations::Operations;
use server_kit::shutdown::Shutdown;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use wlog_format::pack::RecordKind;
use wlog_format::stream::PackDecoder;
use wlog_format::units::{BlockSize, LogUuid, Lsid, Salt, to_usize};

use super::eventually;
use super::storage::on_disk;

/// What a stub does with transfers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Accept,
    Refuse,
    /// Ends the connection after the first chunk.
    BreakOff,
    /// Stores, and then says that something went wrong.
    LoseAck,
    /// Takes everything and never answers.
    Hang,
}

/// One whole transfer that a proxy has stored.
#[derive(Clone, Debug)]
pub struct Stored {
    pub proxy: String,
    pub start: WlogStart,
    pub end: WlogEnd,
    pub bytes: Bytes,
    pub acknowledged: bool,
    /// The proxy has lost it before it was at the archive.
    pub lost: bool,
}

impl Stored {
    pub fn diff(&self) -> (u64, u64) {
        let diff = self.end.diff.as_ref().unwrap();
        (diff.begin.unwrap().gid_begin, diff.end.unwrap().gid_begin)
    }

    /// (begin gid, end gid, begin lsid, end lsid, mergeable).
    pub fn summary(&self) -> (u64, u64, u64, u64, bool) {
        let (begin, end) = self.diff();
        let mergeable = self.end.diff.as_ref().unwrap().mergeable;
        (begin, end, self.start.begin_lsid, self.end.end_lsid, mergeable)
    }

    fn meaning(&self) -> (Bytes, u64, u64, u64) {
        let timestamp_s = self.end.diff.as_ref().unwrap().timestamp_s;
        (self.start.log_uuid.clone(), self.start.begin_lsid, self.end.end_lsid, timestamp_s)
    }

    /// Checks the packs with the decoder of the format crate and writes them onto `image`.
    fn apply(&self, image: &mut [u8]) {
        let block_size = BlockSize::new(self.start.physical_block_bytes).unwrap();
        let begin = Lsid(self.start.begin_lsid);
        let mut decoder = PackDecoder::new(block_size, Salt(self.start.salt), begin);
        decoder.push(self.bytes.clone());
        while let Some(pack) = decoder.next_pack().unwrap() {
            for (record, payload) in pack.ios() {
                let range = to_usize(record.address.bytes())..to_usize(record.end().bytes());
                match record.kind {
                    RecordKind::Normal => image[range].copy_from_slice(&payload),
                    RecordKind::Discard => image[range].fill(0),
                    RecordKind::Padding => {}
                }
            }
        }
        assert_eq!(decoder.finish().unwrap(), Lsid(self.end.end_lsid));
    }
}

/// What all proxies of a test got.
#[derive(Clone, Default)]
pub struct Wire(Arc<Mutex<Log>>);

#[derive(Default)]
struct Log {
    stored: Vec<Stored>,
    violations: Vec<String>,
    base: Option<PathBuf>,
    broken_off: usize,
    hanging: usize,
    /// Starts, also of transfers that came to nothing.
    attempts: usize,
}

impl Wire {
    pub fn stored(&self) -> Vec<Stored> {
        self.0.lock().stored.clone()
    }

    pub fn attempts(&self) -> usize {
        self.0.lock().attempts
    }

    pub fn broken_off(&self) -> usize {
        self.0.lock().broken_off
    }

    pub fn hanging(&self) -> usize {
        self.0.lock().hanging
    }

    pub fn complain(&self, what: String) {
        self.0.lock().violations.push(what);
    }

    /// No rule was broken so far.
    pub fn assert_sound(&self) {
        let log = self.0.lock();
        assert!(log.violations.is_empty(), "{:#?}", log.violations);
        let mut meanings = HashMap::new();
        for stored in &log.stored {
            let pair = (stored.start.log_uuid.clone(), stored.diff());
            let known = meanings.entry(pair).or_insert_with(|| stored.meaning());
            assert_eq!(*known, stored.meaning(), "gids {:?} changed meaning", stored.diff());
        }
    }

    /// Up to where proxies hold this log for sure.
    pub fn held_lsid(&self, uuid: &[u8]) -> u64 {
        let log = self.0.lock();
        let held = log.stored.iter().filter(|s| s.acknowledged && s.start.log_uuid == uuid);
        held.map(|s| s.end.end_lsid).max().unwrap_or(0)
    }

    /// Where the storage server keeps what it must not tell before it is durable.
    pub fn judge_by(&self, base: &Path) {
        self.0.lock().base = Some(base.to_owned());
    }

    /// What gids are told must be on the storage's disk already (I6).
    fn check_told(&self, start: &WlogStart, end: &WlogEnd) {
        let base = self.0.lock().base.clone().unwrap();
        let history = on_disk(&base, &start.volume).unwrap().history.unwrap();
        let marks = history.marks;
        let gid = end.diff.as_ref().unwrap().end.unwrap().gid_begin;
        // `done` counts as well: its change may have failed after it had reached the disk.
        let mut known = marks.queue().chain([&marks.done]);
        let recorded = known.any(|m| (m.gid.0, m.lsid.0) == (gid, end.end_lsid));
        // A piece on the way to a snapshot has a gid that is reserved by it.
        let next = marks.queue().next();
        let reserved = gid == marks.done.gid.0 + 1 && next.is_some_and(|m| m.gid.0 > gid);
        if !recorded && !reserved {
            self.complain(format!("I6: gid {gid} is told and not on the disk"));
        }
    }

    /// Waits until a diff of this log that ends at `gid` is stored.
    pub async fn shipped(&self, uuid: &[u8], gid: u64) {
        let is_it = |s: &Stored| s.start.log_uuid == uuid && s.diff().1 == gid;
        eventually(&format!("gid {gid} at a proxy"), || async {
            self.stored().iter().any(is_it).then_some(())
        })
        .await;
    }

    /// The gids that an archive with a base of `from` can restore, up to `limit`.
    pub fn reachable(&self, uuid: &[u8], from: u64, limit: u64) -> u64 {
        let stored = self.stored();
        let mut at = from;
        let follows = |s: &&Stored, at| {
            s.start.log_uuid == uuid && !s.lost && s.diff().0 == at && s.diff().1 <= limit
        };
        while let Some(next) = stored.iter().rev().find(|s| follows(s, at)) {
            at = next.diff().1;
        }
        at
    }

    /// What this proxy holds beyond `gid` is gone.
    fn lose(&self, proxy: &str, gid: u64) {
        let mut log = self.0.lock();
        let lost = |s: &&mut Stored| s.proxy == proxy && s.diff().1 > gid;
        log.stored.iter_mut().filter(lost).for_each(|s| s.lost = true);
    }

    /// The base, which is of gid `from` or later, with everything of this log up to `gid`.
    pub fn restore(&self, mut image: Vec<u8>, uuid: &[u8], from: u64, gid: u64) -> Vec<u8> {
        self.assert_sound();
        let stored = self.stored();
        let latest = stored.iter().filter(|s| s.start.log_uuid == uuid);
        let by_begin: BTreeMap<u64, &Stored> = latest.map(|s| (s.diff().0, s)).collect();
        let (mut at, mut lsid) = (from, 0);
        while at != gid {
            let next = by_begin.get(&at).unwrap_or_else(|| panic!("no diff begins at gid {at}"));
            assert_eq!(next.start.begin_lsid, lsid, "a gap or overlap before gid {at}");
            next.apply(&mut image);
            (at, lsid) = (next.diff().1, next.end.end_lsid);
        }
        image
    }
}

pub struct StubProxy {
    pub endpoint: Endpoint,
    behaviour: Arc<Mutex<Behaviour>>,
    /// Identity of what it stores; none: the volume is Clear.
    store: Store,
    name: String,
    wire: Wire,
    running: Option<(Shutdown, JoinHandle<()>)>,
}

impl StubProxy {
    pub async fn start(dir: &Path, name: &str, wire: Wire) -> Self {
        let endpoint = Endpoint::Unix(dir.join(format!("{name}.sock")));
        let behaviour = Arc::new(Mutex::new(Behaviour::Accept));
        let name = name.to_owned();
        let store = Arc::new(Mutex::new(Some(new_store())));
        let mut proxy = Self { endpoint, behaviour, store, name, wire, running: None };
        proxy.up().await;
        proxy
    }

    pub async fn up(&mut self) {
        let shutdown = Shutdown::new();
        let listener = Listener::bind(&self.endpoint, false).await.unwrap();
        let (name, wire) = (self.name.clone(), self.wire.clone());
        let (behaviour, store) = (Arc::clone(&self.behaviour), Arc::clone(&self.store));
        let service = Service { name, behaviour, store, wire };
        let id = self.name.parse().unwrap();
        let host = HostService {
            role: Role::Proxy,
            id,
            base: None,
            operations: Operations::new(),
            shutdown: shutdown.clone(),
        }
        .server();
        let routes = Routes::new(ProxyServer::new(service)).add_service(host);
        let until = shutdown.clone();
        let task = tokio::spawn(async move { serve(listener, routes, &until).await.unwrap() });
        self.running = Some((shutdown, task));
    }

    pub async fn down(&mut self) {
        if let Some((shutdown, task)) = self.running.take() {
            shutdown.request(StopMode::Force);
            task.await.unwrap();
        }
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    /// Its data is lost, but for what the archive has: `gid`. It is set up again at once or not.
    pub fn lose_data(&self, gid: u64, set_up: bool) {
        self.wire.lose(&self.name, gid);
        *self.store.lock() = set_up.then(new_store);
    }
}

type Store = Arc<Mutex<Option<Bytes>>>;

fn new_store() -> Bytes {
    Bytes::copy_from_slice(&LogUuid::random().0)
}

struct Service {
    name: String,
    behaviour: Arc<Mutex<Behaviour>>,
    store: Store,
    wire: Wire,
}

fn not_here<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("a stub"))
}

#[tonic::async_trait]
impl Proxy for Service {
    async fn wlog_transfer(
        &self,
        request: Request<Streaming<WlogTransferRequest>>,
    ) -> Result<Response<WlogTransferReply>, Status> {
        let behaviour = *self.behaviour.lock();
        if self.store.lock().is_none() {
            return Err(RoleError::unknown_volume("vol").into());
        }
        if behaviour == Behaviour::Refuse {
            return Err(RoleError::no_space("the stub is full").into());
        }
        let mut stream = request.into_inner();
        let (mut start, mut bytes) = (None, Vec::new());
        while let Some(message) = stream.message().await? {
            match message.step.unwrap() {
                Step::Start(s) => {
                    self.wire.0.lock().attempts += 1;
                    start = Some(s);
                }
                Step::Chunk(_) if behaviour == Behaviour::BreakOff => {
                    self.wire.0.lock().broken_off += 1;
                    return Err(Status::unavailable("the stub breaks off"));
                }
                Step::Chunk(chunk) => {
                    bytes.extend_from_slice(&server_kit::chunks::decode(chunk).unwrap());
                }
                Step::End(_) if behaviour == Behaviour::Hang => {
                    self.wire.0.lock().hanging += 1;
                    std::future::pending::<()>().await;
                }
                Step::End(end) => {
                    let acknowledged = behaviour != Behaviour::LoseAck;
                    let proxy = self.name.clone();
                    let (start, bytes) = (start.take().unwrap(), Bytes::from(bytes));
                    let sent = (bytes.len() as u64).div_ceil(start.physical_block_bytes.into());
                    if sent > start.max_log_pb {
                        self.wire.complain(format!("{sent} blocks exceed what was announced"));
                    }
                    self.wire.check_told(&start, &end);
                    let stored = Stored { proxy, start, end, bytes, acknowledged, lost: false };
                    self.wire.0.lock().stored.push(stored);
                    return match behaviour {
                        Behaviour::LoseAck => Err(Status::unavailable("the answer is lost")),
                        _ => {
                            let store_uuid = self.store.lock().clone().unwrap_or_default();
                            Ok(Response::new(WlogTransferReply { wdiff_bytes: 1, store_uuid }))
                        }
                    };
                }
            }
        }
        self.wire.0.lock().broken_off += 1;
        Err(RoleError::new(Reason::BadRequest, "the stream has no end").into())
    }

    async fn add_archive(&self, _: Request<ArchiveInfoRequest>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn update_archive(
        &self,
        _: Request<ArchiveInfoRequest>,
    ) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn delete_archive(&self, _: Request<ArchiveInfoRef>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn clear(&self, _: Request<VolumeRef>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn start(&self, _: Request<VolumeRef>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn stop(&self, _: Request<StopRequest>) -> Result<Response<Empty>, Status> {
        not_here()
    }
    async fn get(&self, r: Request<VolumeRef>) -> Result<Response<ProxyVolume>, Status> {
        let (volume, store) = (r.into_inner().volume, self.store.lock().clone());
        let state = if store.is_some() { "Started" } else { "Clear" }.to_owned();
        let store_uuid = store.unwrap_or_default();
        Ok(Response::new(ProxyVolume { volume, state, store_uuid, ..Default::default() }))
    }
    async fn list(&self, _: Request<Empty>) -> Result<Response<ProxyVolumeList>, Status> {
        not_here()
    }
    async fn kick(&self, _: Request<KickProxyRequest>) -> Result<Response<KickProxyReply>, Status> {
        not_here()
    }
}
