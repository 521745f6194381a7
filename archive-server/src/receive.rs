//! Taking in a wdiff (`semantics.md` §5.6).
//!
//! Invariants: every refusal that the sender must react to is a [`WdiffResult`]; a wdiff is checked
//! as a whole while it is written, and what is not sound never gets a name; I5: file synced, name
//! committed, directory synced, then the catalogue, then the answer; an attempt that fails leaves
//! nothing behind.

use crate::archive::Archive;
use crate::faults;
use crate::jobs::{Job, RECEIVE};
use crate::state::State;
use crate::volume::Volume;
use futures::{Stream, StreamExt};
use proto::v1::wdiff_transfer_request::Step;
use proto::v1::{
    Snapshot as SnapshotMessage, WdiffEnd, WdiffResult, WdiffSender, WdiffStart,
    WdiffTransferReply, WdiffTransferRequest,
};
use server_kit::blocking;
use server_kit::chunks::{ChunkFeeder, ChunkReceiver, bridge};
use server_kit::durable::TmpFile;
use server_kit::error::{Reason, RoleError, is_no_space};
use server_kit::state_machine::Transition;
use std::io::{self, BufWriter, Read, Write};
use std::sync::Arc;
use wdiff_format::gid::{Diff, Relation};
use wdiff_format::redo::decode;
use wdiff_format::sorted_reader::SortedReader;
use wlog_format::units::{Lb, LogUuid};

/// Memory between the network and the file.
const BUFFER_BYTES: usize = 256 << 10;

/// Less than this is not worth threads.
const PARALLEL_FROM_BYTES: u64 = 4 << 20;

/// A wdiff that is announced.
struct Announced {
    sender: String,
    from_archive: bool,
    log_uuid: LogUuid,
    size: Lb,
    diff: Diff,
}

/// Receives a wdiff, or says why not.
pub(crate) async fn receive<S>(
    archive: &Archive,
    mut stream: S,
) -> Result<WdiffTransferReply, RoleError>
where
    S: Stream<Item = Result<WdiffTransferRequest, tonic::Status>> + Unpin,
{
    let Step::Start(start) = next_step(archive, &mut stream).await? else {
        return Err(RoleError::bad_request("a wdiff transfer begins with its start"));
    };
    let Some(volume) = archive.find(&start.volume)? else {
        let message = format!("volume {} is not known here", start.volume);
        return Ok(refusal(WdiffResult::ArchiveNotFound, message, None));
    };
    let announced = announced(&volume, start)?;
    match accept(archive, &volume, &announced).await? {
        Accept::Refused(result, message) => {
            let latest = Some(volume.latest_message());
            Ok(refusal(result, format!("volume {}: {message}", volume.name), latest))
        }
        Accept::Go(open) => {
            let sender = announced.sender.clone();
            let received = transfer(archive, &volume, announced, open, stream).await;
            match &received {
                Ok(_) => volume.clear_fault(RECEIVE),
                Err(error) if error.reason() == Reason::NoSpace => {
                    volume.set_fault(RECEIVE, error);
                    // It is sent again, and its size may not have been known before.
                    archive.deleter.make_room().await;
                }
                Err(error) => {
                    if error.reason() == Reason::Io {
                        volume.set_fault(RECEIVE, error);
                    }
                    tracing::warn!(
                        volume = %volume.name, sender, error = error.full_message(),
                        "a wdiff transfer failed"
                    );
                }
            }
            received
        }
    }
}

fn refusal(
    result: WdiffResult,
    message: String,
    latest: Option<SnapshotMessage>,
) -> WdiffTransferReply {
    WdiffTransferReply { result: result.into(), message, latest }
}

fn announced(volume: &Volume, start: WdiffStart) -> Result<Announced, RoleError> {
    let bad = |why: String| {
        RoleError::bad_request(format!("cannot take this wdiff of volume {}: {why}", volume.name))
            .with_volume(&volume.name)
    };
    let from_archive = match start.sender() {
        WdiffSender::Proxy if i32::from(WdiffSender::Proxy) == start.sender => false,
        WdiffSender::Archive => true,
        WdiffSender::Proxy => return Err(bad(format!("there is no sender {}", start.sender))),
    };
    let diff = start.diff.ok_or_else(|| bad("it comes without its metadata".into()))?;
    let diff = Diff::try_from(diff).map_err(|e| bad(e.to_string()))?;
    if diff.comparison && !from_archive {
        return Err(bad("a proxy has no comparison diffs".into()));
    }
    volume.diff_name(&diff)?;
    let log_uuid = proto::convert::uuid(&start.log_uuid).map_err(|e| bad(e.to_string()))?;
    let (sender, size) = (start.sender_id, Lb(start.size_lb));
    Ok(Announced { sender, from_archive, log_uuid, size, diff })
}

/// An open transfer.
struct Open {
    job: Job,
    change: Transition<State>,
}

enum Accept {
    Go(Open),
    Refused(WdiffResult, String),
}

/// The checks of §5.6, in their order.
async fn accept(
    archive: &Archive,
    volume: &Volume,
    announced: &Announced,
) -> Result<Accept, RoleError> {
    use WdiffResult as R;
    let refused = |result, message: &str| Ok(Accept::Refused(result, message.to_owned()));
    if let Some(result) = refused_by_state(volume) {
        return match result {
            Some(result) => refused(result, &format!("it is {}", volume.cell.state())),
            None => Err(volume.broken("send a wdiff to")),
        };
    }
    let (record, latest) = volume.with(|c| (c.record.clone(), c.latest.0));
    if !announced.from_archive && announced.log_uuid != record.log_uuid {
        return refused(R::DifferentUuid, &format!("its log is {}", record.log_uuid));
    }
    if announced.size > Lb(record.size_lb) {
        let message =
            format!("its image has {} blocks, needed are {}", record.size_lb, announced.size);
        return refused(R::SmallerSize, &message);
    }
    match latest.relation(&announced.diff) {
        Relation::Applicable => {}
        Relation::TooOld => return refused(R::TooOld, &format!("{latest} is here already")),
        Relation::TooNew => return refused(R::TooNew, &format!("{latest} is the latest here")),
        Relation::OtherStart => {
            let message = format!("comparison diff {} does not start at {latest}", announced.diff);
            return Err(RoleError::unknown_snapshot(&volume.name, message));
        }
    }
    check_space(archive, volume, announced.diff.size).await?;
    let name = volume.name.as_str();
    match volume.cell.begin(&[State::Archived], State::WdiffRecv) {
        Ok(change) => Ok(Accept::Go(Open { job: volume.jobs.begin(name, RECEIVE, &[])?, change })),
        Err(_) => match refused_by_state(volume) {
            Some(Some(result)) => refused(result, &format!("it is {}", volume.cell.state())),
            _ => refused(R::Busy, "it is changing its state"),
        },
    }
}

/// What the state alone says: nothing, a refusal, or that the volume is broken (`Some(None)`).
fn refused_by_state(volume: &Volume) -> Option<Option<WdiffResult>> {
    let view = volume.cell.view();
    match view.state {
        State::Broken => Some(None),
        State::Clear | State::ClearVol => Some(Some(WdiffResult::ArchiveNotFound)),
        State::FullSync | State::HashSync | State::ReplSync | State::Resync => {
            Some(Some(WdiffResult::Syncing))
        }
        State::WdiffRecv => Some(Some(WdiffResult::Busy)),
        // The sender tries again later.
        State::SyncReady | State::Stopped | State::Stop | State::Start | State::ResetVol => {
            Some(Some(WdiffResult::Stopped))
        }
        State::Archived => {
            let stopping = view.stop != server_kit::state_machine::StopFlag::NotStopping;
            stopping.then_some(Some(WdiffResult::Stopped))
        }
    }
}

/// I10: refused before the disk is full, so that what is here stays usable.
pub(crate) async fn check_space(
    archive: &Archive,
    volume: &Volume,
    size: u64,
) -> Result<(), RoleError> {
    let needed = archive.settings.reserve_bytes.saturating_add(size);
    let free = archive.deleter.free_bytes(volume, needed).await?;
    if free >= needed {
        // What comes in goes into the base image in the end.
        let room = volume.images.room(archive.settings.reserve_bytes);
        match &room {
            Ok(()) => volume.clear_fault(RECEIVE),
            Err(error) => volume.set_fault(RECEIVE, error),
        }
        return room;
    }
    let dir = volume.dir.path().display().to_string();
    let message = format!(
        "cannot take a wdiff of volume {}: {dir} has {free} bytes free, needed are {needed}",
        volume.name
    );
    let error = RoleError::no_space(message).with_volume(&volume.name).with_file(dir);
    volume.set_fault(RECEIVE, &error);
    Err(error)
}

async fn transfer<S>(
    archive: &Archive,
    volume: &Arc<Volume>,
    announced: Announced,
    open: Open,
    mut stream: S,
) -> Result<WdiffTransferReply, RoleError>
where
    S: Stream<Item = Result<WdiffTransferRequest, tonic::Status>> + Unpin,
{
    let _turn = archive.receivers.acquire().await;
    let (feeder, input) = bridge();
    let token = open.job.token.clone();
    let here = volume.clone();
    // The thread owns the transaction: whatever becomes of the stream, it ends when the file has.
    let keeper = tokio::spawn(blocking::run_waiting(move || keep(&here, &announced, input, open)));
    let fed = tokio::select! {
        fed = feed(archive, &mut stream, feeder) => fed,
        () = token.cancelled() => Err(RoleError::stopping("the transfer was broken off by a stop")),
    };
    let kept = keeper.await.map_err(|e| RoleError::new(Reason::Io, e.to_string()))?;
    match (fed, kept) {
        (Ok(()), Ok(())) => {
            archive.indexer.came(volume);
            let latest = Some(volume.latest_message());
            Ok(refusal(WdiffResult::Stored, String::new(), latest))
        }
        // The reader gave up first, and knows why; else the stream broke, and the reader saw its
        // end.
        (Err(fed), Err(kept)) if fed.reason() == Reason::Cancelled => Err(kept),
        (Err(error), _) | (Ok(()), Err(error)) => Err(error.with_volume(&volume.name)),
    }
}

async fn next_step<S>(archive: &Archive, stream: &mut S) -> Result<Step, RoleError>
where
    S: Stream<Item = Result<WdiffTransferRequest, tonic::Status>> + Unpin,
{
    let silence = archive.settings.silence;
    let quiet = |_| {
        let message = format!("the sender said nothing for {} s", silence.as_secs());
        RoleError::new(Reason::Unreachable, message)
    };
    let message = tokio::time::timeout(silence, stream.next()).await.map_err(quiet)?;
    let message =
        message.ok_or_else(|| RoleError::bad_request("the stream ends before its end"))?;
    let message = message.map_err(|e| RoleError::from_status("the sender", &e))?;
    message.step.ok_or_else(|| RoleError::bad_request("an empty message in a wdiff transfer"))
}

/// Hands on the chunks of a transfer, to its end.
pub(crate) async fn feed<S>(
    archive: &Archive,
    stream: &mut S,
    feeder: ChunkFeeder,
) -> Result<(), RoleError>
where
    S: Stream<Item = Result<WdiffTransferRequest, tonic::Status>> + Unpin,
{
    let mut sent = 0_u64;
    loop {
        match next_step(archive, stream).await? {
            Step::Start(_) => {
                return Err(RoleError::bad_request("a second start in a wdiff transfer"));
            }
            Step::Chunk(chunk) => {
                let raw = if chunk.raw_bytes == 0 {
                    chunk.data.len() as u64
                } else {
                    chunk.raw_bytes.into()
                };
                sent = sent.saturating_add(raw);
                feeder.feed(chunk).await?;
            }
            Step::End(WdiffEnd { total_bytes }) if total_bytes == sent => {
                return feeder.end().await;
            }
            Step::End(WdiffEnd { total_bytes }) => {
                let message = format!("{sent} bytes of a wdiff arrived, {total_bytes} were sent");
                return Err(RoleError::damaged(message));
            }
        }
    }
}

/// Checks and keeps the wdiff; its file is durable and in the catalogue when this returns. Blocks.
fn keep(
    volume: &Volume,
    announced: &Announced,
    input: ChunkReceiver,
    open: Open,
) -> Result<(), RoleError> {
    let name = volume.diff_name(&announced.diff)?;
    let mut tmp = volume.dir.create_tmp()?;
    let Announced { sender, log_uuid, .. } = announced;
    let size = announced.diff.size;
    let origin = Origin { sender, log_uuid: *log_uuid, name: &name, size };
    let bytes = write_checked(volume, &origin, input, &mut tmp)?;
    crate::jobs::check(&open.job.token)?;
    let mut diff = announced.diff;
    diff.size = bytes;
    // Of another archive that has moved on to a new log: what is left of the old one is not wanted
    // any more. (The original forgets this, §9.2 #11.)
    volume.commit_diff(tmp, diff, announced.log_uuid)?;
    if announced.from_archive {
        // Parts of it may be here, from a proxy or of an earlier replication.
        volume.drop_contained(&diff)?;
    }
    open.change.commit(State::Archived);
    drop(open.job);
    tracing::debug!(volume = %volume.name, file = name, bytes, sender, "stored");
    Ok(())
}

/// Where a wdiff comes from, and what it is called.
pub(crate) struct Origin<'a> {
    pub(crate) sender: &'a str,
    pub(crate) log_uuid: LogUuid,
    pub(crate) name: &'a str,
    /// Bytes, as far as known before.
    pub(crate) size: u64,
}

/// Writes what arrives, and checks it as a whole; its bytes. Blocks.
pub(crate) fn write_checked(
    volume: &Volume,
    origin: &Origin<'_>,
    input: ChunkReceiver,
    tmp: &mut TmpFile,
) -> Result<u64, RoleError> {
    let output = BufWriter::with_capacity(BUFFER_BYTES, tmp);
    let mut tee = Tee { input, output, bytes: 0, failed: None };
    let checked = check(volume, origin, &mut tee);
    // What could not be written reached the reader as an input that broke.
    let failed = tee.failed.take();
    let flushed = if failed.is_none() && checked.is_ok() { tee.output.flush() } else { Ok(()) };
    if let Some(error) = failed.or(flushed.err()) {
        let message = format!("cannot write a wdiff of volume {}", volume.name);
        let error = if is_no_space(&error) {
            RoleError::no_space(message).with_source(error)
        } else {
            RoleError::new(Reason::Io, message).with_source(error)
        };
        let path = volume.dir.path().display().to_string();
        return Err(error.with_volume(&volume.name).with_file(path));
    }
    checked?;
    Ok(tee.bytes)
}

fn check(volume: &Volume, origin: &Origin<'_>, tee: &mut Tee<'_>) -> Result<(), RoleError> {
    let failed = |e| faults::wdiff(volume.name.as_str(), e);
    let from = format!("{} as sent by {}", origin.name, origin.sender);
    let reader = SortedReader::new(&mut *tee, from.as_str()).map_err(failed)?;
    let uuid = reader.header().uuid;
    // Zeros: made of several logs, or by a file tool.
    if uuid != origin.log_uuid && uuid != LogUuid::ZERO {
        let message = format!("{from}: its log is {uuid}, announced was {}", origin.log_uuid);
        return Err(RoleError::wrong_peer(message).with_volume(&volume.name));
    }
    let image_blocks = volume.size().0;
    // Small ones by this thread, others by all cores.
    let small = origin.size < PARALLEL_FROM_BYTES;
    for record in decode(reader, if small { 1 } else { blocking::parallelism() }) {
        let record = record.map_err(failed)?;
        let (address, end) = (record.address.0, record.end().0);
        if end > image_blocks {
            return Err(failed(wdiff_format::error::WdiffError::BeyondEnd {
                address,
                end,
                image_blocks,
            }));
        }
    }
    let mut more = [0];
    match tee.read(&mut more) {
        Ok(0) => Ok(()),
        Ok(_) => {
            let message = format!("{from}: bytes follow its end pack");
            Err(RoleError::damaged(message).with_volume(&volume.name))
        }
        Err(e) => {
            Err(RoleError::new(Reason::Unreachable, format!("{from} broke off")).with_source(e))
        }
    }
}

/// Reads, and writes what it read.
struct Tee<'a> {
    input: ChunkReceiver,
    output: BufWriter<&'a mut TmpFile>,
    bytes: u64,
    failed: Option<io::Error>,
}

impl Read for Tee<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buf)?;
        let part = buf.get(..read).unwrap_or_default();
        self.bytes += read as u64;
        match self.output.write_all(part) {
            Ok(()) => Ok(read),
            Err(error) => {
                let kind = error.kind();
                self.failed = Some(error);
                Err(kind.into())
            }
        }
    }
}
