//! What was read lately, within bounds, for all volumes and readers together: blocks of index runs,
//! data of wdiffs, and open wdiffs.

use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::index_run::{BLOCK_BYTES, BlockCache};
use wdiff_format::io_at::ReadObject;

/// Memory for blocks of index runs.
const INDEX_BYTES: usize = 64 << 20;
/// Memory for uncompressed data.
const DATA_BYTES: usize = 64 << 20;

/// A reader and the position of a wdiff among those that it reads.
pub(crate) type WdiffKey = (u64, u32);

/// The memory of all that read snapshots.
pub(crate) struct Reading {
    blocks: Mutex<Cache<(u64, u64), Bytes>>,
    /// By wdiff and byte offset in it.
    data: Mutex<Cache<(WdiffKey, u64), Bytes>>,
    files: Mutex<Cache<WdiffKey, (ReadObject, Arc<str>)>>,
    codecs: Mutex<Vec<Codec>>,
    /// Wdiffs that no run covers before they are worth one.
    pub(super) batch: usize,
}

impl Reading {
    /// With so many wdiffs open at most.
    pub(crate) fn new(files: usize, batch: usize) -> Self {
        Self {
            batch: batch.max(1),
            blocks: Mutex::new(Cache::new(INDEX_BYTES)),
            data: Mutex::new(Cache::new(DATA_BYTES)),
            files: Mutex::new(Cache::new(files)),
            codecs: Mutex::default(),
        }
    }

    /// An open wdiff, or what `open` makes of it. May block.
    pub(crate) fn file<E>(
        &self,
        key: WdiffKey,
        open: impl FnOnce() -> Result<(ReadObject, Arc<str>), E>,
    ) -> Result<(ReadObject, Arc<str>), E> {
        if let Some(found) = self.files.lock().get(&key) {
            return Ok(found);
        }
        let opened = open()?;
        self.files.lock().insert(key, opened.clone(), 1);
        Ok(opened)
    }

    /// The data that begins at this byte of a wdiff, if it was read lately.
    pub(crate) fn data_kept(&self, key: WdiffKey, offset: u64) -> Option<Bytes> {
        self.data.lock().get(&(key, offset))
    }

    /// The data that begins at this byte of a wdiff, or what `read` makes of it. May block.
    pub(crate) fn data<E>(
        &self,
        key: WdiffKey,
        offset: u64,
        read: impl FnOnce(&mut Codec) -> Result<Bytes, E>,
    ) -> Result<Bytes, E> {
        if let Some(found) = self.data_kept(key, offset) {
            return Ok(found);
        }
        let codec = self.codecs.lock().pop();
        let mut codec = codec.unwrap_or_else(|| Codec::new(Compression::default()));
        let read = read(&mut codec);
        self.codecs.lock().push(codec);
        let data = read?;
        self.data.lock().insert((key, offset), data.clone(), data.len());
        Ok(data)
    }

    /// A reader is gone.
    pub(crate) fn forget(&self, reader: u64) {
        self.files.lock().retain(|(of, _)| *of != reader);
        self.data.lock().retain(|((of, _), _)| *of != reader);
    }
}

impl BlockCache for Reading {
    fn get(&self, run: u64, block: u64) -> Option<Bytes> {
        self.blocks.lock().get(&(run, block))
    }

    fn put(&self, run: u64, block: u64, bytes: &Bytes) {
        self.blocks.lock().insert((run, block), bytes.clone(), BLOCK_BYTES);
    }
}

/// What was used lately, within a weight. What was not used since it came, or since it was last
/// spared, goes first.
struct Cache<K, V> {
    found: HashMap<K, Slot<V>>,
    order: VecDeque<K>,
    weight: usize,
    max: usize,
}

struct Slot<V> {
    value: V,
    weight: usize,
    used: bool,
}

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    fn new(max: usize) -> Self {
        Self { found: HashMap::new(), order: VecDeque::new(), weight: 0, max }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        let slot = self.found.get_mut(key)?;
        slot.used = true;
        Some(slot.value.clone())
    }

    fn insert(&mut self, key: K, value: V, weight: usize) {
        if weight > self.max || self.found.contains_key(&key) {
            return;
        }
        while self.weight + weight > self.max {
            let Some(oldest) = self.order.pop_front() else { break };
            match self.found.get_mut(&oldest) {
                Some(slot) if slot.used => {
                    slot.used = false;
                    self.order.push_back(oldest);
                }
                _ => self.weight -= self.found.remove(&oldest).map_or(0, |slot| slot.weight),
            }
        }
        self.found.insert(key, Slot { value, weight, used: false });
        self.order.push_back(key);
        self.weight += weight;
    }

    fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        let Self { found, order, weight, .. } = self;
        order.retain(&keep);
        found.retain(|key, slot| {
            let kept = keep(key);
            *weight -= if kept { 0 } else { slot.weight };
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_keeps_what_is_used_and_the_newest_within_its_weight() {
        let mut cache = Cache::new(10);
        for key in 0..3 {
            cache.insert(key, key * 10, 3);
        }
        assert_eq!(cache.get(&0), Some(0));
        for key in 3..5 {
            cache.insert(key, key * 10, 3);
        }
        assert_eq!((0..5).filter_map(|k| cache.get(&k)).collect::<Vec<_>>(), [0, 30, 40]);
        cache.insert(9, 90, 11);
        cache.insert(4, 41, 3);
        assert_eq!((cache.get(&9), cache.get(&4)), (None, Some(40)));
        assert_eq!((cache.weight, cache.order.len(), cache.found.len()), (9, 3, 3));
        cache.retain(|key| *key != 3);
        assert_eq!((cache.weight, cache.order.len(), cache.get(&3)), (6, 2, None));
        // All of them used: somebody has to go all the same.
        for key in 10..20 {
            cache.insert(key, key, 3);
            assert!(cache.weight <= 10 && cache.get(&key).is_some());
        }
    }
}
