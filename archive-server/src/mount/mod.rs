//! Instant mount: a snapshot as an NBD export, served from base image and wdiffs without copying.
//!
//! ```text
//!  NBD client --> export --> cow (writable ones: what the client wrote)
//!                    |
//!                    +-----> view --> the volume's index --> *.wdiff
//!                              +----> base image, or a clone of it
//! ```
//! Invariants: a mount leases its wdiffs (I12), so applies, merges and gc beside it leave it as it
//! is; an apply writes only blocks that its diffs have, so one up to the mount's gid changes none
//! of what the mount reads from the base image, and one beyond it copies what it writes over into a
//! file of each mount without a clone first (`kept`); "where is the base image", the leases and
//! being listed are one step for an apply (`image_gate`). Mounts end with the process; what they
//! leave is known by its name at start. Memory: that of views, and [`CLIENT_BYTES`] for the clients
//! of each of [`MOUNTS_MAX`] mounts of a volume.

mod cow;
mod export;
pub(crate) mod inside;
mod kept;

use crate::archive::Archive;
use crate::backend::{CloneMethod, Image};
use crate::restore::{self, Selected};
use crate::view::View;
use crate::volume::Volume;
use block_io::device::BlockDevice;
use block_io::nbd::{Export, NbdServer, server::Limits};
use cow::Cow;
use export::SnapshotExport;
use kept::{AsFound, Keeping, Kept};
use parking_lot::Mutex;
use proto::v1::{MountRequest, Mounted, mount_request, restore_request};
use server_kit::durable::TMP_SUFFIX;
use server_kit::error::{Reason, RoleError};
use server_kit::net::Endpoint;
use server_kit::{blocking, clock, nbd};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use wdiff_format::gid::Gid;
use wlog_format::units::Lb;

/// What is attempted, in messages.
const MOUNT: &str = "mount";
/// How the names of sockets below a volume's directory end.
pub(crate) const SOCKET_SUFFIX: &str = ".sock";
/// Mounts of a volume at a time.
const MOUNTS_MAX: usize = 16;
/// Payload memory of a mount's clients.
const CLIENT_BYTES: usize = 64 << 20;

/// A mount that is there, or is being made.
struct Entry {
    gid: Gid,
    /// Reads the base image itself, no clone of it: what an apply would write over goes in here.
    kept: Option<Arc<Kept>>,
    shown: Option<Mounted>,
    stop: CancellationToken,
    ended: CancellationToken,
}

#[derive(Default)]
struct Inner {
    entered: u64,
    entries: BTreeMap<u64, Entry>,
}

/// The mounts of one volume. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Mounts(Arc<Mutex<Inner>>);

/// The place of one mount in the list, until it is dropped.
struct Place {
    mounts: Mounts,
    number: u64,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Mounts {
    fn enter(&self, volume: &str, gid: Gid, stop: CancellationToken) -> Result<Place, RoleError> {
        let mut inner = self.0.lock();
        if inner.entries.len() >= MOUNTS_MAX {
            let message = format!("volume {volume} has {MOUNTS_MAX} mounts already");
            return Err(RoleError::busy(volume, message).with_next_step(unmount_step(volume)));
        }
        inner.entered += 1;
        let (number, ended) = (inner.entered, CancellationToken::new());
        let (stop_too, ended_too) = (stop.clone(), ended.clone());
        let entry = Entry { gid, kept: None, shown: None, stop: stop_too, ended: ended_too };
        inner.entries.insert(number, entry);
        Ok(Place { mounts: self.clone(), number, stop, ended })
    }

    /// The base image for an apply up to `to`: what mounts still read of it is kept for them. Ask
    /// while no mount can be made (`image_gate`).
    pub(crate) fn keeping(&self, base: Arc<dyn BlockDevice>, to: Gid) -> Arc<dyn BlockDevice> {
        let inner = self.0.lock();
        let before = inner.entries.values().filter(|e| e.gid < to);
        let mounts: Vec<_> = before.filter_map(|e| e.kept.clone()).collect();
        if mounts.is_empty() { base } else { Arc::new(Keeping { base, mounts }) }
    }

    /// Fails when there is any.
    pub(crate) fn none(&self, volume: &str, attempt: &str) -> Result<(), RoleError> {
        if self.0.lock().entries.is_empty() {
            return Ok(());
        }
        let message = format!("cannot {attempt} volume {volume}: it is mounted");
        Err(RoleError::busy(volume, message).with_next_step(unmount_step(volume)))
    }

    /// Those that can be used.
    pub(crate) fn list(&self) -> Vec<Mounted> {
        self.0.lock().entries.values().filter_map(|e| e.shown.clone()).collect()
    }

    /// Ends one, and waits until nothing of it is left.
    pub(crate) async fn end(&self, volume: &str, id: &str) -> Result<(), RoleError> {
        let ended = {
            let inner = self.0.lock();
            let entry = id.parse().ok().and_then(|number: u64| inner.entries.get(&number));
            let entry = entry.ok_or_else(|| {
                let message = format!("volume {volume} has no mount {id:?}");
                let step = format!("see what is mounted: walbc mounts ARCHIVE {volume}");
                RoleError::new(Reason::UnknownSnapshot, message)
                    .with_volume(volume)
                    .with_next_step(step)
            })?;
            entry.stop.cancel();
            entry.ended.clone()
        };
        ended.cancelled().await;
        Ok(())
    }
}

impl Place {
    fn change(&self, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.mounts.0.lock().entries.get_mut(&self.number) {
            change(entry);
        }
    }

    fn file(&self, what: &str) -> String {
        format!("mount-{}.{what}{TMP_SUFFIX}", self.number)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.mounts.0.lock().entries.remove(&self.number);
        self.ended.cancel();
    }
}

fn unmount_step(volume: &str) -> String {
    format!("walbc mounts ARCHIVE {volume}, then walbc unmount ARCHIVE {volume} ID")
}

/// Mounts a snapshot; it can be used when this returns.
pub(crate) async fn start(
    archive: &Arc<Archive>,
    request: MountRequest,
) -> Result<Mounted, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active(MOUNT)?;
    let (place, selected, (below, size)) = enter(archive, &volume, &request).await?;
    // From here on the files go with this, whatever happens.
    let files = Files { volume: volume.clone(), below, size, side: None, place };
    serve(archive, &volume, &request, selected, files).await
}

/// What a mount has on the disk; cleaned away before its place is free.
struct Files {
    volume: Arc<Volume>,
    below: Below,
    /// The size of that: the volume may grow meanwhile.
    size: Lb,
    /// What the clients wrote.
    side: Option<String>,
    place: Place,
}

impl Files {
    /// What is below the wdiffs.
    async fn open_base(&self) -> Result<Arc<dyn BlockDevice>, RoleError> {
        let Self { volume, below, size, .. } = self;
        Ok(match below {
            Below::Clone(image) => volume.open_cached(*image, *size).await?,
            Below::Base(_, kept) => {
                let (base, kept) = (volume.open_cached(Image::Base, *size).await?, kept.clone());
                Arc::new(AsFound { base, kept })
            }
        })
    }

    async fn remove(self) {
        let Self { volume, below, side, place, .. } = self;
        let remove = move || -> Result<(), RoleError> {
            let mut own = Vec::from_iter(side);
            match below {
                Below::Clone(image) => volume.images.remove(image)?,
                Below::Base(file, _) => own.push(file),
            }
            Ok(volume.dir.remove_all(&own)?)
        };
        let removed = blocking::run(remove).await;
        if let Err(error) = removed {
            tracing::warn!(error = error.full_message(), "what a mount left cannot be removed");
        }
        drop(place);
    }
}

/// What a mount reads below the wdiffs.
enum Below {
    Clone(Image),
    /// The base image itself, with what applies write over in a file of this name.
    Base(String, Arc<Kept>),
}

/// Picks the wdiffs and takes a place in the list: one step for an apply.
async fn enter(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    request: &MountRequest,
) -> Result<(Place, Selected, (Below, Lb)), RoleError> {
    let name = volume.name.as_str();
    let point = match request.point {
        Some(mount_request::Point::Gid(gid)) => restore_request::Point::Gid(gid),
        Some(mount_request::Point::AtS(time)) => restore_request::Point::AtS(time),
        None => {
            let message = "mount what: a gid or a time is needed";
            return Err(RoleError::bad_request(message).with_volume(name));
        }
    };
    let _gate = volume.image_gate.clone().read_owned().await;
    let selected = restore::select(volume, point)?;
    // As large as its wdiffs need, or larger; the clone is as large as this, or larger.
    let size = volume.size();
    let place = volume.mounts.enter(name, selected.gid, archive.ending.child_token())?;
    if volume.images.clone_method() != CloneMethod::Copy {
        let (images, clone) = (volume.images.clone(), Image::Mount(place.number));
        match blocking::run(move || images.clone_base(clone)).await {
            Ok(true) => return Ok((place, selected, (Below::Clone(clone), size))),
            Ok(false) => {}
            Err(error) => {
                let error = error.full_message();
                tracing::warn!(volume = name, error, "no clone: a mount reads the base image");
            }
        }
    }
    // Nothing can be cloned here, or just now.
    let file = place.file("old");
    let kept = Kept::new(Cow::create(archive, volume, &file).await?);
    place.change(|entry| entry.kept = Some(kept.clone()));
    Ok((place, selected, (Below::Base(file, kept), size)))
}

/// Opens all that the export needs, and serves it in the background until it is ended.
async fn serve(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    request: &MountRequest,
    selected: Selected,
    mut files: Files,
) -> Result<Mounted, RoleError> {
    let opened = open(archive, volume, request, selected, &mut files).await;
    let (server, listener, shown) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            files.remove().await;
            return Err(error);
        }
    };
    files.place.change(|entry| entry.shown = Some(shown.clone()));
    tracing::info!(volume = %volume.name, gid = shown.gid, uri = shown.uri, "mounted");
    let stop = files.place.stop.clone();
    tokio::spawn(async move {
        server.serve(listener, stop).await;
        // With the export the leases of its wdiffs go.
        drop(server);
        files.remove().await;
    });
    Ok(shown)
}

/// Who types it may be on another host: a path must say where it is by itself.
fn asked_endpoint(nbd: &str) -> Result<Endpoint, RoleError> {
    let endpoint: Endpoint = nbd.parse().map_err(|e| RoleError::bad_request(format!("{e}")))?;
    match &endpoint {
        Endpoint::Unix(path) if !path.is_absolute() => {
            Err(RoleError::bad_request(format!("{endpoint}: use an absolute path")))
        }
        _ => Ok(endpoint),
    }
}

async fn open(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    request: &MountRequest,
    selected: Selected,
    files: &mut Files,
) -> Result<(NbdServer, block_io::nbd::Listener, Mounted), RoleError> {
    let name = volume.name.as_str();
    let (gid, timestamp_s) = (selected.gid.0, selected.timestamp);
    let base = files.open_base().await?;
    let view = Arc::new(View::open(archive, volume, base, selected.lease).await?);
    let (wdiffs, records) = (view.wdiffs() as u64, view.records());
    let cow = if request.writable {
        let side = files.side.insert(files.place.file("cow"));
        Some(Cow::create(archive, volume, side).await?)
    } else {
        None
    };
    let export = SnapshotExport::new(name, view, cow);
    let size_bytes = export.size_bytes();
    let exports = HashMap::from([(name.to_owned(), Arc::new(export) as Arc<dyn Export>)]);
    let limits = Limits { server_bytes: CLIENT_BYTES, connections: 64, ..Limits::default() };
    let server = NbdServer::new(exports, limits)
        .map_err(|e| RoleError::bad_request(e.to_string()).with_volume(name))?;
    let endpoint = if request.nbd.is_empty() {
        let socket = format!("mount-{}{SOCKET_SUFFIX}", files.place.number);
        Endpoint::Unix(volume.dir.path().join(socket))
    } else {
        asked_endpoint(&request.nbd)?
    };
    let (listener, uri) = nbd::listen(&endpoint, archive.settings.insecure).await?;
    let shown = Mounted {
        id: files.place.number.to_string(),
        volume: name.to_owned(),
        gid,
        timestamp_s,
        uri: uri.replace("NAME", name),
        writable: request.writable,
        since_s: clock::unix_seconds(),
        size_bytes,
        wdiffs,
        records,
        holds_base: matches!(files.below, Below::Base(..)),
    };
    Ok((server, listener, shown))
}
