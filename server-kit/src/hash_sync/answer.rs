//! The side that has the image: tells how it looks in hashes, and which parts of it differ when it
//! is asked.

use super::WINDOW_CELLS;
use super::tree::{LEVELS, PART_HASH, Seed, Tree, hashed, parallel};
use crate::error::RoleError;
use crate::scan::{Bulks, CELL_BYTES};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{StreamExt, TryStreamExt};
use proto::v1::hash_sync_reply::Step;
use proto::v1::{BulkHashes, BulkRefs, HashSyncReply};
use std::collections::VecDeque;
use tokio::sync::mpsc;

/// Cells whose hashes go into one message, when they are there.
const CHUNK_CELLS: usize = WINDOW_CELLS / 2;

/// Questions that may wait: more than a sender that keeps to the rules ever has. Whoever takes them
/// off the wire must not wait for room, since the sender may be waiting to send data.
pub const QUESTIONS_MAX: usize = 1024;

/// Where replies go.
pub type Replies = mpsc::Sender<Result<HashSyncReply, tonic::Status>>;

/// Hashes `cells` and answers `refs` until these end. Returns early when nobody takes the replies.
///
/// # Errors
/// A cell cannot be read; a question about what was not hashed or is over.
pub async fn answer(
    seed: Seed,
    cells: Bulks,
    mut refs: mpsc::Receiver<BulkRefs>,
    replies: Replies,
) -> Result<(), RoleError> {
    let hash = |cell| hashed(seed.clone(), cell);
    let mut hashes = cells
        .map_ok(hash)
        .try_buffered(parallel())
        .map_ok(|(_, tree)| tree)
        .ready_chunks(CHUNK_CELLS);
    let mut known: VecDeque<Tree> = VecDeque::new();
    let mut ended = false;
    loop {
        let room = known.len() <= WINDOW_CELLS - CHUNK_CELLS;
        let messages = tokio::select! {
            asked = refs.recv() => match asked {
                None => return Ok(()),
                Some(asked) => told(&mut known, &asked)?.into_iter().collect(),
            },
            chunk = hashes.next(), if room && !ended => match chunk {
                None => {
                    ended = true;
                    vec![Step::AllHashed(true)]
                }
                Some(chunk) => {
                    let trees = chunk.into_iter().collect::<Result<Vec<_>, _>>()?;
                    let messages = bulk_messages(&seed, &trees);
                    known.extend(trees);
                    messages
                }
            },
        };
        for step in messages {
            if replies.send(Ok(HashSyncReply { step: Some(step) })).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The hashes of the bulks of some cells, as few messages as it goes.
fn bulk_messages(seed: &Seed, trees: &[Tree]) -> Vec<Step> {
    let bulk_bytes = u32::try_from(LEVELS[0]).unwrap_or(u32::MAX);
    let mut messages = Vec::new();
    let follows =
        |a: &Tree, b: &Tree| a.offset + a.len == b.offset && a.is_zero(seed) == b.is_zero(seed);
    for run in trees.chunk_by(|a, b| follows(a, b)) {
        let Some(first) = run.first() else { continue };
        let (hashes, repeat) = if first.is_zero(seed) {
            let one = first.bulks().split_at(1).0.as_flattened();
            (Bytes::copy_from_slice(one), run.len() as u64 * (CELL_BYTES / LEVELS[0]))
        } else {
            let mut hashes = BytesMut::new();
            run.iter().for_each(|tree| hashes.put_slice(tree.bulks().as_flattened()));
            (hashes.freeze(), 0)
        };
        let offset_bytes = first.offset;
        messages.push(Step::Bulks(BulkHashes { offset_bytes, bulk_bytes, hashes, repeat }));
    }
    messages
}

/// The answer to a question, if it is one; what is over is forgotten.
fn told(known: &mut VecDeque<Tree>, asked: &BulkRefs) -> Result<Option<Step>, RoleError> {
    while known.front().is_some_and(|tree| tree.offset + tree.len <= asked.done_bytes) {
        known.pop_front();
    }
    let Some(&first) = asked.offset_bytes.first() else { return Ok(None) };
    let level = LEVELS.windows(2).position(|pair| match *pair {
        [range, part] => (range, part) == (asked.range_bytes.into(), asked.part_bytes.into()),
        _ => false,
    });
    let strange = |what: String| RoleError::bad_request(format!("in a hash sync, {what}"));
    let level = level.ok_or_else(|| strange("hashes of unknown ranges are asked for".into()))?;
    let mut hashes = BytesMut::new();
    for &offset in &asked.offset_bytes {
        let index = known.partition_point(|tree| tree.offset + tree.len <= offset);
        let before = hashes.len();
        for (_, hash) in known.get(index).into_iter().flat_map(|t| t.parts(level, offset)) {
            hashes.put_slice(hash.split_at(PART_HASH).0);
        }
        if hashes.len() == before {
            return Err(strange(format!("hashes at byte {offset} are asked for, out of turn")));
        }
    }
    Ok(Some(Step::Blocks(BulkHashes {
        offset_bytes: first,
        bulk_bytes: asked.part_bytes,
        hashes: hashes.freeze(),
        repeat: 0,
    })))
}
