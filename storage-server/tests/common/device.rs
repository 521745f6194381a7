//! A device role in this process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use device_server::{
    ControlService, DeviceRole, OverflowPolicy, ReadPiece, Served, Volume, VolumeOptions,
    format_devices, open_device,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use server_kit::durable::{DurableDir, RealDir};
use server_kit::net::{Endpoint, Listener, serve};
use server_kit::shutdown::Shutdown;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use wlog_format::superblock::DeviceName;
use wlog_format::units::BlockSize;

pub const SIZE_BYTES: u64 = 8 << 20;

struct Running {
    volume: Arc<Volume>,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
}

pub struct TestDevice {
    dir: PathBuf,
    running: Option<Running>,
    rng: StdRng,
    pub policy: OverflowPolicy,
}

impl TestDevice {
    pub async fn create(dir: &Path, log_mib: u64) -> Self {
        for (name, bytes) in [("data", SIZE_BYTES), ("log", log_mib << 20)] {
            std::fs::File::create(dir.join(name)).unwrap().set_len(bytes).unwrap();
        }
        let log = open_device(&dir.join("log"), DeviceRole::Log).await.unwrap();
        let data = open_device(&dir.join("data"), DeviceRole::Data).await.unwrap();
        format_devices(&log, &data, BlockSize::B4096, DeviceName::default()).await.unwrap();
        drop((log, data));
        let rng = StdRng::seed_from_u64(1);
        let policy = OverflowPolicy::Overwrite;
        let mut device = Self { dir: dir.to_owned(), running: None, rng, policy };
        device.start().await;
        device
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub fn address(&self) -> String {
        format!("{}#vol", self.dir.join("device.sock").display())
    }

    pub async fn start(&mut self) {
        let log = open_device(&self.dir.join("log"), DeviceRole::Log).await.unwrap();
        let data = open_device(&self.dir.join("data"), DeviceRole::Data).await.unwrap();
        let options = VolumeOptions {
            checkpoint_interval: Duration::from_millis(300),
            policy: self.policy,
            ..VolumeOptions::default()
        };
        let state: Arc<dyn DurableDir> =
            Arc::new(RealDir::create(self.dir.join("device-state")).unwrap());
        let opened = Volume::open_with_state("vol", log, data, options, Some(state)).await;
        let (volume, _) = opened.unwrap();
        let volume = Arc::new(volume);
        let served = Served { volume: Arc::clone(&volume), frontends: Vec::new() };
        let volumes = BTreeMap::from([("vol".to_owned(), served)]);
        let shutdown = Shutdown::new();
        let endpoint = Endpoint::Unix(self.dir.join("device.sock"));
        let listener = Listener::bind(&endpoint, false).await.unwrap();
        let service = ControlService::server(volumes, shutdown.clone());
        let until = shutdown.clone();
        let serving = tokio::spawn(async move {
            serve(listener, Routes::new(service), &until).await.unwrap();
        });
        self.running = Some(Running { volume, shutdown, serving });
    }

    pub async fn stop(&mut self) {
        let Some(Running { volume, shutdown, serving }) = self.running.take() else { return };
        shutdown.request(proto::v1::StopMode::Force);
        serving.await.unwrap();
        volume.close().await.unwrap();
    }

    pub fn volume(&self) -> &Volume {
        &self.running.as_ref().unwrap().volume
    }

    pub async fn write(&self, offset: u64, data: Vec<u8>) {
        self.volume().write(offset, Bytes::from(data), false).await.unwrap();
    }

    /// Random writes, and now and then a discard, all over the volume.
    pub async fn scribble(&mut self, writes: usize) {
        for _ in 0..writes {
            let blocks = self.rng.random_range(1..=16_u64);
            let offset = self.rng.random_range(0..SIZE_BYTES / 4096 - blocks) * 4096;
            if self.rng.random_range(0..10) == 0 {
                self.volume().trim(offset, blocks * 4096, false).await.unwrap();
            } else {
                let mut data = vec![0; usize::try_from(blocks * 4096).unwrap()];
                self.rng.fill(&mut data[..]);
                self.write(offset, data).await;
            }
        }
    }

    /// Writes `bytes` of noise in writes of 64 KiB.
    pub async fn fill(&mut self, bytes: u64) {
        for i in 0..bytes / (64 << 10) {
            let mut data = vec![0; 64 << 10];
            self.rng.fill(&mut data[..]);
            self.write((i * (64 << 10)) % SIZE_BYTES, data).await;
        }
    }

    pub async fn image(&self) -> Vec<u8> {
        let mut image = Vec::new();
        let len = usize::try_from(SIZE_BYTES).unwrap();
        for piece in self.volume().read(0, len).await.unwrap() {
            match piece {
                ReadPiece::Data(data) => image.extend_from_slice(&data),
                ReadPiece::Zeros(n) => image.resize(image.len() + usize::try_from(n).unwrap(), 0),
            }
        }
        image
    }
}
