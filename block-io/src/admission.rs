//! How many requests may be in flight: per device, and in the process.
//!
//! The bound per device keeps one that hangs (a dead path, a stuck network disk) from taking the
//! room of all others.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Requests that the process has in flight at most; beyond it callers wait.
pub(crate) const QUEUE_DEPTH: usize = 512;

/// Requests that one device has in flight at most.
pub(crate) const DEVICE_DEPTH: usize = 128;

static PROCESS: Semaphore = Semaphore::const_new(QUEUE_DEPTH);

/// The room of one device.
#[derive(Debug)]
pub(crate) struct Admission {
    device: Arc<Semaphore>,
}

/// The right to have one request in flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    _device: OwnedSemaphorePermit,
    _process: SemaphorePermit<'static>,
}

impl Admission {
    pub(crate) fn new() -> Self {
        Self { device: Arc::new(Semaphore::new(DEVICE_DEPTH)) }
    }

    /// Waits until one more request may be in flight.
    pub(crate) async fn admit(&self) -> Permit {
        let device = Arc::clone(&self.device).acquire_owned().await;
        let process = PROCESS.acquire().await;
        match (device, process) {
            (Ok(device), Ok(process)) => Permit { _device: device, _process: process },
            _closed => unreachable!("nobody closes these semaphores"),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_device_that_hangs_leaves_room_for_the_others() {
        let (hung, other) = (Admission::new(), Admission::new());
        let stuck: Vec<_> = (0..DEVICE_DEPTH).map_while(|_| hung.admit().now_or_never()).collect();
        assert_eq!(stuck.len(), DEVICE_DEPTH);
        assert!(hung.admit().now_or_never().is_none());
        let room: Vec<_> = (0..DEVICE_DEPTH).map_while(|_| other.admit().now_or_never()).collect();
        assert_eq!(room.len(), DEVICE_DEPTH);
        drop(stuck);
        assert!(hung.admit().now_or_never().is_some());
    }
}
