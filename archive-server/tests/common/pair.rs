//! Two archives, and a wire between them that can be cut.
#![allow(dead_code, reason = "each test file uses its part")]

use super::{Answer, Archive, Client, Device, VOLUME, same};
use proto::v1::{
    DiffMeta, Operation, OperationStatus, Peer, ReplicateRequest, Restorable, WdiffResult,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Forwards a Unix socket until so many bytes have passed, both ways together.
pub struct Wire {
    pub left: Arc<AtomicI64>,
    pub path: PathBuf,
}

pub const OPEN: i64 = i64::MAX / 2;

impl Wire {
    pub fn to(archive: &Archive, dir: &TempDir) -> Self {
        let (path, target) = (dir.path().join("wire.sock"), archive.socket.clone());
        let left = Arc::new(AtomicI64::new(OPEN));
        let (listener, budget) = (UnixListener::bind(&path).unwrap(), left.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&target).await else { continue };
                let (a, b) = (client.into_split(), server.into_split());
                let (up, down) = (forward(a.0, b.1, &budget), forward(b.0, a.1, &budget));
                tokio::spawn(async move {
                    tokio::select! { () = up => {}, () = down => {} }
                });
            }
        });
        Self { left, path }
    }

    /// Bytes that have passed since `left` was set to [`OPEN`].
    pub fn passed(&self) -> u64 {
        (OPEN - self.left.load(Ordering::SeqCst)).try_into().unwrap()
    }
}

async fn pass(
    mut from: tokio::net::unix::OwnedReadHalf,
    mut into: tokio::net::unix::OwnedWriteHalf,
    left: Arc<AtomicI64>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if left.fetch_sub(n as i64, Ordering::SeqCst) < n as i64 {
            return;
        }
        if into.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

fn forward(
    from: tokio::net::unix::OwnedReadHalf,
    into: tokio::net::unix::OwnedWriteHalf,
    left: &Arc<AtomicI64>,
) -> impl Future<Output = ()> + Send + 'static {
    pass(from, into, left.clone())
}

/// A source and a destination, each with its directory.
pub struct Pair {
    pub dirs: [TempDir; 2],
    pub source: Archive,
    pub target: Archive,
    pub wire: Wire,
    pub from: Client,
    pub to: Client,
}

impl Pair {
    /// The source has `device`; the destination has a volume that waits.
    pub async fn of(device: &Device) -> Self {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (source, target) = (Archive::start(&dirs[0]), Archive::start(&dirs[1]));
        Self::with(dirs, source, target, device).await
    }

    pub async fn with(
        dirs: [TempDir; 2],
        source: Archive,
        target: Archive,
        device: &Device,
    ) -> Self {
        let from = super::filled(&source, device).await;
        let mut to = target.client();
        to.init().await;
        let wire = Wire::to(&target, &dirs[1]);
        Self { dirs, source, target, wire, from, to }
    }

    /// Two archives of one lineage that got the same wdiffs, all of which may be merged; `empty` is
    /// what `device` was at first.
    pub async fn siblings(empty: &Device, device: &Device) -> Self {
        let mut pair = Self::of(empty).await;
        let done = pair.replicate(ReplicateRequest::default()).await;
        assert_eq!(done.status(), OperationStatus::Done, "{done:?}");
        for gid in 1..=device.gid() {
            for client in [&mut pair.from, &mut pair.to] {
                let diff = DiffMeta { mergeable: true, ..super::meta(gid - 1, gid) };
                let start = super::start_of(diff, device.size_lb());
                let sent = super::messages(start, &device.wdiff(gid), 3000);
                assert_eq!(client.send(sent).await.unwrap().result(), WdiffResult::Stored);
            }
        }
        pair
    }

    pub async fn start(&mut self, change: ReplicateRequest) -> Answer<Operation> {
        let address = format!("unix:{}", self.wire.path.display());
        let to = Some(Peer { id: "a1".into(), address });
        let request = ReplicateRequest { volume: VOLUME.into(), to, ..change };
        Ok(self.from.archive.replicate(request).await?.into_inner())
    }

    pub async fn replicate(&mut self, change: ReplicateRequest) -> Operation {
        let started = self.start(change).await.unwrap();
        let done = self.from.finish(&started.id);
        tokio::time::timeout(super::LIMIT, done).await.expect("the end of the replication")
    }

    /// Replicates, and compares everything that can be restored.
    pub async fn equal(&mut self, change: ReplicateRequest, device: &Device, what: &str) {
        let done = self.replicate(change).await;
        assert_eq!(done.status(), OperationStatus::Done, "{what}: {done:?}");
        self.compare(device, what).await;
        let latest = self.from.get().await.latest.unwrap();
        assert_eq!(done.gid, Some(latest.gid_begin), "{what}");
    }

    pub async fn compare(&mut self, device: &Device, what: &str) {
        let (source, target) = (self.from.get().await, self.to.get().await);
        assert_eq!(target.state, "Archived", "{what}");
        assert_eq!(target.latest, source.latest, "{what}");
        assert_eq!(target.log_uuid, source.log_uuid, "{what}");
        assert_eq!(target.archive_uuid, source.archive_uuid, "{what}");
        assert_eq!(target.size_lb, source.size_lb, "{what}");
        let (here, there) = (explicit(&mut self.from).await, explicit(&mut self.to).await);
        let base = target.base.unwrap().begin.unwrap().gid_begin;
        let here: Vec<_> = here.into_iter().filter(|g| *g >= base).collect();
        let missing: Vec<_> = here.iter().filter(|g| !there.contains(g)).collect();
        assert!(missing.is_empty(), "{what}: {missing:?} of {here:?} are not in {there:?}");
        for gid in there {
            same(&self.to.restored(gid).await, &device.history[gid as usize], what);
        }
    }
}

/// The gids of the snapshots that are kept.
pub async fn explicit(client: &mut Client) -> Vec<u64> {
    client.restorable(false).await.into_iter().map(|Restorable { gid, .. }| gid).collect()
}
