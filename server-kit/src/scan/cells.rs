//! A device, or parts of it, in cells, for those who compare two devices. A cell is what is wanted
//! of an aligned MiB without a gap in between: all of it, or a run of whole grains.
//!
//! Invariants: cells ascend and never overlap; each begins at a grain and ends at one or at the end
//! of the device; a cell of nothing but zeroes says so.

use super::{Bulk, Bulks, Content, spanned};
use crate::error::RoleError;
use crate::pace::Pace;
use block_io::device::BlockDevice;
use bytes::BytesMut;
use futures::stream::{self, TryStreamExt};
use proto::v1::ByteRange;
use std::ops::Range;
use std::sync::Arc;
use wlog_format::units::to_usize;

/// Bytes of a whole cell.
pub const CELL_BYTES: u64 = 1 << 20;
/// The smallest part of a device that is compared by itself: the smallest region of which a device
/// role remembers when it was written.
pub const GRAIN_BYTES: u64 = 64 << 10;

/// The whole of a device of `size` bytes.
#[must_use]
pub fn whole(size: u64) -> Vec<Range<u64>> {
    if size == 0 { Vec::new() } else { std::iter::once(0..size).collect() }
}

/// Ranges in any order as disjoint runs of whole grains, ascending, inside a device of `size`
/// bytes.
#[must_use]
pub fn covering(ranges: &[ByteRange], size: u64) -> Vec<Range<u64>> {
    let aligned = |r: &ByteRange| {
        let begin = r.begin / GRAIN_BYTES * GRAIN_BYTES;
        let end = r.end.min(size).checked_next_multiple_of(GRAIN_BYTES).unwrap_or(u64::MAX);
        begin..end.min(size)
    };
    let mut ranges: Vec<_> =
        ranges.iter().filter(|r| r.begin < r.end).map(aligned).filter(|r| !r.is_empty()).collect();
    ranges.sort_unstable_by_key(|r| r.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// The cells of `spans` (runs of whole grains), read ahead, no faster than `bytes_per_s` (0: as
/// fast as it goes).
pub fn cells(device: Arc<dyn BlockDevice>, spans: Vec<Range<u64>>, bytes_per_s: u64) -> Bulks {
    paced(on_grid(spanned(device, spans, CELL_BYTES)), bytes_per_s)
}

/// Pieces of any length, in order, as cells.
#[must_use]
pub fn on_grid(pieces: Bulks) -> Bulks {
    Box::pin(stream::try_unfold((pieces, None), |(mut pieces, rest)| async move {
        let first = match rest {
            Some(rest) => Some(rest),
            None => pieces.try_next().await?,
        };
        let Some(first) = first else { return Ok(None) };
        let (cell, rest) = gather(&mut pieces, first).await?;
        Ok(Some((cell, (pieces, rest))))
    }))
}

/// One cell from `first` on, and what follows it of the last piece that was taken.
async fn gather(pieces: &mut Bulks, first: Bulk) -> Result<(Bulk, Option<Bulk>), RoleError> {
    let offset = first.offset;
    let end = (offset / CELL_BYTES + 1) * CELL_BYTES;
    let (mut at, mut parts, mut next) = (offset, Vec::new(), first);
    loop {
        let (head, tail) = next.split_at(end - at);
        at += head.len();
        parts.push(head);
        if tail.is_some() || at == end {
            return Ok((join(offset, parts), tail));
        }
        match pieces.try_next().await? {
            Some(piece) if piece.offset == at => next = piece,
            // Another span, or the end of the device.
            other => return Ok((join(offset, parts), other)),
        }
    }
}

fn join(offset: u64, mut parts: Vec<Bulk>) -> Bulk {
    if parts.len() == 1
        && let Some(only) = parts.pop()
    {
        return only;
    }
    let len = parts.iter().map(Bulk::len).sum();
    if parts.iter().all(|part| matches!(part.content, Content::Zeros(_))) {
        return Bulk { offset, content: Content::Zeros(len) };
    }
    let mut data = BytesMut::with_capacity(to_usize(len));
    for part in parts {
        match part.content {
            Content::Data(part) => data.extend_from_slice(&part),
            Content::Zeros(len) => data.resize(data.len() + to_usize(len), 0),
        }
    }
    Bulk { offset, content: Content::Data(data.freeze()) }
}

/// The same bulks, no faster than `bytes_per_s` bytes of data (0: as fast as they come).
#[must_use]
pub fn paced(bulks: Bulks, bytes_per_s: u64) -> Bulks {
    if bytes_per_s == 0 {
        return bulks;
    }
    let mut pace = Pace::new(bytes_per_s);
    Box::pin(bulks.and_then(move |bulk| {
        let at = match &bulk.content {
            Content::Data(data) => pace.next(data.len() as u64),
            Content::Zeros(_) => pace.next(0),
        };
        async move {
            if let Some(at) = at {
                tokio::time::sleep_until(at).await;
            }
            Ok(bulk)
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tokio::time::Instant;

    fn range(begin: u64, end: u64) -> ByteRange {
        ByteRange { begin, end }
    }

    #[test]
    fn ranges_become_disjoint_runs_of_grains_inside_the_device() {
        const G: u64 = GRAIN_BYTES;
        let size = 5 * G + 512;
        let ranges = [range(3 * G, 3 * G + 1), range(7, 8), range(G - 1, G + 1), range(9, 9)];
        assert_eq!(covering(&ranges, size), [0..2 * G, 3 * G..4 * G]);
        assert_eq!(covering(&[range(0, u64::MAX)], size), whole(size));
        assert_eq!(covering(&[range(5 * G + 1, 5 * G + 2)], size).first(), Some(&(5 * G..size)));
        assert!(covering(&[range(6 * G, 7 * G)], size).is_empty());
    }

    #[tokio::test]
    async fn pieces_become_cells_whatever_their_lengths_are() {
        let image: Vec<u8> = (0..3 * CELL_BYTES + 1536).map(|i| (i / 512 % 7) as u8).collect();
        for step in [512, 5120, (1 << 20) - 512, 1 << 20, 3 << 20] {
            let pieces = image.chunks(step).enumerate().map(|(i, data)| {
                let offset = (i * step) as u64;
                let zero = data.iter().all(|b| *b == 0);
                let content = match zero {
                    true => Content::Zeros(data.len() as u64),
                    false => Content::Data(Bytes::copy_from_slice(data)),
                };
                Ok(Bulk { offset, content })
            });
            let pieces: Vec<Result<Bulk, RoleError>> = pieces.collect();
            let cells: Vec<Bulk> =
                on_grid(Box::pin(stream::iter(pieces))).try_collect().await.unwrap();
            let mut read = Vec::new();
            for cell in &cells {
                assert_eq!(cell.offset, read.len() as u64);
                assert!(cell.offset.is_multiple_of(CELL_BYTES));
                match &cell.content {
                    Content::Data(data) => read.extend_from_slice(data),
                    Content::Zeros(len) => read.resize(read.len() + to_usize(*len), 0),
                }
            }
            assert!(read == image, "step {step}");
            assert_eq!(cells.len(), 4);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn data_comes_no_faster_than_asked_and_holes_cost_nothing() {
        let bulk = |content| Ok(Bulk { offset: 0, content });
        let data = || bulk(Content::Data(Bytes::from(vec![1; 1 << 20])));
        let hole = || bulk(Content::Zeros(1 << 40));
        let bulks = vec![data(), hole(), data(), data(), hole(), data()];
        let begun = Instant::now();
        let paced = paced(Box::pin(stream::iter(bulks)), 1 << 20);
        assert_eq!(paced.try_collect::<Vec<_>>().await.unwrap().len(), 6);
        assert_eq!(begun.elapsed().as_secs(), 3, "the fourth MiB waits for three others");
    }
}
