//! Makes the log permanent: flushes the log device when somebody waits for it or will soon, when
//! much is unflushed, and otherwise a few milliseconds after a write.
//!
//! Invariants: one flush at a time; it covers what had *completed* when it was issued. Only then
//! `permanent` moves, and only behind `permanent` data is written (I1) and FUA and flush requests
//! are acknowledged (I2). A flush that failed is never tried again: the kernel may have dropped
//! what it could not write.

use std::sync::Arc;

use tokio::time::Instant;
use wlog_format::units::Lsid;

use crate::core::{Answer, Core, State};
use crate::options::FLUSH_AT_BYTES;

/// Runs until the volume stops or fails.
pub(crate) async fn run(core: Arc<Core>) {
    while wait_until_due(&core).await {
        if !flush(&core).await {
            return;
        }
    }
}

/// What the flusher should do next.
enum Due {
    Now,
    At(Instant),
    Idle,
}

fn next_flush(core: &Core, state: &State) -> Due {
    let positions = &state.positions;
    if positions.completed == positions.permanent {
        return Due::Idle;
    }
    let unflushed = positions.completed.distance_from(positions.permanent);
    let waited_for = state.flush.urgent || state.flush.writers_waiting > 0;
    if waited_for || state.log.ring.block_size().bytes_of(unflushed) >= FLUSH_AT_BYTES {
        return Due::Now;
    }
    state.flush.since.map_or(Due::Now, |since| Due::At(since + core.options.log_flush_interval))
}

/// False when the volume stops.
async fn wait_until_due(core: &Core) -> bool {
    loop {
        let due = next_flush(core, &core.state.lock());
        let timer = async {
            match due {
                Due::At(when) => tokio::time::sleep_until(when).await,
                Due::Idle | Due::Now => std::future::pending().await,
            }
        };
        if matches!(due, Due::Now) {
            return true;
        }
        tokio::select! {
            () = core.stop.cancelled() => return false,
            () = core.flush_bell.notified() => {}
            () = timer => return true,
        }
    }
}

/// One flush; false when it failed.
async fn flush(core: &Core) -> bool {
    let target = {
        let mut state = core.state.lock();
        state.flush.urgent = false;
        state.flush.since = None;
        state.positions.set(|p| p.flush = p.completed);
        state.positions.flush
    };
    if let Err(error) = core.log.flush().await {
        core.fail_io("flush of the log device failed", &error);
        return false;
    }
    let answers = {
        let mut state = core.state.lock();
        state.positions.set(|p| p.permanent = target);
        state.data.since.get_or_insert_with(Instant::now);
        take_answers(&mut state, target)
    };
    core.data_bell.notify_one();
    for answer in answers {
        let _ = answer.send(Ok(()));
    }
    core.publish();
    true
}

/// Those who waited for what is permanent now. Those who still wait make the next flush urgent.
fn take_answers(state: &mut State, permanent: Lsid) -> Vec<Answer> {
    let waiters = &mut state.flush.waiters;
    let served = waiters.partition_point(|(lsid, _)| *lsid <= permanent);
    let answers = waiters.drain(..served).map(|(_, answer)| answer).collect();
    state.flush.urgent |= !waiters.is_empty();
    answers
}
