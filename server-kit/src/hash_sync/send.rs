//! The side that has the newer content: compares its own cells with the archive's hashes, asks
//! where they differ, and sends what differs.

use super::PROTOCOL;
use super::tree::{BLOCK_BYTES, BULK_HASH, LEVELS, PART_HASH, Seed, Tree, hashed, parallel};
use crate::blocking::{self, Work};
use crate::chunks::ChunkSender;
use crate::error::{Reason, RoleError};
use crate::operations::OperationHandle;
use crate::scan::{self, Bulk, Bulks, Content};
use bytes::{Buf, Bytes};
use futures::stream::{Stream, StreamExt, TryStreamExt};
use proto::v1::archive_client::ArchiveClient;
use proto::v1::hash_sync_reply::Step as Told;
use proto::v1::hash_sync_request::Step;
use proto::v1::{
    BulkHashes, BulkRefs, HashSyncDone, HashSyncEnd, HashSyncReply, HashSyncRequest, HashSyncStart,
    hash_sync_end,
};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use wdiff_format::compression::Compression;
use wdiff_format::error::WdiffError;
use wdiff_format::header::FileType;
use wdiff_format::record::{DiffRecord, Payload};
use wdiff_format::split::MaxIo;
use wdiff_format::write::{WriteOptions, write_records};
use wlog_format::units::{Lb, to_usize};

/// Bytes of cells that may differ and wait for the archive to say where.
const UNDECIDED_BYTES: u64 = 48 * scan::CELL_BYTES;
/// A question is asked when its cells have so many bytes.
const QUESTION_BYTES: u64 = 16 * scan::CELL_BYTES;
/// The archive hears at least so often how far the comparison is.
const TELL: Duration = Duration::from_secs(5);
/// Messages between the comparison and the connection.
const QUEUE: usize = 4;

/// The most memory that one [`send`] takes: cells read ahead, undecided, and on their way.
pub const MEMORY_BYTES: u64 =
    UNDECIDED_BYTES + 2 * QUESTION_BYTES + (scan::DEPTH as u64 + 16) * scan::CELL_BYTES;

/// What is compared and how it is sent.
pub struct Sending<'a> {
    /// Name of the archive, for messages.
    pub peer: &'a str,
    /// What is announced to it; a seed is made when there is none.
    pub start: HashSyncStart,
    /// The content: the cells of [`super::spans`] of `start`, see [`scan::cells`].
    pub cells: Bulks,
    /// How what differs is compressed.
    pub compression: Compression,
    /// Where the progress is told.
    pub progress: &'a OperationHandle,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of the wdiff.
    pub wdiff_bytes: u64,
    /// Bytes of data and zeroes in it, before compression.
    pub differing_bytes: u64,
}

/// Compares and sends; `end` is awaited when everything was compared and sent, and says what it
/// was. Returns when the archive has made it durable.
///
/// # Errors
/// Reading fails, the archive refuses or goes away, `end` fails.
pub async fn send(
    mut archive: ArchiveClient<Channel>,
    sending: Sending<'_>,
    end: impl Future<Output = Result<hash_sync_end::Result, RoleError>>,
) -> Result<Sent, RoleError> {
    let Sending { peer, mut start, cells, compression, progress } = sending;
    if start.seed.is_empty() {
        start.seed = random_seed();
    }
    start.protocol = PROTOCOL;
    let seed = Seed::of(&start)?;
    let uuid = proto::convert::uuid(&start.log_uuid);
    let uuid = uuid.map_err(|e| RoleError::bad_request(format!("log_uuid: {e}")))?;
    progress.set_total(super::spans(&start)?.iter().map(|s| s.end - s.start).sum());
    let (requests, receiver) = mpsc::channel(QUEUE);
    put(&requests, Step::Start(start)).await;
    let refused = |status| RoleError::from_status(peer, &status);
    let answer = archive.hash_sync(ReceiverStream::new(receiver)).await.map_err(refused)?;
    let options = WriteOptions {
        file_type: FileType::Sorted,
        uuid,
        compression,
        max_io: MaxIo::default(),
        threads: parallel(),
    };
    let (records, writing) = writer(requests.clone(), options);
    let mut comparison = Comparison {
        peer,
        replies: answer.into_inner(),
        requests,
        records,
        progress,
        expected: VecDeque::new(),
        gathered: Vec::new(),
        gathered_bytes: 0,
        asked: VecDeque::new(),
        undecided: 0,
        compared: 0,
        told: 0,
        differing_bytes: 0,
    };
    comparison.run(seed, cells).await?;
    let Comparison { mut replies, requests, records, differing_bytes, .. } = comparison;
    drop(records);
    let written = writing.await.map_err(|e| broke(&e.to_string()))?;
    let total_bytes = match written {
        Ok(total_bytes) => total_bytes,
        Err(error) => return Err(why(&mut replies, peer, error).await),
    };
    let result = Some(end.await?);
    put(&requests, Step::End(HashSyncEnd { total_bytes, result })).await;
    let last = next(&mut replies, peer).await?;
    match last {
        Told::Done(HashSyncDone { wdiff_bytes }) if wdiff_bytes == total_bytes => {
            Ok(Sent { wdiff_bytes, differing_bytes })
        }
        _ => Err(strange(peer, "does not acknowledge what was sent")),
    }
}

/// 32 bytes for the key of a session's hashes.
fn random_seed() -> Bytes {
    let halves = [wlog_format::units::LogUuid::random(), wlog_format::units::LogUuid::random()];
    halves.iter().flat_map(|half| half.0).collect()
}

/// False when nobody takes it: the replies say why.
async fn put(requests: &mpsc::Sender<HashSyncRequest>, step: Step) -> bool {
    requests.send(HashSyncRequest { step: Some(step) }).await.is_ok()
}

type Replies = tonic::Streaming<HashSyncReply>;

async fn next(replies: &mut Replies, peer: &str) -> Result<Told, RoleError> {
    let message = replies.message().await.map_err(|s| RoleError::from_status(peer, &s))?;
    let step = message.and_then(|m| m.step);
    step.ok_or_else(|| RoleError::unreachable(peer, "the hash sync ended in the middle"))
}

/// The archive's own reason when it has given up, else `error`.
async fn why(replies: &mut Replies, peer: &str, error: RoleError) -> RoleError {
    if error.reason() != Reason::Cancelled {
        return error;
    }
    loop {
        match next(replies, peer).await {
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

fn strange(peer: &str, what: &str) -> RoleError {
    RoleError::wrong_peer(format!("{peer} {what}"))
}

fn broke(why: &str) -> RoleError {
    RoleError::new(Reason::Io, format!("a worker thread failed: {why}"))
}

type Records = mpsc::Sender<Vec<DiffRecord>>;

/// A thread that makes a wdiff of records and sends it.
fn writer(
    requests: mpsc::Sender<HashSyncRequest>,
    options: WriteOptions,
) -> (Records, Work<Result<u64, RoleError>>) {
    let (records, mut batches) = mpsc::channel::<Vec<DiffRecord>>(1);
    let write = move || {
        let output =
            ChunkSender::new(requests, |chunk| HashSyncRequest { step: Some(Step::Data(chunk)) });
        let records = std::iter::from_fn(|| blocking::wait(batches.recv())).flatten().map(Ok);
        match write_records(records, output, &options) {
            Ok(output) => Ok(output.sent_bytes()),
            Err(WdiffError::Output { .. }) => {
                Err(RoleError::cancelled("the archive takes no more of the wdiff"))
            }
            Err(error) => Err(RoleError::damaged("cannot make the wdiff").with_source(error)),
        }
    };
    (records, blocking::spawn(write))
}

/// Hashes of bulks that arrived and were not compared yet.
struct Expected {
    /// Of the first cell, until it is compared.
    offset: Option<u64>,
    hashes: Bytes,
    /// > 0: so many bulks have the one hash.
    repeat: u64,
}

/// A cell that differs, and where, as far as is known.
struct Differing {
    cell: Bulk,
    tree: Tree,
    ranges: Vec<u64>,
}

impl Differing {
    /// The ranges of a level that have several parts.
    fn unclear(&self, level: usize) -> impl Iterator<Item = u64> {
        let several = move |range: &u64| self.tree.parts(level, *range).nth(1).is_some();
        self.ranges.iter().copied().filter(several)
    }
}

/// A question that waits for its answer: of which level the ranges are, and of which cells.
struct Question {
    level: usize,
    cells: Vec<Differing>,
}

struct Comparison<'a> {
    peer: &'a str,
    replies: Replies,
    requests: mpsc::Sender<HashSyncRequest>,
    records: Records,
    progress: &'a OperationHandle,
    expected: VecDeque<Expected>,
    /// Cells that differ and were not asked about yet.
    gathered: Vec<Differing>,
    gathered_bytes: u64,
    /// Questions in the order of their answers.
    asked: VecDeque<Question>,
    /// Bytes of all cells that differ and are not with the writer yet.
    undecided: u64,
    /// Everything below is equal or undecided.
    compared: u64,
    told: u64,
    differing_bytes: u64,
}

impl Comparison<'_> {
    /// Compares everything; what differs is in the hands of the writer then.
    async fn run(&mut self, seed: Seed, cells: Bulks) -> Result<(), RoleError> {
        let hash = |cell| hashed(seed.clone(), cell);
        let mut own = cells.map_ok(hash).try_buffered(parallel());
        let mut head: Option<(Bulk, Tree)> = None;
        let mut ends = (false, false);
        let mut tell = tokio::time::interval(TELL);
        while ends != (true, true) || head.is_some() || self.undecided > 0 {
            let room = head.is_none() && self.undecided < UNDECIDED_BYTES;
            tokio::select! {
                step = next(&mut self.replies, self.peer) => match step? {
                    Told::Bulks(hashes) => self.expect(hashes)?,
                    Told::Blocks(hashes) => self.answered(hashes).await?,
                    Told::AllHashed(_) => ends.1 = true,
                    Told::Done(_) => return Err(strange(self.peer, "ends before the end")),
                },
                cell = own.next(), if room && !ends.0 => match cell {
                    Some(cell) => head = Some(cell?),
                    None => ends.0 = true,
                },
                _ = tell.tick() => self.tell_done().await,
            }
            self.compare_all(&mut head, &mut ends.0, &mut own).await?;
            if ends.1 && self.expected.is_empty() && head.is_some() {
                return Err(strange(self.peer, "has fewer blocks than it was asked to compare"));
            }
        }
        if self.expected.is_empty() {
            return Ok(());
        }
        Err(strange(self.peer, "has more blocks than it was asked to compare"))
    }

    /// Compares the cells that can be compared without waiting, and asks about those that differ.
    async fn compare_all(
        &mut self,
        head: &mut Option<(Bulk, Tree)>,
        own_ended: &mut bool,
        own: &mut (impl Stream<Item = Result<(Bulk, Tree), RoleError>> + Unpin),
    ) -> Result<(), RoleError> {
        loop {
            if head.is_none() && !*own_ended && self.undecided < UNDECIDED_BYTES {
                match futures::FutureExt::now_or_never(own.next()) {
                    Some(Some(cell)) => *head = Some(cell?),
                    Some(None) => *own_ended = true,
                    None => {}
                }
            }
            let Some((cell, tree)) = head.take() else { break };
            let Some(ranges) = self.differing(&tree)? else {
                *head = Some((cell, tree));
                break;
            };
            self.compared = tree.offset + tree.len;
            self.progress.advance(tree.len);
            if !ranges.is_empty() {
                self.undecided += tree.len;
                self.gathered_bytes += tree.len;
                self.gathered.push(Differing { cell, tree, ranges });
                if self.gathered_bytes >= QUESTION_BYTES {
                    self.ask_gathered().await?;
                }
            }
        }
        if self.asked.is_empty() {
            // Otherwise more may be gathered for one question while the answers are on their way.
            self.ask_gathered().await?;
        }
        if self.done_bytes() >= self.told + super::WINDOW_BYTES / 8 {
            self.tell_done().await;
        }
        Ok(())
    }

    async fn ask_gathered(&mut self) -> Result<(), RoleError> {
        self.gathered_bytes = 0;
        let cells = std::mem::take(&mut self.gathered);
        self.ask(0, cells).await
    }

    /// Below this nothing needs to be asked any more.
    fn done_bytes(&self) -> u64 {
        let asked = self.asked.iter().flat_map(|q| &q.cells);
        let undecided = asked.chain(&self.gathered).map(|c| c.tree.offset).min();
        undecided.unwrap_or(self.compared)
    }

    async fn tell_done(&mut self) {
        self.tell(std::iter::empty(), 0).await;
    }

    async fn tell(&mut self, offsets: impl Iterator<Item = u64>, level: usize) {
        self.told = self.done_bytes();
        let bytes = |level: usize| LEVELS.get(level).copied().unwrap_or_default();
        let (range, part) = (bytes(level), bytes(level + 1));
        let mut last = 0;
        // The cells of a question ascend, and their ranges.
        let step = |offset| (offset - std::mem::replace(&mut last, offset)) / part;
        let refs = BulkRefs {
            steps: offsets.map(step).collect(),
            range_bytes: u32::try_from(range).unwrap_or_default(),
            part_bytes: u32::try_from(part).unwrap_or_default(),
            done_bytes: self.told,
        };
        // When nobody takes it, the next reply says why.
        put(&self.requests, Step::Wanted(refs)).await;
    }

    /// Asks where the ranges of a level differ; those that cannot be told further go to the writer.
    async fn ask(&mut self, mut level: usize, cells: Vec<Differing>) -> Result<(), RoleError> {
        while level + 1 < LEVELS.len() {
            let asked = cells.iter().flat_map(|cell| cell.unclear(level)).collect::<Vec<_>>();
            if !asked.is_empty() {
                self.asked.push_back(Question { level, cells });
                self.tell(asked.into_iter(), level).await;
                return Ok(());
            }
            // Each range is its only part.
            level += 1;
        }
        self.write(cells).await
    }

    /// Hands cells to the writer of which it is known which blocks differ.
    async fn write(&mut self, cells: Vec<Differing>) -> Result<(), RoleError> {
        self.undecided -= cells.iter().map(|differing| differing.tree.len).sum::<u64>();
        let records: Vec<DiffRecord> = cells.iter().flat_map(records).collect();
        let blocks: u64 = records.iter().map(|r| u64::from(r.blocks)).sum();
        self.differing_bytes += Lb(blocks).bytes();
        if !records.is_empty() && self.records.send(records).await.is_err() {
            let gone = RoleError::cancelled("the writer of the wdiff has given up");
            return Err(why(&mut self.replies, self.peer, gone).await);
        }
        Ok(())
    }

    fn expect(&mut self, told: BulkHashes) -> Result<(), RoleError> {
        let BulkHashes { offset_bytes: offset, bulk_bytes, hashes, repeat } = told;
        let whole = match repeat {
            0 => !hashes.is_empty() && hashes.len().is_multiple_of(BULK_HASH),
            _ => hashes.len() == BULK_HASH,
        };
        if !whole || u64::from(bulk_bytes) != LEVELS[0] {
            return Err(strange(self.peer, "hashes bulks of another size"));
        }
        self.expected.push_back(Expected { offset: Some(offset), hashes, repeat });
        Ok(())
    }

    /// The bulks of a cell that differ; `None` while the archive has not told all of its hashes.
    fn differing(&mut self, tree: &Tree) -> Result<Option<Vec<u64>>, RoleError> {
        let Some(expected) = self.expected.front_mut() else { return Ok(None) };
        if expected.offset.take().is_some_and(|offset| offset != tree.offset) {
            return Err(strange(self.peer, "hashes other bulks than it was asked to"));
        }
        let mut differing = Vec::new();
        for (offset, own) in tree.ranges() {
            let Some((theirs, _)) = expected.hashes.split_at_checked(BULK_HASH) else {
                return Err(strange(self.peer, "hashes half a cell"));
            };
            if theirs != own {
                differing.push(offset);
            }
            match expected.repeat {
                0 => expected.hashes.advance(BULK_HASH),
                1 => expected.hashes.clear(),
                _ => {}
            }
            expected.repeat = expected.repeat.saturating_sub(1);
        }
        if expected.hashes.is_empty() {
            self.expected.pop_front();
        }
        Ok(Some(differing))
    }

    /// The answer to the oldest question: asks on, or hands what differs to the writer.
    async fn answered(&mut self, told: BulkHashes) -> Result<(), RoleError> {
        let unasked = || strange(self.peer, "answers what it was not asked");
        let Question { level, mut cells } = self.asked.pop_front().ok_or_else(unasked)?;
        let mut hashes = told.hashes;
        for differing in &mut cells {
            let tree = &differing.tree;
            let mut parts = Vec::new();
            for &range in &differing.ranges {
                let before = parts.len();
                if tree.parts(level, range).nth(1).is_none() {
                    parts.push(range);
                    continue;
                }
                for (offset, own) in tree.parts(level, range) {
                    if hashes.len() < PART_HASH {
                        return Err(strange(self.peer, "answers with too few hashes"));
                    }
                    if hashes.split_to(PART_HASH) != own.split_at(PART_HASH).0 {
                        parts.push(offset);
                    }
                }
                if parts.len() == before {
                    // The range differs, so one of these short hashes is a chance hit.
                    parts.extend(tree.parts(level, range).map(|(offset, _)| offset));
                }
            }
            differing.ranges = parts;
        }
        if !hashes.is_empty() {
            return Err(strange(self.peer, "answers with too many hashes"));
        }
        self.ask(level + 1, cells).await
    }
}

/// The blocks of a cell that differ, neighbours together.
fn records(differing: &Differing) -> Vec<DiffRecord> {
    let Differing { cell, ranges, .. } = differing;
    let end = cell.offset + cell.len();
    let content = |offset: u64| -> Option<&[u8]> {
        let Content::Data(data) = &cell.content else { return None };
        let from = to_usize(offset - cell.offset);
        let block = data.get(from..to_usize((offset + BLOCK_BYTES).min(end) - cell.offset))?;
        block.iter().any(|b| *b != 0).then_some(block)
    };
    let blocks: Vec<_> = ranges.iter().map(|&offset| (offset, content(offset))).collect();
    let follows = |a: &(u64, Option<&[u8]>), b: &(u64, Option<&[u8]>)| {
        a.0 + BLOCK_BYTES == b.0 && a.1.is_some() == b.1.is_some()
    };
    let mut records = Vec::new();
    for run in blocks.chunk_by(follows) {
        let (Some((first, content)), Some((last, _))) = (run.first(), run.last()) else { continue };
        let address = Lb::from_bytes(*first);
        if content.is_some() {
            // A copy: the cell must not stay in memory for the sake of one block.
            let data: Vec<u8> =
                run.iter().filter_map(|(_, block)| *block).flatten().copied().collect();
            records.extend(DiffRecord::from_raw(address, Bytes::from(data)));
        } else {
            let len = (last + BLOCK_BYTES).min(end) - first;
            let blocks = u32::try_from(Lb::from_bytes(len).0).unwrap_or(u32::MAX);
            records.push(DiffRecord { address, blocks, payload: Payload::AllZero });
        }
    }
    records
}
