//! Administration of a volume in service: freeze and melt, log reset, resize, checkpoint on
//! request, release of logs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wlog_format::units::{Lb, LogUuid, Lsid};

use crate::core::{Core, LogIdentity};
use crate::error::VolumeError;
use crate::positions::Positions;
use crate::regions::Regions;
use crate::volume::Volume;
use crate::zeros::zeros;

/// The longest freeze: a day, as with the original driver.
pub const MAX_FREEZE: Duration = Duration::from_secs(86_400);

/// A freeze in force; see [`Volume::freeze`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezeTicket(u64);

impl Volume {
    /// Makes writes wait from now on; reads go on. When it returns, everything that was
    /// acknowledged is permanent, and the log positions stand still but for `written`.
    ///
    /// # Errors
    /// When the volume is frozen already or being reset, has failed or fails meanwhile. It is not
    /// frozen by this then.
    pub async fn freeze(&self) -> Result<FreezeTicket, VolumeError> {
        static TICKETS: AtomicU64 = AtomicU64::new(0);
        let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
        {
            let mut state = self.core().state.lock();
            state.check_alive()?;
            state.check_in_use()?;
            if state.frozen.is_some() || state.held {
                return Err(VolumeError::Frozen);
            }
            state.frozen = Some(ticket);
        }
        let settled = self.core().settle().await;
        if settled.is_err() {
            self.melt_ticket(FreezeTicket(ticket));
        }
        self.core().publish();
        settled.map(|()| FreezeTicket(ticket))
    }

    /// Ends this freeze, unless a later one has replaced it.
    pub fn melt_ticket(&self, ticket: FreezeTicket) {
        {
            let mut state = self.core().state.lock();
            if state.frozen != Some(ticket.0) {
                return;
            }
            state.frozen = None;
        }
        self.core().publish();
    }

    /// Ends any freeze.
    pub fn melt(&self) {
        self.core().state.lock().frozen = None;
        self.core().publish();
    }

    /// Brings everything acknowledged so far to the data device and records that: `permanent`,
    /// `written` and `prev_written` catch up.
    ///
    /// # Errors
    /// When a device fails, or has failed.
    pub async fn take_checkpoint(&self) -> Result<(), VolumeError> {
        self.to_the_end(|core| async move { core.take_checkpoint().await }).await
    }

    /// Releases the logs before `lsid`: the ring may be written over up to there.
    ///
    /// # Errors
    /// Unless `oldest <= lsid <= prev_written` and a pack begins there; after an overflow always.
    pub async fn set_oldest(&self, lsid: Lsid) -> Result<(), VolumeError> {
        self.to_the_end(move |core| async move { core.set_oldest(lsid).await }).await
    }

    /// Starts a new log: all positions 0, new uuid and salt, no overflow, the ring as large as
    /// the log device is by now. What was logged goes to the data device first.
    ///
    /// # Errors
    /// When the volume is frozen, or a device fails.
    pub async fn reset_log(&self) -> Result<(), VolumeError> {
        self.to_the_end(|core| async move { core.reset_log().await }).await
    }

    /// Grows the volume to `size`, or to the size of the data device if that is 0. The data device
    /// has been grown before.
    ///
    /// # Errors
    /// When the volume would shrink, the data device is too small, or a device fails.
    pub async fn resize(&self, size: Lb) -> Result<(), VolumeError> {
        self.to_the_end(move |core| async move { core.resize(size).await }).await
    }

    /// Does something to the super block even if the caller goes away: a request to the log device
    /// that nobody waits for could land after a later one, and bring an old super block back.
    pub(crate) async fn to_the_end<Work>(
        &self,
        work: impl FnOnce(Arc<Core>) -> Work,
    ) -> Result<(), VolumeError>
    where
        Work: Future<Output = Result<(), VolumeError>> + Send + 'static,
    {
        let done = tokio::spawn(work(Arc::clone(self.core()))).await;
        done.unwrap_or_else(|ended| {
            self.core().fail("an operation on the super block was broken off", &ended);
            self.core().state.lock().check_sound()
        })
    }
}

/// Writes are held back as long as it lives.
pub(crate) struct Held<'a>(&'a Core);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.state.lock().held = false;
        self.0.publish();
    }
}

impl Core {
    async fn take_checkpoint(&self) -> Result<(), VolumeError> {
        let (target, epoch) = {
            let state = self.state.lock();
            (state.positions.completed, state.log.epoch)
        };
        self.flush_log().await?;
        self.hurry_data();
        self.wait_until(|state| {
            let there = state.positions.written >= target || state.log.epoch != epoch;
            state.check_sound().map(|()| there.then_some(())).transpose()
        })
        .await?;
        self.checkpoint().await
    }

    /// Holds back writes, unless something else does.
    pub(crate) fn hold(&self) -> Result<Held<'_>, VolumeError> {
        let mut state = self.state.lock();
        state.check_alive()?;
        if state.frozen.is_some() || state.held {
            return Err(VolumeError::Frozen);
        }
        state.held = true;
        Ok(Held(self))
    }

    async fn reset_log(&self) -> Result<(), VolumeError> {
        let _held = self.hold()?;
        self.state.lock().check_in_use()?;
        self.drain().await?;
        self.checkpoint().await?;
        self.start_new_log().await
    }

    async fn resize(&self, size: Lb) -> Result<(), VolumeError> {
        let available = Lb::from_bytes(self.data.refresh_size().await?);
        let mut super_block = self.super_block.lock().await;
        let from = super_block.device_size;
        let to = if size == Lb(0) { available } else { size };
        let bad = |why: String| Err(VolumeError::BadSize { from, to, why });
        self.state.lock().check_alive()?;
        if to < from {
            return bad("a volume never shrinks".to_owned());
        }
        if to > available {
            return bad(format!("grow the data device first: it has {available} sectors"));
        }
        let sector = self.data.block_bytes();
        if !to.bytes().is_multiple_of(sector.into()) {
            return bad(format!("the volume has sectors of {sector} bytes"));
        }
        let mut next = super_block.clone();
        next.device_size = to;
        self.store(&mut super_block, next).await?;
        {
            let mut state = self.state.lock();
            state.size = to;
            let latest = state.positions.latest;
            if let Some(regions) = &mut state.regions {
                regions.grow(to, latest);
            }
        }
        self.publish();
        Ok(())
    }

    /// The new super block first, then nothing where the first pack will be (`formats.md` §3.5).
    /// The log is drained and held.
    pub(crate) async fn start_new_log(&self) -> Result<(), VolumeError> {
        let log_bytes = self.log.refresh_size().await?;
        let mut super_block = self.super_block.lock().await;
        let mut next = super_block.clone();
        let reset = next.reset(log_bytes).and_then(|()| next.ring(log_bytes));
        let ring = reset.map_err(std::io::Error::other)?;
        let (uuid, salt) = (next.uuid, next.salt);
        let regions = self.announce_log(uuid).await;
        self.store(&mut super_block, next).await?;
        let clear = async {
            let nothing = zeros(ring.block_size().as_usize());
            self.log.write(ring.byte_offset(Lsid(0)), vec![nothing]).await?;
            self.log.flush().await
        };
        if let Err(error) = clear.await {
            self.fail_io("write to the log device failed", &error);
            return self.state.lock().check_sound();
        }
        let mut state = self.state.lock();
        assert!(state.positions.is_drained(), "a log reset must not lose writes");
        let epoch = state.log.epoch + 1;
        state.log = LogIdentity { epoch, uuid, salt, ring };
        state.positions = Positions::settled(Lsid(0), Lsid(0));
        state.regions = regions;
        state.overflow = false;
        drop(state);
        self.publish();
        Ok(())
    }

    /// The map of written regions as it will be in the log `uuid`, stored before that log is.
    async fn announce_log(&self, uuid: LogUuid) -> Option<Regions> {
        let (mut regions, latest) = {
            let state = self.state.lock();
            (state.regions.clone()?, state.positions.latest)
        };
        regions.begin_log(uuid, latest);
        if let Some(kept) = &self.kept {
            kept.regions.announce(&regions).await;
        }
        Some(regions)
    }
}
