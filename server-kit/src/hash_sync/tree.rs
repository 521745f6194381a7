//! The hashes of one cell: of its blocks, and of the ranges that they make.

use super::PROTOCOL;
use crate::error::RoleError;
use crate::scan::{Bulk, CELL_BYTES, Content, GRAIN_BYTES};
use highway::{HighwayHash, HighwayHasher, Key};
use proto::v1::HashSyncStart;
use std::sync::Arc;
use wlog_format::units::to_usize;

/// The smallest range that is compared.
pub const BLOCK_BYTES: u64 = 4096;

/// Sizes of the ranges that are compared: bulks, their parts, blocks.
pub const LEVELS: [u64; 4] = [256 << 10, 64 << 10, 16 << 10, BLOCK_BYTES];
const _: () = assert!(GRAIN_BYTES.is_multiple_of(LEVELS[1]), "questions step by whole parts");

/// So much is hashed in the time that a worker thread takes to begin.
const AT_ONCE_BYTES: u64 = 2 * GRAIN_BYTES;

/// Bytes of a bulk's hash on the wire, and of a part's.
pub(super) const BULK_HASH: usize = 16;
pub(super) const PART_HASH: usize = 8;

pub(super) type Hash = [u8; BULK_HASH];

/// Hashes by level.
type Hashes = [Vec<Hash>; LEVELS.len()];

/// The key of a session's hashes, with the hashes of zeroes, which are needed often.
#[derive(Clone)]
pub struct Seed {
    key: Key,
    zeros: Arc<Hashes>,
}

impl Seed {
    /// That of a session.
    ///
    /// # Errors
    /// It has not 32 bytes; the other side hashes in another way.
    pub fn of(start: &HashSyncStart) -> Result<Self, RoleError> {
        let found = start.protocol;
        if found != PROTOCOL {
            let message = format!(
                "the sender compares by protocol {found} of the hash sync, this server by \
                 {PROTOCOL}"
            );
            return Err(RoleError::bad_request(message)
                .with_next_step("install the same version on both servers"));
        }
        let bad = || RoleError::bad_request("a seed of a hash sync has 32 bytes");
        let bytes: &[u8; 32] = (&*start.seed).try_into().map_err(|_| bad())?;
        let mut key = Key::default();
        for (word, bytes) in key.0.iter_mut().zip(bytes.as_chunks().0) {
            *word = u64::from_le_bytes(*bytes);
        }
        let zeros = Arc::new(hashes(key, &vec![0; to_usize(CELL_BYTES)]));
        Ok(Self { key, zeros })
    }
}

fn hash(key: Key, data: &[u8]) -> Hash {
    let [low, high] = HighwayHasher::new(key).hash128(data);
    (u128::from(high) << 64 | u128::from(low)).to_le_bytes()
}

fn hashes(key: Key, data: &[u8]) -> Hashes {
    let blocks: Vec<Hash> =
        data.chunks(to_usize(BLOCK_BYTES)).map(|block| hash(key, block)).collect();
    let up = |below: &[Hash], factor: u64| -> Vec<Hash> {
        below.chunks(to_usize(factor)).map(|parts| hash(key, parts.as_flattened())).collect()
    };
    let parts = up(&blocks, LEVELS[2] / LEVELS[3]);
    let larger = up(&parts, LEVELS[1] / LEVELS[2]);
    let bulks = up(&larger, LEVELS[0] / LEVELS[1]);
    [bulks, larger, parts, blocks]
}

/// The hashes of one cell.
pub(super) struct Tree {
    pub(super) offset: u64,
    pub(super) len: u64,
    hashes: Arc<Hashes>,
}

impl Tree {
    /// Hashes a cell. Blocks for about a tenth of a millisecond when it is full of data.
    fn of(seed: &Seed, cell: &Bulk) -> Self {
        let (offset, len) = (cell.offset, cell.len());
        let hashes = match &cell.content {
            Content::Zeros(CELL_BYTES) => seed.zeros.clone(),
            Content::Zeros(len) => Arc::new(hashes(seed.key, &vec![0; to_usize(*len)])),
            Content::Data(data) => Arc::new(hashes(seed.key, data)),
        };
        Self { offset, len, hashes }
    }

    /// The same as a cell of zeroes.
    pub(super) fn is_zero(&self, seed: &Seed) -> bool {
        Arc::ptr_eq(&self.hashes, &seed.zeros)
    }

    /// The hashes of the bulks.
    pub(super) fn bulks(&self) -> &[Hash] {
        let [bulks, ..] = &*self.hashes;
        bulks
    }

    /// Where the bulks begin, and what they hash to.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, &Hash)> {
        (self.offset..).step_by(to_usize(LEVELS[0])).zip(self.bulks())
    }

    /// The parts of the range of level `level` that begins at `offset`: where each begins, and its
    /// hash. Empty when there is no such range.
    pub(super) fn parts(&self, level: usize, offset: u64) -> impl Iterator<Item = (u64, &Hash)> {
        let range = LEVELS.get(level).copied().unwrap_or(BLOCK_BYTES);
        let part = LEVELS.get(level + 1).copied().unwrap_or(BLOCK_BYTES);
        let inside = offset.checked_sub(self.offset).filter(|at| at.is_multiple_of(range));
        let first = inside.map_or(usize::MAX, |at| to_usize(at / part));
        let hashes = self.hashes.get(level + 1).and_then(|all| all.get(first..));
        let parts = hashes.unwrap_or_default().iter().take(to_usize(range / part));
        (offset..).step_by(to_usize(part)).zip(parts)
    }
}

/// A hashed cell: by a worker thread, unless that takes longer than hashing.
pub(super) async fn hashed(seed: Seed, cell: Bulk) -> Result<(Bulk, Tree), RoleError> {
    if cell.content == Content::Zeros(CELL_BYTES) || cell.len() <= AT_ONCE_BYTES {
        let tree = Tree::of(&seed, &cell);
        return Ok((cell, tree));
    }
    crate::blocking::run(move || {
        let tree = Tree::of(&seed, &cell);
        Ok::<_, RoleError>((cell, tree))
    })
    .await
}

/// Cells that are hashed at a time.
pub(super) fn parallel() -> usize {
    crate::blocking::parallelism()
}
