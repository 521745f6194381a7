//! What comes from the client: heads of requests, and payloads where they belong.
//!
//! Most loads write many pieces of one size. So after some equal writes the next ones are guessed:
//! one call reads their heads to where heads go, and their payloads into buffers of their own. A
//! wrong guess costs a copy of what was read by it, nothing else.
//!
//! Invariants:
//! - Bytes leave in the order of the stream: first `ahead`, then `bytes`.
//! - Guesses take at most [`GUESS_BYTES`] for payloads. They are charged when a write claims them.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::task::{Context, Poll, ready};

use zerocopy::FromBytes;

use super::protocol::{REQUEST_MAGIC, RequestHeader, command};
use super::socket::Socket;
use crate::buffer::AlignedBuf;

/// What one call reads while requests without payload come.
const READ_BYTES: usize = 4096;
/// Most payload that is read on a guess.
const GUESS_BYTES: usize = 64 << 10;
/// Most writes that are guessed.
const MAX_GUESSES: usize = 8;
const HEAD_BYTES: usize = size_of::<RequestHeader>();

/// Room for what was guessed wrongly.
const INPUT_BYTES: usize = GUESS_BYTES + (MAX_GUESSES + 1) * HEAD_BYTES;

/// A payload that is being received.
pub(super) struct Payload {
    buf: AlignedBuf,
    /// Bytes of `buf` that have come.
    filled: usize,
}

impl Payload {
    pub(super) fn is_complete(&self) -> bool {
        self.filled == self.buf.len()
    }

    pub(super) fn into_buf(self) -> AlignedBuf {
        self.buf
    }

    /// What is still to come.
    fn rest(&mut self) -> &mut [u8] {
        self.buf.get_mut(self.filled..).unwrap_or_default()
    }
}

/// What the next bytes of the stream are.
pub(super) enum Due<'a> {
    Head,
    Payload(&'a mut Payload),
    /// Payload that nobody wants.
    Waste,
}

/// The receiving side of a connection.
pub(super) struct Input {
    /// Read, but not understood yet: `start..end`.
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
    /// Writes that were guessed rightly; of the last one a part may still be due.
    ahead: VecDeque<(RequestHeader, Payload)>,
    /// Payload of the last request in bytes, if it was a write.
    write_len: usize,
    /// How many more writes of that length are expected.
    guesses: usize,
    /// Buffers for their payloads.
    spares: Vec<AlignedBuf>,
}

impl Input {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; INPUT_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            ahead: VecDeque::new(),
            write_len: 0,
            guesses: 0,
            spares: Vec::new(),
        }
    }

    /// True if nothing is waiting to be understood.
    pub(super) fn is_empty(&self) -> bool {
        self.ahead.is_empty() && self.start == self.end
    }

    fn pending(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The next head. That of a write must be followed by [`payload`](Self::payload) or
    /// [`skip`](Self::skip).
    pub(super) fn header(&mut self) -> Option<RequestHeader> {
        let header = match self.ahead.front() {
            Some((header, _)) => *header,
            None => {
                let (header, _) = RequestHeader::read_from_prefix(self.pending()).ok()?;
                self.start += HEAD_BYTES;
                header
            }
        };
        let is_write = header.command == command::WRITE;
        let len = if is_write { to_usize(header.len.get()) } else { 0 };
        if len == self.write_len {
            let room = GUESS_BYTES.checked_div(len).unwrap_or(0);
            self.guesses = (self.guesses + 1).min(room).min(MAX_GUESSES);
        } else {
            self.write_len = len;
            self.guesses = 0;
            self.spares.clear();
        }
        Some(header)
    }

    /// The payload of the write whose head was taken last, with what has come of it.
    pub(super) fn payload(&mut self, len: u32) -> Payload {
        if let Some((_, payload)) = self.ahead.pop_front() {
            return payload;
        }
        let mut payload = Payload { buf: AlignedBuf::recycled(to_usize(len)), filled: 0 };
        for (to, from) in payload.buf.iter_mut().zip(self.pending()) {
            *to = *from;
        }
        payload.filled = payload.buf.len().min(self.end - self.start);
        self.start += payload.filled;
        payload
    }

    /// Throws away what has come of a payload of which `left` bytes are unwanted; returns how many
    /// are still to come.
    pub(super) fn skip(&mut self, left: u64) -> u64 {
        if let Some((_, payload)) = self.ahead.pop_front() {
            return left.saturating_sub(payload.filled as u64);
        }
        let here = self.end - self.start;
        let skipped = usize::try_from(left).map_or(here, |left| left.min(here));
        self.start += skipped;
        left - skipped as u64
    }

    /// Reads what has come; false at the end of the stream.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        socket: &Socket,
        due: Due<'_>,
    ) -> Poll<io::Result<bool>> {
        let max = match &due {
            Due::Waste => INPUT_BYTES,
            _ if self.guesses > 0 && self.is_empty() => {
                return self.poll_fill_ahead(cx, socket, due);
            }
            // The next one probably is a write as well: its payload must not come with its head.
            _ if self.write_len > 0 => HEAD_BYTES.saturating_sub(self.pending().len()),
            _ => READ_BYTES,
        };
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        let room_len = room.len().min(max);
        let room = room.get_mut(..room_len).unwrap_or_default();
        let Due::Payload(payload) = due else {
            let count = ready!(socket.poll_read(cx, &mut [IoSliceMut::new(room)], room_len))?;
            self.end += count;
            return Poll::Ready(Ok(count > 0));
        };
        let rest = payload.rest();
        let rest_len = rest.len();
        let mut buffers = [IoSliceMut::new(rest), IoSliceMut::new(room)];
        let count = ready!(socket.poll_read(cx, &mut buffers, rest_len + room_len))?;
        payload.filled += count.min(rest_len);
        self.end += count.saturating_sub(rest_len);
        Poll::Ready(Ok(count > 0))
    }

    /// Reads what is due, and behind it the writes that are expected.
    fn poll_fill_ahead(
        &mut self,
        cx: &mut Context<'_>,
        socket: &Socket,
        mut due: Due<'_>,
    ) -> Poll<io::Result<bool>> {
        let len = self.write_len;
        self.spares.resize_with(self.guesses, || AlignedBuf::recycled(len));
        let mut heads = [[0; HEAD_BYTES]; MAX_GUESSES + 1];
        let rest = match &mut due {
            Due::Payload(payload) => payload.rest(),
            Due::Head | Due::Waste => &mut [],
        };
        let rest_len = rest.len();
        let mut buffers = Vec::with_capacity(2 * MAX_GUESSES + 2);
        buffers.push(IoSliceMut::new(rest));
        let mut spares = self.spares.iter_mut();
        for head in heads.iter_mut().take(self.guesses + 1) {
            buffers.push(IoSliceMut::new(head));
            buffers.extend(spares.next().map(|spare| IoSliceMut::new(spare)));
        }
        let total = rest_len + self.guesses * (HEAD_BYTES + len) + HEAD_BYTES;
        let count = ready!(socket.poll_read(cx, &mut buffers, total))?;
        if let Due::Payload(payload) = due {
            payload.filled += count.min(rest_len);
        }
        self.sort_out(&heads, count.saturating_sub(rest_len));
        Poll::Ready(Ok(count > 0))
    }

    /// Takes writes that came as expected; from the first surprise on, everything goes to `bytes`.
    fn sort_out(&mut self, heads: &[[u8; HEAD_BYTES]], mut left: usize) {
        (self.start, self.end) = (0, 0);
        let mut spares = std::mem::take(&mut self.spares).into_iter();
        for head in heads {
            let head = head.get(..left.min(HEAD_BYTES)).unwrap_or_default();
            left -= head.len();
            let Some(buf) = spares.next() else {
                self.append(head);
                break;
            };
            let filled = left.min(buf.len());
            left -= filled;
            match self.expected(head) {
                Some(header) => self.ahead.push_back((header, Payload { buf, filled })),
                None => {
                    self.append(head);
                    self.append(buf.get(..filled).unwrap_or_default());
                    self.spares.push(buf);
                }
            }
        }
    }

    /// The write that was expected, unless something else came before.
    fn expected(&self, head: &[u8]) -> Option<RequestHeader> {
        let header = RequestHeader::read_from_bytes(head).ok()?;
        let is_write = header.magic == REQUEST_MAGIC && header.command == command::WRITE;
        let fits = is_write && to_usize(header.len.get()) == self.write_len;
        (fits && self.end == 0).then_some(header)
    }

    fn append(&mut self, new: &[u8]) {
        let room = self.bytes.get_mut(self.end..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(new) {
            *to = *from;
        }
        self.end += new.len();
    }
}

fn to_usize(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
