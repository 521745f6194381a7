//! Everything that changes the super block of a running volume: checkpoints, the release of logs,
//! and the record of an overflow.
//!
//! Invariants: `written_lsid` moves only after a flush of the data device that covers it;
//! `oldest_lsid` only to a pack boundary that redo needs nothing before (I4); both are durable
//! before the ring may be written over. One at a time, ordered by the lock around the super block.

use std::io;
use std::sync::Arc;
use tokio::time::Instant;

use bytes::Bytes;
use wlog_format::pack::PackHeader;
use wlog_format::superblock::{SUPER_OFFSET_BYTES, SuperBlock};
use wlog_format::units::Lsid;

use block_io::buffer::AlignedBuf;
use block_io::device::BlockDevice;

use crate::core::{Core, State};
use crate::error::VolumeError;
use crate::zeros::zeros;

/// Takes checkpoints: some time after a write, and early when the log fills up.
pub(crate) async fn run(core: Arc<Core>) {
    let mut dirty_since = None;
    loop {
        let (dirty, pressed) = need(&core.state.lock());
        dirty_since = if dirty { dirty_since.or_else(|| Some(Instant::now())) } else { None };
        let due = dirty_since.map(|since| since + core.options.checkpoint_interval);
        let timer = async {
            match due {
                Some(due) if !pressed => tokio::time::sleep_until(due).await,
                Some(_) => {}
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = timer => {
                if core.checkpoint().await.is_err() {
                    return;
                }
                dirty_since = None;
            }
            () = core.checkpoint_bell.notified() => {}
        }
    }
}

/// Is there anything to record, and is it urgent?
fn need(state: &State) -> (bool, bool) {
    let positions = &state.positions;
    let dirty = positions.written > positions.prev_written;
    let held = positions.latest.distance_from(positions.prev_written);
    (dirty, held.0 > state.log.ring.size().0 / 4)
}

/// Writes the super block and makes it durable.
pub(crate) async fn write_super(
    log: &Arc<dyn BlockDevice>,
    super_block: &SuperBlock,
) -> io::Result<()> {
    let block = AlignedBuf::copy_of(&super_block.encode()).freeze();
    log.write(SUPER_OFFSET_BYTES, vec![block]).await?;
    log.flush().await
}

impl Core {
    /// Records in the super block what is on the data device, so that redo need not repeat it.
    pub(crate) async fn checkpoint(&self) -> Result<(), VolumeError> {
        let mut super_block = self.super_block.lock().await;
        let (target, regions) = {
            let state = self.state.lock();
            state.check_sound()?;
            (state.positions.written, state.regions.clone())
        };
        if target == super_block.written {
            return Ok(());
        }
        // Everything below `target` was written before this flush is asked for.
        if let Err(error) = self.data.flush().await {
            self.fail_io("flush of the data device failed", &error);
            return self.state.lock().check_sound();
        }
        // The map first: redo marks what comes after `written`, and nothing before it.
        if let (Some(kept), Some(regions)) = (&self.kept, &regions) {
            kept.regions.store(regions, target).await;
        }
        let mut next = super_block.clone();
        next.written = target;
        self.store(&mut super_block, next).await?;
        self.state.lock().positions.set(|p| p.prev_written = target);
        self.publish();
        Ok(())
    }

    /// Makes `next` the super block. When that fails, the volume has failed.
    pub(crate) async fn store(
        &self,
        current: &mut SuperBlock,
        next: SuperBlock,
    ) -> Result<(), VolumeError> {
        if let Err(error) = write_super(&self.log, &next).await {
            self.fail_io("write of the super block failed", &error);
            return self.state.lock().check_sound();
        }
        *current = next;
        Ok(())
    }

    /// Releases the logs before `lsid`.
    pub(crate) async fn set_oldest(&self, lsid: Lsid) -> Result<(), VolumeError> {
        let bad = |why: String| Err(VolumeError::BadOldest { lsid, why });
        let mut super_block = self.super_block.lock().await;
        let (positions, log) = {
            let state = self.state.lock();
            state.check_sound()?;
            if state.overflow {
                return Err(VolumeError::Overflow);
            }
            (state.positions, state.log)
        };
        if lsid < positions.oldest || lsid > positions.prev_written {
            let (oldest, prev_written) = (positions.oldest, positions.prev_written);
            return bad(format!(
                "it must be from oldest ({oldest}) to prev_written ({prev_written})"
            ));
        }
        if lsid < positions.permanent {
            let block = self.read_log_block(lsid).await?;
            let size = log.ring.block_size();
            if let Err(error) = PackHeader::decode(&block, size, log.salt, lsid) {
                return bad(format!("no pack begins there: {error}"));
            }
        }
        let mut next = super_block.clone();
        next.oldest = lsid;
        self.store(&mut super_block, next).await?;
        self.state.lock().positions.set(|p| p.oldest = lsid);
        self.publish();
        Ok(())
    }

    async fn read_log_block(&self, lsid: Lsid) -> io::Result<Bytes> {
        let ring = self.state.lock().log.ring;
        self.log.read(ring.byte_offset(lsid), ring.block_size().as_usize()).await
    }

    /// The log is about to be written over from `oldest` on, up to `end`: puts that on record
    /// first.
    ///
    /// The super block has no room for such a flag. So the header of the oldest pack, which is lost
    /// in any case, is cleared: at the next start no sound pack at `oldest` means overflow, however
    /// much of what comes now survives a crash.
    pub(crate) async fn latch_overflow(&self, end: Lsid) {
        let _order = self.super_block.lock().await;
        let (oldest, ring) = {
            let state = self.state.lock();
            let ring = state.log.ring;
            let oldest = state.positions.oldest;
            let still = end.distance_from(oldest) > ring.size();
            if state.overflow || !still {
                return;
            }
            // What redo needs is never given up: the caller has made sure of that.
            assert!(oldest < state.positions.prev_written, "overflow would hit what redo needs");
            (oldest, ring)
        };
        let clear = async {
            let block = zeros(ring.block_size().as_usize());
            self.log.write(ring.byte_offset(oldest), vec![block]).await?;
            self.log.flush().await
        };
        if let Err(error) = clear.await {
            return self.fail_io("write to the log device failed", &error);
        }
        self.state.lock().overflow = true;
        tracing::error!(
            volume = %self.name, %oldest,
            "the log has overflowed: logs that were not backed up are lost; backup must start anew"
        );
        self.publish();
    }
}
