//! A recording of what disks were asked to do, and the power cut at any point of it.
//!
//! Several disks share one [`Trace`] and thereby one order of events, so that a log device and its
//! data device can be cut at the same instant.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::cache::{Cache, Change, Survival};

/// A disk within its [`Trace`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DiskId(usize);

/// A request within its disk.
pub type RequestId = u64;

/// One thing that happened, in the common order of all disks of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A write, discard or zeroing was handed to the disk: from now on it may reach the medium.
    Started {
        /// On which disk.
        disk: DiskId,
        /// Its number.
        request: RequestId,
        /// What it changes.
        change: Change,
    },
    /// Its caller was told that it is done.
    Completed {
        /// On which disk.
        disk: DiskId,
        /// The number that [`Event::Started`] had.
        request: RequestId,
    },
    /// Its caller was told that it failed: it is over, and parts of it may be on the medium.
    Failed {
        /// On which disk.
        disk: DiskId,
        /// The number that [`Event::Started`] had.
        request: RequestId,
    },
    /// A flush was asked for.
    FlushStarted {
        /// On which disk.
        disk: DiskId,
        /// Its number.
        request: RequestId,
    },
    /// It is done: what had completed before it started is permanent.
    FlushCompleted {
        /// On which disk.
        disk: DiskId,
        /// The number that [`Event::FlushStarted`] had.
        request: RequestId,
    },
    /// The disk has grown, with zeros.
    Grown {
        /// Which disk.
        disk: DiskId,
        /// The new size in bytes.
        size_bytes: usize,
    },
    /// The test said so with [`Trace::mark`], for instance "write 17 was acknowledged".
    Mark(u64),
}

/// A recording, shared by its disks and the test. Clones are the same recording.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The contents of each disk when it joined.
    initial: Vec<Vec<u8>>,
    events: Vec<Event>,
}

impl Trace {
    /// An empty recording.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a mark into the order of events.
    pub fn mark(&self, mark: u64) {
        self.record(Event::Mark(mark));
    }

    /// How many events there are: a cut *now*.
    #[must_use]
    pub fn position(&self) -> usize {
        self.inner.lock().events.len()
    }

    /// All events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.inner.lock().events.clone()
    }

    /// Walks through what is recorded now, from the beginning.
    #[must_use]
    pub fn replay(&self) -> Replay {
        let inner = self.inner.lock();
        Replay {
            disks: inner.initial.iter().cloned().map(Cache::new).collect(),
            flush_points: HashMap::new(),
            events: inner.events.clone(),
            position: 0,
        }
    }

    /// What `disk` holds after a power cut at event `at` (that and later events have not happened).
    /// For cuts at every event, [`Trace::replay`] is quicker.
    #[must_use]
    pub fn crash_image(&self, disk: DiskId, at: usize, survival: Survival) -> Vec<u8> {
        let mut replay = self.replay();
        while replay.position() < at && replay.step().is_some() {}
        replay.crash_image(disk, survival)
    }

    pub(super) fn join(&self, image: Vec<u8>) -> DiskId {
        let mut inner = self.inner.lock();
        inner.initial.push(image);
        DiskId(inner.initial.len() - 1)
    }

    pub(super) fn record(&self, event: Event) {
        self.inner.lock().events.push(event);
    }
}

/// A point in a recording: the events before it have happened, those after it have not.
#[derive(Clone, Debug)]
pub struct Replay {
    disks: Vec<Cache>,
    flush_points: HashMap<(DiskId, RequestId), u64>,
    events: Vec<Event>,
    position: usize,
}

impl Replay {
    /// How many events have happened.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Lets the next event happen and returns it; `None` at the end.
    pub fn step(&mut self) -> Option<&Event> {
        let event = self.events.get(self.position)?;
        self.position += 1;
        let mut on = |disk: &DiskId, act: &mut dyn FnMut(&mut Cache)| {
            if let Some(cache) = self.disks.get_mut(disk.0) {
                act(cache);
            }
        };
        match event {
            Event::Started { disk, request, change } => {
                on(disk, &mut |cache| cache.start(*request, change.clone()));
            }
            Event::Completed { disk, request } => on(disk, &mut |cache| {
                let _change = cache.complete(*request);
            }),
            Event::Failed { disk, request } => on(disk, &mut |cache| cache.fail(*request)),
            Event::FlushStarted { disk, request } => on(disk, &mut |cache| {
                self.flush_points.insert((*disk, *request), cache.flush_point());
            }),
            Event::FlushCompleted { disk, request } => {
                if let Some(point) = self.flush_points.remove(&(*disk, *request)) {
                    on(disk, &mut |cache| cache.flush(point));
                }
            }
            Event::Grown { disk, size_bytes } => on(disk, &mut |cache| cache.grow(*size_bytes)),
            Event::Mark(_) => {}
        }
        Some(event)
    }

    /// What `disk` holds after a power cut here. The same [`Survival::Random`] seed decides
    /// differently on different disks.
    #[must_use]
    pub fn crash_image(&self, disk: DiskId, survival: Survival) -> Vec<u8> {
        let survival = match survival {
            Survival::Random(seed) => Survival::Random(
                seed.wrapping_add((disk.0 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            ),
            other => other,
        };
        self.disks.get(disk.0).map(|cache| cache.after_cut(survival)).unwrap_or_default()
    }
}
