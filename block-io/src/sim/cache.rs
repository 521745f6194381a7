//! The model of a volatile write cache: what a disk may hold after the power goes.
//!
//! A change is *started*, then *completed* (the caller knows), then *durable* (a flush that was
//! asked for after its completion has completed). After a cut each sector of each change that is
//! not durable is there or not; changes are applied in the order of their completion, those
//! never completed last (a dropped request may land at any time). A change that *failed* is over:
//! it may be there in part until the next flush, which in this model drops it.
//!
//! Invariant: `over` is in order of sequence numbers, which are the order of completion or failure.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::device::SECTOR_BYTES;

/// What a write, discard or zeroing does to the contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where, in bytes.
    pub offset: u64,
    /// What is there afterwards.
    pub content: Content,
}

/// The new contents of a changed range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These pieces, one after the other.
    Data(Vec<Bytes>),
    /// This many zero bytes.
    Zeros(u64),
}

/// Which of the changes that were not durable survive a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// None: the cache is gone.
    Nothing,
    /// All, completely, also those still in flight.
    Everything,
    /// Each change is kept, lost or torn between sectors of 512 bytes, independently of all others:
    /// decided by this seed.
    Random(u64),
}

/// What happens to one change.
#[derive(Clone, Copy)]
enum Fate {
    Kept,
    Lost,
    Torn,
}

/// The state of one disk's cache and medium.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    durable: Vec<u8>,
    /// Completed or failed, and not durable.
    over: VecDeque<Over>,
    started: BTreeMap<u64, Change>,
    count: u64,
}

#[derive(Clone, Debug)]
struct Over {
    number: u64,
    change: Change,
    failed: bool,
}

impl Cache {
    pub(super) fn new(image: Vec<u8>) -> Self {
        Self { durable: image, over: VecDeque::new(), started: BTreeMap::new(), count: 0 }
    }

    pub(super) fn start(&mut self, request: u64, change: Change) {
        self.started.insert(request, change);
    }

    /// The change, which is now in the cache.
    pub(super) fn complete(&mut self, request: u64) -> Option<&Change> {
        self.end(request, false)
    }

    pub(super) fn fail(&mut self, request: u64) {
        self.end(request, true);
    }

    fn end(&mut self, request: u64, failed: bool) -> Option<&Change> {
        let change = self.started.remove(&request)?;
        self.count += 1;
        self.over.push_back(Over { number: self.count, change, failed });
        self.over.back().map(|over| &over.change)
    }

    /// Everything completed by now: what a flush that starts now has to make durable.
    pub(super) fn flush_point(&self) -> u64 {
        self.count
    }

    /// A flush that started at `flush_point` has completed.
    pub(super) fn flush(&mut self, flush_point: u64) {
        while self.over.front().is_some_and(|over| over.number <= flush_point) {
            if let Some(over) = self.over.pop_front()
                && !over.failed
            {
                apply(&mut self.durable, &over.change, |_| true);
            }
        }
    }

    pub(super) fn grow(&mut self, size_bytes: usize) {
        self.durable.resize(size_bytes.max(self.durable.len()), 0);
    }

    /// The contents after a power cut now.
    pub(super) fn after_cut(&self, survival: Survival) -> Vec<u8> {
        let mut image = self.durable.clone();
        let seed = if let Survival::Random(seed) = survival { seed } else { 0 };
        let mut rng = StdRng::seed_from_u64(seed);
        for change in self.over.iter().map(|over| &over.change).chain(self.started.values()) {
            let fate = match survival {
                Survival::Nothing => Fate::Lost,
                Survival::Everything => Fate::Kept,
                Survival::Random(_) => random_fate(&mut rng),
            };
            match fate {
                Fate::Kept => apply(&mut image, change, |_| true),
                Fate::Lost => {}
                Fate::Torn => apply(&mut image, change, |_| rng.random()),
            }
        }
        image
    }
}

fn random_fate(rng: &mut StdRng) -> Fate {
    match rng.random_range(0..3) {
        0 => Fate::Kept,
        1 => Fate::Lost,
        _ => Fate::Torn,
    }
}

/// Applies those sectors of `change` that `keep` (asked once per sector, in order) wants.
pub(super) fn apply(image: &mut [u8], change: &Change, mut keep: impl FnMut(usize) -> bool) {
    let Ok(start) = usize::try_from(change.offset) else { return };
    let sector = SECTOR_BYTES as usize;
    let mut wanted = (usize::MAX, false);
    let mut put = |at: usize, from: Option<&[u8]>, len: usize| {
        let mut done = 0;
        while done < len {
            let index = (at + done) / sector;
            if wanted.0 != index {
                wanted = (index, keep(index));
            }
            let n = (sector - (at + done) % sector).min(len - done);
            if wanted.1
                && let Some(target) = image.get_mut(at + done..at + done + n)
            {
                match from.and_then(|from| from.get(done..done + n)) {
                    Some(source) => target.copy_from_slice(source),
                    None => target.fill(0),
                }
            }
            done += n;
        }
    };
    match &change.content {
        Content::Zeros(len) => put(start, None, usize::try_from(*len).unwrap_or(usize::MAX)),
        Content::Data(pieces) => {
            let mut at = start;
            for piece in pieces {
                put(at, Some(piece), piece.len());
                at += piece.len();
            }
        }
    }
}
