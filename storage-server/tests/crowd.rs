//! Many volumes in one process: no thread and no work for those that are idle.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use block_io::device::BlockDevice;
use block_io::sim::SimDisk;
use futures::future::BoxFuture;
use server_kit::durable::RealDir;
use server_kit::error::RoleError;
use server_kit::net::RealConnector;
use server_kit::shutdown::Shutdown;
use storage_server::device::address::DeviceAddress;
use storage_server::device::{Devices, Info, Positions, Regions, Seen, Status, WalbDevice};
use storage_server::peers::{PeerNames, Peers};
use storage_server::registry::Registry;
use storage_server::shared::{Config, Shared};
use tokio::sync::watch;
use wlog_format::superblock::{DeviceName, SUPER_OFFSET_BYTES, SuperBlock};
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid};

const VOLUMES: usize = 300;

/// A device that nobody writes to; counts how often it is asked.
struct Quiet {
    address: DeviceAddress,
    log: Arc<SimDisk>,
    info: Info,
    seen: watch::Sender<Seen>,
    asked: Arc<AtomicUsize>,
}

struct QuietDevices {
    log: Arc<SimDisk>,
    superblock: SuperBlock,
    asked: Arc<AtomicUsize>,
}

impl Devices for QuietDevices {
    fn find(&self, address: &DeviceAddress) -> Arc<dyn WalbDevice> {
        let status = Status {
            positions: Positions::default(),
            overflow: false,
            size: Lb(1000),
            log_uuid: self.superblock.uuid,
        };
        let info = Info {
            status: status.clone(),
            block_size: BlockSize::B4096,
            salt: self.superblock.salt,
            ring_size: self.superblock.ring_size,
            log_path: "log".into(),
            data_path: "data".into(),
            overwriting: false,
            failure: None,
        };
        Arc::new(Quiet {
            address: address.clone(),
            log: Arc::clone(&self.log),
            info,
            seen: watch::Sender::new(Seen::Up(status)),
            asked: Arc::clone(&self.asked),
        })
    }
}

impl Quiet {
    fn positions(&self) -> BoxFuture<'_, Result<Positions, RoleError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(self.info.status.positions) })
    }
}

impl WalbDevice for Quiet {
    fn address(&self) -> &DeviceAddress {
        &self.address
    }
    fn info(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(self.info.clone()) })
    }
    fn set_oldest(&self, _: Lsid) -> BoxFuture<'_, Result<Positions, RoleError>> {
        self.positions()
    }
    fn take_checkpoint(&self) -> BoxFuture<'_, Result<Positions, RoleError>> {
        self.positions()
    }
    fn reset_log(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.info()
    }
    fn resize(&self, _: Lb) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.info()
    }
    fn regions(&self, _: LogUuid, _: Lsid) -> BoxFuture<'_, Result<Regions, RoleError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(Regions::Unknown(String::new())) })
    }
    fn begin_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.info()
    }
    fn end_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.info()
    }
    fn watch(&self) -> watch::Receiver<Seen> {
        self.seen.subscribe()
    }
    fn open_log(&self, _: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        Ok(self.log.clone())
    }
    fn open_data_for_writing(&self, _: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        Ok(self.log.clone())
    }
    fn open_data(&self, _: &Info) -> Result<Arc<dyn BlockDevice>, RoleError> {
        Ok(self.log.clone())
    }
}

async fn quiet_devices() -> QuietDevices {
    let log = SimDisk::new("log", 1 << 20, 4096);
    let superblock =
        SuperBlock::for_format(1 << 20, BlockSize::B4096, Lb(1000), DeviceName::default()).unwrap();
    log.write(SUPER_OFFSET_BYTES, vec![superblock.encode().into()]).await.unwrap();
    QuietDevices { log, superblock, asked: Arc::default() }
}

fn config() -> Config {
    Config {
        id: "s0".parse().unwrap(),
        max_wlog_send: 1 << 20,
        snapshot_interval: Duration::from_millis(10),
        retry_min: Duration::from_millis(10),
        send_timeout: Duration::from_secs(1),
        retry_max: Duration::from_millis(10),
        buffer_memory: 32 << 20,
        archive_poll: Duration::from_millis(10),
        auto_resync: true,
    }
}

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[tokio::test]
async fn hundreds_of_idle_volumes_need_no_thread_and_do_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let devices = quiet_devices().await;
    let asked = Arc::clone(&devices.asked);
    let base = Arc::new(RealDir::create(dir.path().join("s0")).unwrap());
    let archive = "unix:/nonexistent/a0".parse().unwrap();
    let flags = PeerNames::at(archive, vec!["unix:/nonexistent/p0".parse().unwrap()]);
    let peers = Peers::open(base.clone(), flags, Arc::new(RealConnector)).unwrap();
    let shared = Shared::new(config(), peers, Arc::new(devices), Shutdown::new());
    let registry = Registry::open(base, Arc::new(shared)).await.unwrap();
    for i in 0..VOLUMES {
        let name = format!("v{i}");
        let address = DeviceAddress::parse("/nonexistent/d", Some(&name)).unwrap();
        registry.init(name.parse().unwrap(), address).await.unwrap();
        registry.volume(&name.parse().unwrap()).unwrap().start_standby().await.unwrap();
    }
    let before = asked.load(Ordering::Relaxed);
    // That nothing happens can only be seen by waiting.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(asked.load(Ordering::Relaxed), before, "an idle volume asks its device");
    // Those of the runtime and a few for blocking work.
    assert!(threads() < 50, "{} threads", threads());
    registry.stop(false).await;
}
