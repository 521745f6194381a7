//! Brings logged writes to the data device.
//!
//! Works in batches: what is permanent (I1) gathers for some milliseconds, unless somebody waits.
//! Then all of these packs, up to a size, are summed into one overlay, in which of several writes
//! to a block only the last is left; its pieces are sorted and coalesced, and written many at a
//! time. The next batch begins when the last one has ended, so overlapping writes reach the data
//! device in log order (I3). A batch contains nothing that is not permanent, even where that means
//! to write an older version of a block whose newer one is already logged: if the newer log is lost
//! in a power cut, the older must be there.

use std::io;
use std::sync::Arc;

use block_io::device::BlockDevice;
use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt};
use tokio::time::Instant;
use wlog_format::units::{Lb, Lsid};

use crate::core::{Core, DataState, LoggedPack, State};
use crate::options::{GATHER, GATHERED_BYTES, MAX_BATCH_BYTES};
use crate::overlay::{Overlay, Payload};
use crate::positions::Positions;

/// Data writes in flight at most.
const MAX_WRITES_IN_FLIGHT: usize = 64;
/// Neighbouring pieces are written together up to this.
const MAX_WRITE_BYTES: usize = 1 << 20;
const MAX_WRITE_PIECES: usize = 256;
/// Records that are taken out of the map of pending writes under one hold of the lock.
const RECORDS_PER_LOCK: usize = 128;

/// Runs until the volume stops or fails.
pub(crate) async fn run(core: Arc<Core>) {
    while wait_until_due(&core).await {
        let Some(batch) = take_batch(&core) else { return };
        let summed = sum(&batch);
        if let Err(error) = apply(&core.data, summed).await {
            return core.fail_io("write to the data device failed", &error);
        }
        finish(&core, batch);
    }
}

/// When the next batch begins; `None` while there is nothing to write.
fn next_batch(state: &State) -> Option<Instant> {
    state.check_sound().ok()?;
    let now = Instant::now();
    let Positions { permanent, written, .. } = state.positions;
    if permanent == written {
        return None;
    }
    let gathered = state.log.ring.block_size().bytes_of(permanent.distance_from(written));
    let waited_for = state.data.urgent || state.flush.writers_waiting > 0;
    if waited_for || gathered >= GATHERED_BYTES {
        return Some(now);
    }
    Some(state.data.since.map_or(now, |since| since + GATHER))
}

/// Lets permanent writes gather; false when the volume stops.
async fn wait_until_due(core: &Core) -> bool {
    loop {
        let due = next_batch(&core.state.lock());
        let timer = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = core.stop.cancelled() => return false,
            () = timer => return true,
            () = core.data_bell.notified() => {}
        }
    }
}

/// The oldest permanent packs that are not written yet.
fn take_batch(core: &Core) -> Option<Vec<LoggedPack>> {
    let mut state = core.state.lock();
    state.check_sound().ok()?;
    let permanent = state.positions.permanent;
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < MAX_BATCH_BYTES {
        let Some(pack) = state.logged.pop_front_if(|pack| pack.end <= permanent) else { break };
        bytes += pack.bytes;
        batch.push(pack);
    }
    let more = state.logged.front().is_some_and(|pack| pack.end <= permanent);
    if !more {
        state.data = DataState::default();
    }
    (!batch.is_empty()).then_some(batch)
}

fn sum(batch: &[LoggedPack]) -> Overlay {
    let mut overlay = Overlay::default();
    for pack in batch {
        for record in &pack.records {
            overlay.insert(record.address, record.blocks, pack.begin, record.payload.clone());
        }
    }
    overlay
}

/// The batch is on the data device: reads find it there from now on.
fn finish(core: &Core, batch: Vec<LoggedPack>) {
    let Some(end) = batch.last().map(|pack| pack.end) else { return };
    let records: Vec<_> = batch.iter().flat_map(|pack| &pack.records).collect();
    for some in records.chunks(RECORDS_PER_LOCK) {
        let mut state = core.state.lock();
        for record in some {
            state.overlay.remove_older(record.address, record.blocks, end);
        }
    }
    {
        let mut state = core.state.lock();
        state.pending_bytes -= batch.iter().map(|pack| pack.bytes).sum::<u64>();
        state.positions.set(|p| p.written = end);
    }
    drop(batch);
    core.checkpoint_bell.notify_one();
    core.publish();
}

/// One request to the data device.
#[derive(Debug, PartialEq, Eq)]
enum DataWrite {
    Write { offset: u64, buffers: Vec<Bytes>, bytes: usize },
    Zeroes { offset: u64, len: u64 },
}

/// Writes the pieces of an overlay to the data device. What was discarded becomes zeros, on every
/// device: an archive restores discarded blocks as zeros, and the volume must equal what it
/// restores.
///
/// # Errors
/// The first that occurs; other pieces may or may not have been written.
pub(crate) async fn apply(data: &Arc<dyn BlockDevice>, overlay: Overlay) -> io::Result<()> {
    futures::stream::iter(coalesce(overlay))
        .map(|write| async move {
            match write {
                DataWrite::Write { offset, buffers, .. } => data.write(offset, buffers).await,
                DataWrite::Zeroes { offset, len } => data.write_zeroes(offset, len).await,
            }
        })
        .buffer_unordered(MAX_WRITES_IN_FLIGHT)
        .try_collect()
        .await
}

fn coalesce(overlay: Overlay) -> Vec<DataWrite> {
    let mut writes: Vec<DataWrite> = Vec::new();
    for (start, blocks, payload) in overlay.into_pieces() {
        let offset = start.bytes();
        match (writes.last_mut(), payload) {
            (Some(last), Payload::Data(data)) if last.takes(offset, data.len()) => {
                last.append(data)
            }
            (_, Payload::Data(data)) => {
                writes.push(DataWrite::Write { offset, bytes: data.len(), buffers: vec![data] });
            }
            (_, Payload::Zero) => writes.push(DataWrite::Zeroes { offset, len: blocks.bytes() }),
        }
    }
    writes
}

impl DataWrite {
    fn takes(&self, at: u64, more: usize) -> bool {
        match self {
            Self::Zeroes { .. } => false,
            Self::Write { offset, buffers, bytes } => {
                offset + *bytes as u64 == at
                    && bytes + more <= MAX_WRITE_BYTES
                    && buffers.len() < MAX_WRITE_PIECES
            }
        }
    }

    fn append(&mut self, data: Bytes) {
        if let Self::Write { buffers, bytes, .. } = self {
            *bytes += data.len();
            buffers.push(data);
        }
    }
}

/// Sums up records for [`apply`] outside of a running volume: redo.
#[derive(Default)]
pub(crate) struct Collected {
    pub(crate) overlay: Overlay,
    pub(crate) bytes: u64,
}

impl Collected {
    /// Adds a record that is newer than all before.
    pub(crate) fn add(&mut self, address: Lb, blocks: Lb, payload: Payload) {
        if let Payload::Data(data) = &payload {
            self.bytes += data.len() as u64;
        }
        self.overlay.insert(address, blocks, Lsid(0), payload);
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.bytes >= MAX_BATCH_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::LogIdentity;
    use std::time::Duration;
    use wlog_format::ring::Ring;
    use wlog_format::units::{BlockSize, LogUuid, Pb, Salt};

    fn data(byte: u8, blocks: usize) -> Payload {
        Payload::Data(Bytes::from(vec![byte; blocks * 512]))
    }

    /// So many permanent blocks of 4 KiB that are not on the data device.
    fn gathering(blocks: u64) -> State {
        let ring = Ring::new(BlockSize::B4096, Pb(8), Pb(4096)).unwrap();
        let log = LogIdentity { epoch: 0, uuid: LogUuid([7; 16]), salt: Salt(1), ring };
        let mut positions = Positions::settled(Lsid(0), Lsid(0));
        let to = Lsid(blocks);
        positions.set(|p| (p.permanent, p.flush, p.completed, p.latest) = (to, to, to, to));
        State::new(positions, log, Lb(1 << 20), false)
    }

    #[tokio::test(start_paused = true)]
    async fn permanent_writes_gather_for_5_ms_or_1_mib_unless_somebody_waits() {
        let (now, later) = (Instant::now(), Duration::from_millis(5));
        let at = |state: &State| next_batch(state).map(|at| at - now);
        assert_eq!(at(&gathering(0)), None, "there is nothing to write");
        let mut little = gathering(255);
        little.data.since = Some(now);
        assert_eq!(at(&little), Some(later));
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(at(&little), Some(later), "it counts from the first");
        let soon = Some(Duration::from_millis(2));
        let mut much = gathering(256);
        much.data.since = Some(now);
        assert_eq!(at(&much), soon);
        little.data.urgent = true;
        assert_eq!(at(&little), soon, "somebody waits for the data");
        little.data.urgent = false;
        little.flush.writers_waiting = 1;
        assert_eq!(at(&little), soon, "somebody waits for memory");
    }

    #[test]
    fn neighbours_become_one_write_and_only_the_newest_is_left() {
        let mut overlay = Overlay::default();
        overlay.insert(Lb(8), Lb(8), Lsid(1), data(1, 8));
        overlay.insert(Lb(0), Lb(8), Lsid(1), data(2, 8));
        overlay.insert(Lb(4), Lb(2), Lsid(1), data(3, 2));
        overlay.insert(Lb(16), Lb(4), Lsid(1), Payload::Zero);
        overlay.insert(Lb(40), Lb(1), Lsid(1), data(4, 1));
        let writes = coalesce(overlay);
        let [first, zeroes, last] = writes.as_slice() else { panic!("{writes:?}") };
        let DataWrite::Write { offset: 0, buffers, bytes: 8192 } = first else { panic!() };
        let content: Vec<u8> = buffers.concat();
        let blocks: Vec<u8> = content.chunks(512).map(|block| block[0]).collect();
        assert_eq!(blocks, [2, 2, 2, 2, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1]);
        assert_eq!(*zeroes, DataWrite::Zeroes { offset: 16 * 512, len: 4 * 512 });
        assert!(matches!(last, DataWrite::Write { offset: 20480, .. }));
    }
}
