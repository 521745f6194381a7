//! From queued requests to log writes: which packs, at which lsids, as which vectored writes.
//!
//! A plan covers several packs that follow each other; as many as lie in one piece on the ring
//! become one write. Headers are made here, payloads are only referred to. A plan changes nothing:
//! it is made for a log identity and a `latest`, and is thrown away if either changed before it was
//! admitted.

use std::collections::VecDeque;

use block_io::buffer::AlignedBuf;
use bytes::Bytes;
use wlog_format::pack::{Add, MAX_PACK, PackBuilder, PackHeader, RecordKind};
use wlog_format::units::{Lb, Lsid, Pb, Salt};

use crate::core::LogIdentity;
use crate::options::MAX_LOG_WRITE_BYTES;
use crate::request::{Body, Request};
use crate::zeros::zeros;

/// One vectored write to the log device.
#[derive(Debug)]
pub(crate) struct LogWrite {
    /// Byte offset on the log device.
    pub(crate) offset: u64,
    pub(crate) buffers: Vec<Bytes>,
}

/// A pack of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlannedPack {
    pub(crate) begin: Lsid,
    pub(crate) end: Lsid,
    /// How many of the queued requests it holds.
    pub(crate) requests: usize,
}

/// What to write next.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The log that it was made for.
    pub(crate) epoch: u64,
    pub(crate) begin: Lsid,
    pub(crate) end: Lsid,
    pub(crate) packs: Vec<PlannedPack>,
    pub(crate) writes: Vec<LogWrite>,
}

/// No pack of this log can hold the first request: the log has used up its lsids.
#[derive(Debug, thiserror::Error)]
#[error("the log device has no lsids left for the write; reset the log")]
pub(crate) struct Unplannable;

impl Plan {
    /// Plans for as many requests from the front of the queue as go into one turn.
    pub(crate) fn new(
        log: &LogIdentity,
        latest: Lsid,
        queue: &VecDeque<Request>,
    ) -> Result<Self, Unplannable> {
        let (epoch, begin) = (log.epoch, latest);
        let mut plan = Self { epoch, begin, end: begin, packs: Vec::new(), writes: Vec::new() };
        let mut rest = queue.iter().peekable();
        let turn = turn(log);
        while rest.peek().is_some() && plan.end.distance_from(begin) < turn {
            let mut builder = PackBuilder::new(plan.end, log.ring, log.salt, turn);
            let mut requests: Vec<&Request> = Vec::new();
            while let Some(request) = rest.peek() {
                match offer(&mut builder, request, log.salt) {
                    Add::Added(_) => requests.extend(rest.next()),
                    Add::Full => break,
                    Add::TooLarge => return Err(Unplannable),
                }
            }
            let header = builder.finish().ok_or(Unplannable)?;
            plan.push(log, &header, &requests);
        }
        Ok(plan)
    }

    /// How many requests it takes from the queue.
    pub(crate) fn requests(&self) -> usize {
        self.packs.iter().map(|pack| pack.requests).sum()
    }

    fn push(&mut self, log: &LogIdentity, header: &PackHeader, requests: &[&Request]) {
        let block = log.ring.block_size().as_usize();
        let mut header_block = AlignedBuf::recycled(block);
        header.encode_into(&mut header_block);
        self.place(log, header.lsid(), header_block.freeze());
        let mut payloads = requests.iter().filter_map(|request| request.data());
        let writes = header.records().iter().filter(|r| r.kind == RecordKind::Normal);
        for (record, payload) in writes.zip(&mut payloads) {
            debug_assert_eq!(record.payload_bytes(), payload.len());
            self.place(log, record.lsid, payload.clone());
            let short = payload.len().next_multiple_of(block) - payload.len();
            if let Some(write) = self.writes.last_mut().filter(|_| short > 0) {
                write.buffers.push(zeros(short));
            }
        }
        let (begin, end) = (header.lsid(), header.next_lsid());
        self.packs.push(PlannedPack { begin, end, requests: requests.len() });
        self.end = end;
    }

    /// Adds whole blocks (or all but a rest that follows) at `lsid`: to the last write if they
    /// follow it on the device, else as a new one.
    fn place(&mut self, log: &LogIdentity, lsid: Lsid, buffer: Bytes) {
        let offset = log.ring.byte_offset(lsid);
        match self.writes.last_mut() {
            Some(last) if last.offset + last.bytes() == offset => last.buffers.push(buffer),
            _ => self.writes.push(LogWrite { offset, buffers: vec![buffer] }),
        }
    }
}

impl LogWrite {
    fn bytes(&self) -> u64 {
        self.buffers.iter().map(|buffer| buffer.len() as u64).sum()
    }
}

fn offer(builder: &mut PackBuilder, request: &Request, salt: Salt) -> Add {
    match &request.body {
        Body::Write { data, sum } => builder.try_add_write(
            request.address,
            Lb::from_bytes(data.len() as u64),
            sum.with(salt),
        ),
        Body::Discard => builder.try_add_discard(request.address, request.blocks),
    }
}

/// What one turn, and each pack, takes from the log at most, but for the last pack of a turn and a
/// record that is larger. So a plan is always smaller than the ring: one that is not could never be
/// admitted.
fn turn(log: &LogIdentity) -> Pb {
    let most = Pb(MAX_LOG_WRITE_BYTES / u64::from(log.ring.block_size().bytes()));
    Pb(log.ring.size().0 / 4).min(most).min(MAX_PACK)
}

/// The largest write that one record may carry in this log: a quarter of the ring.
pub(crate) fn max_record(log: &LogIdentity) -> Lb {
    let limit = PackBuilder::max_write(&log.ring).0 / 2;
    let blocks = log.ring.block_size().logical_blocks();
    let whole = (limit / blocks).max(1) * blocks;
    Lb(whole).min(Lb::from_bytes(crate::options::MAX_RECORD_BYTES))
}
