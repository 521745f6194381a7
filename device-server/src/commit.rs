//! Group commit: the one task of a volume that puts writes in order.
//!
//! Whatever has queued while log writes were in flight becomes the next packs. Several log writes
//! may be in flight; their results are taken in the order in which they were issued, so that a
//! write is acknowledged only after its pack *and all earlier ones* are on the log device (I2), and
//! after an error nothing that follows is.
//!
//! Before a plan is written it must be admitted: the log device has room, nothing that redo needs
//! is written over (I4), and the volume is not frozen.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use tokio::time::Instant;

use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::core::{Answer, Core, LoggedPack, LoggedRecord, State};
use crate::error::VolumeError;
use crate::options::{FLUSH_AT_BYTES, MAX_UNFLUSHED_BYTES};
use crate::options::{MAX_LOG_WRITE_REQUESTS, MAX_LOG_WRITES_IN_FLIGHT, OverflowPolicy};
use crate::plan::{Plan, PlannedPack};
use crate::request::Request;

/// A log write that has ended.
struct Ended {
    result: io::Result<()>,
    packs: Vec<PlannedPack>,
    requests: Vec<Request>,
}

/// May a plan be written?
enum Admission {
    /// Yes, and `latest` has moved to its end.
    Granted,
    /// It was made for a log that is no more.
    Stale,
    /// Not now.
    Wait,
    /// Only after the overflow is on record.
    LatchOverflow,
    Refused(VolumeError),
}

/// The task's own state.
pub(crate) struct Committer {
    core: Arc<Core>,
    requests: UnboundedReceiver<Request>,
    in_flight: FuturesOrdered<BoxFuture<'static, Ended>>,
}

impl Committer {
    pub(crate) fn new(core: Arc<Core>, requests: UnboundedReceiver<Request>) -> Self {
        Self { core, requests, in_flight: FuturesOrdered::new() }
    }

    /// Runs until the volume stops.
    pub(crate) async fn run(mut self) {
        let core = Arc::clone(&self.core);
        let work = async {
            loop {
                let batch = self.next_batch().await;
                self.commit(batch).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = core.stop.cancelled() => {}
        }
    }

    /// Takes the results of log writes until there are requests, and a free place in flight for
    /// them.
    async fn next_batch(&mut self) -> VecDeque<Request> {
        let mut batch = Vec::new();
        loop {
            let room = self.in_flight.len() < MAX_LOG_WRITES_IN_FLIGHT;
            tokio::select! {
                biased;
                Some(ended) = self.in_flight.next() => complete(&self.core, ended),
                _ = self.requests.recv_many(&mut batch, MAX_LOG_WRITE_REQUESTS), if room => {
                    return batch.into();
                }
            }
        }
    }

    /// Logs all of these requests, in order, or refuses them.
    async fn commit(&mut self, mut queue: VecDeque<Request>) {
        while !queue.is_empty() {
            let plan = {
                let state = self.core.state.lock();
                Plan::new(&state.log, state.positions.latest, &queue)
            };
            let plan = match plan {
                Ok(plan) => plan,
                Err(error) => return self.core.fail("log full for good", &error),
            };
            match self.admit(&plan).await {
                Admission::Granted => self.submit(plan, &mut queue),
                Admission::Refused(error) => {
                    let refused = queue.drain(..plan.requests());
                    refused.for_each(|request| send(request.answer, Err(error.clone())));
                }
                Admission::Stale | Admission::Wait | Admission::LatchOverflow => {}
            }
        }
    }

    /// Waits until the plan may be written (or never will be); goes on taking results meanwhile,
    /// because what it waits for may depend on them.
    async fn admit(&mut self, plan: &Plan) -> Admission {
        let core = Arc::clone(&self.core);
        loop {
            let mut moved = pin!(core.progress.notified());
            moved.as_mut().enable();
            let verdict = try_admit(&mut core.state.lock(), plan, core.options.policy);
            match verdict {
                Admission::LatchOverflow => core.latch_overflow(plan.end).await,
                Admission::Wait => {
                    core.hurry_flush();
                    core.hurry_data();
                    core.checkpoint_bell.notify_one();
                    tokio::select! {
                        () = moved => {}
                        Some(ended) = self.in_flight.next() => complete(&core, ended),
                    }
                }
                decided => return decided,
            }
        }
    }

    fn submit(&mut self, plan: Plan, queue: &mut VecDeque<Request>) {
        let requests = queue.drain(..plan.requests()).collect();
        let Plan { packs, writes, .. } = plan;
        let core = Arc::clone(&self.core);
        self.in_flight.push_back(Box::pin(async move {
            let writes =
                writes.into_iter().map(|write| core.log.write(write.offset, write.buffers));
            let result = futures::future::try_join_all(writes).await.map(|_| ());
            Ended { result, packs, requests }
        }));
    }
}

/// The rules of the ring (`formats.md` §3.3, I4).
fn try_admit(state: &mut State, plan: &Plan, policy: OverflowPolicy) -> Admission {
    if let Err(refusal) = state.check_alive().and_then(|()| state.check_in_use()) {
        return Admission::Refused(refusal);
    }
    if plan.epoch != state.log.epoch || plan.begin != state.positions.latest {
        return Admission::Stale;
    }
    let (ring, positions) = (state.log.ring, state.positions);
    let frozen = state.frozen.is_some() || state.held;
    let unflushed = ring.block_size().bytes_of(plan.end.distance_from(positions.permanent));
    // Redo needs everything from prev_written on: never write over that, whatever the policy.
    let redo_needs = plan.end.distance_from(positions.prev_written) > ring.size();
    if frozen || unflushed > MAX_UNFLUSHED_BYTES || redo_needs {
        return Admission::Wait;
    }
    if !state.overflow && plan.end.distance_from(positions.oldest) > ring.size() {
        return match policy {
            OverflowPolicy::Overwrite => Admission::LatchOverflow,
            OverflowPolicy::Stall => Admission::Wait,
            OverflowPolicy::Error => Admission::Refused(VolumeError::LogFull),
        };
    }
    state.positions.set(|p| p.latest = plan.end);
    Admission::Granted
}

/// Enters what is on the log device into the map of pending writes, and acknowledges it.
fn complete(core: &Core, ended: Ended) {
    let Ended { result, packs, requests } = ended;
    if let Err(error) = &result {
        core.fail_io("write to the log device failed", error);
    }
    let mut acknowledged = Vec::with_capacity(requests.len());
    let hurry = {
        let mut state = core.state.lock();
        if let Err(refusal) = state.check_sound() {
            drop(state);
            return requests.into_iter().for_each(|r| send(r.answer, Err(refusal.clone())));
        }
        let expected = state.flush.rhythm.completed(requests.len());
        state.flush.urgent |= expected;
        let mut requests = requests.into_iter();
        for pack in packs {
            enter(&mut state, pack, requests.by_ref().take(pack.requests), &mut acknowledged);
        }
        let unflushed = state.positions.completed.distance_from(state.positions.permanent);
        let first = state.flush.since.is_none();
        state.flush.since.get_or_insert_with(Instant::now);
        let much = state.log.ring.block_size().bytes_of(unflushed) >= FLUSH_AT_BYTES;
        first || much || state.flush.urgent || state.flush.writers_waiting > 0
    };
    if hurry {
        core.flush_bell.notify_one();
    }
    core.progress.notify_waiters();
    acknowledged.into_iter().for_each(|answer| send(answer, Ok(())));
}

fn enter(
    state: &mut State,
    pack: PlannedPack,
    requests: impl Iterator<Item = Request>,
    acknowledged: &mut Vec<Answer>,
) {
    let PlannedPack { begin, end, .. } = pack;
    let mut logged =
        LoggedPack { begin, end, records: Vec::with_capacity(pack.requests), bytes: 0 };
    for request in requests {
        let payload = request.payload();
        state.overlay.insert(request.address, request.blocks, begin, payload.clone());
        logged.bytes += request.payload_bytes();
        let Request { address, blocks, fua, memory, answer, .. } = request;
        if let Some(regions) = &state.regions {
            regions.mark(address, blocks, end);
        }
        logged.records.push(LoggedRecord { address, blocks, payload, _memory: memory });
        if fua {
            state.flush.waiters.push_back((end, answer));
            state.flush.urgent = true;
        } else {
            acknowledged.push(answer);
        }
    }
    state.pending_bytes += logged.bytes;
    state.logged.push_back(logged);
    state.positions.set(|p| p.completed = end);
}

fn send(answer: Answer, result: Result<(), VolumeError>) {
    // A writer that has gone away needs no answer.
    let _ = answer.send(result);
}
