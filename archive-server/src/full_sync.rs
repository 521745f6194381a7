//! Receiving a full backup (`semantics.md` §5.11).
//!
//! A session is announced first; it holds the volume until it is used, replaced, or forgotten after
//! a silence. Invariants: the progress that is kept is behind a flush; whatever lies behind it in
//! the image is a hole when a session begins, so zeros need not be written; a full backup that
//! fails leaves `SyncReady` and its progress; it counts when base, uuids and state are durable in
//! one file.

use crate::archive::{Archive, parse_name, refused};
use crate::image::{self, ImageWriter};
use crate::jobs::{FULL_SYNC, Job};
use crate::record::{Progress, Whole};
use crate::state::State;
use crate::volume::{IMAGE_FILE, Volume};
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use proto::v1::full_sync_request::Step;
use proto::v1::{
    FullSyncBulk, FullSyncEnd, FullSyncReply, FullSyncRequest, FullSyncStart, PrepareFullSyncReply,
    PrepareFullSyncRequest,
};
use server_kit::blocking;
use server_kit::error::{Reason, RoleError};
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::state_machine::Transition;
use server_kit::volume_name::VolumeName;
use std::collections::BTreeMap;
use std::sync::Arc;
use wdiff_format::gid::{BaseState, Snapshot};
use wlog_format::units::{LOGICAL_BLOCK_BYTES, Lb, LogUuid};

/// Largest volume: what signed file offsets reach.
const SIZE_MAX: Lb = Lb((1 << 62) / LOGICAL_BLOCK_BYTES);

/// Sessions that are announced and not used yet, at most one for each volume.
#[derive(Default)]
pub(crate) struct Sessions(Mutex<BTreeMap<VolumeName, Prepared>>);

struct Prepared {
    session: String,
    volume: Arc<Volume>,
    change: Transition<State>,
    job: Job,
    size: Lb,
    started_s: u64,
    /// Log uuid of what is resumed.
    resumes: Option<LogUuid>,
    start_bytes: u64,
}

impl Sessions {
    /// Forgets what is announced for a volume.
    pub(crate) fn drop_session(&self, volume: &VolumeName) {
        // The transaction ends outside of the lock.
        let _ended = self.0.lock().remove(volume);
    }

    fn forget(&self, volume: &VolumeName, session: &str) -> Option<Prepared> {
        let mut sessions = self.0.lock();
        let known = sessions.get(volume).is_some_and(|p| p.session == session);
        if known { sessions.remove(volume) } else { None }
    }
}

/// Announces a full backup.
pub(crate) async fn prepare(
    archive: &Arc<Archive>,
    request: PrepareFullSyncRequest,
) -> Result<PrepareFullSyncReply, RoleError> {
    let volume = archive.volume(&request.volume)?;
    let name = volume.name.as_str();
    let size = Lb(request.size_lb);
    if size == Lb(0) || size > SIZE_MAX {
        let message = format!("cannot receive a full backup of {size} blocks");
        return Err(RoleError::wrong_size(message).with_volume(name));
    }
    let resumes =
        match &*request.resume_uuid {
            [] => None,
            bytes => Some(proto::convert::uuid(bytes).map_err(|e| {
                RoleError::bad_request(format!("resume_uuid: {e}")).with_volume(name)
            })?),
        };
    archive.sessions.drop_session(&volume.name);
    let change = volume.cell.begin(&[State::SyncReady], State::FullSync);
    let change = change.map_err(|e| refused(&volume, e, "make a full backup of"))?;
    let job = volume.jobs.begin(name, FULL_SYNC, &[])?;
    let here = volume.clone();
    let start_bytes = blocking::run(move || resumable(&here, size, resumes)).await?;
    let resumes = resumes.filter(|_| start_bytes > 0);
    let session = LogUuid::random().to_string();
    let started_s = request.started_s;
    let prepared = Prepared {
        session: session.clone(),
        volume: volume.clone(),
        change,
        job,
        size,
        started_s,
        resumes,
        start_bytes,
    };
    let replaced = archive.sessions.0.lock().insert(volume.name.clone(), prepared);
    debug_assert!(replaced.is_none(), "the transaction lets one in");
    let (archive, name, waited) = (archive.clone(), volume.name.clone(), session.clone());
    tokio::spawn(async move {
        tokio::time::sleep(archive.settings.silence).await;
        drop(archive.sessions.forget(&name, &waited));
    });
    Ok(PrepareFullSyncReply { session, start_bytes })
}

/// Where an interrupted full backup of the same log goes on. Blocks.
fn resumable(volume: &Volume, size: Lb, resumes: Option<LogUuid>) -> Result<u64, RoleError> {
    let Some(uuid) = resumes else { return Ok(0) };
    let Some(progress) = volume.progress.load()? else { return Ok(0) };
    let same = progress.log_uuid == uuid && progress.size_lb == size.0;
    let has = volume.dir.look_at(IMAGE_FILE)?.map_or(0, |info| info.len_bytes);
    let whole = progress.durable_bytes <= size.bytes() && progress.durable_bytes <= has;
    Ok(if same && whole { progress.durable_bytes } else { 0 })
}

/// Receives a full backup that was announced.
pub(crate) async fn receive<S>(
    archive: &Arc<Archive>,
    mut stream: S,
) -> Result<FullSyncReply, RoleError>
where
    S: Stream<Item = Result<FullSyncRequest, tonic::Status>> + Unpin,
{
    let Step::Start(start) = next_step(archive, &mut stream).await? else {
        return Err(RoleError::bad_request("a full backup begins with its start"));
    };
    let (prepared, log_uuid) = begin(archive, &start)?;
    let volume = prepared.volume.clone();
    let (ended, end) = tokio::sync::oneshot::channel::<Result<Outcome, RoleError>>();
    let (started, handle) = tokio::sync::oneshot::channel();
    archive.operations.start(FULL_SYNC, &volume.name, |handle| async move {
        let _ = started.send(handle);
        let broke_off = || RoleError::new(Reason::Io, "the full backup broke off");
        end.await.unwrap_or_else(|_| Err(broke_off()))
    });
    let handle = handle.await.map_err(|e| RoleError::new(Reason::Io, e.to_string()))?;
    let received = run(archive, prepared, log_uuid, &handle, &mut stream).await;
    let outcome = match &received {
        Ok((_, gid)) => Ok(Outcome { gid: Some(*gid), path: None }),
        Err(error) => Err(RoleError::new(error.reason(), error.full_message())),
    };
    match &outcome {
        Ok(_) => volume.clear_fault(FULL_SYNC),
        Err(error) => volume.set_fault(FULL_SYNC, error),
    }
    let _ = ended.send(outcome);
    received.map(|(reply, _)| reply)
}

fn begin(archive: &Archive, start: &FullSyncStart) -> Result<(Prepared, LogUuid), RoleError> {
    let name = parse_name(&start.volume)?;
    let log_uuid = proto::convert::uuid(&start.log_uuid)
        .map_err(|e| RoleError::bad_request(format!("log_uuid: {e}")).with_volume(&name))?;
    let unknown = || {
        let message = format!("no full backup of volume {name} is announced by that session");
        RoleError::wrong_peer(message).with_volume(&name).with_next_step("announce it again")
    };
    let prepared = archive.sessions.forget(&name, &start.session).ok_or_else(unknown)?;
    if prepared.resumes.is_some_and(|uuid| uuid != log_uuid) {
        let message = format!("volume {name}: what is resumed is of another log");
        return Err(RoleError::wrong_peer(message).with_volume(&name));
    }
    Ok((prepared, log_uuid))
}

async fn next_step<S>(archive: &Archive, stream: &mut S) -> Result<Step, RoleError>
where
    S: Stream<Item = Result<FullSyncRequest, tonic::Status>> + Unpin,
{
    let silence = archive.settings.silence;
    let quiet = |_| {
        let message = format!("the storage said nothing for {} s", silence.as_secs());
        RoleError::new(Reason::Unreachable, message)
    };
    let message = tokio::time::timeout(silence, stream.next()).await.map_err(quiet)?;
    let message =
        message.ok_or_else(|| RoleError::bad_request("the stream ends before its end"))?;
    let message = message.map_err(|e| RoleError::from_status("the storage", &e))?;
    message.step.ok_or_else(|| RoleError::bad_request("an empty message in a full backup"))
}

/// The image while it is filled.
struct Filling<'a> {
    archive: &'a Archive,
    volume: &'a Arc<Volume>,
    handle: &'a OperationHandle,
    writer: ImageWriter,
    log_uuid: LogUuid,
    size: Lb,
    /// Everything below has arrived.
    at: u64,
    durable: u64,
}

async fn run<S>(
    archive: &Arc<Archive>,
    prepared: Prepared,
    log_uuid: LogUuid,
    handle: &OperationHandle,
    stream: &mut S,
) -> Result<(FullSyncReply, u64), RoleError>
where
    S: Stream<Item = Result<FullSyncRequest, tonic::Status>> + Unpin,
{
    let Prepared { volume, change, job, size, started_s, start_bytes, .. } = prepared;
    let (here, progress) =
        (volume.clone(), Progress { log_uuid, size_lb: size.0, durable_bytes: start_bytes });
    blocking::run(move || lay_out(&here, progress)).await?;
    let name = volume.name.as_str();
    let device = image::open(&archive.world.images, name, volume.image_path()).await?;
    handle.set_total(size.bytes());
    handle.advance(start_bytes);
    let mut filling = Filling {
        archive,
        volume: &volume,
        handle,
        writer: ImageWriter::new(device, name),
        log_uuid,
        size,
        at: start_bytes,
        durable: start_bytes,
    };
    let filled = tokio::select! {
        filled = filling.fill(stream) => filled,
        () = job.token.cancelled() => Err(RoleError::stopping("broken off by a stop")),
        () = handle.cancelled() => Err(RoleError::cancelled("given up as asked")),
    };
    // Nothing of this session may reach the image after the volume is free again.
    filling.writer.drain().await;
    let base = filled.map_err(|e| e.with_volume(name))?;
    let archive_uuid = LogUuid::random();
    let here = volume.clone();
    blocking::run(move || finish(&here, size, log_uuid, archive_uuid, base, started_s)).await?;
    change.commit(State::Archived);
    drop(job);
    let archive_uuid = proto::convert::uuid_bytes(archive_uuid);
    Ok((FullSyncReply { archive_uuid }, base.end().0))
}

/// The image as it is when a session begins: whole up to the progress, a hole behind it. Blocks.
fn lay_out(volume: &Volume, progress: Progress) -> Result<(), RoleError> {
    // First, so that a later session does not trust an image of something else.
    volume.progress.store(&progress)?;
    let dir = &volume.dir;
    let failed = |e| RoleError::io("lay out", volume.image_path(), e).with_volume(&volume.name);
    dir.set_len(IMAGE_FILE, progress.durable_bytes).map_err(failed)?;
    dir.set_len(IMAGE_FILE, Lb(progress.size_lb).bytes()).map_err(failed)?;
    dir.sync_file(IMAGE_FILE).map_err(failed)?;
    dir.sync().map_err(failed)
}

/// Makes the full backup count. Blocks.
fn finish(
    volume: &Volume,
    size: Lb,
    log_uuid: LogUuid,
    archive_uuid: LogUuid,
    at: Snapshot,
    started_s: u64,
) -> Result<(), RoleError> {
    let base = BaseState::at(at, started_s);
    volume.become_archived(&Whole { size, log_uuid, archive_uuid, base })
}

impl Filling<'_> {
    /// Takes everything up to the end; the answer is the snapshot that the image is.
    async fn fill<S>(&mut self, stream: &mut S) -> Result<Snapshot, RoleError>
    where
        S: Stream<Item = Result<FullSyncRequest, tonic::Status>> + Unpin,
    {
        loop {
            match next_step(self.archive, stream).await? {
                Step::Start(_) => {
                    return Err(RoleError::bad_request("a second start in a full backup"));
                }
                Step::Bulk(bulk) => self.bulk(bulk).await?,
                Step::End(FullSyncEnd { base, .. }) => {
                    if self.at != self.size.bytes() {
                        let (at, size) = (self.at, self.size.bytes());
                        let message = format!("the full backup ends at byte {at} of {size}");
                        return Err(RoleError::wrong_size(message));
                    }
                    let missing = || RoleError::bad_request("the end has no snapshot");
                    let base = Snapshot::try_from(base.ok_or_else(missing)?)
                        .map_err(|e| RoleError::bad_request(e.to_string()))?;
                    self.writer.flush().await?;
                    return Ok(base);
                }
            }
            if self.at - self.durable >= self.archive.settings.flush_bytes {
                self.keep_progress().await?;
            }
        }
    }

    async fn bulk(&mut self, bulk: FullSyncBulk) -> Result<(), RoleError> {
        let data = match bulk.chunk {
            Some(chunk) => server_kit::chunks::decode(chunk)?,
            None => bytes::Bytes::new(),
        };
        let len = if data.is_empty() { bulk.zeros_bytes } else { data.len() as u64 };
        let both = !data.is_empty() && bulk.zeros_bytes > 0;
        let (offset, whole) = (bulk.offset_bytes, len.is_multiple_of(LOGICAL_BLOCK_BYTES));
        if offset != self.at || len == 0 || !whole || both {
            let message = format!(
                "a piece of {len} bytes at {offset} where byte {} of whole blocks is next",
                self.at
            );
            return Err(RoleError::bad_request(message));
        }
        if len > self.size.bytes() - self.at {
            let message = format!("a piece of {len} bytes at {offset} reaches beyond the end");
            return Err(RoleError::wrong_size(message));
        }
        if !data.is_empty() {
            self.writer.write(offset, data).await?;
        }
        self.at += len;
        self.handle.advance(len);
        Ok(())
    }

    async fn keep_progress(&mut self) -> Result<(), RoleError> {
        self.writer.flush().await?;
        let (volume, log_uuid) = (self.volume.clone(), self.log_uuid);
        let progress = Progress { log_uuid, size_lb: self.size.0, durable_bytes: self.at };
        blocking::run(move || volume.progress.store(&progress)).await?;
        self.durable = self.at;
        Ok(())
    }
}
