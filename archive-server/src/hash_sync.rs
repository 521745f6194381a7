//! Receiving what differs: hash backup, hash replication and resync (`semantics.md` §3.9, §5.12).
//!
//! The archive tells in hashes how its image looks, the sender answers with the blocks that differ,
//! as one sorted wdiff. That becomes a diff of the volume, or goes into the image itself.
//! Invariants: everything that can fail is checked before a session is granted, because the storage
//! empties its log then; the diff, the log that it is of and its place in the history count as one
//! ([`Volume::commit_diff`]); an attempt that fails leaves the volume as it was, a resync excepted.

use crate::archive::{Archive, parse_name, refused};
use crate::hash_sink::{self, Sink};
use crate::jobs::{HASH_SYNC, Job};
use crate::receive::check_space;
use crate::state::State;
use crate::verify;
use crate::view::{self, View};
use crate::volume::Volume;
use futures::{Stream, StreamExt};
use proto::v1::hash_sync_reply::Step as Told;
use proto::v1::hash_sync_request::Step;
use proto::v1::{
    HashSyncDone, HashSyncEnd, HashSyncReply, HashSyncRequest, HashSyncStart, PrepareHashSyncReply,
    PrepareHashSyncRequest,
};
use server_kit::chunks::{ChunkFeeder, bridge};
use server_kit::error::{Reason, RoleError};
use server_kit::hash_sync::{self, QUESTIONS_MAX, Replies, Seed};
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::scan::Bulks;
use server_kit::state_machine::Transition;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wdiff_format::gid::Snapshot;
use wlog_format::units::{Lb, LogUuid};

/// Replies that wait for the connection.
const REPLIES: usize = 8;
/// How long a hash backup waits for a wdiff that is being received.
const PATIENCE: Duration = Duration::from_secs(10);
/// Free space is looked at whenever so much has arrived.
const LOOK_BYTES: u64 = 64 << 20;

/// A volume that is held for a transfer.
pub(crate) struct Hold {
    pub(crate) change: Transition<State>,
    pub(crate) job: Job,
}

/// A session that is announced.
pub(crate) struct Prepared {
    pub(crate) volume: Arc<Volume>,
    pub(crate) size: Lb,
    pub(crate) purpose: Purpose,
}

/// What is received, and what was prepared for it.
pub(crate) enum Purpose {
    /// A hash backup.
    Backup { hold: Hold, view: View, from: Snapshot, started_s: u64 },
    /// A comparison diff of another archive, from this snapshot. The volume goes on until it comes.
    Replica { from: Snapshot },
    /// The image of another archive; what is here is given up already.
    Resync { hold: Hold },
}

/// Announces a hash backup.
pub(crate) async fn prepare(
    archive: &Arc<Archive>,
    request: PrepareHashSyncRequest,
) -> Result<PrepareHashSyncReply, RoleError> {
    let volume = archive.volume(&request.volume)?;
    let (name, size) = (volume.name.as_str(), Lb(request.size_lb));
    archive.hash_sessions.drop_session(&volume.name);
    let hold = hold(&volume, State::HashSync, "make a hash backup of").await?;
    same_size(&volume, size)?;
    check_space(archive, &volume, 0).await?;
    let (from, log_uuid) = volume.with(|c| (c.latest.0, c.record.log_uuid));
    let view = View::of_snapshot(archive, &volume, from.begin()).await?;
    tracing::debug!(volume = name, %from, "a hash backup is announced");
    let purpose = Purpose::Backup { hold, view, from, started_s: request.started_s };
    let prepared = Prepared { volume: volume.clone(), size, purpose };
    let silence = archive.settings.silence;
    let session = archive.hash_sessions.announce(&volume.name, prepared, silence);
    let log_uuid = proto::convert::uuid_bytes(log_uuid);
    Ok(PrepareHashSyncReply { session, latest: Some(from.into()), log_uuid })
}

/// Takes an archived volume; waits for a moment while a wdiff is received.
pub(crate) async fn hold(
    volume: &Arc<Volume>,
    via: State,
    attempt: &str,
) -> Result<Hold, RoleError> {
    let take = async {
        loop {
            volume.cell.wait_until(|v| v.state != State::WdiffRecv).await;
            match volume.cell.begin(&[State::Archived], via) {
                Err(_) if volume.cell.state() == State::WdiffRecv => {}
                done => return done,
            }
        }
    };
    let taken = match tokio::time::timeout(PATIENCE, take).await {
        Ok(taken) => taken,
        Err(_) => volume.cell.begin(&[State::Archived], via),
    };
    let change = taken.map_err(|e| refused(volume, e, attempt))?;
    let job = volume.jobs.begin(volume.name.as_str(), HASH_SYNC, &view::EXCLUDED)?;
    Ok(Hold { change, job })
}

/// Fails unless the image has the size of the device.
pub(crate) fn same_size(volume: &Volume, size: Lb) -> Result<(), RoleError> {
    let has = volume.size();
    if has == size {
        return Ok(());
    }
    let name = &volume.name;
    let message =
        format!("volume {name}: its image has {has} blocks here, the device has {size} blocks");
    let error = RoleError::wrong_size(message).with_volume(name);
    Err(if has < size {
        error.with_next_step(format!("walbc resize {name} {}", size.bytes()))
    } else {
        error.with_next_step("volumes only grow: use another volume name, or a full backup")
    })
}

/// A transfer that is about to run.
struct Transfer {
    volume: Arc<Volume>,
    hold: Hold,
    seed: Seed,
    cells: Bulks,
    sink: Sink,
    log_uuid: LogUuid,
    replies: Replies,
}

/// Receives a hash sync that was announced; it runs on by itself.
pub(crate) async fn receive<S>(
    archive: &Arc<Archive>,
    mut stream: S,
) -> Result<ReceiverStream<Result<HashSyncReply, tonic::Status>>, RoleError>
where
    S: Stream<Item = Result<HashSyncRequest, tonic::Status>> + Unpin + Send + 'static,
{
    let Step::Start(start) = next_step(archive, &mut stream).await? else {
        return Err(RoleError::bad_request("a hash sync begins with its start"));
    };
    let (replies, receiver) = mpsc::channel(REPLIES);
    let transfer = begin(archive, &start, replies.clone()).await?;
    let volume = transfer.volume.clone();
    let (archive, name) = (archive.clone(), volume.name.clone());
    archive.operations.clone().start(HASH_SYNC, name, |handle| async move {
        let spans = hash_sync::spans(&start)?;
        handle.set_total(spans.iter().map(|s| s.end - s.start).sum());
        let done = run(&archive, transfer, &mut stream, &handle).await;
        crate::apply::mend(&archive, &volume);
        let error = match done {
            Ok(outcome) => {
                volume.clear_fault(HASH_SYNC);
                return Ok(outcome);
            }
            Err(error) => error.with_volume(&volume.name),
        };
        verify::check::met(&volume, &error);
        if matches!(error.reason(), Reason::NoSpace | Reason::Io) {
            volume.set_fault(HASH_SYNC, &error);
        }
        let copy = RoleError::new(error.reason(), error.full_message())
            .with_volume(&volume.name)
            .with_next_step(&*error.detail().next_step);
        let _ = replies.send(Err(copy.into())).await;
        Err(error)
    });
    Ok(ReceiverStream::new(receiver))
}

/// Everything up to the first hash.
async fn begin(
    archive: &Arc<Archive>,
    start: &HashSyncStart,
    replies: Replies,
) -> Result<Transfer, RoleError> {
    let name = parse_name(&start.volume)?;
    let bad = |why: String| RoleError::bad_request(why).with_volume(&name);
    let log_uuid =
        proto::convert::uuid(&start.log_uuid).map_err(|e| bad(format!("log_uuid: {e}")))?;
    let seed = Seed::of(start).map_err(|e| e.with_volume(&name))?;
    let unknown = || {
        let message = format!("no hash sync of volume {name} is announced by that session");
        RoleError::wrong_peer(message).with_volume(&name).with_next_step("announce it again")
    };
    let prepared = archive.hash_sessions.take(&name, &start.session).ok_or_else(unknown)?;
    let Prepared { volume, size, purpose } = prepared;
    if size.0 != start.size_lb {
        return Err(bad(format!("announced were {size} blocks, not {}", start.size_lb)));
    }
    let spans = hash_sync::spans(start)?;
    let speed = start.scan_bytes_per_s;
    let (hold, cells, sink) = match purpose {
        Purpose::Backup { hold, view, from, started_s } => {
            (hold, view.cells(spans, speed), Sink::Backup { from, started_s })
        }
        Purpose::Replica { from } => {
            let hold = hold_replica(archive, &volume, from).await?;
            let view = View::of_snapshot(archive, &volume, from.begin()).await?;
            (hold, view.cells(spans, speed), Sink::Comparison { from })
        }
        Purpose::Resync { hold } => {
            let archive_uuid = proto::convert::uuid(&start.archive_uuid)
                .map_err(|e| bad(format!("archive_uuid: {e}")))?;
            let hold = crate::replica::give_up(&volume, hold, size).await?;
            let (cells, sink) = hash_sink::image(&volume, spans, speed, archive_uuid, size).await?;
            (hold, cells, sink)
        }
    };
    Ok(Transfer { volume, hold, seed, cells, sink, log_uuid, replies })
}

/// Takes the volume for a comparison diff, if it still is where the other archive compared.
async fn hold_replica(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    from: Snapshot,
) -> Result<Hold, RoleError> {
    let hold = hold(volume, State::ReplSync, "replicate to").await?;
    let latest = volume.with(|c| c.latest.0);
    if latest != from {
        let message = format!("volume {}: it is at {latest} now, not at {from}", volume.name);
        return Err(RoleError::busy(&volume.name, message).with_next_step("replicate again"));
    }
    check_space(archive, volume, 0).await?;
    Ok(hold)
}

async fn next_step<S>(archive: &Archive, stream: &mut S) -> Result<Step, RoleError>
where
    S: Stream<Item = Result<HashSyncRequest, tonic::Status>> + Unpin,
{
    let silence = archive.settings.silence;
    let quiet = |_| {
        let message = format!("the sender said nothing for {} s", silence.as_secs());
        RoleError::new(Reason::Unreachable, message)
    };
    let message = tokio::time::timeout(silence, stream.next()).await.map_err(quiet)?;
    let message = message
        .ok_or_else(|| RoleError::unreachable("the sender", "it broke off in the middle"))?;
    let message = message.map_err(|e| RoleError::from_status("the sender", &e))?;
    message.step.ok_or_else(|| RoleError::bad_request("an empty message in a hash sync"))
}

async fn run<S>(
    archive: &Arc<Archive>,
    transfer: Transfer,
    stream: &mut S,
    handle: &OperationHandle,
) -> Result<Outcome, RoleError>
where
    S: Stream<Item = Result<HashSyncRequest, tonic::Status>> + Unpin,
{
    let Transfer { volume, hold, seed, cells, sink, log_uuid, replies } = transfer;
    let (feeder, input) = bridge();
    let (refs, asked) = mpsc::channel(QUESTIONS_MAX);
    let keeper = tokio::spawn(sink.keep(volume.clone(), log_uuid, input, hold.job.token.clone()));
    let both = async {
        let incoming = Incoming { archive, volume: &volume, handle, feeder, refs };
        let (end, ()) = tokio::try_join!(
            incoming.feed(stream),
            hash_sync::answer(seed, cells, asked, replies.clone())
        )?;
        Ok(end)
    };
    // What is dropped here ends the keeper, too.
    let fed = tokio::select! {
        fed = both => fed,
        () = hold.job.token.cancelled() => Err(RoleError::stopping("broken off by a stop")),
        () = handle.cancelled() => Err(RoleError::cancelled("given up as asked")),
    };
    let kept = keeper.await.map_err(|e| RoleError::new(Reason::Io, e.to_string()))?;
    let (end, kept) = match (fed, kept) {
        (Ok(end), Ok(kept)) => (end, kept),
        // The reader gave up first, and knows why.
        (Err(fed), Err(kept)) if fed.reason() == Reason::Cancelled && !handle.is_cancelled() => {
            return Err(kept);
        }
        (Err(error), _) | (_, Err(error)) => return Err(error),
    };
    let wdiff_bytes = end.total_bytes;
    let gid = kept.commit(&volume, log_uuid, end).await?;
    hold.change.commit(State::Archived);
    drop(hold.job);
    archive.indexer.came(&volume);
    let done = Told::Done(HashSyncDone { wdiff_bytes });
    // Should nobody wait for it: it counts all the same.
    let _ = replies.send(Ok(HashSyncReply { step: Some(done) })).await;
    Ok(Outcome { gid: Some(gid.0), path: None })
}

/// What the sender says, on its way.
struct Incoming<'a> {
    archive: &'a Archive,
    volume: &'a Volume,
    handle: &'a OperationHandle,
    feeder: ChunkFeeder,
    refs: mpsc::Sender<proto::v1::BulkRefs>,
}

impl Incoming<'_> {
    /// Takes everything up to the end.
    async fn feed<S>(self, stream: &mut S) -> Result<HashSyncEnd, RoleError>
    where
        S: Stream<Item = Result<HashSyncRequest, tonic::Status>> + Unpin,
    {
        let (mut sent, mut looked, mut done_bytes) = (0_u64, 0, 0);
        loop {
            match next_step(self.archive, stream).await? {
                Step::Start(_) => {
                    return Err(RoleError::bad_request("a second start in a hash sync"));
                }
                Step::Wanted(wanted) => {
                    self.handle.advance(wanted.done_bytes.saturating_sub(done_bytes));
                    done_bytes = wanted.done_bytes.max(done_bytes);
                    // Waiting here would keep data from coming in, and the sender from asking less.
                    self.refs
                        .try_send(wanted)
                        .map_err(|_| RoleError::bad_request("too many questions in a hash sync"))?;
                }
                Step::Data(chunk) => {
                    let raw = if chunk.raw_bytes == 0 {
                        chunk.data.len() as u64
                    } else {
                        chunk.raw_bytes.into()
                    };
                    sent = sent.saturating_add(raw);
                    if sent - looked >= LOOK_BYTES {
                        looked = sent;
                        check_space(self.archive, self.volume, 0).await?;
                    }
                    self.feeder.feed(chunk).await?;
                }
                Step::End(end) if end.total_bytes == sent => {
                    self.feeder.end().await?;
                    return Ok(end);
                }
                Step::End(HashSyncEnd { total_bytes, .. }) => {
                    let message =
                        format!("{sent} bytes of a wdiff arrived, {total_bytes} were sent");
                    return Err(RoleError::damaged(message));
                }
            }
        }
    }
}
