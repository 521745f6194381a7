//! Reads a range of the log: several reads in flight, every pack checked before a byte of it goes
//! further (I8), bytes handed on as they lie on the device.
//!
//! Invariants: a piece that [`PackReader::next`] returns consists of checked packs only; at the end
//! [`PackReader::reached`] is the end of the last whole pack before the limit; the memory in use
//! was granted by the budget.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{self, BoxStream, Peekable, StreamExt};
use server_kit::error::RoleError;
use server_kit::volume_name::VolumeName;
use wlog_format::checksum::Checksummer;
use wlog_format::pack::{PackHeader, Record, RecordKind};
use wlog_format::units::{Lsid, Pb, to_usize};

use crate::budget::{Budget, Grant};
use crate::log::Log;

/// Bytes of one read, and so the largest piece: what one message of the wire holds.
pub const READ_BYTES: u64 = 1 << 20;

/// Reads in flight.
pub const DEPTH: usize = 4;

/// Memory of a range without extraordinary packs: reads in flight, and as much again that is
/// being checked, compressed and sent.
const WINDOW_BYTES: u64 = 2 * DEPTH as u64 * READ_BYTES;

/// What is read already waits here up to so much, so that further reads begin while packs are
/// checked.
const READY_BYTES: usize = 2 << 20;

/// Packs above this need a grant of their own.
const LARGE_PACK_BYTES: u64 = 2 * READ_BYTES;

type Reads = Pin<Box<Peekable<BoxStream<'static, Result<Bytes, RoleError>>>>>;

/// What became of the next pack.
enum Step {
    /// It is good, and whole in memory.
    Checked,
    /// It does not lie before the limit.
    Finished,
    /// It needs this much memory.
    TooLarge(u64),
}

/// Reads the packs of `[begin, limit)`.
pub struct PackReader {
    log: Arc<Log>,
    volume: VolumeName,
    budget: Budget,
    grant: Option<Grant>,
    granted_bytes: u64,
    limit: Lsid,
    /// Where the next pack starts.
    at: Lsid,
    reads: Reads,
    /// What was read and not handed on. Every piece holds whole blocks.
    pieces: VecDeque<Bytes>,
    /// Bytes in `pieces`.
    held: usize,
    /// How many of them belong to checked packs.
    checked: usize,
}

impl PackReader {
    /// Starts to read, once there is memory for it.
    pub async fn open(
        log: Arc<Log>,
        volume: VolumeName,
        budget: Budget,
        begin: Lsid,
        limit: Lsid,
    ) -> Self {
        let range_bytes = log.block_size().bytes_of(limit.distance_from(begin));
        let granted_bytes = range_bytes.min(WINDOW_BYTES);
        let grant = Some(budget.take(granted_bytes).await);
        let reads = reads(&log, begin, limit);
        let pieces = VecDeque::new();
        Self {
            log,
            volume,
            budget,
            grant,
            granted_bytes,
            limit,
            at: begin,
            reads,
            pieces,
            held: 0,
            checked: 0,
        }
    }

    /// Where the last checked pack ends.
    #[must_use]
    pub fn reached(&self) -> Lsid {
        self.at
    }

    /// The next bytes; `None` after the last whole pack before the limit.
    ///
    /// # Errors
    /// The device cannot be read, or what it holds is not the log that has to be there: names
    /// volume, lsid and device.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RoleError> {
        loop {
            if self.pieces.front().is_some_and(|piece| piece.len() <= self.checked) {
                return Ok(self.pop(READ_BYTES));
            }
            match self.check_next().await? {
                Step::Checked => {}
                Step::Finished => return Ok(self.pop(self.checked as u64)),
                Step::TooLarge(_) if self.checked > 0 => return Ok(self.pop(self.checked as u64)),
                Step::TooLarge(bytes) => self.restart(bytes).await,
            }
        }
    }

    /// Takes up to `max` bytes of the first piece; `None` when there are none to take.
    fn pop(&mut self, max: u64) -> Option<Bytes> {
        let piece = self.pieces.front_mut()?;
        let len = piece.len().min(to_usize(max));
        let taken = piece.split_to(len);
        if piece.is_empty() {
            self.pieces.pop_front();
        }
        self.held -= len;
        self.checked -= len;
        (len > 0).then_some(taken)
    }

    /// Lets everything go and begins again with more memory, so that nobody waits for memory
    /// while holding some.
    async fn restart(&mut self, bytes: u64) {
        self.pieces.clear();
        (self.held, self.checked) = (0, 0);
        self.reads = Box::pin(stream::empty().boxed().peekable());
        self.grant = None;
        self.granted_bytes = WINDOW_BYTES.saturating_add(bytes);
        self.grant = Some(self.budget.take(self.granted_bytes).await);
        self.reads = reads(&self.log, self.at, self.limit);
    }

    async fn check_next(&mut self) -> Result<Step, RoleError> {
        if self.at >= self.limit {
            return Ok(Step::Finished);
        }
        let block_size = self.log.block_size();
        self.take_ready();
        self.hold(self.checked + block_size.as_usize()).await?;
        let block = self.slices(self.checked, block_size.as_usize()).next().unwrap_or_default();
        let header = PackHeader::decode(block, block_size, self.log.salt, self.at)
            .map_err(|e| self.damaged("no valid pack header", e))?;
        let (begin, end) = (self.at, header.next_lsid());
        if end > self.limit {
            return Ok(Step::Finished);
        }
        let pack_bytes = block_size.bytes_of(end.distance_from(begin));
        let is_large = pack_bytes > LARGE_PACK_BYTES;
        if is_large && self.granted_bytes < WINDOW_BYTES.saturating_add(pack_bytes) {
            return Ok(Step::TooLarge(pack_bytes));
        }
        self.hold(self.checked + to_usize(pack_bytes)).await?;
        for (index, record) in header.records().iter().enumerate() {
            if !self.is_intact(record) {
                let what = format!("the data of record {index} fails its checksum");
                return Err(self.damaged(what, "the log was overwritten or its device is broken"));
            }
        }
        self.checked += to_usize(pack_bytes);
        self.at = end;
        Ok(Step::Checked)
    }

    /// Takes what has been read meanwhile; an error has its turn when all before it is checked.
    fn take_ready(&mut self) {
        while self.held - self.checked < READY_BYTES
            && matches!(self.reads.as_mut().peek().now_or_never(), Some(Some(Ok(_))))
            && let Some(Some(Ok(piece))) = self.reads.next().now_or_never()
        {
            self.push(piece);
        }
    }

    /// Reads on until that many bytes are held.
    async fn hold(&mut self, bytes: usize) -> Result<(), RoleError> {
        while self.held < bytes {
            match self.reads.next().await {
                Some(piece) => self.push(piece?),
                None => return Err(self.damaged("a pack that ends beyond the log", "")),
            }
        }
        Ok(())
    }

    fn push(&mut self, piece: Bytes) {
        self.held += piece.len();
        self.pieces.push_back(piece);
    }

    /// The held bytes from `start`, `len` of them, in the pieces in which they lie.
    fn slices(&self, start: usize, len: usize) -> impl Iterator<Item = &[u8]> {
        let mut offset = 0;
        self.pieces.iter().filter_map(move |piece| {
            let from = start.saturating_sub(offset).min(piece.len());
            let to = (start + len).saturating_sub(offset).min(piece.len());
            offset += piece.len();
            piece.get(from..to).filter(|slice| !slice.is_empty())
        })
    }

    /// Whether the data of a record of the pack at `at`, which is held, fits its checksum.
    fn is_intact(&self, record: &Record) -> bool {
        if record.kind != RecordKind::Normal {
            return true;
        }
        let Pb(blocks) = record.lsid.distance_from(self.at);
        let start = self.checked + to_usize(self.log.block_size().bytes_of(Pb(blocks)));
        let mut sum = Checksummer::new(self.log.salt);
        self.slices(start, record.payload_bytes()).for_each(|slice| sum.update(slice));
        sum.finish() == record.checksum
    }

    fn damaged(
        &self,
        what: impl Into<String>,
        why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> RoleError {
        let (at, volume, path) = (self.at, &self.volume, self.log.path());
        let offset = self.log.ring.byte_offset(at);
        let what = what.into();
        RoleError::damaged(format!(
            "volume {volume}: {what} at lsid {at} of log device {path} (byte {offset})"
        ))
        .with_volume(volume)
        .with_file(path)
        .with_source(why)
        .with_next_step("look at the log with walb ldev show; a full-backup starts a new log")
    }
}

/// The reads of `[begin, limit)` in order, cut at the ring end; the first few are in flight once
/// the stream is polled.
fn reads(log: &Arc<Log>, begin: Lsid, limit: Lsid) -> Reads {
    let block_bytes = u64::from(log.block_size().bytes());
    let max = Pb(READ_BYTES / block_bytes);
    let cuts = log.ring.segments(begin, limit.distance_from(begin)).flat_map(move |segment| {
        (0..segment.blocks.0.div_ceil(max.0)).map(move |i| {
            let done = i * max.0;
            let blocks = max.0.min(segment.blocks.0 - done);
            (segment.byte_offset + done * block_bytes, to_usize(blocks * block_bytes))
        })
    });
    let log = Arc::clone(log);
    let read = move |(offset, len)| {
        let log = Arc::clone(&log);
        async move { log.read(offset, len).await }
    };
    Box::pin(stream::iter(cuts).map(read).buffered(DEPTH).boxed().peekable())
}
