//! The roles as processes of simulated hosts: the real servers, on simulated seams.

use crate::defect::{Defect, Defects};
use crate::devices::SimDevices;
use crate::disks::Disk;
use crate::fs::Fs;
use crate::images::{NoImages, SimImages};
use crate::life::Life;
use crate::model::{BLOCK, Model, SIZE, block, values};
use crate::net::Net;
use block_io::device::BlockDevice;
use bytes::Bytes;
use device_server::{
    ControlService, OverflowPolicy, ReadPiece, Served, Volume, VolumeOptions, format_devices,
};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use server_kit::net::{Endpoint, Listener, serve};
use server_kit::shutdown::Shutdown;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use storage_server::device::control::ControlDevices;
use storage_server::serve::Resync;
use tokio::sync::mpsc;
use tonic::service::Routes;
use wlog_format::superblock::DeviceName;
use wlog_format::units::BlockSize;

/// Bytes of the log device, where it never overflows.
const LOG_BYTES: usize = 2 << 20;
/// Bytes of one that does: a few seconds of writes.
const SMALL_LOG_BYTES: usize = 640 << 10;
/// Wdiffs that an archive opens at a time: few, so that long jobs come back for more.
const OPEN_WDIFFS: usize = 2;
/// How long an archive keeps what is needless.
const GRACE: Duration = Duration::from_secs(2);
/// How often somebody else deletes wdiffs, where that is so.
const SECOND_OWNER: Duration = Duration::from_millis(20);
/// Name of the volume.
pub(crate) const VOLUME: &str = "vol";

/// Where a server listens.
pub(crate) fn endpoint(host: &str) -> Endpoint {
    Endpoint::Unix(format!("/sim/{host}").into())
}

/// What a role of the device's host has besides its files.
#[derive(Clone)]
pub(crate) struct Machine {
    pub(crate) log: Disk,
    pub(crate) data: Disk,
    pub(crate) model: Arc<Mutex<Model>>,
    /// Whether the application writes.
    pub(crate) writing: Arc<AtomicBool>,
    policy: OverflowPolicy,
}

impl Machine {
    pub(crate) fn new(defects: &Defects, overflows: bool) -> Self {
        let (bytes, policy) = match overflows {
            true => (SMALL_LOG_BYTES, OverflowPolicy::Overwrite),
            false => (LOG_BYTES, OverflowPolicy::Stall),
        };
        Self {
            policy,
            log: Disk::new("log", bytes, defects.clone()),
            data: Disk::new("data", SIZE, defects.clone()),
            model: Arc::default(),
            writing: Arc::default(),
        }
    }

    pub(crate) async fn format(&self) {
        let log: Arc<dyn BlockDevice> = Arc::new(self.log.clone());
        let data: Arc<dyn BlockDevice> = Arc::new(self.data.clone());
        format_devices(&log, &data, BlockSize::B4096, DeviceName::default()).await.unwrap();
    }
}

/// What a process is started with.
#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) host: &'static str,
    pub(crate) life: Life,
    pub(crate) net: Net,
    pub(crate) fs: Fs,
    pub(crate) machine: Machine,
    pub(crate) defects: Defects,
    /// After a power cut the application may find less than it had written.
    pub(crate) power_cut: bool,
    pub(crate) seed: u64,
    pub(crate) archives: &'static [&'static str],
    pub(crate) proxies: &'static [&'static str],
    /// Whether the storage role heals gaps by itself.
    pub(crate) heals: bool,
}

impl Process {
    /// Runs the role until it is killed.
    pub(crate) async fn run(self) -> Result<(), String> {
        match self.host.as_bytes().first() {
            Some(b'd') => self.device().await,
            Some(b's') => self.storage().await,
            Some(b'p') => self.proxy().await,
            _ => self.archive().await,
        }
    }

    async fn device(self) -> Result<(), String> {
        let options = VolumeOptions {
            checkpoint_interval: Duration::from_millis(700),
            policy: self.machine.policy,
            ..VolumeOptions::default()
        };
        let Machine { log, data, model, writing, .. } = self.machine.clone();
        let opened = Volume::open(VOLUME, Arc::new(log), Arc::new(data), options).await;
        let volume = Arc::new(opened.map_err(|e| format!("the device does not open: {e}"))?.0);
        let image = values(&read_all(&volume).await?)?;
        model.lock().recover(&image, self.power_cut)?;
        let served = Served { volume: volume.clone(), frontends: Vec::new() };
        let shutdown = Shutdown::new();
        let volumes = BTreeMap::from([(VOLUME.to_owned(), served)]);
        let service = ControlService::server(volumes, shutdown.clone());
        let listener = self.net.listen(self.host, &endpoint(self.host), &self.life);
        let application = application(&volume, &model, &writing, self.seed);
        let serving = serve(listener, Routes::new(service), &shutdown);
        tokio::select! {
            wrong = application => wrong,
            served = serving => served.map_err(|e| e.full_message()),
        }
    }

    async fn storage(self) -> Result<(), String> {
        let args = storage_server::serve::ServeArgs {
            base: Some("/s0".into()),
            id: Some("s0".parse().unwrap()),
            archive: Some(endpoint(self.archives[0])),
            proxy: self.proxies.iter().map(|p| endpoint(p)).collect(),
            max_wlog_send: Some("1M".parse().unwrap()),
            retry_min: Some("100ms".parse().unwrap()),
            retry_max: Some("2s".parse().unwrap()),
            resync: Some(if self.heals { Resync::Auto } else { Resync::Manual }),
            ..Default::default()
        };
        let connector = self.net.connector(self.host, &self.life);
        let world = storage_server::serve::World {
            devices: Arc::new(SimDevices {
                control: ControlDevices::new(connector.clone()),
                machine: self.machine.clone(),
                defects: self.defects.clone(),
            }),
            connector,
            open_dir: self.fs.open_dir(&self.life, &self.defects),
        };
        let listener = self.net.listen(self.host, &endpoint(self.host), &self.life);
        let opened =
            storage_server::serve::StorageRole::open_on(listener, &args, world, Shutdown::new());
        let role = opened.await.map_err(|e| format!("{e:#}"))?;
        role.run().await.map_err(|e| format!("{e:#}"))
    }

    async fn proxy(self) -> Result<(), String> {
        let settings = proxy_server::Settings {
            base: Some(format!("/{}", self.host).into()),
            id: Some(self.host.parse().unwrap()),
            retry_min: Some("100ms".parse().unwrap()),
            retry_max: Some("2s".parse().unwrap()),
            ..Default::default()
        };
        let world = proxy_server::World {
            open_dir: self.fs.open_dir(&self.life, &self.defects),
            connector: self.net.connector(self.host, &self.life),
        };
        let listener = self.net.listen(self.host, &endpoint(self.host), &self.life);
        let served = proxy_server::serve_on(listener, &settings, world, Shutdown::new()).await;
        served.map_err(|e| e.full_message())
    }

    async fn archive(self) -> Result<(), String> {
        let images = SimImages {
            fs: self.fs.clone(),
            life: self.life.clone(),
            defects: self.defects.clone(),
        };
        let world = archive_server::World {
            open_dir: self.fs.open_dir(&self.life, &self.defects),
            images: Arc::new(images),
            connector: self.net.connector(self.host, &self.life),
            now: Arc::new(server_kit::clock::unix_seconds),
        };
        let listener = self.net.listen(self.host, &endpoint(self.host), &self.life);
        let served = self.archive_server(world).run(listener, Shutdown::new());
        tokio::select! {
            served = served => served.map_err(|e| e.full_message()),
            never = self.second_owner() => never,
        }
    }

    fn archive_server(&self, world: archive_server::World) -> archive_server::Server {
        archive_server::Server {
            base: format!("/{}", self.host).into(),
            id: self.host.parse().unwrap(),
            settings: archive_server::Settings {
                flush_bytes: 64 << 10,
                max_open: OPEN_WDIFFS,
                silence: Duration::from_secs(10),
                grace: GRACE,
                ..Default::default()
            },
            backend: archive_server::BackendChoice::File,
            retention: None,
            world,
        }
    }

    /// The deletions of an archive that is started on the same directory again and again, beside
    /// the one that serves it: they are the product's own, by one who knows of no lease.
    async fn second_owner(&self) -> Result<(), String> {
        loop {
            tokio::time::sleep(SECOND_OWNER).await;
            if !self.defects.has(Defect::SecondOwner) {
                continue;
            }
            let world = archive_server::World {
                open_dir: self.fs.open_dir_to_delete(&self.life, &self.defects),
                images: Arc::new(NoImages),
                connector: self.net.connector(self.host, &self.life),
                now: Arc::new(server_kit::clock::unix_seconds),
            };
            let (_nobody, queue) = mpsc::unbounded_channel();
            let listener = Listener::handed(endpoint(self.host), queue);
            let mut server = self.archive_server(world);
            server.settings.grace = Duration::ZERO;
            let served = server.run(listener, Shutdown::new());
            let _ = tokio::time::timeout(SECOND_OWNER, served).await;
        }
    }
}

async fn read_all(volume: &Volume) -> Result<Vec<u8>, String> {
    let size = usize::try_from(volume.size_bytes()).unwrap();
    read(volume, 0, size).await
}

async fn read(volume: &Volume, offset: usize, len: usize) -> Result<Vec<u8>, String> {
    let mut image: Vec<u8> = Vec::new();
    for piece in volume.read(offset as u64, len).await.map_err(|e| e.to_string())? {
        match piece {
            ReadPiece::Data(data) => image.extend_from_slice(&data),
            ReadPiece::Zeros(n) => image.resize(image.len() + usize::try_from(n).unwrap(), 0),
        }
    }
    Ok(image)
}

/// What was acknowledged is read, wherever it is by now (I3).
async fn read_back(
    volume: &Volume,
    model: &Mutex<Model>,
    blocks: [usize; 2],
) -> Result<(), String> {
    for index in blocks {
        let data = read(volume, index * BLOCK, BLOCK).await?;
        let (first, _) = data.split_first_chunk().ok_or("a read without data")?;
        model.lock().check_read(index, u64::from_le_bytes(*first))?;
    }
    Ok(())
}

/// Writes while it may: batches of writes and discards that are in flight together.
async fn application(
    volume: &Volume,
    model: &Mutex<Model>,
    writing: &AtomicBool,
    seed: u64,
) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    loop {
        tokio::time::sleep(Duration::from_millis(rng.random_range(1..60))).await;
        if !writing.load(Ordering::Relaxed) {
            continue;
        }
        let count = rng.random_range(1..=4);
        let size = usize::try_from(volume.size_bytes()).unwrap() / BLOCK;
        let blocks: BTreeSet<usize> = (0..count).map(|_| rng.random_range(0..size)).collect();
        let discard = rng.random_ratio(1, 12);
        let mut batch = BTreeMap::new();
        for index in blocks {
            let value = if discard { 0 } else { model.lock().new_value() };
            batch.insert(index, value);
        }
        model.lock().begin(batch.clone());
        let seen = *batch.keys().next().unwrap_or(&0);
        let writes = batch.into_iter().map(|(index, value)| async move {
            let offset = (index * BLOCK) as u64;
            match value {
                0 => volume.trim(offset, BLOCK as u64, false).await,
                _ => volume.write(offset, Bytes::from(block(value)), false).await,
            }
        });
        for done in futures::future::join_all(writes).await {
            done.map_err(|e| format!("a write failed: {e}"))?;
        }
        model.lock().end();
        read_back(volume, model, [seen, rng.random_range(0..size)]).await?;
        if rng.random_ratio(1, 8) {
            volume.flush().await.map_err(|e| format!("a flush failed: {e}"))?;
            model.lock().flushed();
        }
    }
}
