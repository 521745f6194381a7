//! A disk in memory that is as bad as a real one may be, and reproducibly so.
//!
//! It has a volatile cache: a completed write is seen by reads at once, but only a flush makes it
//! permanent. After a power cut each write that was not flushed is there, gone, or torn between
//! sectors, whatever became of earlier and later ones ([`Survival`]). Operations fail, are late or
//! hang on request ([`Fault`]). A [`Trace`] records one or several disks in one order of events and
//! gives the contents after a cut at any of them:
//!
//! ```
//! use block_io::device::BlockDevice;
//! use block_io::sim::{SimDisk, Survival, Trace};
//!
//! # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
//! let trace = Trace::new();
//! let disk = SimDisk::traced(&trace, "data", vec![0; 8192], 512);
//! disk.write(0, vec![vec![1; 4096].into()]).await?;
//! disk.flush().await?;
//! disk.write(4096, vec![vec![2; 4096].into()]).await?;
//!
//! let mut cut = trace.replay();
//! while cut.step().is_some() {
//!     for seed in 0..10 {
//!         let image = cut.crash_image(disk.id(), Survival::Random(seed));
//!         // recover from `image`, and check that the promises hold
//! #       assert_eq!(image.len(), 8192);
//!     }
//! }
//! # Ok::<(), std::io::Error>(())
//! # })?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! Everything is decided by seeds that are handed in; delays are tokio time, which tests can pause.

mod cache;
mod fault;
mod trace;

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use nix::errno::Errno;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::buffer::AlignedBuf;
use crate::device::{BlockDevice, IoContext, Operation, check_range, check_transfer};
use cache::{Cache, apply};

pub use cache::{Change, Content, Survival};
pub use fault::{Fault, Gate, When};
pub use trace::{DiskId, Event, Replay, RequestId, Trace};

/// A simulated disk. See the module docs.
#[derive(Debug)]
pub struct SimDisk {
    name: String,
    block_bytes: u32,
    id: DiskId,
    /// Without a recording asked for, events go nowhere.
    trace: Option<Trace>,
    faults: fault::Faults,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What reads see.
    visible: Vec<u8>,
    cache: Cache,
    requests: RequestId,
    calls: HashMap<Operation, u64>,
    latency: Option<Latency>,
    flush_failed: bool,
    powered_off: bool,
}

#[derive(Debug)]
struct Latency {
    rng: StdRng,
    range: Range<Duration>,
}

impl SimDisk {
    /// A disk of zeros. `size_bytes` and `block_bytes` are bytes.
    #[must_use]
    pub fn new(name: &str, size_bytes: usize, block_bytes: u32) -> Arc<Self> {
        Self::from_image(name, vec![0; size_bytes], block_bytes)
    }

    /// A disk that holds `image`, for instance what a power cut has left.
    #[must_use]
    pub fn from_image(name: &str, image: Vec<u8>, block_bytes: u32) -> Arc<Self> {
        let id = Trace::new().join(Vec::new());
        Arc::new(Self::with_trace(name, image, block_bytes, id, None))
    }

    /// A disk that holds `image` and records what happens to it in `trace`.
    #[must_use]
    pub fn traced(trace: &Trace, name: &str, image: Vec<u8>, block_bytes: u32) -> Arc<Self> {
        let id = trace.join(image.clone());
        Arc::new(Self::with_trace(name, image, block_bytes, id, Some(trace.clone())))
    }

    fn with_trace(
        name: &str,
        image: Vec<u8>,
        block_bytes: u32,
        id: DiskId,
        trace: Option<Trace>,
    ) -> Self {
        assert!((512..=4096).contains(&block_bytes) && block_bytes.is_power_of_two());
        assert!(image.len().is_multiple_of(block_bytes as usize), "a size in whole blocks");
        let state = State {
            visible: image.clone(),
            cache: Cache::new(image),
            requests: 0,
            calls: HashMap::new(),
            latency: None,
            flush_failed: false,
            powered_off: false,
        };
        let faults = fault::Faults::default();
        Self { name: name.to_owned(), block_bytes, id, trace, faults, state: Mutex::new(state) }
    }

    /// Its name within its trace.
    #[must_use]
    pub fn id(&self) -> DiskId {
        self.id
    }

    /// What reads see now.
    #[must_use]
    pub fn image(&self) -> Vec<u8> {
        self.state.lock().visible.clone()
    }

    /// Cuts the power: from now on everything fails, also what is in flight. Returns what is left.
    #[must_use]
    pub fn power_cut(&self, survival: Survival) -> Vec<u8> {
        let mut state = self.state.lock();
        state.powered_off = true;
        state.cache.after_cut(survival)
    }

    /// Injects a fault into reads, writes, flushes, discards, zeroings, or size queries.
    pub fn inject(&self, operation: Operation, when: When, fault: Fault) {
        self.faults.inject(operation, when, fault);
    }

    /// Forgets all injected faults; hanging operations go on hanging until their gate opens.
    pub fn clear_faults(&self) {
        self.faults.clear();
    }

    /// Every operation takes a time within `range` (tokio time), so that many are in flight
    /// together and complete in another order than they came.
    pub fn set_latency(&self, seed: u64, range: Range<Duration>) {
        self.state.lock().latency = Some(Latency { rng: StdRng::seed_from_u64(seed), range });
    }

    /// How many operations of a kind have begun, whatever became of them.
    #[must_use]
    pub fn calls(&self, operation: Operation) -> u64 {
        self.state.lock().calls.get(&operation).copied().unwrap_or(0)
    }

    /// Grows the disk with zeros. It never shrinks.
    pub fn grow(&self, size_bytes: usize) {
        assert!(size_bytes.is_multiple_of(self.block_bytes as usize), "a size in whole blocks");
        let mut state = self.state.lock();
        if size_bytes > state.visible.len() {
            state.visible.resize(size_bytes, 0);
            state.cache.grow(size_bytes);
            self.record(&state, Event::Grown { disk: self.id, size_bytes });
        }
    }

    /// Takes the locked state, so that the recorded order is the order of effects. Without power
    /// nothing happens any more.
    fn record(&self, state: &State, event: Event) {
        if let Some(trace) = &self.trace
            && !state.powered_off
        {
            trace.record(event);
        }
    }

    fn context(&self, operation: Operation, offset: u64, len: u64, cause: io::Error) -> io::Error {
        IoContext { operation, path: self.path_hint(), offset, len, cause }.into_io()
    }

    /// Waits as long as the operation takes; the error that was injected for it.
    async fn endure(&self, operation: Operation) -> io::Result<()> {
        let delay = {
            let mut state = self.state.lock();
            if state.powered_off {
                return Err(Errno::EIO.into());
            }
            state.latency.as_mut().map(|latency| {
                let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
                let (low, high) = (nanos(latency.range.start), nanos(latency.range.end));
                Duration::from_nanos(latency.rng.random_range(low..high.max(low + 1)))
            })
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        self.faults.suffer(operation).await?;
        if self.state.lock().powered_off { Err(Errno::EIO.into()) } else { Ok(()) }
    }

    fn begin(&self, operation: Operation) {
        *self.state.lock().calls.entry(operation).or_default() += 1;
    }

    async fn change(&self, operation: Operation, change: Change) -> io::Result<()> {
        let request = {
            let mut state = self.state.lock();
            state.requests += 1;
            let request = state.requests;
            state.cache.start(request, change.clone());
            self.record(&state, Event::Started { disk: self.id, request, change });
            request
        };
        let endured = self.endure(operation).await;
        let mut state = self.state.lock();
        if endured.is_err() {
            state.cache.fail(request);
            self.record(&state, Event::Failed { disk: self.id, request });
            return endured;
        }
        let State { cache, visible, .. } = &mut *state;
        if let Some(change) = cache.complete(request) {
            apply(visible, change, |_| true);
        }
        self.record(&state, Event::Completed { disk: self.id, request });
        Ok(())
    }

    async fn flush_inner(&self) -> io::Result<()> {
        let (request, flush_point) = {
            let mut state = self.state.lock();
            if state.flush_failed {
                return Err(io::Error::other("an earlier flush failed"));
            }
            state.requests += 1;
            let request = state.requests;
            self.record(&state, Event::FlushStarted { disk: self.id, request });
            (request, state.cache.flush_point())
        };
        let endured = self.endure(Operation::Flush).await;
        let mut state = self.state.lock();
        state.flush_failed |= endured.is_err();
        endured?;
        state.cache.flush(flush_point);
        self.record(&state, Event::FlushCompleted { disk: self.id, request });
        Ok(())
    }

    async fn zero(&self, operation: Operation, offset: u64, len: u64) -> io::Result<()> {
        self.begin(operation);
        let check = check_range(offset, len, self.size_bytes(), self.block_bytes);
        let result = match check {
            Err(error) => Err(error.into()),
            Ok(()) if len == 0 => Ok(()),
            Ok(()) => self.change(operation, Change { offset, content: Content::Zeros(len) }).await,
        };
        result.map_err(|e| self.context(operation, offset, len, e))
    }

    fn read_visible(&self, offset: u64, len: usize) -> Option<Bytes> {
        let start = usize::try_from(offset).ok()?;
        let state = self.state.lock();
        let found = state.visible.get(start..start.checked_add(len)?)?;
        Some(AlignedBuf::copy_of(found).freeze())
    }
}

impl BlockDevice for SimDisk {
    fn size_bytes(&self) -> u64 {
        self.state.lock().visible.len() as u64
    }

    fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    fn read(&self, offset: u64, len: usize) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(async move {
            let context = |cause| self.context(Operation::Read, offset, len as u64, cause);
            self.begin(Operation::Read);
            check_transfer(offset, len, self.size_bytes(), self.block_bytes)
                .map_err(|e| context(e.into()))?;
            self.endure(Operation::Read).await.map_err(context)?;
            self.read_visible(offset, len).ok_or_else(|| context(Errno::EIO.into()))
        })
    }

    fn write(&self, offset: u64, bufs: Vec<Bytes>) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            let len = bufs.iter().fold(0, |sum: usize, b| sum.saturating_add(b.len()));
            let context = |cause| self.context(Operation::Write, offset, len as u64, cause);
            self.begin(Operation::Write);
            check_transfer(offset, len, self.size_bytes(), self.block_bytes)
                .map_err(|e| context(e.into()))?;
            if len == 0 {
                return Ok(());
            }
            let change = Change { offset, content: Content::Data(bufs) };
            self.change(Operation::Write, change).await.map_err(context)
        })
    }

    fn flush(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.begin(Operation::Flush);
            let result = self.flush_inner().await;
            result.map_err(|e| self.context(Operation::Flush, 0, self.size_bytes(), e))
        })
    }

    fn discard(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.zero(Operation::Discard, offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.zero(Operation::WriteZeroes, offset, len))
    }

    fn path_hint(&self) -> String {
        format!("sim:{}", self.name)
    }
}
