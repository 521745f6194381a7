//! A wlog is received, converted and staged before it is acknowledged (semantics.md §4.3, I5).
//!
//! Invariants: a refusal comes before any data is taken; an abort leaves nothing behind; once the
//! whole log is there, staging runs to its end even if the sender goes away; the state is back to
//! Started before the sender hears of it.
use crate::convert::{Converted, LogSpec, PARALLEL_FROM_BYTES, Staging, convert};
use crate::disk::Staged;
use crate::volume::{State, Volume};
use futures::{Stream, StreamExt};
use proto::convert::uuid;
use proto::v1::wlog_transfer_request::Step;
use proto::v1::{WlogEnd, WlogStart, WlogTransferReply, WlogTransferRequest};
use server_kit::blocking;
use server_kit::chunks::{ChunkFeeder, bridge};
use server_kit::error::{Reason, RoleError};
use server_kit::state_machine::{StopFlag, Transition};
use std::sync::Arc;
use tonic::Status;
use wdiff_format::gid::Diff;
use wdiff_format::name::to_file_name;
use wlog_format::units::{BlockSize, Lsid, Salt};

/// Room that the index and the file system's own data take besides the log (semantics.md §4.3).
const SPACE_MARGIN_BYTES: u64 = 1 << 20;

/// What the first message announces.
pub(crate) struct Announced {
    spec: LogSpec,
    size_lb: u64,
    max_bytes: u64,
}

/// Takes the first message of a stream.
pub(crate) async fn first_step<S>(stream: &mut S) -> Result<WlogStart, RoleError>
where
    S: Stream<Item = Result<WlogTransferRequest, Status>> + Unpin,
{
    match next_step(stream).await? {
        Some(Step::Start(start)) => Ok(start),
        _ => Err(RoleError::bad_request("a wlog transfer begins with its start message")),
    }
}

async fn next_step<S>(stream: &mut S) -> Result<Option<Step>, RoleError>
where
    S: Stream<Item = Result<WlogTransferRequest, Status>> + Unpin,
{
    let Some(message) = stream.next().await else { return Ok(None) };
    let message = message.map_err(|s| RoleError::from_status("the storage server", &s))?;
    let empty = || RoleError::bad_request("a message of a wlog transfer is empty");
    message.step.map(Some).ok_or_else(empty)
}

impl Announced {
    pub(crate) fn parse(start: &WlogStart) -> Result<Self, RoleError> {
        let bad = |e: String| RoleError::bad_request(format!("wlog transfer: {e}"));
        let bytes = start.physical_block_bytes;
        let block_size = BlockSize::new(bytes)
            .ok_or_else(|| bad(format!("no log has blocks of {bytes} bytes")))?;
        let limit = start.begin_lsid.checked_add(start.max_log_pb);
        let limit = limit.ok_or_else(|| bad("its lsids do not fit 64 bits".to_owned()))?;
        if start.device_size_lb == 0 {
            return Err(bad("a device of no size".to_owned()));
        }
        let spec = LogSpec {
            uuid: uuid(&start.log_uuid).map_err(|e| bad(e.to_string()))?,
            block_size,
            salt: Salt(start.salt),
            begin: Lsid(start.begin_lsid),
            limit: Lsid(limit),
        };
        let max_bytes = start.max_log_pb.saturating_mul(u64::from(bytes));
        Ok(Self { spec, size_lb: start.device_size_lb, max_bytes })
    }
}

/// Receives what `announced` says; answers when the wdiff is durable.
pub(crate) async fn receive<S>(
    volume: Arc<Volume>,
    announced: Announced,
    stream: S,
) -> Result<WlogTransferReply, RoleError>
where
    S: Stream<Item = Result<WlogTransferRequest, Status>> + Unpin,
{
    if volume.env().shutdown.requested().is_cancelled() {
        return Err(RoleError::stopping("the proxy is shutting down"));
    }
    let env = Arc::clone(volume.env());
    let _slot = env.receive_slots.try_acquire().map_err(|_| {
        RoleError::busy(&volume.name, "the proxy receives as many wlogs as it may (max-receiving)")
    })?;
    let transition = volume.begin_receive()?;
    let received = receive_in(&volume, transition, announced, stream).await;
    if let Err(error) = &received
        && Volume::is_own_failure(error)
    {
        tracing::warn!(volume = %volume.name, "cannot receive a wlog: {}", error.full_message());
        volume.note_error(error);
    }
    received
}

async fn receive_in<S>(
    volume: &Arc<Volume>,
    transition: Transition<State>,
    announced: Announced,
    stream: S,
) -> Result<WlogTransferReply, RoleError>
where
    S: Stream<Item = Result<WlogTransferRequest, Status>> + Unpin,
{
    check_space(volume, &announced).await?;
    let (forced, shutdown) = (volume.cell.clone(), volume.env().shutdown.forced());
    let (converted, end) = tokio::select! {
        biased;
        () = forced.wait_until(|v| v.stop == StopFlag::ForceStopping) => Err(RoleError::cancelled(
            format!("volume {} is stopped by force", volume.name),
        )),
        () = shutdown.cancelled() => Err(RoleError::cancelled("the proxy is shut down by force")),
        converted = convert_stream(volume, &announced, stream) => converted,
    }?;
    let diff = check_end(&announced, &converted, end)?;
    let name = to_file_name(&diff)
        .map_err(|e| RoleError::bad_request("the diff can have no name").with_source(e))?;
    let volume = Arc::clone(volume);
    // On its own, so that it is finished even when nobody waits for the answer any more.
    let staging = tokio::spawn(async move {
        let reply =
            WlogTransferReply { wdiff_bytes: converted.bytes, store_uuid: volume.store_uuid() };
        let staged = Staged { diff, uuid: announced.spec.uuid };
        tracing::debug!(volume = %volume.name, %diff, bytes = converted.bytes, "received");
        blocking::run(move || volume.stage(converted.tmp, staged, &name, announced.size_lb))
            .await?;
        transition.commit(State::Started);
        Ok(reply)
    });
    staging.await.map_err(|e| RoleError::new(Reason::Io, "staging broke off").with_source(e))?
}

async fn check_space(volume: &Arc<Volume>, announced: &Announced) -> Result<(), RoleError> {
    let (asked, keep) = (announced.max_bytes, volume.env().limits.keep_free_bytes);
    let volume = Arc::clone(volume);
    blocking::run(move || {
        let free = volume.dir()?.free_bytes()?;
        let needed = asked.saturating_add(SPACE_MARGIN_BYTES).saturating_add(keep);
        if needed <= free {
            return Ok(());
        }
        let message = format!(
            "cannot receive a wlog for volume {}: {free} bytes are free, it needs {needed}",
            volume.name
        );
        Err(RoleError::no_space(message).with_volume(&volume.name))
    })
    .await
}

/// Feeds the stream to the converter until its end message.
async fn convert_stream<S>(
    volume: &Arc<Volume>,
    announced: &Announced,
    stream: S,
) -> Result<(Converted, WlogEnd), RoleError>
where
    S: Stream<Item = Result<WlogTransferRequest, Status>> + Unpin,
{
    let (feeder, receiver) = bridge();
    let (owner, spec) = (Arc::clone(volume), announced.spec.clone());
    // What the first archive wants is what it is staged in, so that nothing is compressed twice.
    let compression = volume.queues().first().map(|q| q.archive().compression).unwrap_or_default();
    let small = announced.max_bytes < PARALLEL_FROM_BYTES;
    let threads = if small { 1 } else { volume.env().limits.threads };
    let converting = blocking::run_waiting(move || {
        let dir = owner.dir()?;
        let path = dir.received_path();
        convert(receiver, &spec, dir.create_tmp()?, &Staging { compression, threads, path })
    });
    let (fed, converted) = tokio::join!(feed(stream, feeder), converting);
    match (fed, converted) {
        (Ok(end), Ok(converted)) => Ok((converted, end)),
        // The reader's own error says why the feeder found it gone.
        (Err(fed), Err(converted)) if fed.reason() == Reason::Cancelled => Err(converted),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

async fn feed<S>(mut stream: S, feeder: ChunkFeeder) -> Result<WlogEnd, RoleError>
where
    S: Stream<Item = Result<WlogTransferRequest, Status>> + Unpin,
{
    loop {
        match next_step(&mut stream).await? {
            Some(Step::Chunk(chunk)) => feeder.feed(chunk).await?,
            Some(Step::End(end)) => {
                feeder.end().await?;
                return Ok(end);
            }
            Some(Step::Start(_)) => {
                return Err(RoleError::bad_request("a wlog transfer has one start message"));
            }
            None => return Err(RoleError::bad_request("the wlog transfer ends without its end")),
        }
    }
}

fn check_end(
    announced: &Announced,
    converted: &Converted,
    end: WlogEnd,
) -> Result<Diff, RoleError> {
    let bad = |e: String| RoleError::bad_request(format!("end of a wlog transfer: {e}"));
    if end.end_lsid != converted.end.0 {
        let begin = announced.spec.begin;
        let (said, came) = (end.end_lsid, converted.end);
        return Err(bad(format!("it says lsid {said}, packs came from {begin} to {came}")));
    }
    let meta = end.diff.ok_or_else(|| bad("it has no diff".to_owned()))?;
    let mut diff = Diff::try_from(meta).map_err(|e| bad(e.to_string()))?;
    if !diff.is_clean() || diff.comparison {
        return Err(bad(format!("the diff {diff} is not clean, a log always is")));
    }
    diff.size = converted.bytes;
    Ok(diff)
}
