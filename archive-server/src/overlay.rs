//! A base image and diffs over it become a new image in one pass: where the base image cannot be
//! cloned, each block is written once.
//!
//! ```text
//!  wdiffs --merge, decompress (a thread)--> pieces with records --+
//!                                                                 +--> pieces in flight --> image
//!  base image: extents ------------------> pieces without --------+    (read base, patch, write)
//! ```
//! Invariants: the pieces ascend and are disjoint; what a record covers never comes from the base
//! image, which an apply may be writing there; the image reads as zeros before, and runs of
//! [`HOLE_BYTES`] zeros are not written, so that they stay holes. Memory: [`IN_FLIGHT`] pieces,
//! twice, and what waits for them.

use crate::image::{self, ImageWriter, Request, attempt};
use crate::jobs::check;
use block_io::buffer::AlignedBuf;
use block_io::device::BlockDevice;
use bytes::Bytes;
use server_kit::blocking;
use server_kit::error::RoleError;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wdiff_format::convert::is_zero;
use wdiff_format::open::WdiffReader;
use wdiff_format::redo::{Content, DecodedRecord};
use wlog_format::units::{Lb, to_usize};

/// What is read and written at once, and the grid that it lies on.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces in flight.
const IN_FLIGHT: usize = 16;
/// Pieces that wait for their turn, with the data of their records.
const WAITING: usize = 4;
/// Where zeros are looked for.
const CELL_BYTES: usize = 4 << 10;
/// The shortest run of zeros that is worth two writes in the place of one.
const HOLE_BYTES: usize = 16 << 10;

/// What a record says of a range of bytes: this data, or zeros.
#[derive(Debug)]
struct Patch {
    range: Range<u64>,
    data: Option<Bytes>,
}

impl Patch {
    fn of(record: DecodedRecord) -> Self {
        let range = record.address.bytes()..record.end().bytes();
        let data = match record.content {
            Content::Data(data) => Some(data),
            Content::AllZero | Content::Discard => None,
        };
        Self { range, data }
    }

    /// What of it lies before a byte, and the rest.
    fn split(mut self, at: u64) -> (Self, Option<Self>) {
        if at >= self.range.end {
            return (self, None);
        }
        let data = self.data.as_mut().map(|data| data.split_off(to_usize(at - self.range.start)));
        let rest = Self { range: at..self.range.end, data };
        self.range.end = at;
        (self, Some(rest))
    }
}

/// A part of the image that records say something of: one place of the grid, or more of them that
/// are zeros as a whole.
#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    /// Ascending and disjoint.
    patches: Vec<Patch>,
}

impl Piece {
    fn is_zero(&self) -> bool {
        let [Patch { range, data: None }] = self.patches.as_slice() else { return false };
        *range == self.range
    }

    /// What no record covers.
    fn gaps(&self) -> Vec<Range<u64>> {
        let mut at = self.range.start;
        let mut gaps = Vec::new();
        for patch in &self.patches {
            gaps.push(at..patch.range.start);
            at = patch.range.end;
        }
        gaps.push(at..self.range.end);
        gaps.retain(|gap| !gap.is_empty());
        gaps
    }
}

/// Patches, ascending and disjoint, gathered into pieces.
struct Pieces<I> {
    patches: I,
    next: Option<Patch>,
    /// Bytes of the image, which no patch leaves.
    size: u64,
}

impl<I: Iterator<Item = Result<Patch, RoleError>>> Pieces<I> {
    /// A piece from `first` on.
    fn gather(&mut self, first: Patch) -> Result<Piece, RoleError> {
        let start = first.range.start / PIECE_BYTES * PIECE_BYTES;
        let end = self.size.min(start + PIECE_BYTES);
        let mut piece = Piece { range: start..end, patches: Vec::new() };
        if first.data.is_none() && first.range.start == start && first.range.end >= end {
            let whole = first.range.end / PIECE_BYTES * PIECE_BYTES;
            piece.range.end = if first.range.end == self.size { self.size } else { whole };
            let (zeros, rest) = first.split(piece.range.end);
            piece.patches.push(zeros);
            self.next = rest;
            return Ok(piece);
        }
        let mut next = Some(first);
        while let Some(patch) = next {
            if patch.range.start >= end {
                self.next = Some(patch);
                break;
            }
            let (inside, rest) = patch.split(end);
            piece.patches.push(inside);
            next = match rest {
                Some(rest) => Some(rest),
                None => self.patches.next().transpose()?,
            };
        }
        Ok(piece)
    }
}

impl<I: Iterator<Item = Result<Patch, RoleError>>> Iterator for Pieces<I> {
    type Item = Result<Piece, RoleError>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = match self.next.take() {
            Some(patch) => patch,
            None => match self.patches.next()? {
                Ok(patch) => patch,
                Err(error) => return Some(Err(error)),
            },
        };
        Some(self.gather(first))
    }
}

/// Where the base image has data, asked for in order.
struct Extents {
    base: Arc<dyn BlockDevice>,
    /// All data below `known`.
    data: VecDeque<Range<u64>>,
    known: u64,
    end: u64,
}

impl Extents {
    /// The first data of a range, which begins no earlier than those before it.
    async fn first(&mut self, range: &Range<u64>) -> Result<Option<Range<u64>>, image::Failed> {
        let end = range.end.min(self.end);
        loop {
            while self.data.front().is_some_and(|data| data.end <= range.start) {
                self.data.pop_front();
            }
            if let Some(data) = self.data.front() {
                let found = data.start.max(range.start)..data.end.min(end);
                return Ok((!found.is_empty()).then_some(found));
            }
            if self.known >= end {
                return Ok(None);
            }
            self.look().await?;
        }
    }

    async fn look(&mut self) -> Result<(), image::Failed> {
        let attempted = attempt("find the holes of", &self.base);
        let extents = self.base.extents(self.known, self.end - self.known).await;
        let extents = extents.map_err(&attempted)?;
        if extents.is_empty() {
            return Err(attempted(std::io::Error::other("it has no extents")));
        }
        for extent in extents {
            let range = self.known..self.known + extent.len;
            self.known = range.end;
            match self.data.back_mut() {
                _ if extent.hole => {}
                Some(last) if last.end == range.start => last.end = range.end,
                _ => self.data.push_back(range),
            }
        }
        Ok(())
    }
}

/// Makes `image`, which reads as zeros, of `base` and diffs over it, oldest first, and flushes it.
/// Of two sizes of the images the smaller one counts for the base image: it may grow meanwhile.
/// `advance` hears of the bytes that are behind, all of the image in the end.
pub(crate) async fn write(
    (base, image): (Arc<dyn BlockDevice>, Arc<dyn BlockDevice>),
    volume: &str,
    wdiffs: Vec<WdiffReader>,
    token: &CancellationToken,
    advance: impl Fn(u64),
) -> Result<(), RoleError> {
    let size = image.size_bytes();
    let (sender, pieces) = mpsc::channel(WAITING);
    let merge = {
        let (volume, token) = (volume.to_owned(), token.clone());
        move || merge(&volume, wdiffs, size, &token, &sender)
    };
    let merge = blocking::spawn(merge);
    let end = base.size_bytes().min(size);
    let extents = Extents { base: base.clone(), data: VecDeque::new(), known: 0, end };
    let writer = ImageWriter::new(image.clone(), volume).with_depth(IN_FLIGHT);
    let mut making = Making { base, image, size, extents, writer, at: 0, token, advance };
    let made = making.make(pieces, merge).await;
    making.writer.drain().await;
    made
}

/// Hands the pieces that diffs say something of to `sender`. Ends early when nobody takes them.
/// Blocks.
fn merge(
    volume: &str,
    wdiffs: Vec<WdiffReader>,
    size: u64,
    token: &CancellationToken,
    sender: &mpsc::Sender<Piece>,
) -> Result<(), RoleError> {
    let records = image::merged(volume, wdiffs, Lb::from_bytes(size))?;
    let patches = records.map(|record| {
        check(token)?;
        record.map(Patch::of)
    });
    for piece in (Pieces { patches, next: None, size }) {
        if blocking::wait(sender.send(piece?)).is_err() {
            break;
        }
    }
    Ok(())
}

struct Making<'a, A> {
    base: Arc<dyn BlockDevice>,
    image: Arc<dyn BlockDevice>,
    size: u64,
    extents: Extents,
    writer: ImageWriter,
    /// All before it is under way or done.
    at: u64,
    token: &'a CancellationToken,
    advance: A,
}

impl<A: Fn(u64)> Making<'_, A> {
    async fn make(
        &mut self,
        mut pieces: mpsc::Receiver<Piece>,
        merge: blocking::Work<Result<(), RoleError>>,
    ) -> Result<(), RoleError> {
        let mut all = Ok(());
        while let Some(piece) = pieces.recv().await {
            all = self.patched(piece).await;
            if all.is_err() {
                break;
            }
        }
        // A maker that failed ends the merge, which then has nothing of its own to tell.
        drop(pieces);
        let merged = merge.await?;
        all.and(merged)?;
        self.unpatched(self.size).await?;
        self.writer.flush().await
    }

    /// What no record covers, up to the byte `end`.
    async fn unpatched(&mut self, end: u64) -> Result<(), RoleError> {
        while self.at < end {
            check(self.token)?;
            let data = self.extents.first(&(self.at..end)).await;
            let data = data.map_err(|e| self.writer.failed(e))?;
            let Some(data) = data else { break };
            self.pass(data.start);
            let edge = (data.start / PIECE_BYTES + 1) * PIECE_BYTES;
            let piece = Piece { range: data.start..data.end.min(edge), patches: Vec::new() };
            self.start(piece, true).await?;
        }
        self.pass(end);
        Ok(())
    }

    /// A piece, and all before it.
    async fn patched(&mut self, piece: Piece) -> Result<(), RoleError> {
        self.unpatched(piece.range.start).await?;
        check(self.token)?;
        if piece.is_zero() {
            self.pass(piece.range.end);
            return Ok(());
        }
        let data = self.extents.first(&piece.range).await;
        let has_base = data.map_err(|e| self.writer.failed(e))?.is_some();
        self.start(piece, has_base).await
    }

    fn pass(&mut self, to: u64) {
        (self.advance)(to.saturating_sub(self.at));
        self.at = self.at.max(to);
    }

    async fn start(&mut self, piece: Piece, has_base: bool) -> Result<(), RoleError> {
        let end = piece.range.end;
        let base = has_base.then(|| (self.base.clone(), self.extents.end));
        self.writer.start(put(piece, base, self.image.clone())).await?;
        self.pass(end);
        Ok(())
    }
}

/// Reads what is below a piece, if there is something, up to the end of that, and writes the piece.
fn put(
    piece: Piece,
    base: Option<(Arc<dyn BlockDevice>, u64)>,
    image: Arc<dyn BlockDevice>,
) -> Request {
    Box::pin(async move {
        let gaps = piece.gaps();
        let wanted = match (&base, gaps.first(), gaps.last()) {
            (Some((_, base_end)), Some(first), Some(last)) => first.start..last.end.min(*base_end),
            _ => piece.range.start..piece.range.start,
        };
        let mut below = (wanted.start, Bytes::new());
        if let Some((base, _)) = base.filter(|_| !wanted.is_empty()) {
            let read = base.read(wanted.start, to_usize(wanted.end - wanted.start)).await;
            below.1 = read.map_err(attempt("read", &base))?;
        }
        let content = if piece.patches.is_empty() { below.1 } else { patched(&piece, &below) };
        for run in runs(&content) {
            let offset = piece.range.start + run.start as u64;
            let written = image.write(offset, vec![content.slice(run)]).await;
            written.map_err(attempt("write", &image))?;
        }
        Ok(())
    })
}

/// The content of a piece over bytes of the base image from an offset on, and zeros elsewhere.
fn patched(piece: &Piece, (offset, below): &(u64, Bytes)) -> Bytes {
    let mut content = AlignedBuf::recycled(to_usize(piece.range.end - piece.range.start));
    let mut rest: &mut [u8] = &mut content;
    let mut put = |range: Range<u64>, source: &[u8], source_at: u64| {
        let from = to_usize(range.start.saturating_sub(source_at)).min(source.len());
        let len = to_usize(range.end - range.start);
        let found = source.get(from..source.len().min(from + len)).unwrap_or_default();
        let (part, behind) = std::mem::take(&mut rest).split_at_mut(len);
        let (head, zeros) = part.split_at_mut(found.len());
        head.copy_from_slice(found);
        zeros.fill(0);
        rest = behind;
    };
    let mut at = piece.range.start;
    for Patch { range, data } in &piece.patches {
        put(at..range.start, below, *offset);
        put(range.clone(), data.as_deref().unwrap_or_default(), range.start);
        at = range.end;
    }
    put(at..piece.range.end, below, *offset);
    content.freeze()
}

/// The parts of some content that are to be written: all but long runs of zeros.
fn runs(content: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (index, cell) in content.chunks(CELL_BYTES).enumerate() {
        if is_zero(cell) {
            continue;
        }
        let start = index * CELL_BYTES;
        let end = start + cell.len();
        match runs.last_mut() {
            Some(last) if start - last.end < HOLE_BYTES => last.end = end,
            _ => runs.push(start..end),
        }
    }
    runs
}
