//! The archive as a process that can be killed: the real server on a simulated disk, asked by its
//! own messages, without a network in between.

use super::history::{Image, Line};
use crate::defect::Defects;
use crate::fs::Fs;
use crate::images::SimImages;
use crate::life::Life;
use crate::net::Net;
use archive_server::{BackendChoice, Inside, Loaded, Server, Settings, World};
use proto::v1::archive_client::ArchiveClient;
use proto::v1::{
    ArchiveVolume, DiffEntry, Operation, OperationStatus, RestorableRequest, VolumeRef,
};
use server_kit::pages;
use server_kit::shutdown::Shutdown;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tonic::service::Routes;

/// Name of the volume.
pub(super) const VOLUME: &str = "vol";
/// Its directory.
pub(super) const DIR: &str = "/a0/vol";
/// Wdiffs that a job opens at a time: few, so that merges and applies take several rounds.
const OPEN_WDIFFS: usize = 3;
/// Wdiffs that the index takes in at a time: few, so that it has several runs.
const INDEX_BATCH: usize = 4;
/// What is needless waits for some steps.
const GRACE: Duration = Duration::from_secs(15);
/// Simulated time between two looks at what goes on.
const LOOK: Duration = Duration::from_millis(1);
/// Looks until what goes on is stuck: a minute and a half of simulated time.
const LOOKS: u32 = 90_000;

pub(super) type Client = ArchiveClient<Routes>;

/// A mount, and what it must read for as long as it lives.
pub(super) struct Mount {
    pub(super) inside: Inside,
    pub(super) gid: u64,
    pub(super) image: Image,
    pub(super) blocks: usize,
}

/// What a living archive has.
pub(super) struct Process {
    pub(super) mounts: Vec<Mount>,
    pub(super) client: Client,
    loaded: Loaded,
    runtime: Runtime,
    life: Life,
}

fn server(world: World) -> Server {
    let settings = Settings {
        max_open: OPEN_WDIFFS,
        index_batch: INDEX_BATCH,
        grace: GRACE,
        silence: Duration::from_secs(10),
        upkeep_pause: Duration::from_secs(1),
        ..Settings::default()
    };
    let (backend, retention) = (BackendChoice::File, None);
    Server { base: "/a0".into(), id: "a0".parse().unwrap(), settings, backend, retention, world }
}

pub(super) fn volume() -> VolumeRef {
    VolumeRef { volume: VOLUME.into() }
}

pub(super) fn said(status: &tonic::Status) -> String {
    server_kit::error::RoleError::from_status("a0", status).full_message()
}

impl Process {
    /// Starts the archive; `None`: it died while it did.
    pub(super) fn start(fs: &Fs, defects: &Defects) -> Result<Option<Self>, String> {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().start_paused(true).build().unwrap();
        let life = Life::default();
        let images = SimImages { fs: fs.clone(), life: life.clone(), defects: defects.clone() };
        let world = World {
            open_dir: fs.open_dir(&life, defects),
            images: Arc::new(images),
            connector: Net::new(0).connector("a0", &life),
            now: Arc::new(server_kit::clock::unix_seconds),
        };
        let loaded = runtime.block_on(server(world).load(Shutdown::new()));
        match loaded {
            Ok(loaded) => {
                let client = ArchiveClient::new(loaded.routes());
                Ok(Some(Self { mounts: Vec::new(), client, loaded, runtime, life }))
            }
            Err(_) if life.is_over() => Ok(None),
            Err(e) => Err(format!("the archive does not start: {}", e.full_message())),
        }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.life.is_over()
    }

    pub(super) fn routes(&self) -> Routes {
        self.loaded.routes()
    }

    /// Everything stops where it is.
    pub(super) fn kill(self) {
        self.life.end();
    }

    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Waits for an operation that must succeed.
    pub(super) async fn finish(&self, operation: &Operation) -> Result<Operation, String> {
        for _ in 0..LOOKS {
            let now = self.loaded.operations().get(&operation.id).map_err(|e| e.full_message())?;
            match now.status() {
                OperationStatus::Done => return Ok(now),
                OperationStatus::Running if self.is_dead() => return Err("it died".into()),
                OperationStatus::Running => tokio::time::sleep(LOOK).await,
                _ => return Err(format!("{} failed: {}", now.kind, now.error)),
            }
        }
        Err(format!("stuck: {}", operation.kind))
    }

    /// Waits until nothing runs.
    pub(super) async fn idle(&self) -> Result<(), String> {
        for _ in 0..LOOKS {
            if self.loaded.operations().running(VOLUME).is_empty() || self.is_dead() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Err("stuck: something runs on".into())
    }

    pub(super) async fn get(&self) -> Result<ArchiveVolume, String> {
        let volume = self.client.clone().get(volume()).await.map_err(|s| said(&s))?.into_inner();
        match volume.error.as_str() {
            "" => Ok(volume),
            error => Err(format!("the volume says: {error}")),
        }
    }

    /// The snapshots that the archive lists.
    pub(super) async fn list(&self) -> Result<Vec<Line>, String> {
        let request = RestorableRequest { volume: VOLUME.into(), all: true };
        let listed = self.client.clone().list_restorable(request).await.map_err(|s| said(&s))?;
        let listed = pages::all(listed.into_inner()).await.map_err(|s| said(&s))?;
        let listed = listed.into_iter().flat_map(|page| page.snapshots);
        Ok(listed.map(|s| (s.gid, s.timestamp_s, s.explicit_snapshot)).collect())
    }

    /// The diffs of the catalogue.
    pub(super) async fn diffs(&self) -> Result<Vec<DiffEntry>, String> {
        let listed = self.client.clone().list_diffs(volume()).await.map_err(|s| said(&s))?;
        let listed = pages::all(listed.into_inner()).await.map_err(|s| said(&s))?;
        Ok(listed.into_iter().flat_map(|page| page.diffs).collect())
    }

    /// Opens a snapshot as mounts and drills do.
    pub(super) async fn open(&self, gid: u64) -> Result<Inside, String> {
        self.loaded.open_snapshot(VOLUME, gid).await.map_err(|e| e.full_message())
    }
}

/// All of a snapshot.
pub(super) async fn read(inside: &Inside) -> Result<bytes::Bytes, String> {
    let bytes = usize::try_from(inside.size_bytes()).unwrap();
    inside.read(0, bytes).await.map_err(|e| e.full_message())
}
