//! Receiving a full backup, or the base image of another archive (`semantics.md` §5.11).
//!
//! A session is announced first; it holds the volume until it is used, replaced, or forgotten after
//! a silence. Invariants: the progress that is kept is behind a flush, which began after all writes
//! below had ended; whatever lies behind it in the image reads as zeros when a session begins, or
//! zeros are written too; a full backup that fails leaves `SyncReady` and its progress; it counts
//! when base, uuids and state are durable in one file.

use crate::archive::{Archive, parse_name, refused};
use crate::backend::{Image, Rest};
use crate::image::ImageWriter;
use crate::jobs::{FULL_SYNC, Job, RESIZE};
use crate::record::{Progress, Replica, Whole};
use crate::state::State;
use crate::volume::Volume;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use proto::v1::full_sync_request::Step;
use proto::v1::{
    FullSyncBulk, FullSyncEnd, FullSyncReply, FullSyncRequest, FullSyncStart, PrepareFullSyncReply,
    PrepareFullSyncRequest,
};
use server_kit::blocking;
use server_kit::error::{Reason, RoleError};
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::state_machine::Transition;
use std::sync::Arc;
use wdiff_format::gid::{BaseState, Snapshot};
use wlog_format::units::{LOGICAL_BLOCK_BYTES, Lb, LogUuid};

/// Largest volume: what signed file offsets reach.
pub(crate) const SIZE_MAX: Lb = Lb((1 << 62) / LOGICAL_BLOCK_BYTES);

/// A full sync that is announced.
pub(crate) struct Prepared {
    volume: Arc<Volume>,
    change: Transition<State>,
    job: Job,
    size: Lb,
    source: Source,
    start_bytes: u64,
}

/// Whom the image comes from, which says what an interrupted transfer has to be continued by.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// A storage; `resumes` is the log uuid of what is resumed.
    Storage { resumes: Option<LogUuid>, started_s: u64 },
    /// An archive, which sends its base image in this state.
    Archive(Replica),
}

impl Prepared {
    /// Whether an archive has announced it.
    pub(crate) fn is_of_archive(&self) -> bool {
        matches!(self.source, Source::Archive(_))
    }
}

/// Announces a full backup.
pub(crate) async fn prepare(
    archive: &Arc<Archive>,
    request: PrepareFullSyncRequest,
) -> Result<PrepareFullSyncReply, RoleError> {
    let volume = archive.volume(&request.volume)?;
    let resumes = match &*request.resume_uuid {
        [] => None,
        bytes => Some(proto::convert::uuid(bytes).map_err(|e| {
            RoleError::bad_request(format!("resume_uuid: {e}")).with_volume(&volume.name)
        })?),
    };
    let source = Source::Storage { resumes, started_s: request.started_s };
    let (session, start_bytes) = announce(archive, &volume, Lb(request.size_lb), source).await?;
    Ok(PrepareFullSyncReply { session, start_bytes })
}

/// Announces a full sync: its session, and where it goes on.
pub(crate) async fn announce(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    size: Lb,
    mut source: Source,
) -> Result<(String, u64), RoleError> {
    let name = volume.name.as_str();
    if size == Lb(0) || size > SIZE_MAX {
        let message = format!("cannot receive a full backup of {size} blocks");
        return Err(RoleError::wrong_size(message).with_volume(name));
    }
    volume.images.room(archive.settings.reserve_bytes)?;
    archive.sessions.drop_session(&volume.name);
    let change = volume.cell.begin(&[State::SyncReady], State::FullSync);
    let change = change.map_err(|e| refused(volume, e, "make a full backup of"))?;
    let job = volume.jobs.begin(name, FULL_SYNC, &[RESIZE])?;
    let here = volume.clone();
    let start_bytes = blocking::run(move || resumable(&here, size, source)).await?;
    if let Source::Storage { resumes, .. } = &mut source {
        *resumes = resumes.filter(|_| start_bytes > 0);
    }
    let volume = volume.clone();
    let name = volume.name.clone();
    let prepared = Prepared { volume, change, job, size, source, start_bytes };
    let session = archive.sessions.announce(&name, prepared, archive.settings.silence);
    Ok((session, start_bytes))
}

/// Where an interrupted full sync of the same content goes on. Blocks.
fn resumable(volume: &Volume, size: Lb, source: Source) -> Result<u64, RoleError> {
    if matches!(source, Source::Storage { resumes: None, .. }) {
        return Ok(0);
    }
    let Some(progress) = volume.progress.load()? else { return Ok(0) };
    let same = match source {
        Source::Storage { resumes, .. } => {
            progress.replica.is_none() && resumes == Some(progress.log_uuid)
        }
        Source::Archive(replica) => progress.replica == Some(replica),
    };
    let same = same && progress.size_lb == size.0;
    let has = volume.images.found()?.unwrap_or(0);
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
    let prepared = archive.sessions.take(&name, &start.session).ok_or_else(unknown)?;
    let same = match prepared.source {
        Source::Storage { resumes, .. } => resumes.is_none_or(|uuid| uuid == log_uuid),
        Source::Archive(Replica { archive_uuid, .. }) => *start.archive_uuid == archive_uuid.0,
    };
    if !same {
        let message = format!("volume {name}: what was announced is of another log");
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
    source: Source,
    /// What is in the image where nothing was written.
    rest: Rest,
    size: Lb,
    /// Everything below has arrived.
    at: u64,
    /// Up to where the last keeping was begun.
    kept: u64,
    /// One at most: it makes what is behind last, and then keeps the progress.
    keeping: FuturesUnordered<BoxFuture<'static, Result<(), RoleError>>>,
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
    let Prepared { volume, change, job, size, source, start_bytes } = prepared;
    let (here, progress) = (volume.clone(), source.progress(log_uuid, size, start_bytes));
    let rest = blocking::run(move || lay_out(&here, progress)).await?;
    let name = volume.name.as_str();
    let device = volume.open_image(Image::Base, size).await?;
    handle.set_total(size.bytes());
    handle.advance(start_bytes);
    let mut filling = Filling {
        archive,
        volume: &volume,
        handle,
        writer: ImageWriter::new(device, name),
        log_uuid,
        source,
        rest,
        size,
        at: start_bytes,
        kept: start_bytes,
        keeping: FuturesUnordered::new(),
    };
    let filled = tokio::select! {
        filled = filling.fill(stream) => filled,
        () = job.token.cancelled() => Err(RoleError::stopping("broken off by a stop")),
        () = handle.cancelled() => Err(RoleError::cancelled("given up as asked")),
    };
    // Nothing of this session may reach the image after the volume is free again.
    filling.drain().await;
    let sent = filled.map_err(|e| e.with_volume(name))?;
    let (archive_uuid, base) = match source {
        Source::Storage { started_s, .. } => (LogUuid::random(), BaseState::at(sent, started_s)),
        Source::Archive(Replica { archive_uuid, base }) if base.snapshot() == sent => {
            (archive_uuid, base)
        }
        Source::Archive(Replica { base, .. }) => {
            let message = format!("volume {name}: the image that was sent is {sent}, not {base}");
            return Err(RoleError::wrong_peer(message).with_volume(name));
        }
    };
    let whole = Whole { size, log_uuid, archive_uuid, base };
    let here = volume.clone();
    blocking::run(move || here.become_archived(&whole)).await?;
    change.commit(State::Archived);
    drop(job);
    let archive_uuid = proto::convert::uuid_bytes(archive_uuid);
    Ok((FullSyncReply { archive_uuid }, sent.end().0))
}

/// The image as it is when a session begins: whole up to the progress. Blocks.
fn lay_out(volume: &Volume, progress: Progress) -> Result<Rest, RoleError> {
    // First, so that a later session does not trust an image of something else.
    volume.progress.store(&progress)?;
    volume.images.lay_out(Lb::from_bytes(progress.durable_bytes), Lb(progress.size_lb))
}

impl Source {
    fn progress(self, log_uuid: LogUuid, size: Lb, durable_bytes: u64) -> Progress {
        let replica = match self {
            Self::Storage { .. } => None,
            Self::Archive(replica) => Some(replica),
        };
        Progress { log_uuid, size_lb: size.0, durable_bytes, replica }
    }
}

impl Filling<'_> {
    /// Takes everything up to the end; the answer is the snapshot that the image is.
    async fn fill<S>(&mut self, stream: &mut S) -> Result<Snapshot, RoleError>
    where
        S: Stream<Item = Result<FullSyncRequest, tonic::Status>> + Unpin,
    {
        loop {
            let step = tokio::select! {
                step = next_step(self.archive, stream) => step?,
                Some(kept) = self.keeping.next() => {
                    kept?;
                    continue;
                }
            };
            match step {
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
                    self.end_keeping().await?;
                    self.writer.flush().await?;
                    return Ok(base);
                }
            }
            if self.at - self.kept >= self.archive.settings.flush_bytes {
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
        } else if self.rest == Rest::Unknown {
            self.writer.zero(offset, len).await?;
        }
        self.at += len;
        self.handle.advance(len);
        Ok(())
    }

    /// Begins to keep the progress, beside what arrives next.
    async fn keep_progress(&mut self) -> Result<(), RoleError> {
        self.end_keeping().await?;
        self.kept = self.at;
        let (flush, volume) = (self.writer.flush_behind(), self.volume.clone());
        let progress = self.source.progress(self.log_uuid, self.size, self.at);
        self.keeping.push(Box::pin(async move {
            flush.await?;
            blocking::run(move || volume.progress.store(&progress)).await
        }));
        Ok(())
    }

    async fn end_keeping(&mut self) -> Result<(), RoleError> {
        while let Some(kept) = self.keeping.next().await {
            kept?;
        }
        Ok(())
    }

    /// Waits for all that was begun, whatever becomes of it.
    async fn drain(&mut self) {
        while self.keeping.next().await.is_some() {}
        self.writer.drain().await;
    }
}
