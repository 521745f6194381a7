//! The memory that log data may take, shared by all volumes of the process.
//!
//! Invariants: what is granted never exceeds the total; grants are first come, first served; a
//! holder never waits for more while it keeps what it has, so waiting cannot become a deadlock.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Granularity of the accounting: a semaphore counts fewer permits than there may be bytes.
const UNIT_BYTES: u64 = 4096;

/// A share of the process's memory for log data.
#[derive(Clone)]
pub struct Budget {
    free: Arc<Semaphore>,
    total_units: u32,
}

/// Memory that was granted, until it is dropped.
pub struct Grant(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Budget {
    /// A budget of `bytes`, at least one unit of 4096.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let most = u64::try_from(Semaphore::MAX_PERMITS).unwrap_or(u64::MAX).min(u32::MAX.into());
        let units = (bytes / UNIT_BYTES).clamp(1, most);
        let total_units = u32::try_from(units).unwrap_or(u32::MAX);
        let free = Arc::new(Semaphore::new(total_units as usize));
        Self { free, total_units }
    }

    /// Waits for `bytes`; what exceeds the total gets all of it, alone.
    pub async fn take(&self, bytes: u64) -> Grant {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = units.clamp(1, self.total_units);
        match Arc::clone(&self.free).acquire_many_owned(units).await {
            Ok(permit) => Grant(permit),
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn grants_never_exceed_the_total_and_come_back() {
        let budget = Budget::new(10 * UNIT_BYTES);
        let first = budget.take(6 * UNIT_BYTES).await;
        assert!(budget.take(5 * UNIT_BYTES).now_or_never().is_none());
        drop(first);
        let huge = budget.take(u64::MAX).await;
        assert!(budget.take(1).now_or_never().is_none());
        drop(huge);
        assert!(budget.take(1).now_or_never().is_some());
    }
}
