//! The device, what is counted, and who changes the archives.

use super::common::{self, Archive, Client, UUID, VOLUME, messages, meta, start_of};
use bytes::Bytes;
use parking_lot::Mutex;
use proto::v1::apply_request::Point;
use proto::v1::merge_request::Until;
use proto::v1::{
    ApplyRequest, MergeRequest, Operation, OperationStatus, Peer, Reason, ReplicateRequest,
    Retention, SetExplicitRequest, SetRetentionRequest, VerifyRequest, WdiffResult,
};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use wdiff_format::record::{DiffRecord, Payload};
use wlog_format::units::Lb;

const BLOCKS: usize = 512;
/// Snapshots of the device that are remembered: more than any archive keeps.
const REMEMBERED: usize = 700;
/// A snapshot is 10 s older than the next one: 60 of them are kept, then every tenth of 250.
const POLICY: &str = "all 600s, every 100s 2500s";
/// Kept snapshots that are so many gids old are given up, for a policy goes no further than those.
const OLD: u64 = 200;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Receive,
    Merge,
    Apply,
    Retention,
    Restore,
    /// A mount was read once, all of it.
    Mount,
    Drill,
    Replicate,
    Keep,
}

/// An archive of the two.
#[derive(Clone)]
pub struct Site {
    pub n: usize,
    pub client: Client,
}

struct Device {
    history: BTreeMap<u64, Arc<Vec<u8>>>,
    seed: u64,
}

/// What all tasks share.
pub struct Load {
    device: Mutex<Device>,
    pub now_s: AtomicU64,
    pub ends: CancellationToken,
    done: Mutex<BTreeMap<(usize, Kind), u64>>,
    refused: Mutex<BTreeMap<(usize, Kind), u64>>,
    /// While the first was going on the second was done.
    beside: Mutex<BTreeMap<(Kind, Kind), u64>>,
}

/// Something that has begun.
pub struct Begun(BTreeMap<(usize, Kind), u64>);

fn random(seed: &mut u64, below: usize) -> usize {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    (*seed >> 11) as usize % below
}

impl Load {
    pub fn new(seed: u64) -> Self {
        let mut device = Device { history: BTreeMap::new(), seed };
        let image = (0..BLOCKS * 512).map(|_| random(&mut device.seed, 251) as u8).collect();
        device.history.insert(0, Arc::new(image));
        Self {
            device: Mutex::new(device),
            now_s: AtomicU64::new(meta(0, 0).timestamp_s),
            ends: CancellationToken::new(),
            done: Mutex::default(),
            refused: Mutex::default(),
            beside: Mutex::default(),
        }
    }

    pub fn random(&self, below: usize) -> usize {
        random(&mut self.device.lock().seed, below)
    }

    /// What the device held at this snapshot, unless that is long ago.
    pub fn image(&self, gid: u64) -> Option<Arc<Vec<u8>>> {
        self.device.lock().history.get(&gid).cloned()
    }

    /// Writes data, zeros and discards; the gid after that, and the records.
    fn write(&self) -> (u64, Vec<DiffRecord>) {
        let device = &mut *self.device.lock();
        let (gid, last) = device.history.last_key_value().unwrap();
        let (gid, mut image) = (gid + 1, last.to_vec());
        let (count, mut records) = (8, Vec::new());
        for n in 0..count {
            let span = BLOCKS / count;
            let len = 1 + random(&mut device.seed, 16);
            let at = n * span + random(&mut device.seed, span - len);
            let data = &mut image[at * 512..(at + len) * 512];
            data.fill(0);
            let (address, blocks) = (Lb(at as u64), len as u32);
            records.push(match random(&mut device.seed, 4) {
                0 => DiffRecord { address, blocks, payload: Payload::Discard },
                1 => DiffRecord { address, blocks, payload: Payload::AllZero },
                _ => {
                    data.iter_mut().for_each(|b| *b = random(&mut device.seed, 251) as u8);
                    DiffRecord::from_raw(address, Bytes::copy_from_slice(data)).unwrap()
                }
            });
        }
        device.history.insert(gid, Arc::new(image));
        while device.history.len() > REMEMBERED {
            device.history.pop_first();
        }
        (gid, records)
    }

    pub fn begun(&self) -> Begun {
        Begun(self.done.lock().clone())
    }

    pub fn done(&self, site: &Site, kind: Kind, begun: &Begun) {
        let mut done = self.done.lock();
        let mut beside = self.beside.lock();
        for (key, count) in done.iter().filter(|(key, _)| key.0 == site.n) {
            if *count > begun.0.get(key).copied().unwrap_or(0) {
                *beside.entry((kind, key.1)).or_default() += 1;
            }
        }
        *done.entry((site.n, kind)).or_default() += 1;
    }

    /// Something else was in the way, which must be one of these.
    pub fn refused(&self, site: &Site, kind: Kind, reason: Reason, why: &str) {
        let allowed = [Reason::Busy, Reason::WrongState, Reason::UnknownSnapshot];
        assert!(allowed.contains(&reason), "{kind:?}: {why}");
        *self.refused.lock().entry((site.n, kind)).or_default() += 1;
    }

    pub fn tell(&self) {
        eprintln!("done: {:?}", self.done.lock());
        eprintln!("refused: {:?}", self.refused.lock());
        eprintln!("beside each other: {:?}", self.beside.lock());
    }

    /// What has not happened so often, or not beside what must not be in its way.
    pub fn missing(&self, each: u64) -> Option<String> {
        use Kind::{Apply, Drill, Keep, Merge, Mount, Receive, Replicate, Restore, Retention};
        let (done, beside) = (self.done.lock(), self.beside.lock());
        let here = [Merge, Apply, Retention, Restore, Mount, Drill, Keep];
        let wanted = here.into_iter().flat_map(|kind| [(0, kind), (1, kind)]);
        let mut wanted = wanted.chain([(0, Receive), (0, Replicate)]);
        let count = |key: &(usize, Kind)| done.get(key).copied().unwrap_or(0);
        if let Some(key) = wanted.find(|key| count(key) < each) {
            return Some(format!("{key:?}: {} times only", count(&key)));
        }
        let pairs = [Mount, Restore].into_iter().flat_map(|reader| {
            [Receive, Merge, Apply, Retention, Replicate].map(|writer| (reader, writer))
        });
        let others = [(Replicate, Receive), (Merge, Receive), (Apply, Receive), (Replicate, Mount)];
        let alone = pairs.chain(others).find(|pair| !beside.contains_key(pair));
        alone.map(|pair| format!("{pair:?}: never beside each other"))
    }

    /// A full backup at the first archive, some wdiffs, and a replica at the second one.
    pub async fn fill(&self, first: &Site, second: &Archive) {
        let mut client = first.client.clone();
        client.init().await;
        client.full_sync(&self.image(0).unwrap(), 0).await.unwrap();
        for _ in 0..10 {
            self.receive(&mut client).await;
        }
        let mut other = second.client();
        other.init().await;
        replicate_now(first, &second.socket).await;
        for client in [&mut client, &mut other] {
            set_policy(client, Some(POLICY)).await;
        }
    }

    async fn receive(&self, client: &mut Client) {
        let (gid, records) = self.write();
        let mut diff = meta(gid - 1, gid);
        diff.mergeable = gid % 13 != 5;
        let sent = messages(start_of(diff, BLOCKS as u64), &common::wdiff(&records, UUID), 3000);
        // Hash syncs and the like take the volume for a moment: a proxy sends again, too.
        loop {
            match client.send(sent.clone()).await.unwrap().result() {
                WdiffResult::Stored => break,
                WdiffResult::Busy | WdiffResult::Syncing => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                other => panic!("a wdiff is refused: {other:?}"),
            }
        }
        self.now_s.store(meta(gid - 1, gid).timestamp_s, Ordering::SeqCst);
    }

    /// Lets others come in between, until the end.
    pub async fn rest(&self, ms: u64) -> bool {
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(ms)) => true,
            () = self.ends.cancelled() => false,
        }
    }

    /// Waits for an operation; what it was, unless it was refused.
    pub async fn finish(
        &self,
        site: &Site,
        kind: Kind,
        begun: Result<Operation, tonic::Status>,
    ) -> Option<Operation> {
        let begun = match begun {
            Ok(begun) => begun,
            Err(status) => {
                let error = server_kit::error::RoleError::from_status("a0", &status);
                self.refused(site, kind, error.detail().reason(), &error.full_message());
                return None;
            }
        };
        let done = site.client.clone().finish(&begun.id).await;
        if done.status() == OperationStatus::Done {
            return Some(done);
        }
        let reason = done.detail.as_ref().map(|d| d.reason()).unwrap_or_default();
        self.refused(site, kind, reason, &done.error);
        None
    }
}

pub async fn listed(client: &mut Client) -> Vec<u64> {
    client.restorable(true).await.into_iter().map(|s| s.gid).collect()
}

pub async fn set_policy(client: &mut Client, policy: Option<&str>) {
    let retention = policy.map(|p| Retention { policy: p.into(), ..Retention::default() });
    let request = SetRetentionRequest { volume: VOLUME.into(), retention };
    client.archive.set_retention(request).await.unwrap();
}

pub async fn verify(client: &mut Client) -> Operation {
    let request = VerifyRequest { volume: VOLUME.into(), ..VerifyRequest::default() };
    let begun = client.archive.verify(request).await.unwrap().into_inner();
    client.finish(&begun.id).await
}

fn replicate_to(socket: &Path) -> ReplicateRequest {
    let to = Some(Peer { id: "a1".into(), address: format!("unix:{}", socket.display()) });
    ReplicateRequest { volume: VOLUME.into(), to, ..ReplicateRequest::default() }
}

pub async fn replicate_now(from: &Site, socket: &Path) {
    let mut client = from.client.clone();
    let begun = client.archive.replicate(replicate_to(socket)).await.unwrap().into_inner();
    let done = client.finish(&begun.id).await;
    assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
}

pub async fn receives(load: Arc<Load>, mut site: Site) {
    while load.rest(20).await {
        let begun = load.begun();
        load.receive(&mut site.client).await;
        load.done(&site, Kind::Receive, &begun);
    }
}

pub async fn replicates(load: Arc<Load>, mut site: Site, socket: PathBuf) {
    while load.rest(150).await {
        let begun = load.begun();
        let asked = site.client.archive.replicate(replicate_to(&socket)).await;
        let asked = asked.map(tonic::Response::into_inner);
        if load.finish(&site, Kind::Replicate, asked).await.is_some() {
            load.done(&site, Kind::Replicate, &begun);
        }
    }
}

pub async fn merges(load: Arc<Load>, mut site: Site) {
    while load.rest(40).await {
        let list = listed(&mut site.client).await;
        // Neighbours, so that seldom a kept one is between.
        let Some(starts @ 1..) = list.len().checked_sub(2) else { continue };
        let at = load.random(starts);
        let end = (at + 2 + load.random(5)).min(list.len() - 1);
        let (gid_begin, until) = (list[at], Some(Until::GidEnd(list[end])));
        let request = MergeRequest { volume: VOLUME.into(), gid_begin, until, bytes_per_s: 0 };
        let begun = load.begun();
        let asked = site.client.archive.merge(request).await.map(tonic::Response::into_inner);
        if load.finish(&site, Kind::Merge, asked).await.is_some() {
            load.done(&site, Kind::Merge, &begun);
        }
    }
}

pub async fn applies(load: Arc<Load>, mut site: Site) {
    while load.rest(300).await {
        let list = listed(&mut site.client).await;
        let point = Some(Point::Gid(list[load.random(list.len().div_ceil(6))]));
        let request = ApplyRequest { volume: VOLUME.into(), point, bytes_per_s: 0 };
        let begun = load.begun();
        let asked = site.client.archive.apply(request).await.map(tonic::Response::into_inner);
        if load.finish(&site, Kind::Apply, asked).await.is_some() {
            load.done(&site, Kind::Apply, &begun);
        }
    }
}

/// The policy is followed by itself, and when somebody asks for it.
pub async fn thins(load: Arc<Load>, mut site: Site) {
    while load.rest(120).await {
        let begun = load.begun();
        let asked = site.client.archive.run_retention(common::volume()).await;
        let asked = asked.map(tonic::Response::into_inner);
        if load.finish(&site, Kind::Retention, asked).await.is_some() {
            load.done(&site, Kind::Retention, &begun);
        }
    }
}

/// Snapshots become explicit, and are given up when they are old.
pub async fn keeps(load: Arc<Load>, mut site: Site) {
    while load.rest(100).await {
        let list = listed(&mut site.client).await;
        let latest = *list.last().unwrap();
        let old: Vec<u64> = list.iter().copied().filter(|gid| gid + OLD < latest).collect();
        let (gids, is_explicit) = match old.is_empty() || load.random(2) == 0 {
            true => (vec![list[load.random(list.len())]], load.random(4) == 0),
            false => (old, false),
        };
        let request = SetExplicitRequest { volume: VOLUME.into(), gids, is_explicit };
        let begun = load.begun();
        match site.client.archive.set_explicit(request).await {
            Ok(_) => load.done(&site, Kind::Keep, &begun),
            Err(status) => {
                drop(load.finish(&site, Kind::Keep, Err(status)).await);
            }
        }
    }
}
