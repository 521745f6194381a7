//! A proxy in this process on a Unix socket, a storage client that makes logs, and stub archives
//! that answer what a test tells them.
#![allow(dead_code, reason = "each test file uses its part")]
pub(crate) mod archive;
pub(crate) mod log;

use proto::v1::proxy_client::ProxyClient;
use proto::v1::{
    ArchiveInfo, ArchiveInfoRequest, KickProxyRequest, ProxyQueue, ProxyVolume, StopMode,
    StopRequest, VolumeRef, WlogTransferRequest,
};
use proxy_server::{Settings, World, serve_on};
use server_kit::error::RoleError;
use server_kit::net::{Connector, Endpoint, Listener, RealConnector};
use server_kit::shutdown::Shutdown;
use server_kit::units::Span;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::Status;
use tonic::transport::Channel;

pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const VOLUME: &str = "v0";

/// Polls until `condition` holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, poll).await.is_ok(), "never came: {what}");
}

/// Fails the test when `future` does not end.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("never came: {what}"),
    }
}

pub(crate) fn error(status: &Status) -> RoleError {
    RoleError::from_status("p0", status)
}

/// Where a test keeps its files.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    pub(crate) fn base(&self) -> PathBuf {
        self.0.path().join("base")
    }
    pub(crate) fn volume_dir(&self) -> PathBuf {
        self.base().join(VOLUME)
    }
    pub(crate) fn queue_dir(&self, archive: &str) -> PathBuf {
        self.volume_dir().join("sendto").join(archive)
    }
    pub(crate) fn socket(&self, name: &str) -> Endpoint {
        Endpoint::Unix(self.0.path().join(name))
    }
    /// Names of the volumes on disk, sorted.
    pub(crate) fn volumes(&self) -> Vec<String> {
        let mut volumes = names(&self.base());
        volumes.retain(|name| name != server_kit::durable::ROLE_FILE);
        volumes
    }
    /// Names of the staged wdiffs for an archive, sorted.
    pub(crate) fn staged(&self, archive: &str) -> Vec<String> {
        names(&self.queue_dir(archive))
    }
    /// Settings with short delays.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            base: Some(self.base()),
            id: Some("p0".parse().unwrap()),
            retry_min: Some(Span(Duration::from_millis(10))),
            retry_max: Some(Span(Duration::from_millis(40))),
            ..Settings::default()
        }
    }
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A running proxy.
pub(crate) struct Proxy {
    pub(crate) client: ProxyClient<Channel>,
    pub(crate) shutdown: Shutdown,
    pub(crate) endpoint: Endpoint,
    task: JoinHandle<Result<(), RoleError>>,
}

impl Proxy {
    pub(crate) async fn start(place: &Place) -> Self {
        Self::start_with(place, place.settings()).await
    }

    pub(crate) async fn start_with(place: &Place, settings: Settings) -> Self {
        let listener = Listener::bind(&place.socket("p0"), false).await.unwrap();
        let (endpoint, shutdown) = (listener.endpoint().clone(), Shutdown::new());
        let told = shutdown.clone();
        let task =
            tokio::spawn(async move { serve_on(listener, &settings, World::real(), told).await });
        let client = ProxyClient::new(RealConnector.channel(&endpoint));
        Self { client, shutdown, endpoint, task }
    }

    /// Ends it as a kill would: whatever runs is cut off.
    pub(crate) async fn kill(self) {
        self.end(StopMode::Force).await;
    }

    pub(crate) async fn end(self, mode: StopMode) {
        self.shutdown.request(mode);
        drop(self.client);
        soon("the end of the proxy", self.task).await.unwrap().unwrap();
    }

    pub(crate) async fn add(&self, archive: &str, at: &Endpoint) -> Result<(), Status> {
        let info = info(archive, at);
        let request = ArchiveInfoRequest { volume: VOLUME.into(), info: Some(info) };
        self.client.clone().add_archive(request).await.map(drop)
    }

    pub(crate) async fn start_volume(&self) -> Result<(), Status> {
        self.client.clone().start(VolumeRef { volume: VOLUME.into() }).await.map(drop)
    }

    pub(crate) async fn stop_volume(&self, mode: StopMode) -> Result<(), Status> {
        let request = StopRequest { volume: VOLUME.into(), mode: mode.into() };
        self.client.clone().stop(request).await.map(drop)
    }

    pub(crate) async fn kick(&self) -> Result<Vec<String>, Status> {
        let request = KickProxyRequest { volume: VOLUME.into(), archive: String::new() };
        self.client.clone().kick(request).await.map(|r| r.into_inner().kicked)
    }

    pub(crate) async fn volume(&self) -> ProxyVolume {
        let request = VolumeRef { volume: VOLUME.into() };
        self.client.clone().get(request).await.unwrap().into_inner()
    }

    pub(crate) async fn state(&self) -> String {
        self.volume().await.state
    }

    pub(crate) async fn queue(&self, archive: &str) -> ProxyQueue {
        let queues = self.volume().await.queues;
        let found = queues.into_iter().find(|q| q.archive.as_ref().unwrap().name == archive);
        found.unwrap_or_else(|| panic!("no queue for {archive}"))
    }

    pub(crate) async fn empty(&self, archive: &str) {
        until("an empty queue", || async { self.queue(archive).await.wdiffs == 0 }).await;
    }

    pub(crate) async fn send(&self, messages: Vec<WlogTransferRequest>) -> Result<u64, Status> {
        let stream = tokio_stream::iter(messages);
        let reply = self.client.clone().wlog_transfer(stream).await?;
        Ok(reply.into_inner().wdiff_bytes)
    }
}

pub(crate) fn info(archive: &str, at: &Endpoint) -> ArchiveInfo {
    ArchiveInfo {
        name: archive.into(),
        address: at.to_string(),
        compression: "lz4".into(),
        send_delay_ms: 0,
    }
}

/// A started volume of which one wdiff is staged, for an archive that is not there.
pub(crate) async fn with_one_wdiff() -> (Place, Proxy) {
    let place = Place::new();
    let proxy = Proxy::start(&place).await;
    started(&place, &proxy).await;
    let mut device = log::Device::new();
    let ios = device.random_ios(10, 64);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    (place, proxy)
}

/// A started volume that sends to one archive.
pub(crate) async fn started(place: &Place, proxy: &Proxy) {
    proxy.add("a0", &place.socket("a0")).await.unwrap();
    proxy.start_volume().await.unwrap();
}
