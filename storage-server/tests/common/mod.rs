//! A storage server between a real device role and stub proxies and archive, in one process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a test may panic; not every test uses everything"
)]

pub mod archive;
pub mod checks;
pub mod device;
pub mod proxy;
pub mod storage;

use std::time::Duration;

use tempfile::TempDir;

#[allow(unused_imports, reason = "not every test uses everything")]
pub use self::{
    archive::StubArchive,
    device::TestDevice,
    proxy::{Behaviour, StubProxy, Wire},
    storage::{Storage, StorageOptions},
};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until `check` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub const VOLUME: &str = "vol";

/// Everything around one volume.
pub struct Cluster {
    pub dir: TempDir,
    pub device: TestDevice,
    pub wire: Wire,
    pub proxies: Vec<StubProxy>,
    pub archive: StubArchive,
    pub storage: Storage,
}

impl Cluster {
    /// A formatted device of 8 MiB with a log of `log_mib`, two proxies, an archive, and a storage
    /// server that knows the volume.
    pub async fn new(log_mib: u64, options: StorageOptions) -> Self {
        let cluster = Self::without_volume(log_mib, options).await;
        cluster.storage.init(VOLUME, &cluster.device.address()).await.unwrap();
        cluster
    }

    pub async fn without_volume(log_mib: u64, options: StorageOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let device = TestDevice::create(dir.path(), log_mib).await;
        let wire = Wire::default();
        let mut proxies = Vec::new();
        for name in ["p0", "p1"] {
            proxies.push(StubProxy::start(dir.path(), name, wire.clone()).await);
        }
        let archive = StubArchive::start(dir.path(), &wire).await;
        let addresses: Vec<_> = proxies.iter().map(|p| p.endpoint.clone()).collect();
        let storage =
            Storage::start(dir.path(), &archive.endpoint, &addresses, &wire, options).await;
        Self { dir, device, wire, proxies, archive, storage }
    }

    /// The same, after a full backup.
    pub async fn target(log_mib: u64, options: StorageOptions) -> Self {
        let cluster = Self::new(log_mib, options).await;
        cluster.storage.full_backup(VOLUME).await.unwrap();
        cluster
    }

    /// Kills the storage server at this instant and starts it again.
    pub async fn restart_storage(&mut self) {
        self.storage.kill().await;
        self.storage.revive(StorageOptions::default()).await;
    }

    /// Takes a snapshot, waits until it is at a proxy, and checks that everything that was shipped
    /// gives the device as it is now (nobody writes meanwhile).
    pub async fn check_restorable(&mut self) {
        let gid = self.storage.snapshot(VOLUME).await.unwrap().gid;
        let uuid = self.shipped(gid).await;
        let device = self.device.image().await;
        checks::same_image(&device, &self.archive.restore(&uuid, gid));
    }

    /// Waits until `gid` of the present log is at a proxy; the log's uuid.
    pub async fn shipped(&self, gid: u64) -> bytes::Bytes {
        let uuid = self.storage.get(VOLUME).await.log_uuid;
        self.wire.shipped(&uuid, gid).await;
        uuid
    }
}
