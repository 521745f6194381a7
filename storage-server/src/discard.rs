//! A standby volume: its log is released as soon as the device does not need it any more.
//!
//! The original depends on an edge here and can leave logs behind; this looks at every event, and
//! at a timer while logs remain.

use std::sync::Arc;

use server_kit::error::RoleError;
use tokio::time::Instant;
use wlog_format::units::Lsid;

use crate::device::Seen;
use crate::follower::{Failure, Next, REARM};
use crate::volume::Volume;

/// Releases the log of one volume.
pub struct Discarder {
    volume: Arc<Volume>,
    /// Released up to here; the event that says so may still be on its way.
    released: Lsid,
}

impl Discarder {
    /// Nothing released yet.
    #[must_use]
    pub fn new(volume: Arc<Volume>) -> Self {
        Self { volume, released: Lsid(0) }
    }

    /// Looks at the device once.
    ///
    /// # Errors
    /// Never [`Failure::Lost`]: nobody needs this log.
    pub async fn round(&mut self, seen: Seen) -> Result<Next, Failure> {
        let status = match seen {
            Seen::Up(status) => status,
            Seen::Nothing => return Ok(Next::Wait(None)),
            Seen::Down(error) => {
                self.volume.progress.failed(&error, None);
                return Ok(Next::Wait(None));
            }
        };
        if status.overflow {
            self.volume.progress.failed(&self.overflowed(), None);
            return Ok(Next::Wait(None));
        }
        let positions = status.positions;
        if positions.prev_written < self.released {
            // The log was reset, or the event is an old one.
            self.released = positions.oldest;
        }
        if positions.prev_written > positions.oldest.max(self.released) {
            self.volume.device.set_oldest(positions.prev_written).await?;
            self.released = positions.prev_written;
        }
        self.volume.progress.well();
        let remains = positions.latest > self.released.max(positions.oldest);
        Ok(Next::Wait(remains.then(|| Instant::now() + REARM)))
    }

    fn overflowed(&self) -> RoleError {
        let volume = &self.volume.name;
        let device = self.volume.device.address();
        RoleError::overflow(volume, format!("the log of device {device} overflowed"))
            .with_next_step(format!("stop {volume} and start it as standby: that empties the log"))
    }
}
