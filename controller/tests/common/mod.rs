//! Servers that only pretend: they keep a state per volume, write down what they are asked to do,
//! and lose answers when told to. One volume, `v`.

use std::collections::BTreeMap;
use std::sync::Arc;

use controller::{Controller, Group};
use parking_lot::Mutex;
use proto::v1::archive_server::{Archive, ArchiveServer};
use proto::v1::host_server::{Host, HostServer};
use proto::v1::proxy_server::{Proxy, ProxyServer};
use proto::v1::storage_server::{Storage, StorageServer};
use proto::v1::*;
use server_kit::error::RoleError;
use server_kit::net::{Endpoint, Listener, serve};
use server_kit::shutdown::Shutdown;
use tempfile::TempDir;
use tonic::codegen::BoxStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

/// What all servers together know and were asked.
#[derive(Default)]
pub struct World {
    /// What changed something, in order: `SERVER method argument...`.
    pub calls: Vec<String>,
    pub legs: BTreeMap<String, StorageVolume>,
    pub images: BTreeMap<String, ArchiveVolume>,
    pub proxies: BTreeMap<String, ProxyVolume>,
    pub peers: BTreeMap<String, Peers>,
    pub operations: BTreeMap<String, Vec<Operation>>,
    /// `SERVER method`: done, but the answer does not come.
    pub lose: Vec<String>,
    /// `SERVER method`: refused before anything happens.
    pub refuse: Vec<String>,
}

/// A group of them, for as long as it lives.
pub struct Doubles {
    pub world: Arc<Mutex<World>>,
    pub ctl: Controller,
    _dir: TempDir,
}

#[derive(Clone)]
struct Double {
    name: String,
    world: Arc<Mutex<World>>,
}

type Answer<T> = Result<Response<T>, Status>;

pub fn leg(state: &str) -> StorageVolume {
    StorageVolume {
        volume: "v".into(),
        state: state.into(),
        device: "/run/c#v".into(),
        size_lb: 2048,
        ..Default::default()
    }
}

pub fn image(state: &str, newest: u64) -> ArchiveVolume {
    let has_image = !matches!(state, "Clear" | "SyncReady");
    ArchiveVolume {
        volume: "v".into(),
        state: state.into(),
        size_lb: if has_image { 2048 } else { 0 },
        archive_uuid: vec![1; 16].into(),
        newest_restorable_gid: newest,
        newest_restorable_s: u64::from(newest > 0),
        latest: has_image.then_some(Snapshot { gid_begin: newest, gid_end: newest }),
        ..Default::default()
    }
}

pub fn queue(archive: &str, address: &str) -> ProxyQueue {
    let archive =
        ArchiveInfo { name: archive.into(), address: address.into(), ..Default::default() };
    ProxyQueue { archive: Some(archive), ..Default::default() }
}

impl Doubles {
    /// The servers of these names, all Clear; the letter says the role.
    pub async fn start(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let world: Arc<Mutex<World>> = Arc::default();
        let mut file = String::new();
        for name in names {
            let endpoint = Endpoint::Unix(dir.path().join(name));
            let double = Double { name: (*name).to_owned(), world: Arc::clone(&world) };
            let host = HostServer::new(double.clone());
            let (role, routes) = match name.as_bytes()[0] {
                b's' => ("storage", Routes::new(StorageServer::new(double))),
                b'p' => ("proxy", Routes::new(ProxyServer::new(double))),
                _ => ("archive", Routes::new(ArchiveServer::new(double))),
            };
            let listener = Listener::bind(&endpoint, false).await.unwrap();
            let routes = routes.add_service(host);
            tokio::spawn(async move { serve(listener, routes, &Shutdown::new()).await });
            let address = endpoint.to_string();
            file +=
                &format!("[[server]]\nname = {name:?}\nrole = {role:?}\naddress = {address:?}\n");
        }
        let path = dir.path().join("walb.toml");
        std::fs::write(&path, file).unwrap();
        let ctl = Controller::new(Group::load(&path).unwrap());
        Self { world, ctl, _dir: dir }
    }

    pub fn address(&self, name: &str) -> String {
        self.ctl.group().server(name).unwrap().address.to_string()
    }

    /// Puts archives on the lists of all proxies.
    pub fn list(&self, proxies: &[&str], archives: &[&str]) {
        for proxy in proxies {
            let queues = archives.iter().map(|a| queue(a, &self.address(a))).collect();
            let state = "Started".to_owned();
            let v = ProxyVolume { volume: "v".into(), state, queues, ..Default::default() };
            self.world.lock().proxies.insert((*proxy).to_owned(), v);
        }
    }

    pub fn leg(&self, storage: &str, state: &str) {
        self.world.lock().legs.insert(storage.to_owned(), leg(state));
    }

    pub fn image(&self, archive: &str, state: &str, newest: u64) {
        self.world.lock().images.insert(archive.to_owned(), image(state, newest));
    }

    pub fn calls(&self) -> Vec<String> {
        self.world.lock().calls.clone()
    }

    /// The calls of one method, without its name: `SERVER argument...`.
    pub fn calls_of(&self, method: &str) -> Vec<String> {
        let word = format!(" {method}");
        let calls = self.calls();
        let ours = calls.iter().filter(|call| call.contains(&word));
        ours.map(|call| call.replace(&word, "")).collect()
    }

    pub fn lose(&self, what: &str) {
        self.world.lock().lose.push(what.to_owned());
    }

    pub fn refuse(&self, what: &str) {
        self.world.lock().refuse.push(what.to_owned());
    }
}

impl Double {
    /// Writes the call down, lets it happen, and loses or gives the answer.
    fn act<T>(
        &self,
        method: &str,
        arguments: &str,
        change: impl FnOnce(&mut World) -> T,
    ) -> Answer<T> {
        let mut world = self.world.lock();
        let key = format!("{} {method}", self.name);
        if let Some(at) = world.refuse.iter().position(|what| *what == key) {
            world.refuse.remove(at);
            return Err(RoleError::busy("v", format!("{key} is refused")).into());
        }
        world.calls.push(format!("{key} {arguments}").trim_end().to_owned());
        let done = change(&mut world);
        if let Some(at) = world.lose.iter().position(|what| *what == key) {
            world.lose.remove(at);
            return Err(Status::unavailable("the connection broke"));
        }
        Ok(Response::new(done))
    }

    fn state(&self, method: &str, arguments: &str, state: &str) -> Answer<Empty> {
        let name = self.name.clone();
        self.act(method, arguments, |world| {
            if let Some(v) = world.legs.get_mut(&name) {
                state.clone_into(&mut v.state);
            }
            if let Some(v) = world.proxies.get_mut(&name) {
                state.clone_into(&mut v.state);
            }
            if let Some(v) = world.images.get_mut(&name) {
                state.clone_into(&mut v.state);
            }
            Empty {}
        })
    }

    /// A long job that has ended before anybody looks.
    fn job(
        &self,
        kind: &str,
        arguments: &str,
        gid: u64,
        change: impl FnOnce(&mut World),
    ) -> Answer<Operation> {
        let name = self.name.clone();
        self.act(kind, arguments, |world| {
            change(world);
            let known = world.operations.entry(name).or_default();
            let mut operation = Operation {
                id: format!("{kind}-{}", known.len()),
                kind: kind.to_owned(),
                volume: "v".into(),
                gid: Some(gid),
                ..Default::default()
            };
            operation.set_status(OperationStatus::Done);
            known.push(operation.clone());
            operation
        })
    }
}

#[tonic::async_trait]
impl Host for Double {
    async fn info(&self, _: Request<Empty>) -> Answer<HostInfo> {
        Ok(Response::new(HostInfo { id: self.name.clone(), ..Default::default() }))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<Empty> {
        Ok(Response::new(Empty {}))
    }

    async fn list_operations(&self, _: Request<Empty>) -> Answer<OperationList> {
        let operations = self.world.lock().operations.get(&self.name).cloned();
        Ok(Response::new(OperationList { operations: operations.unwrap_or_default() }))
    }

    async fn watch_operation(&self, r: Request<OperationRef>) -> Answer<BoxStream<Operation>> {
        let id = &r.get_ref().id;
        let known = self.world.lock().operations.get(&self.name).cloned().unwrap_or_default();
        match known.into_iter().find(|operation| operation.id == *id) {
            Some(mut operation) => {
                // One that was running when it was asked for ends now.
                operation.set_status(OperationStatus::Done);
                Ok(Response::new(Box::pin(tokio_stream::once(Ok(operation)))))
            }
            None => Err(RoleError::bad_request("no such operation").into()),
        }
    }

    async fn cancel_operation(&self, _: Request<OperationRef>) -> Answer<Operation> {
        Ok(Response::new(Operation::default()))
    }
}

#[tonic::async_trait]
impl Storage for Double {
    async fn init(&self, r: Request<InitStorageRequest>) -> Answer<Empty> {
        let (name, device) = (self.name.clone(), r.into_inner().device);
        let argument = device.clone();
        self.act("init", &argument, |world| {
            world.legs.insert(name, StorageVolume { device, ..leg("SyncReady") });
            Empty {}
        })
    }

    async fn clear(&self, _: Request<VolumeRef>) -> Answer<Empty> {
        self.state("clear", "", "Clear")
    }

    async fn reset(&self, _: Request<ResetStorageRequest>) -> Answer<Empty> {
        self.state("reset", "", "SyncReady")
    }

    async fn start(&self, r: Request<StartStorageRequest>) -> Answer<Empty> {
        let mode = r.get_ref().mode();
        self.state("start", &format!("{mode:?}"), &format!("{mode:?}"))
    }

    async fn stop(&self, r: Request<StopRequest>) -> Answer<Empty> {
        let now = self.world.lock().legs.get(&self.name).map(|v| v.state.clone());
        let to = if now.as_deref() == Some("Standby") { "SyncReady" } else { "Stopped" };
        self.state("stop", &format!("{:?}", r.get_ref().mode()), to)
    }

    async fn full_backup(&self, r: Request<FullBackupRequest>) -> Answer<Operation> {
        let (name, resume) = (self.name.clone(), r.get_ref().resume);
        self.job("full-backup", &format!("resume={resume}"), 1, |world| {
            world.legs.insert(name, leg("Target"));
            world.images.insert("a0".into(), image("Archived", 1));
        })
    }

    async fn hash_backup(&self, r: Request<HashBackupRequest>) -> Answer<Operation> {
        let (name, request) = (self.name.clone(), r.into_inner());
        let HashBackupRequest { everything, scan_bytes_per_s, .. } = request;
        let arguments = format!("everything={everything} rate={scan_bytes_per_s}");
        self.job("hash-backup", &arguments, 9, |world| {
            world.legs.insert(name, leg("Target"));
            world.images.values_mut().filter(|v| v.state == "Archived").for_each(|v| {
                *v = image("Archived", 9);
            });
        })
    }

    async fn forget_backup(&self, _: Request<VolumeRef>) -> Answer<Empty> {
        let name = self.name.clone();
        self.act("forget-backup", "", |world| {
            if let Some(leg) = world.legs.get_mut(&name) {
                leg.backup_resumable = false;
            }
            Empty {}
        })
    }

    async fn restore_to_device(&self, r: Request<RestoreToDeviceRequest>) -> Answer<Operation> {
        let RestoreToDeviceRequest { device, archive, volume, gid } = r.into_inner();
        let from = archive.unwrap_or_default().id;
        self.job("restore-to-device", &format!("{device} {from} {volume} {gid}"), gid, |_| {})
    }

    async fn resize(&self, r: Request<ResizeRequest>) -> Answer<Empty> {
        self.act("resize", &r.get_ref().size_lb.to_string(), |_| Empty {})
    }

    async fn get_peers(&self, _: Request<Empty>) -> Answer<Peers> {
        let peers = self.world.lock().peers.get(&self.name).cloned();
        Ok(Response::new(peers.unwrap_or_default()))
    }

    async fn set_peers(&self, r: Request<Peers>) -> Answer<Empty> {
        let (name, peers) = (self.name.clone(), r.into_inner());
        let ids: Vec<_> = peers.proxies.iter().map(|p| p.id.clone()).collect();
        let archive = peers.archive.clone().unwrap_or_default().id;
        self.act("set-peers", &format!("{archive} {}", ids.join(",")), |world| {
            world.peers.insert(name, peers);
            Empty {}
        })
    }

    async fn get(&self, _: Request<VolumeRef>) -> Answer<StorageVolume> {
        match self.world.lock().legs.get(&self.name) {
            Some(leg) => Ok(Response::new(leg.clone())),
            None => Err(RoleError::unknown_volume("v").into()),
        }
    }

    async fn list(&self, _: Request<Empty>) -> Answer<StorageVolumeList> {
        let volumes = self.world.lock().legs.get(&self.name).cloned().into_iter().collect();
        Ok(Response::new(StorageVolumeList { volumes }))
    }

    async fn kick(&self, _: Request<KickStorageRequest>) -> Answer<KickReply> {
        Ok(Response::new(KickReply::default()))
    }
}

#[tonic::async_trait]
impl Proxy for Double {
    async fn add_archive(&self, r: Request<ArchiveInfoRequest>) -> Answer<Empty> {
        let (name, info) = (self.name.clone(), r.into_inner().info.unwrap_or_default());
        self.act("add", &info.name.clone(), |world| {
            let v = world.proxies.entry(name).or_default();
            v.state = "Stopped".into();
            v.queues.push(ProxyQueue { archive: Some(info), ..Default::default() });
            Empty {}
        })
    }

    async fn delete_archive(&self, r: Request<ArchiveInfoRef>) -> Answer<Empty> {
        let (name, archive) = (self.name.clone(), r.into_inner().name);
        self.act("delete", &archive.clone(), |world| {
            let v = world.proxies.entry(name).or_default();
            v.queues.retain(|q| q.archive.as_ref().is_none_or(|a| a.name != archive));
            v.state = if v.queues.is_empty() { "Clear" } else { "Stopped" }.into();
            Empty {}
        })
    }

    async fn clear(&self, _: Request<VolumeRef>) -> Answer<Empty> {
        self.state("clear", "", "Clear")
    }

    async fn start(&self, _: Request<VolumeRef>) -> Answer<Empty> {
        self.state("start", "", "Started")
    }

    async fn stop(&self, r: Request<StopRequest>) -> Answer<Empty> {
        self.state("stop", &format!("{:?}", r.get_ref().mode()), "Stopped")
    }

    async fn get(&self, _: Request<VolumeRef>) -> Answer<ProxyVolume> {
        let clear = ProxyVolume { state: "Clear".into(), ..Default::default() };
        let found = self.world.lock().proxies.get(&self.name).cloned();
        Ok(Response::new(found.unwrap_or(clear)))
    }

    async fn kick(&self, _: Request<KickProxyRequest>) -> Answer<KickProxyReply> {
        // What waited is sent.
        if let Some(v) = self.world.lock().proxies.get_mut(&self.name) {
            v.queues.iter_mut().for_each(|queue| queue.wdiffs = 0);
        }
        Ok(Response::new(KickProxyReply::default()))
    }
}

#[tonic::async_trait]
impl Archive for Double {
    async fn init(&self, _: Request<VolumeRef>) -> Answer<Empty> {
        let name = self.name.clone();
        self.act("init", "", |world| {
            world.images.insert(name, image("SyncReady", 0));
            Empty {}
        })
    }

    async fn clear(&self, _: Request<VolumeRef>) -> Answer<Empty> {
        self.state("clear", "", "Clear")
    }

    async fn reset(&self, _: Request<ResetArchiveRequest>) -> Answer<Empty> {
        self.state("reset", "", "SyncReady")
    }

    async fn start(&self, _: Request<VolumeRef>) -> Answer<Empty> {
        self.state("start", "", "Archived")
    }

    async fn stop(&self, r: Request<StopRequest>) -> Answer<Empty> {
        self.state("stop", &format!("{:?}", r.get_ref().mode()), "Stopped")
    }

    async fn get(&self, _: Request<VolumeRef>) -> Answer<ArchiveVolume> {
        let found = self.world.lock().images.get(&self.name).cloned();
        Ok(Response::new(found.unwrap_or_else(|| image("Clear", 0))))
    }

    async fn list_restorable(
        &self,
        _: Request<RestorableRequest>,
    ) -> Answer<BoxStream<RestorableList>> {
        let newest = self.world.lock().images.get(&self.name).map(|v| v.newest_restorable_gid);
        let snapshots = newest.map(|gid| Restorable { gid, ..Default::default() });
        Ok(Response::new(server_kit::pages::pages(snapshots, |snapshots| RestorableList {
            snapshots,
        })))
    }

    async fn resize(&self, r: Request<ResizeRequest>) -> Answer<Empty> {
        let (name, size_lb) = (self.name.clone(), r.get_ref().size_lb);
        self.act("resize", &size_lb.to_string(), |world| {
            world.images.entry(name).or_default().size_lb = size_lb;
            Empty {}
        })
    }

    async fn replicate(&self, r: Request<ReplicateRequest>) -> Answer<Operation> {
        let request = r.into_inner();
        let to = request.to.unwrap_or_default().id;
        let Some(replicate_request::Until::Gid(gid)) = request.until else {
            return Err(RoleError::bad_request("no gid").into());
        };
        let arguments = format!("{to} gid={gid} resync={}", request.resync);
        self.job("replicate", &arguments, gid, |world| {
            world.images.insert(to, image("Archived", gid));
        })
    }
}
