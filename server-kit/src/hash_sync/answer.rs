//! The side that has the image: tells how it looks in hashes, and which parts of it differ when it
//! is asked.

use super::WINDOW_BYTES;
use super::tree::{LEVELS, PART_HASH, Seed, Tree, hashed, parallel};
use crate::error::RoleError;
use crate::scan::{Bulks, CELL_BYTES};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{StreamExt, TryStreamExt};
use proto::v1::hash_sync_reply::Step;
use proto::v1::{BulkHashes, BulkRefs, HashSyncReply};
use std::collections::VecDeque;
use tokio::sync::mpsc;
use wlog_format::units::to_usize;

/// Cells whose hashes go into one message, when they are there: half the window, of whole cells.
const CHUNK_CELLS: usize = to_usize(WINDOW_BYTES / CELL_BYTES / 2);

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
    let mut known = Known::default();
    let mut ended = false;
    loop {
        let room = known.bytes <= WINDOW_BYTES - CHUNK_CELLS as u64 * CELL_BYTES;
        let messages = tokio::select! {
            asked = refs.recv() => match asked {
                None => return Ok(()),
                Some(asked) => known.told(&asked)?.into_iter().collect(),
            },
            chunk = hashes.next(), if room && !ended => match chunk {
                None => {
                    ended = true;
                    vec![Step::AllHashed(true)]
                }
                Some(chunk) => {
                    let trees = chunk.into_iter().collect::<Result<Vec<_>, _>>()?;
                    let messages = bulk_messages(&seed, &trees);
                    known.add(trees);
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
    // Which cells follow each other both sides know.
    for run in trees.chunk_by(|a, b| a.is_zero(seed) == b.is_zero(seed)) {
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

/// What was hashed and is not over.
#[derive(Default)]
struct Known {
    trees: VecDeque<Tree>,
    /// How much of the image that is.
    bytes: u64,
}

impl Known {
    fn add(&mut self, trees: Vec<Tree>) {
        self.bytes += trees.iter().map(|tree| tree.len).sum::<u64>();
        self.trees.extend(trees);
    }

    /// The answer to a question, if it is one; what is over is forgotten.
    fn told(&mut self, asked: &BulkRefs) -> Result<Option<Step>, RoleError> {
        let over = |tree: &mut Tree| tree.offset + tree.len <= asked.done_bytes;
        while let Some(tree) = self.trees.pop_front_if(over) {
            self.bytes -= tree.len;
        }
        if asked.steps.is_empty() {
            return Ok(None);
        }
        let level = LEVELS.windows(2).position(|pair| match *pair {
            [range, part] => (range, part) == (asked.range_bytes.into(), asked.part_bytes.into()),
            _ => false,
        });
        let strange = |what: String| RoleError::bad_request(format!("in a hash sync, {what}"));
        let level =
            level.ok_or_else(|| strange("hashes of unknown ranges are asked for".into()))?;
        let mut hashes = BytesMut::new();
        let mut offset = 0_u64;
        for step in &asked.steps {
            offset = offset.saturating_add(step.saturating_mul(asked.part_bytes.into()));
            let index = self.trees.partition_point(|tree| tree.offset + tree.len <= offset);
            let before = hashes.len();
            for (_, hash) in self.trees.get(index).into_iter().flat_map(|t| t.parts(level, offset))
            {
                hashes.put_slice(hash.split_at(PART_HASH).0);
            }
            if hashes.len() == before {
                return Err(strange(format!("hashes at byte {offset} are asked for, out of turn")));
            }
        }
        let (hashes, bulk_bytes) = (hashes.freeze(), asked.part_bytes);
        Ok(Some(Step::Blocks(BulkHashes { offset_bytes: 0, bulk_bytes, hashes, repeat: 0 })))
    }
}
