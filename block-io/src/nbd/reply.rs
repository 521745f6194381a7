//! What goes to the client: replies in wire form, waiting to be sent in as few calls as possible.
//!
//! Invariants:
//! - Data is sent from the memory in which the export returned it.
//! - A reply is complete when it is queued: nothing can fail between its head and its end.
//! - The memory charged for a reply is given back when its last byte is sent.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use zerocopy::IntoBytes;
use zerocopy::big_endian::{U16, U32, U64};

use super::budget::{Charge, Ledger};
use super::export::{Chunk, Extent};
use super::protocol::{
    BASE_ALLOCATION_ID, ChunkHeader, DataChunk, Errno, ErrorChunk, HoleChunk, MAX_EXTENTS,
    SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO, STRUCTURED_REPLY_MAGIC, SimpleReply, StatusChunk,
    StatusDescriptor, chunk,
};
use super::request::Request;
use super::socket::Socket;

/// Pieces of memory that one system call sends.
const MAX_PIECES: usize = 64;

/// The longest head: [`HoleChunk`].
const HEAD_BYTES: usize = size_of::<HoleChunk>();

/// Zeroes for clients that have to be sent zeroes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// A piece of a reply.
enum Piece {
    Head([u8; HEAD_BYTES], usize),
    Data(Bytes),
    /// The reply ends here.
    End(Option<Charge>),
}

impl Piece {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Head(bytes, len) => bytes.get(..*len).unwrap_or_default(),
            Self::Data(data) => data,
            Self::End(_) => &[],
        }
    }
}

/// The queue of replies of one connection.
pub(super) struct Replies {
    structured: bool,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that were sent.
    sent_bytes: usize,
    /// Replies that are not fully sent.
    count: usize,
    /// Bytes that the client's socket took since the beginning.
    total_sent_bytes: u64,
}

/// The export returned less or more than was asked for.
#[derive(Debug)]
pub(super) struct WrongLength;

impl Replies {
    pub(super) fn new(structured: bool) -> Self {
        Self { structured, pieces: VecDeque::new(), sent_bytes: 0, count: 0, total_sent_bytes: 0 }
    }

    /// Replies that are not fully sent.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Bytes that the client's socket took since the beginning.
    pub(super) fn total_sent_bytes(&self) -> u64 {
        self.total_sent_bytes
    }

    /// Success of a request without data in its reply.
    pub(super) fn success(&mut self, cookie: u64) {
        self.simple(cookie, 0);
        self.end(None);
    }

    /// Failure of any request.
    pub(super) fn failure(&mut self, cookie: u64, errno: Errno, why: &str) {
        if self.structured {
            let end = why.floor_char_boundary(512);
            let message = why.get(..end).unwrap_or_default();
            let message_len = u16::try_from(message.len()).unwrap_or(0);
            let fixed = size_of::<ErrorChunk>() - size_of::<ChunkHeader>();
            let head = ErrorChunk {
                header: header(chunk::ERROR, cookie, fixed + message.len(), true),
                error: U32::new(errno.code()),
                message_len: U16::new(message_len),
            };
            self.head(head.as_bytes());
            self.pieces.push_back(Piece::Data(Bytes::copy_from_slice(message.as_bytes())));
        } else {
            self.simple(cookie, errno.code());
        }
        self.end(None);
    }

    /// The data of a read. On error nothing was queued.
    pub(super) fn data(
        &mut self,
        request: &Request,
        one_chunk: bool,
        chunks: Vec<Chunk>,
        charge: &mut Option<Charge>,
    ) -> Result<(), WrongLength> {
        let total: u64 = chunks.iter().map(chunk_bytes).sum();
        if total != u64::from(request.len) {
            return Err(WrongLength);
        }
        if !self.structured {
            self.simple(request.cookie, 0);
            chunks.into_iter().for_each(|chunk| self.plain(chunk));
        } else if one_chunk || !chunks.iter().any(|chunk| matches!(chunk, Chunk::Zeroes(_))) {
            self.data_head(request.cookie, request.offset, request.len, true);
            chunks.into_iter().for_each(|chunk| self.plain(chunk));
        } else {
            self.fragments(request, chunks);
        }
        self.end(charge.take());
        Ok(())
    }

    /// Status of extents, cut to the request.
    pub(super) fn status(&mut self, request: &Request, one_extent: bool, extents: &[Extent]) {
        let max = if one_extent { 1 } else { MAX_EXTENTS };
        let descriptors = descriptors(request.len, extents, max);
        let len = descriptors.as_bytes().len();
        let fixed = size_of::<StatusChunk>() - size_of::<ChunkHeader>();
        let head = StatusChunk {
            header: header(chunk::BLOCK_STATUS, request.cookie, fixed + len, true),
            context: U32::new(BASE_ALLOCATION_ID),
        };
        self.head(head.as_bytes());
        self.pieces.push_back(Piece::Data(Bytes::copy_from_slice(descriptors.as_bytes())));
        self.end(None);
    }

    /// Chunks of data and holes in turn; neighbours of a kind share one.
    fn fragments(&mut self, request: &Request, chunks: Vec<Chunk>) {
        let end = request.offset + u64::from(request.len);
        let mut offset = request.offset;
        let mut rest = chunks.into_iter().filter(|chunk| chunk_bytes(chunk) > 0).peekable();
        while let Some(first) = rest.next() {
            let hole = matches!(first, Chunk::Zeroes(_));
            let mut len = chunk_bytes(&first);
            let mut run = vec![first];
            while let Some(next) = rest.next_if(|next| matches!(next, Chunk::Zeroes(_)) == hole) {
                len += chunk_bytes(&next);
                run.push(next);
            }
            // The sum of all lengths is that of the request, which is 32 bits long.
            let len_bytes = u32::try_from(len).unwrap_or(u32::MAX);
            let last = offset + len == end;
            if hole {
                let fixed = size_of::<HoleChunk>() - size_of::<ChunkHeader>();
                let head = HoleChunk {
                    header: header(chunk::OFFSET_HOLE, request.cookie, fixed, last),
                    offset: U64::new(offset),
                    len: U32::new(len_bytes),
                };
                self.head(head.as_bytes());
            } else {
                self.data_head(request.cookie, offset, len_bytes, last);
                run.into_iter().for_each(|chunk| self.plain(chunk));
            }
            offset += len;
        }
    }

    fn data_head(&mut self, cookie: u64, offset: u64, len: u32, last: bool) {
        let mut header = header(chunk::OFFSET_DATA, cookie, 0, last);
        header.len = U32::new(len + 8);
        self.head(DataChunk { header, offset: U64::new(offset) }.as_bytes());
    }

    fn simple(&mut self, cookie: u64, error: u32) {
        let head = SimpleReply {
            magic: U32::new(SIMPLE_REPLY_MAGIC),
            error: U32::new(error),
            cookie: U64::new(cookie),
        };
        self.head(head.as_bytes());
    }

    fn head(&mut self, head: &[u8]) {
        let mut bytes = [0; HEAD_BYTES];
        for (to, from) in bytes.iter_mut().zip(head) {
            *to = *from;
        }
        self.pieces.push_back(Piece::Head(bytes, head.len()));
    }

    /// Data or zeroes as plain bytes.
    fn plain(&mut self, chunk: Chunk) {
        match chunk {
            Chunk::Data(data) => self.pieces.push_back(Piece::Data(data)),
            Chunk::Zeroes(len) => {
                let mut left = usize::try_from(len).unwrap_or(usize::MAX);
                while left > 0 {
                    let piece = ZEROES.get(..left).unwrap_or(&ZEROES);
                    self.pieces.push_back(Piece::Data(Bytes::from_static(piece)));
                    left -= piece.len();
                }
            }
        }
    }

    fn end(&mut self, charge: Option<Charge>) {
        self.count += 1;
        self.pieces.push_back(Piece::End(charge));
    }

    /// Sends what the socket takes; ready when the queue is empty.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        socket: &Socket,
        ledger: &mut Ledger,
    ) -> Poll<io::Result<()>> {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_PIECES];
            let (mut used, mut total, mut skip) = (0, 0, self.sent_bytes);
            let full = self.pieces.iter().map(Piece::bytes).filter(|bytes| !bytes.is_empty());
            for (slot, bytes) in slices.iter_mut().zip(full) {
                let bytes = bytes.get(skip..).unwrap_or_default();
                *slot = IoSlice::new(bytes);
                skip = 0;
                used += 1;
                total += bytes.len();
            }
            let slices = slices.get(..used).unwrap_or_default();
            let count = ready!(socket.poll_write(cx, slices, total))?;
            self.total_sent_bytes += count as u64;
            self.advance(count, ledger);
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, count: usize, ledger: &mut Ledger) {
        let mut left = self.sent_bytes + count;
        while let Some(piece) = self.pieces.pop_front_if(|piece| piece.bytes().len() <= left) {
            left -= piece.bytes().len();
            self.finish(piece, ledger);
        }
        self.sent_bytes = left;
    }

    fn finish(&mut self, piece: Piece, ledger: &mut Ledger) {
        if let Piece::End(charge) = piece {
            self.count -= 1;
            charge.into_iter().for_each(|charge| ledger.release(charge));
        }
    }

    /// Forgets everything: the client has gone.
    pub(super) fn discard(&mut self, ledger: &mut Ledger) {
        self.sent_bytes = 0;
        while let Some(piece) = self.pieces.pop_front() {
            self.finish(piece, ledger);
        }
    }
}

fn header(kind: u16, cookie: u64, len: usize, last: bool) -> ChunkHeader {
    ChunkHeader {
        magic: U32::new(STRUCTURED_REPLY_MAGIC),
        flags: U16::new(if last { chunk::FLAG_DONE } else { 0 }),
        kind: U16::new(kind),
        cookie: U64::new(cookie),
        // Only heads, messages and descriptors are counted here, all of bounded length.
        len: U32::new(u32::try_from(len).unwrap_or(u32::MAX)),
    }
}

fn chunk_bytes(chunk: &Chunk) -> u64 {
    match chunk {
        Chunk::Data(data) => data.len() as u64,
        Chunk::Zeroes(len) => u64::from(*len),
    }
}

/// At most `max` extents that cover at most `len` bytes; neighbours of one status are joined. An
/// export that knows nothing is understood to say "data".
fn descriptors(len: u32, extents: &[Extent], max: usize) -> Vec<StatusDescriptor> {
    let mut found: Vec<(u32, u32)> = Vec::new();
    let mut left = len;
    for extent in extents {
        let piece = u32::try_from(extent.len).unwrap_or(u32::MAX).min(left);
        let hole = if extent.hole { STATE_HOLE } else { 0 };
        let status = hole | if extent.zero { STATE_ZERO } else { 0 };
        if piece == 0 {
            continue;
        }
        let count = found.len();
        match found.last_mut() {
            Some((joined, same)) if *same == status => *joined += piece,
            _ if count == max => break,
            _ => found.push((piece, status)),
        }
        left -= piece;
    }
    if found.is_empty() {
        found.push((len, 0));
    }
    let wire = |(len, flags)| StatusDescriptor { len: U32::new(len), flags: U32::new(flags) };
    found.into_iter().map(wire).collect()
}
