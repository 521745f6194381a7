//! A storage server in a runtime of its own, so that it can be killed at any instant.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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
use server_kit::durable::{DurableDir, DurableError, DurableFile, FileInfo, RealDir, StateFile};
use server_kit::error::RoleError;
use server_kit::net::{Connector, Endpoint, RealConnector};
use server_kit::shutdown::Shutdown;
use server_kit::units::{Size, Span};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tonic::Status;
use tonic::transport::Channel;
use wdiff_format::io_at::ReadObject;
use wlog_format::units::{Lb, LogUuid, Lsid};

use super::proxy::Wire;

/// Lets a number of steps reach the disk; from then on none does, as if the process had been
/// killed there.
#[derive(Default)]
pub struct Fuse {
    left: AtomicI64,
}

impl Fuse {
    pub fn new(steps: i64) -> Arc<Self> {
        Arc::new(Self { left: AtomicI64::new(steps) })
    }

    pub fn is_blown(&self) -> bool {
        self.left.load(Ordering::SeqCst) < 0
    }

    /// From now on no step reaches the disk.
    pub fn blow(&self) {
        self.left.store(0, Ordering::SeqCst);
    }

    /// The disk works again.
    pub fn mend(&self) {
        self.left.store(i64::MAX / 2, Ordering::SeqCst);
    }

    fn step(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return Ok(());
        }
        self.left.store(-1, Ordering::SeqCst);
        Err(io::Error::other("killed here"))
    }
}

struct FusedDir(Arc<dyn DurableDir>, Arc<Fuse>);
struct FusedFile(Box<dyn DurableFile>, Arc<Fuse>);

impl io::Write for FusedFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl DurableFile for FusedFile {
    fn sync(&mut self) -> io::Result<()> {
        self.1.step()?;
        self.0.sync()
    }
    fn discard(&mut self) {
        self.0.discard();
    }
}

impl DurableDir for FusedDir {
    fn path(&self) -> &Path {
        self.0.path()
    }
    fn create(&self, name: &str) -> io::Result<Box<dyn DurableFile>> {
        self.1.step()?;
        Ok(Box::new(FusedFile(self.0.create(name)?, Arc::clone(&self.1))))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.rename(from, to)
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.unlink(name)
    }
    fn hard_link(&self, name: &str, target: &Path) -> io::Result<()> {
        self.1.step()?;
        self.0.hard_link(name, target)
    }
    fn sync(&self) -> io::Result<()> {
        self.1.step()?;
        self.0.sync()
    }
    fn read_file(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.read_file(name)
    }
    fn names(&self) -> io::Result<Vec<String>> {
        self.0.names()
    }
    fn open_file(&self, name: &str) -> io::Result<ReadObject> {
        self.0.open_file(name)
    }
    fn info(&self, name: &str) -> io::Result<FileInfo> {
        self.0.info(name)
    }
    fn set_len(&self, name: &str, len_bytes: u64) -> io::Result<()> {
        self.1.step()?;
        self.0.set_len(name, len_bytes)
    }
    fn sync_file(&self, name: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.sync_file(name)
    }
    fn reflink(&self, name: &str, into: &dyn DurableDir, new: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.reflink(name, into, new)
    }
    fn make_dir(&self, name: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.make_dir(name)
    }
    fn remove_tree(&self, name: &str) -> io::Result<()> {
        self.1.step()?;
        self.0.remove_tree(name)
    }
    fn open_dir(&self, name: &str) -> Result<Arc<dyn DurableDir>, DurableError> {
        Ok(Arc::new(FusedDir(self.0.open_dir(name)?, Arc::clone(&self.1))))
    }
    fn free_bytes(&self) -> Result<u64, DurableError> {
        self.0.free_bytes()
    }
}

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
    pub fuse: Option<Arc<Fuse>>,
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
            world.open_dir = Arc::new(move |path| {
                let dir = Arc::new(RealDir::create(path)?);
                Ok(Arc::new(FusedDir(dir, Arc::clone(&fuse))))
            });
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
