//! A storage server in a runtime of its own, so that it can be killed at any instant.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::storage_server::book::{self, Record};
use ::storage_server::device::address::DeviceAddress;
use ::storage_server::device::control::ControlDevices;
use ::storage_server::device::{Devices, Info, Positions, Regions, Seen, WalbDevice};
use ::storage_server::serve::{Resync, ServeArgs, StorageRole, World};
use ::storage_server::state::Saved;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use proto::v1::host_client::HostClient;
use proto::v1::storage_client::StorageClient;
use proto::v1::*;
use server_kit::durable::{Fuse, RealDir, StateFile};
use server_kit::error::RoleError;
use server_kit::net::{Connector, Endpoint, RealConnector};
use server_kit::shutdown::Shutdown;
use server_kit::units::{Size, Span};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;
use wlog_format::units::{Lb, LogUuid, Lsid};

use super::proxy::Wire;

/// The record of a volume as it is on the disk now.
pub fn on_disk(base: &Path, volume: &str) -> Option<Record> {
    let dir = Arc::new(RealDir::open(base.join(volume)).ok()?);
    StateFile::new(dir, book::FILE).load().unwrap()
}

/// Devices that look, at each release of logs, whether that is allowed (I4).
struct Watched(ControlDevices, Wire, PathBuf, Map);

struct WatchedDevice(Arc<dyn WalbDevice>, Wire, PathBuf, Map);

/// What the device is asked about its regions, and what it shall answer.
#[derive(Default)]
pub struct Script {
    pub answer: Option<Regions>,
    pub asked: Vec<(LogUuid, Lsid)>,
}

pub type Map = Arc<Mutex<Script>>;

impl Devices for Watched {
    fn find(&self, address: &DeviceAddress) -> Arc<dyn WalbDevice> {
        let Self(real, wire, base, map) = self;
        Arc::new(WatchedDevice(real.find(address), wire.clone(), base.clone(), map.clone()))
    }
}

impl WatchedDevice {
    fn check_release(&self, oldest: Lsid) {
        let record = on_disk(&self.2, super::VOLUME).expect("a volume that releases logs");
        if record.state == Saved::Standby {
            return;
        }
        let history = record.history.expect("a volume that ships logs");
        let done = history.marks.done.lsid;
        if done < oldest {
            self.1.complain(format!("I4: released up to {oldest}, durably done is {done}"));
        }
        let held = self.1.held_lsid(&history.log_uuid.0);
        if held < oldest.0 {
            self.1.complain(format!("I4: released up to {oldest}, proxies hold up to {held}"));
        }
    }
}

impl WalbDevice for WatchedDevice {
    fn address(&self) -> &DeviceAddress {
        self.0.address()
    }
    fn info(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.0.info()
    }
    fn set_oldest(&self, oldest: Lsid) -> BoxFuture<'_, Result<Positions, RoleError>> {
        self.check_release(oldest);
        self.0.set_oldest(oldest)
    }
    fn take_checkpoint(&self) -> BoxFuture<'_, Result<Positions, RoleError>> {
        self.0.take_checkpoint()
    }
    fn reset_log(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.0.reset_log()
    }
    fn resize(&self, size: Lb) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.0.resize(size)
    }
    fn regions(&self, log: LogUuid, since: Lsid) -> BoxFuture<'_, Result<Regions, RoleError>> {
        let mut scripted = self.3.lock();
        scripted.asked.push((log, since));
        match scripted.answer.clone() {
            Some(answer) => Box::pin(async { Ok(answer) }),
            None => self.0.regions(log, since),
        }
    }
    fn begin_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.0.begin_overwrite()
    }
    fn end_overwrite(&self) -> BoxFuture<'_, Result<Info, RoleError>> {
        self.0.end_overwrite()
    }
    fn watch(&self) -> watch::Receiver<Seen> {
        self.0.watch()
    }
    fn open_log(&self, info: &Info) -> Result<Arc<dyn block_io::device::BlockDevice>, RoleError> {
        self.0.open_log(info)
    }
    fn open_data_for_writing(
        &self,
        info: &Info,
    ) -> Result<Arc<dyn block_io::device::BlockDevice>, RoleError> {
        self.0.open_data_for_writing(info)
    }
    fn open_data(&self, info: &Info) -> Result<Arc<dyn block_io::device::BlockDevice>, RoleError> {
        self.0.open_data(info)
    }
}

#[derive(Clone)]
pub struct StorageOptions {
    pub max_wlog_send: u64,
    pub snapshot_interval: Duration,
    pub fuse: Option<Fuse>,
    pub resync: Resync,
    pub archive_poll: Duration,
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            max_wlog_send: 1 << 20,
            snapshot_interval: Duration::from_millis(50),
            fuse: None,
            resync: Resync::Manual,
            archive_poll: Duration::from_secs(3600),
        }
    }
}

pub struct Storage {
    runtime: Option<Runtime>,
    pub args: ServeArgs,
    wire: Wire,
    pub base: PathBuf,
    pub map: Map,
    channel: Channel,
}

impl Storage {
    pub async fn start(
        dir: &Path,
        archive: &Endpoint,
        proxies: &[Endpoint],
        wire: &Wire,
        options: StorageOptions,
    ) -> Self {
        let base = dir.join("s0");
        let listen = Endpoint::Unix(dir.join("s0.sock"));
        wire.judge_by(&base);
        let args = ServeArgs {
            base: Some(base.clone()),
            listen: Some(listen.clone()),
            id: Some("s0".parse().unwrap()),
            archive: Some(archive.clone()),
            proxy: proxies.to_vec(),
            retry_min: Some(Span(Duration::from_millis(20))),
            retry_max: Some(Span(Duration::from_millis(200))),
            ..ServeArgs::default()
        };
        let channel = RealConnector.channel(&listen);
        let (wire, map) = (wire.clone(), Map::default());
        let mut storage = Self { runtime: None, args, wire, base, map, channel };
        storage.revive(options).await;
        storage
    }

    /// Starts the server; one that cannot even be opened is down.
    pub async fn revive(&mut self, options: StorageOptions) {
        // Not the connection to the killed one, which may not have noticed that it is broken.
        self.channel = RealConnector.channel(self.args.listen.as_ref().unwrap());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let mut args = self.args.clone();
        args.max_wlog_send = Some(Size(options.max_wlog_send));
        args.resync = Some(options.resync);
        args.archive_poll = Some(Span(options.archive_poll));
        args.snapshot_interval = Some(Span(options.snapshot_interval));
        let mut world = World::real();
        let control = ControlDevices::new(Arc::clone(&world.connector));
        let (wire, map) = (self.wire.clone(), Arc::clone(&self.map));
        world.devices = Arc::new(Watched(control, wire, self.base.clone(), map));
        if let Some(fuse) = options.fuse {
            world.open_dir = fuse.dirs();
        }
        let opened = runtime.spawn(async move {
            let role = StorageRole::open(&args, world, Shutdown::new()).await.unwrap();
            tokio::spawn(role.run());
        });
        opened.await.unwrap();
        self.runtime = Some(runtime);
    }

    /// Nothing of the server runs any more.
    pub async fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            let ended =
                tokio::task::spawn_blocking(|| runtime.shutdown_timeout(Duration::from_secs(10)));
            ended.await.unwrap();
        }
    }

    pub fn client(&self) -> StorageClient<Channel> {
        StorageClient::new(self.channel.clone())
    }

    pub fn host(&self) -> HostClient<Channel> {
        HostClient::new(self.channel.clone())
    }

    pub fn record(&self) -> Record {
        on_disk(&self.base, super::VOLUME).expect("a record on the disk")
    }

    pub async fn init(&self, volume: &str, device: &str) -> Result<(), Status> {
        let request = InitStorageRequest { volume: volume.into(), device: device.into() };
        self.client().init(request).await.map(|_| ())
    }

    pub async fn get(&self, volume: &str) -> StorageVolume {
        self.client().get(VolumeRef { volume: volume.into() }).await.unwrap().into_inner()
    }

    pub async fn snapshot(&self, volume: &str) -> Result<SnapshotReply, Status> {
        let reply = self.client().take_snapshot(VolumeRef { volume: volume.into() }).await?;
        let reply = reply.into_inner();
        let marks = self.record().history.unwrap().marks;
        let known = marks.done.gid.0 >= reply.gid
            || marks.queue().any(|m| (m.gid.0, m.lsid.0) == (reply.gid, reply.lsid));
        assert!(known, "I6: gid {} was told and is not on the disk", reply.gid);
        Ok(reply)
    }

    pub async fn start_volume(&self, volume: &str, mode: StorageMode) -> Result<(), Status> {
        let request = StartStorageRequest { volume: volume.into(), mode: mode.into() };
        self.client().start(request).await.map(|_| ())
    }

    pub async fn stop_volume(&self, volume: &str, mode: StopMode) -> Result<(), Status> {
        let request = StopRequest { volume: volume.into(), mode: mode.into() };
        self.client().stop(request).await.map(|_| ())
    }

    pub async fn begin_backup(&self, volume: &str) -> Result<Operation, Status> {
        self.begin_backup_as(volume, true).await
    }

    pub async fn begin_backup_as(&self, volume: &str, resume: bool) -> Result<Operation, Status> {
        let request = FullBackupRequest {
            volume: volume.into(),
            bulk_bytes: 64 << 10,
            resume,
            scan_bytes_per_s: 0,
        };
        Ok(self.client().full_backup(request).await?.into_inner())
    }

    /// The operation when it has ended.
    pub async fn ended(&self, id: &str) -> Operation {
        let request = OperationRef { id: id.into() };
        let mut changes = self.host().watch_operation(request).await.unwrap().into_inner();
        let mut last = None;
        while let Some(operation) = changes.message().await.unwrap() {
            last = Some(operation);
        }
        last.unwrap()
    }

    /// The gid of the backup, or how it failed.
    pub async fn full_backup(&self, volume: &str) -> Result<u64, Operation> {
        let id = self.begin_backup(volume).await.unwrap().id;
        self.gid_of(&id).await
    }

    pub async fn begin_hash_backup(&self, volume: &str) -> Result<Operation, Status> {
        let request = HashBackupRequest { volume: volume.into(), ..HashBackupRequest::default() };
        Ok(self.client().hash_backup(request).await?.into_inner())
    }

    /// The gid of the backup, or how it failed.
    pub async fn hash_backup(&self, volume: &str) -> Result<u64, Operation> {
        let id = self.begin_hash_backup(volume).await.unwrap().id;
        self.gid_of(&id).await
    }

    async fn gid_of(&self, id: &str) -> Result<u64, Operation> {
        let operation = self.ended(id).await;
        match operation.status() {
            OperationStatus::Done => Ok(operation.gid.unwrap()),
            _ => Err(operation),
        }
    }

    pub async fn wait_state(&self, state: &str) {
        super::eventually(state, || async {
            (self.get(super::VOLUME).await.state == state).then_some(())
        })
        .await;
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
