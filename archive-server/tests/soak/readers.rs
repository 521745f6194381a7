//! Who reads snapshots: what is read is what the device held.

use super::common::{Client, VOLUME, same};
use super::load::{Kind, Load, Site, listed};
use block_io::nbd::Client as Nbd;
use proto::v1::mount_request::Point;
use proto::v1::restore_request::Point as RestorePoint;
use proto::v1::{DrillRequest, MountRequest, Mounted, RestoreRequest, SnapshotRef, UnmountRequest};
use std::sync::Arc;

/// Times that a mount is read: long enough for all kinds of things to happen beside it.
const READS: usize = 12;

/// One of the snapshots that are there now, and what it must be.
async fn any(load: &Load, site: &mut Site) -> (u64, Arc<Vec<u8>>) {
    loop {
        let list = listed(&mut site.client).await;
        let gid = list[load.random(list.len())];
        // Not long ago: an archive keeps less than is remembered.
        if let Some(image) = load.image(gid) {
            return (gid, image);
        }
        assert!(!load.ends.is_cancelled(), "gid {gid} is older than any that should be kept");
        tokio::task::yield_now().await;
    }
}

pub async fn restores(load: Arc<Load>, mut site: Site) {
    while load.rest(30).await {
        let (gid, image) = any(&load, &mut site).await;
        let (volume, point) = (VOLUME.into(), Some(RestorePoint::Gid(gid)));
        let request = RestoreRequest { volume, point, ..RestoreRequest::default() };
        let begun = load.begun();
        let asked = site.client.archive.restore(request).await;
        let asked = asked.map(|reply| reply.into_inner().operation.unwrap());
        let Some(done) = load.finish(&site, Kind::Restore, asked).await else { continue };
        same(&std::fs::read(&done.path).unwrap(), &image, &format!("restored {gid}"));
        let restored = SnapshotRef { volume: VOLUME.into(), gid };
        site.client.archive.delete_restored(restored).await.unwrap();
        load.done(&site, Kind::Restore, &begun);
    }
}

pub async fn drills(load: Arc<Load>, mut site: Site) {
    while load.rest(60).await {
        let (gid, _) = any(&load, &mut site).await;
        let request =
            DrillRequest { volume: VOLUME.into(), gid: Some(gid), ..DrillRequest::default() };
        let begun = load.begun();
        let asked = site.client.archive.drill(request).await.map(tonic::Response::into_inner);
        if load.finish(&site, Kind::Drill, asked).await.is_some() {
            load.done(&site, Kind::Drill, &begun);
        }
    }
}

/// All of a snapshot, as a client of a mount reads it.
pub async fn mounted(client: &mut Client, gid: u64) -> Vec<u8> {
    let request = MountRequest { point: Some(Point::Gid(gid)), ..request() };
    let mounted = client.archive.mount(request).await.unwrap().into_inner();
    let nbd = Nbd::unix(socket(&mounted), VOLUME).await.unwrap();
    let image = nbd.read(0, mounted.size_bytes as u32).await.unwrap().to_vec();
    drop(nbd);
    unmount(client, mounted).await;
    image
}

fn request() -> MountRequest {
    MountRequest { volume: VOLUME.into(), ..MountRequest::default() }
}

fn socket(mounted: &Mounted) -> &str {
    mounted.uri.split_once("socket=").unwrap().1
}

async fn unmount(client: &mut Client, mounted: Mounted) {
    let request = UnmountRequest { volume: VOLUME.into(), id: mounted.id };
    client.archive.unmount(request).await.unwrap();
}

/// Mounts a snapshot, reads all of it again and again, and lets it go.
pub async fn mounts(load: Arc<Load>, mut site: Site) {
    while load.rest(10).await {
        let (gid, image) = any(&load, &mut site).await;
        let request = MountRequest { point: Some(Point::Gid(gid)), ..request() };
        let mut begun = load.begun();
        let mounted = match site.client.archive.mount(request).await {
            Ok(mounted) => mounted.into_inner(),
            Err(status) => {
                drop(load.finish(&site, Kind::Mount, Err(status)).await);
                continue;
            }
        };
        let nbd = Nbd::unix(socket(&mounted), VOLUME).await.unwrap();
        for _ in 0..READS {
            let read = nbd.read(0, image.len() as u32).await.unwrap();
            same(&read, &image, &format!("mount of {gid}"));
            load.done(&site, Kind::Mount, &begun);
            begun = load.begun();
            if !load.rest(40).await {
                break;
            }
        }
        drop(nbd);
        unmount(&mut site.client, mounted).await;
    }
}
