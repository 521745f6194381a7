//! Going no faster than asked: who moves bytes waits until they are due.

use std::time::Duration;
use tokio::time::Instant;

/// A speed limit for one flow of bytes.
#[derive(Debug, Clone)]
pub struct Pace {
    bytes_per_s: u64,
    due: Option<Instant>,
}

impl Pace {
    /// No faster than this (0: as fast as it goes).
    #[must_use]
    pub const fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, due: None }
    }

    /// When `bytes` more may go; `None`: at once. Time that passed unused is not made up for.
    pub fn next(&mut self, bytes: u64) -> Option<Instant> {
        if self.bytes_per_s == 0 {
            return None;
        }
        let now = Instant::now();
        let at = self.due.map_or(now, |due| due.max(now));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let pause = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.due = at.checked_add(pause).or(self.due);
        (at > now).then_some(at)
    }

    /// Waits until `bytes` more may go, or for `end`.
    pub async fn wait_or(&mut self, bytes: u64, end: impl Future<Output = ()>) {
        let Some(at) = self.next(bytes) else { return };
        tokio::select! {
            () = tokio::time::sleep_until(at) => {}
            () = end => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;

    #[tokio::test(start_paused = true)]
    async fn bytes_take_their_time_and_idle_time_is_not_saved_up() {
        let start = Instant::now();
        let mut pace = Pace::new(100);
        for _ in 0..5 {
            pace.wait_or(100, pending()).await;
        }
        assert_eq!(start.elapsed().as_secs(), 4);
        tokio::time::sleep(Duration::from_secs(60)).await;
        pace.wait_or(100, pending()).await;
        pace.wait_or(100, pending()).await;
        assert_eq!(start.elapsed().as_secs(), 65);
        pace.wait_or(1 << 40, std::future::ready(())).await;
        assert_eq!(start.elapsed().as_secs(), 65);
        let mut free = Pace::new(0);
        free.wait_or(u64::MAX, pending()).await;
        assert_eq!(start.elapsed().as_secs(), 65);
    }
}
