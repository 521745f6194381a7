//! Writes a snapshot of an archive onto a device of this host whose data is lost.
//!
//! The device role is told first: its application gets errors from then on, also after a restart,
//! until everything is written and durable; then the log is reset. Invariants: everything is
//! checked before the first byte is replaced; a volume of this server that uses the device does
//! nothing else meanwhile, and has a gap from before the first byte until a backup has ended; what
//! was interrupted can be repeated from the beginning.

use std::sync::Arc;

use block_io::device::BlockDevice;
use bytes::{Bytes, BytesMut};
use futures::stream::{FuturesUnordered, TryStreamExt};
use proto::v1::archive_client::ArchiveClient;
use proto::v1::{Operation, ReadSnapshotRequest, RestoreToDeviceRequest, SnapshotBulk};
use server_kit::error::{Reason, RoleError};
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::state_machine::Transition;
use server_kit::{blocking, chunks};
use tokio_util::task::TaskTracker;
use tonic::Streaming;
use wlog_format::units::to_usize;

use crate::device::WalbDevice;
use crate::device::address::DeviceAddress;
use crate::loss::{Cause, Loss};
use crate::peers::{PeerName, Primary};
use crate::registry::Registry;
use crate::resync;
use crate::shared::Shared;
use crate::state::State;
use crate::volume::Volume;

/// The verb of the command line.
const VERB: &str = "restore-to-device";
/// Writes in flight.
const DEPTH: usize = 8;
/// Zeroes that are written as one, so that a cancellation is heard.
const ZEROS_BYTES: u64 = 256 << 20;
/// Memory of one restore: what is being received and written.
const MEMORY_BYTES: u64 = 2 * DEPTH as u64 * (1 << 20);

/// Starts the restore.
///
/// # Errors
/// No such device, or a volume here uses it and is in the wrong state. Everything else fails the
/// operation.
pub async fn start(
    registry: &Registry,
    shared: &Arc<Shared>,
    request: RestoreToDeviceRequest,
) -> Result<Operation, RoleError> {
    let RestoreToDeviceRequest { device, archive, volume, gid } = request;
    let missing = || RoleError::bad_request("no archive is given");
    let archive = PeerName::parse(archive.ok_or_else(missing)?)?;
    let address = find(registry, shared, &device).await?;
    let user = registry.volumes().into_iter().find(|v| *v.device.address() == address);
    let from = [State::SyncReady, State::Stopped];
    let user = match user {
        Some(user) => {
            let transition = user.begin(&from, State::Overwrite, "replace the content of")?;
            Some((user, transition))
        }
        None => None,
    };
    let device = shared.devices.find(&address);
    let archive = shared.peers.connect(archive);
    let memory = Arc::clone(shared);
    Ok(shared.operations.start(VERB, volume.clone(), |handle| async move {
        let _memory = memory.scans.take(MEMORY_BYTES).await;
        let writing = TaskTracker::new();
        let restore = Restore { device, archive, volume, gid, handle, writing };
        restore.run(user, &memory).await
    }))
}

/// The device of this address; a bare name is looked for at the device roles that are known here.
async fn find(
    registry: &Registry,
    shared: &Shared,
    text: &str,
) -> Result<DeviceAddress, RoleError> {
    if text.contains('#') {
        return text.parse().map_err(|e| RoleError::bad_request(format!("{e}")));
    }
    let volumes = registry.volumes();
    let mut sockets: Vec<_> = volumes.iter().map(|v| v.device.address().socket.clone()).collect();
    sockets.sort_unstable();
    sockets.dedup();
    let mut found = Vec::new();
    for socket in sockets {
        let address = DeviceAddress::parse(&socket, Some(text))
            .map_err(|e| RoleError::bad_request(e.to_string()))?;
        if shared.devices.find(&address).info().await.is_ok() {
            found.push(address);
        }
    }
    match (found.pop(), found.is_empty()) {
        (Some(address), true) => Ok(address),
        (None, _) => Err(RoleError::bad_request(format!("no device {text:?} is known here"))
            .with_next_step("give it as CONTROL_SOCKET#NAME")),
        _ => Err(RoleError::bad_request(format!("several device roles have a volume {text:?}"))
            .with_next_step("give it as CONTROL_SOCKET#NAME")),
    }
}

type User = (Arc<Volume>, Transition<State>);

struct Restore {
    device: Arc<dyn WalbDevice>,
    archive: Primary,
    /// Its name at the archive.
    volume: String,
    gid: u64,
    handle: OperationHandle,
    /// Writes in flight: none may reach the device after the restore has ended, or it could undo
    /// what the next one writes.
    writing: TaskTracker,
}

/// A piece of the snapshot, ready to be written.
enum Piece {
    Data(u64, Bytes),
    Zeros(u64, u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Data(_, data) => data.len() as u64,
            Self::Zeros(_, len) => *len,
        }
    }

    fn end(&self) -> u64 {
        match self {
            Self::Data(at, _) | Self::Zeros(at, _) => at + self.len(),
        }
    }

    /// The same, zeroes in parts that do not take long.
    fn cut(self) -> Vec<Self> {
        match self {
            Self::Data(..) => vec![self],
            Self::Zeros(begin, len) => {
                let end = begin + len;
                let part = |at| Self::Zeros(at, ZEROS_BYTES.min(end - at));
                (begin..end).step_by(to_usize(ZEROS_BYTES)).map(part).collect()
            }
        }
    }
}

impl Restore {
    async fn run(self, user: Option<User>, shared: &Shared) -> Result<Outcome, RoleError> {
        let shutdown = shared.shutdown.requested();
        let user_volume = user.as_ref().map(|(volume, _)| Arc::clone(volume));
        let restored = tokio::select! {
            restored = self.restore(user_volume.as_deref()) => restored,
            () = self.handle.cancelled() => Err(self.given_up("it was cancelled")),
            () = shutdown.cancelled() => Err(self.given_up("the server stops")),
        };
        self.writing.close();
        self.writing.wait().await;
        if let Some((volume, transition)) = user {
            drop(transition);
            if let Err(error) = &restored {
                volume.progress.failed(error, None);
            }
            resync::wake(&volume);
        }
        restored.map_err(|error| self.with_next_step(error))
    }

    fn given_up(&self, why: &str) -> RoleError {
        let (gid, device) = (self.gid, self.device.address());
        RoleError::cancelled(format!("the restore of gid {gid} to {device} was given up: {why}"))
            .with_volume(&self.volume)
    }

    fn with_next_step(&self, error: RoleError) -> RoleError {
        if !error.detail().next_step.is_empty() {
            return error;
        }
        let (volume, gid, device) = (&self.volume, self.gid, self.device.address());
        error.with_next_step(format!(
            "repeat it: walbc {VERB} A {volume} {gid} S '{device}'; until then the device, \
             if replacing has begun, serves nobody"
        ))
    }

    async fn restore(&self, user: Option<&Volume>) -> Result<Outcome, RoleError> {
        let mut client: ArchiveClient<_> = self.archive.client();
        let request =
            ReadSnapshotRequest { volume: self.volume.clone(), gid: self.gid, scan_bytes_per_s: 0 };
        let refused = |s| RoleError::from_status(self.archive.name(), &s);
        let mut bulks = client.read_snapshot(request).await.map_err(refused)?.into_inner();
        let first = bulks.message().await.map_err(refused)?;
        let first = first.ok_or_else(|| self.nonsense("an empty snapshot"))?;
        let info = self.device.info().await?;
        let (size, room) = (first.size_bytes, info.status.size.bytes());
        let data = self.device.open_data_for_writing(&info)?;
        if size > room.min(data.size_bytes()) {
            let (path, gid) = (&info.data_path, self.gid);
            let message =
                format!("{path} has {room} bytes for snapshot {gid}, which has {size} bytes");
            return Err(RoleError::wrong_size(message).with_next_step("grow the device first"));
        }
        let was_held = match user {
            Some(user) => announce(user, self.gid).await?,
            None => false,
        };
        self.device.begin_overwrite().await?;
        self.handle.set_total(room);
        self.write(&data, first, bulks, room).await?;
        let path = data.path_hint();
        data.flush().await.map_err(|e| RoleError::io("flush the data device", path, e))?;
        self.device.end_overwrite().await?;
        if let Some(user) = user {
            user.hold(was_held).await?;
        }
        Ok(Outcome { gid: Some(self.gid), path: Some(info.data_path) })
    }

    /// Writes the whole snapshot, and zeroes behind it up to `room`.
    async fn write(
        &self,
        data: &Arc<dyn BlockDevice>,
        first: SnapshotBulk,
        mut bulks: Streaming<SnapshotBulk>,
        room: u64,
    ) -> Result<(), RoleError> {
        let (size, sector) = (first.size_bytes, u64::from(data.block_bytes()));
        let mut writes = FuturesUnordered::new();
        let (mut at, mut next) = (0, Some(first));
        while let Some(bulk) = next {
            let piece = self.piece(bulk, at, size, sector).await?;
            at = piece.end();
            for part in piece.cut() {
                if writes.len() >= DEPTH {
                    writes.try_next().await?;
                }
                writes.push(self.put(data, part));
            }
            let received = bulks.message().await;
            next = received.map_err(|s| RoleError::from_status(self.archive.name(), &s))?;
        }
        if at < size {
            return Err(self.nonsense("a snapshot that ends early"));
        }
        if at < room {
            for part in Piece::Zeros(at, room - at).cut() {
                writes.push(self.put(data, part));
                writes.try_next().await?;
            }
        }
        while writes.try_next().await?.is_some() {}
        Ok(())
    }

    /// Checks a message; what it holds, filled up to whole sectors at the end of the snapshot.
    async fn piece(
        &self,
        bulk: SnapshotBulk,
        expected: u64,
        size: u64,
        sector: u64,
    ) -> Result<Piece, RoleError> {
        let (at, zeros) = (bulk.offset_bytes, bulk.zeros_bytes);
        let decoded = match bulk.chunk {
            None => None,
            Some(chunk) => Some(blocking::run(move || chunks::decode(chunk)).await?),
        };
        let len = decoded.as_ref().map_or(zeros, |data| data.len() as u64);
        let end = at.saturating_add(len);
        let fits = at == expected && len > 0 && end <= size && bulk.size_bytes == size;
        let whole = end.is_multiple_of(sector) || end == size;
        if !fits || !whole || (decoded.is_some() && zeros > 0) {
            return Err(self.nonsense("pieces that do not fit together"));
        }
        let padded = to_usize(end.next_multiple_of(sector) - at);
        Ok(match decoded {
            None => Piece::Zeros(at, padded as u64),
            Some(data) if data.len() == padded => Piece::Data(at, data),
            Some(data) => {
                let mut filled = BytesMut::from(&data[..]);
                filled.resize(padded, 0);
                Piece::Data(at, filled.freeze())
            }
        })
    }

    async fn put(&self, device: &Arc<dyn BlockDevice>, piece: Piece) -> Result<(), RoleError> {
        let (device, len) = (Arc::clone(device), piece.len());
        let path = device.path_hint();
        let write = self.writing.spawn(async move {
            match piece {
                Piece::Data(at, data) => device.write(at, vec![data]).await,
                Piece::Zeros(at, len) => device.write_zeroes(at, len).await,
            }
        });
        let broke = |e| RoleError::new(Reason::Io, "a write broke off").with_source(e);
        let written = write.await.map_err(broke)?;
        written.map_err(|e| RoleError::io("write the data device", path, e))?;
        self.handle.advance(len);
        Ok(())
    }

    fn nonsense(&self, what: &str) -> RoleError {
        RoleError::wrong_peer(format!("{} sends {what}", self.archive.name()))
            .with_volume(&self.volume)
    }
}

/// The volume will not continue its history, and starts nothing by itself before the end; whether
/// a person had stopped it before.
async fn announce(user: &Volume, gid: u64) -> Result<bool, RoleError> {
    let why = format!("the content of the device was replaced by snapshot {gid}");
    let loss = Loss::new(Cause::LogReset, why);
    let (state, was_held) = user.book.read(|r| (r.state, r.held));
    let was_backed_up = user.book.read(|r| r.history.is_some() || r.gap.is_some());
    user.hold(true).await?;
    if was_backed_up {
        user.remember_gap(&loss, state).await?;
    }
    Ok(was_held)
}
