//! Reads a device from front to end for those who send or compare all of it: several
//! large reads in flight, holes and zeroes told instead of sent.

mod cells;
pub use cells::{CELL_BYTES, GRAIN_BYTES, cells, covering, on_grid, paced, whole};

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use crate::error::RoleError;
use crate::packing::{self, Way};
use block_io::device::{BlockDevice, Extent};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt, TryStreamExt};
use proto::v1::FullSyncBulk;
use wlog_format::units::to_usize;

/// Reads in flight.
pub const DEPTH: usize = 8;

/// How far ahead holes are asked for.
const WINDOW_BYTES: u64 = 256 << 20;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A piece of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bulk {
    /// Where it is, in bytes.
    pub offset: u64,
    /// What is there.
    pub content: Content,
}

/// What a piece of the device holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Data(Bytes),
    /// So many zeroes.
    Zeros(u64),
}

impl Content {
    fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zeros(len) => *len,
        }
    }
}

impl Bulk {
    /// How many bytes of the device it is.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.content.len()
    }

    /// Its first `len` bytes, and what follows them.
    #[must_use]
    pub fn split_at(self, len: u64) -> (Self, Option<Self>) {
        let Self { offset, content } = self;
        if len >= content.len() {
            return (Self { offset, content }, None);
        }
        let (head, tail) = match content {
            Content::Data(mut head) => {
                let tail = head.split_off(to_usize(len));
                (Content::Data(head), Content::Data(tail))
            }
            Content::Zeros(all) => (Content::Zeros(len), Content::Zeros(all - len)),
        };
        (Self { offset, content: head }, Some(Self { offset: offset + len, content: tail }))
    }

    /// Never: a bulk has bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Bulks in the order of the device.
pub type Bulks = Pin<Box<dyn Stream<Item = Result<Bulk, RoleError>> + Send>>;

/// A run of bytes that is a hole or is to be read.
#[derive(Clone, Copy)]
struct Run {
    offset: u64,
    len: u64,
    hole: bool,
}

/// The bulks of `[start, end)` in order and without gaps.
pub fn bulks(device: Arc<dyn BlockDevice>, start: u64, end: u64, bulk_bytes: u64) -> Bulks {
    spanned(device, std::iter::once(start..end).collect(), bulk_bytes)
}

/// The bulks of `spans`, which ascend, in order; none goes from one span into another, and none
/// with data over a multiple of `bulk_bytes`.
pub fn spanned(device: Arc<dyn BlockDevice>, spans: Vec<Range<u64>>, bulk_bytes: u64) -> Bulks {
    let source = Arc::clone(&device);
    let runs = stream::iter(windows(spans)).then(move |window| {
        let device = Arc::clone(&source);
        async move { runs(&*device, window, bulk_bytes).await }
    });
    let flat = runs.map_ok(|runs| stream::iter(runs.into_iter().map(Ok))).try_flatten();
    let read = move |run| read(Arc::clone(&device), run);
    Box::pin(flat.map_ok(read).try_buffered(DEPTH))
}

/// The spans in each window of the device that has some.
fn windows(spans: Vec<Range<u64>>) -> impl Iterator<Item = Vec<Range<u64>>> {
    let mut rest = VecDeque::from(spans);
    std::iter::from_fn(move || {
        let end = (rest.front()?.start / WINDOW_BYTES + 1) * WINDOW_BYTES;
        let mut window = Vec::new();
        while let Some(span) = rest.front_mut().filter(|span| span.start < end) {
            window.push(span.start..span.end.min(end));
            if span.end > end {
                span.start = end;
            } else {
                rest.pop_front();
            }
        }
        Some(window)
    })
}

/// Bulks as the messages of a full sync, each with how much of the device it is; made by all cores,
/// in order.
pub fn packed(
    bulks: Bulks,
    way: Way,
) -> impl Stream<Item = Result<(u64, FullSyncBulk), RoleError>> + Send + Unpin {
    let parallel = crate::blocking::parallelism();
    Box::pin(bulks.map_ok(move |bulk| message(bulk, way)).try_buffered(parallel))
}

async fn message(bulk: Bulk, way: Way) -> Result<(u64, FullSyncBulk), RoleError> {
    let (len, offset_bytes) = (bulk.len(), bulk.offset);
    let message = match bulk.content {
        Content::Zeros(zeros_bytes) => FullSyncBulk { offset_bytes, chunk: None, zeros_bytes },
        Content::Data(data) => {
            let chunk = Some(packing::pack(data, way).chunk().await?);
            FullSyncBulk { offset_bytes, chunk, zeros_bytes: 0 }
        }
    };
    Ok((len, message))
}

/// The spans of a window as holes and pieces to read.
async fn runs(
    device: &dyn BlockDevice,
    window: Vec<Range<u64>>,
    bulk_bytes: u64,
) -> Result<Vec<Run>, RoleError> {
    let (Some(first), Some(last)) = (window.first(), window.last()) else { return Ok(Vec::new()) };
    let sector = u64::from(device.block_bytes());
    let end = last.end.next_multiple_of(sector).min(device.size_bytes());
    let extents = device
        .extents(first.start, end.saturating_sub(first.start))
        .await
        .map_err(|e| RoleError::io("look for holes in the data device", device.path_hint(), e))?;
    Ok(cut(first.start, extents.into(), &window, bulk_bytes))
}

/// What `extents` from `at` on say of some spans, in pieces. Behind their end all counts as data.
fn cut(at: u64, mut extents: VecDeque<Extent>, spans: &[Range<u64>], bulk_bytes: u64) -> Vec<Run> {
    let (mut runs, mut begin) = (Vec::new(), at);
    for span in spans {
        let mut offset = span.start;
        while offset < span.end {
            while let Some(over) = extents.pop_front_if(|extent| begin + extent.len <= offset) {
                begin += over.len;
            }
            let (hole, end) = match extents.front() {
                Some(extent) => (extent.hole, (begin + extent.len).min(span.end)),
                None => (false, span.end),
            };
            let bulk_end = (offset / bulk_bytes + 1) * bulk_bytes;
            let end = if hole { end } else { end.min(bulk_end) };
            runs.push(Run { offset, len: end - offset, hole });
            offset = end;
        }
    }
    runs
}

async fn read(device: Arc<dyn BlockDevice>, run: Run) -> Result<Bulk, RoleError> {
    let Run { offset, len, hole } = run;
    if hole {
        return Ok(Bulk { offset, content: Content::Zeros(len) });
    }
    // The volume may end inside a sector of the device.
    let sector = u64::from(device.block_bytes());
    let data = device
        .read(offset, to_usize(len.next_multiple_of(sector)))
        .await
        .map_err(|e| RoleError::io("read the data device", device.path_hint(), e))?;
    let data = data.slice(..to_usize(len));
    let is_zero = data.chunks(ZEROS.len()).all(|part| ZEROS.starts_with(part));
    let content = if is_zero { Content::Zeros(len) } else { Content::Data(data) };
    Ok(Bulk { offset, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_cut_where_windows_end() {
        const W: u64 = WINDOW_BYTES;
        let spans = vec![7..8, 9..W + 5, W + 7..3 * W + 1, 9 * W..10 * W];
        let found: Vec<Vec<Range<u64>>> = windows(spans.clone()).collect();
        let first: Vec<u64> = found.iter().map(|window| window[0].start / W).collect();
        assert_eq!(first, [0, 1, 2, 3, 9]);
        assert_eq!(found[..2], [vec![7..8, 9..W], vec![W..W + 5, W + 7..2 * W]]);
        let all = |spans: &[Range<u64>]| spans.iter().map(|s| s.end - s.start).sum::<u64>();
        assert_eq!(all(&found.concat()), all(&spans));
    }
}
