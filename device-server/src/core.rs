//! What the tasks of one volume share: its devices, its state under one lock, and the bells that
//! they ring for each other.
//!
//! The lock is held for map operations and arithmetic only, never across I/O. Who needs both locks
//! takes `super_block` first; whoever holds it never waits for new writes to complete.

use std::collections::VecDeque;
use std::fmt::Display;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use tokio::time::Instant;

use block_io::device::BlockDevice;
use parking_lot::Mutex;
use server_kit::error::is_no_space;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::sync::CancellationToken;
use wlog_format::ring::Ring;
use wlog_format::superblock::SuperBlock;
use wlog_format::units::{Lb, LogUuid, Lsid, Salt};

use crate::error::VolumeError;
use crate::options::VolumeOptions;
use crate::overlay::{Overlay, Payload};
use crate::overwrite::OverwriteMark;
use crate::positions::Positions;
use crate::regions::{RegionKeeper, Regions};

/// Where the answer to a waiting request goes.
pub(crate) type Answer = oneshot::Sender<Result<(), VolumeError>>;

/// What identifies the present log; all of it changes at a log reset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogIdentity {
    /// Counts log resets of this process: a plan made for an earlier log is stale.
    pub(crate) epoch: u64,
    pub(crate) uuid: LogUuid,
    pub(crate) salt: Salt,
    pub(crate) ring: Ring,
}

/// A record that is on the log device and not yet on the data device.
pub(crate) struct LoggedRecord {
    pub(crate) address: Lb,
    pub(crate) blocks: Lb,
    pub(crate) payload: Payload,
    /// Its share of the memory for pending data; given back when this is dropped.
    pub(crate) _memory: OwnedSemaphorePermit,
}

/// A pack on its way to the data device.
pub(crate) struct LoggedPack {
    pub(crate) begin: Lsid,
    pub(crate) end: Lsid,
    pub(crate) records: Vec<LoggedRecord>,
    pub(crate) bytes: u64,
}

/// What the flusher has to know.
#[derive(Default)]
pub(crate) struct FlushState {
    /// Somebody waits, or much is unflushed: do not wait for the interval.
    pub(crate) urgent: bool,
    /// Writers that wait for memory: what is unflushed keeps it from them.
    pub(crate) writers_waiting: usize,
    /// When the first write completed that no flush covers yet.
    pub(crate) since: Option<Instant>,
    /// Who waits for which position to be permanent, in order.
    pub(crate) waiters: VecDeque<(Lsid, Answer)>,
    /// When the next request for a flush is expected.
    pub(crate) rhythm: Rhythm,
}

/// What the data writer has to know.
#[derive(Default)]
pub(crate) struct DataState {
    /// Somebody waits: do not let writes gather.
    pub(crate) urgent: bool,
    /// Since when permanent writes gather.
    pub(crate) since: Option<Instant>,
}

/// How many writes clients let pass between two flushes. After as many again a flush is begun
/// without being asked for: it is under way already when the request for it comes.
#[derive(Debug, Default)]
pub(crate) struct Rhythm {
    /// Writes before the last request for a flush.
    period: usize,
    /// Writes since then.
    count: usize,
}

impl Rhythm {
    /// A client wants a flush.
    pub(crate) fn asked(&mut self) {
        if self.count > 0 {
            (self.period, self.count) = (self.count, 0);
        }
    }

    /// So many writes have completed; true if a flush is expected now.
    pub(crate) fn completed(&mut self, writes: usize) -> bool {
        let before = self.count;
        self.count = before.saturating_add(writes);
        (before + 1..=self.count).contains(&self.period)
    }
}

/// Why a volume takes no more writes.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) why: Arc<str>,
    /// A device is full: clients should hear that and nothing vaguer.
    pub(crate) no_space: bool,
}

/// Everything about a volume that changes.
pub(crate) struct State {
    pub(crate) positions: Positions,
    pub(crate) log: LogIdentity,
    pub(crate) size: Lb,
    pub(crate) overflow: bool,
    /// The ticket of the freeze in force: writes wait.
    pub(crate) frozen: Option<u64>,
    /// A log reset holds back writes, as a freeze would.
    pub(crate) held: bool,
    /// The content is being replaced from outside: no reads and writes.
    pub(crate) overwriting: bool,
    /// Writes are refused from now on: the role goes down.
    pub(crate) stopping: bool,
    pub(crate) failure: Option<Failure>,
    /// What was written since; `None` when no state directory keeps it.
    pub(crate) regions: Option<Regions>,
    /// All logged writes that are not on the data device yet (I3).
    pub(crate) overlay: Overlay,
    /// The same, as packs in log order, for the data writer.
    pub(crate) logged: VecDeque<LoggedPack>,
    pub(crate) pending_bytes: u64,
    pub(crate) flush: FlushState,
    pub(crate) data: DataState,
}

impl State {
    pub(crate) fn new(positions: Positions, log: LogIdentity, size: Lb, overflow: bool) -> Self {
        Self {
            positions,
            log,
            size,
            overflow,
            frozen: None,
            held: false,
            overwriting: false,
            stopping: false,
            failure: None,
            regions: None,
            overlay: Overlay::default(),
            logged: VecDeque::new(),
            pending_bytes: 0,
            flush: FlushState::default(),
            data: DataState::default(),
        }
    }

    /// Refuses when an I/O error has stopped the volume.
    pub(crate) fn check_sound(&self) -> Result<(), VolumeError> {
        match &self.failure {
            None => Ok(()),
            Some(Failure { why, no_space: true }) => Err(VolumeError::NoSpace(Arc::clone(why))),
            Some(Failure { why, no_space: false }) => Err(VolumeError::Failed(Arc::clone(why))),
        }
    }

    /// Refuses I/O while the content is replaced from outside.
    pub(crate) const fn check_in_use(&self) -> Result<(), VolumeError> {
        if self.overwriting { Err(VolumeError::Overwriting) } else { Ok(()) }
    }

    /// Refuses what is new when the volume is stopped or stopping.
    pub(crate) fn check_alive(&self) -> Result<(), VolumeError> {
        self.check_sound()?;
        if self.stopping { Err(VolumeError::Stopping) } else { Ok(()) }
    }
}

/// What lies in the state directory of a volume.
pub(crate) struct Kept {
    pub(crate) regions: RegionKeeper,
    pub(crate) overwrite: OverwriteMark,
}

/// What a volume looks like at one moment, for the control service and its event stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Log positions.
    pub positions: Positions,
    /// Logs were lost.
    pub overflow: bool,
    /// Writes wait.
    pub frozen: bool,
    /// The content is being replaced from outside: reads and writes are refused.
    pub overwriting: bool,
    /// Size of the volume.
    pub size: Lb,
    /// Identity of the log.
    pub uuid: LogUuid,
    /// Salt of the log.
    pub salt: Salt,
    /// Where the log lies.
    pub ring: Ring,
    /// Bytes logged and not yet on the data device.
    pub pending_bytes: u64,
    /// Why the volume takes no writes any more.
    pub failure: Option<Arc<str>>,
}

impl From<&State> for Status {
    fn from(state: &State) -> Self {
        Self {
            positions: state.positions,
            overflow: state.overflow,
            frozen: state.frozen.is_some(),
            overwriting: state.overwriting,
            size: state.size,
            uuid: state.log.uuid,
            salt: state.log.salt,
            ring: state.log.ring,
            pending_bytes: state.pending_bytes,
            failure: state.failure.as_ref().map(|failure| Arc::clone(&failure.why)),
        }
    }
}

/// One volume, as its tasks see it.
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) log: Arc<dyn BlockDevice>,
    pub(crate) data: Arc<dyn BlockDevice>,
    pub(crate) options: VolumeOptions,
    /// `None` without a state directory.
    pub(crate) kept: Option<Kept>,
    pub(crate) state: Mutex<State>,
    /// The super block as it is on the log device; the lock orders everything that changes it.
    pub(crate) super_block: tokio::sync::Mutex<SuperBlock>,
    /// Room for pending payload, in sectors.
    pub(crate) memory: Arc<Semaphore>,
    /// For the flusher: something completed, or somebody waits.
    pub(crate) flush_bell: Notify,
    /// For the data writer: more is permanent.
    pub(crate) data_bell: Notify,
    /// For the checkpoint task: something was written, or the ring gets full.
    pub(crate) checkpoint_bell: Notify,
    /// For all who wait for a condition of the state.
    pub(crate) progress: Notify,
    /// For watchers: the latest status.
    pub(crate) status: watch::Sender<Status>,
    pub(crate) stop: CancellationToken,
}

impl Core {
    /// Waits until `check` gives something. It is asked again whenever anything moved on.
    pub(crate) async fn wait_until<T>(&self, mut check: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let mut moved = pin!(self.progress.notified());
            moved.as_mut().enable();
            if let Some(found) = check(&mut self.state.lock()) {
                return found;
            }
            moved.await;
        }
    }

    /// Tells everybody that the state has changed.
    pub(crate) fn publish(&self) {
        let now = Status::from(&*self.state.lock());
        self.status.send_replace(now);
        self.progress.notify_waiters();
    }

    /// Stops the volume for writes, for good: nothing is acknowledged from now on. The first
    /// reason is kept.
    pub(crate) fn fail(&self, what: &str, error: &dyn Display) {
        self.fail_because(what, error, false);
    }

    /// The same for an error of a device.
    pub(crate) fn fail_io(&self, what: &str, error: &io::Error) {
        self.fail_because(what, error, is_no_space(error));
    }

    fn fail_because(&self, what: &str, error: &dyn Display, no_space: bool) {
        let waiters = {
            let mut state = self.state.lock();
            if state.failure.is_some() {
                return;
            }
            state.failure = Some(Failure { why: format!("{what}: {error}").into(), no_space });
            std::mem::take(&mut state.flush.waiters)
        };
        tracing::error!(volume = %self.name, %error, "{what}; the volume takes no more writes");
        let refusal = self.state.lock().check_sound();
        for (_, answer) in waiters {
            // Whoever does not listen any more does not care.
            let _ = answer.send(refusal.clone());
        }
        self.publish();
    }

    /// Waits for room for so many sectors of pending data.
    pub(crate) async fn reserve(&self, sectors: u32) -> Result<OwnedSemaphorePermit, VolumeError> {
        if let Ok(room) = Arc::clone(&self.memory).try_acquire_many_owned(sectors) {
            return Ok(room);
        }
        let _waiting = WaitingWriter::new(self);
        self.flush_bell.notify_one();
        self.data_bell.notify_one();
        tokio::select! {
            room = Arc::clone(&self.memory).acquire_many_owned(sectors) => {
                room.map_err(|_| VolumeError::Stopping)
            }
            refusal = self.wait_until(|state| state.check_alive().err()) => Err(refusal),
        }
    }

    /// Asks for what is permanent to be written to the data device now.
    pub(crate) fn hurry_data(&self) {
        self.state.lock().data.urgent = true;
        self.data_bell.notify_one();
    }

    /// Asks for a flush of the log now, because somebody waits for it; one that is under way and
    /// covers everything will do.
    pub(crate) fn hurry_flush(&self) {
        let mut state = self.state.lock();
        state.flush.urgent |= state.positions.completed > state.positions.flush;
        drop(state);
        self.flush_bell.notify_one();
    }
}

/// Counts a writer that waits for memory, as long as it does.
struct WaitingWriter<'a>(&'a Core);

impl<'a> WaitingWriter<'a> {
    fn new(core: &'a Core) -> Self {
        core.state.lock().flush.writers_waiting += 1;
        Self(core)
    }
}

impl Drop for WaitingWriter<'_> {
    fn drop(&mut self) {
        self.0.state.lock().flush.writers_waiting -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::Rhythm;

    #[test]
    fn a_flush_is_expected_after_as_many_writes_as_the_last_time() {
        let mut rhythm = Rhythm::default();
        assert!(!rhythm.completed(1), "nobody has asked yet");
        rhythm.asked();
        assert!(rhythm.completed(1));
        assert!(!rhythm.completed(1), "once only");
        assert!(!rhythm.completed(1));
        rhythm.asked();
        rhythm.asked();
        assert!(!rhythm.completed(2), "twice in a row counts once");
        assert!(rhythm.completed(4));
        rhythm.asked();
        assert!(rhythm.completed(9), "6 is reached and passed");
    }
}
