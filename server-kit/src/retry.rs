//! Waiting longer after each failure (semantics.md §3.6, §4.5): doubled from a minimum to a
//! maximum, reset by success, cut short by a kick. Time is tokio's, so tests can stop the clock.
use std::time::Duration;
use tokio::sync::Notify;

/// Shortest wait when a role is not told another.
pub const DELAY_MIN: Duration = Duration::from_secs(1);
/// Longest wait when a role is not told another.
pub const DELAY_MAX: Duration = Duration::from_secs(300);

/// How long to wait after the next failure.
#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The time is over.
    Elapsed,
    /// Somebody kicked.
    Kicked,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(DELAY_MIN, DELAY_MAX)
    }
}

impl Backoff {
    /// Waits of `min`, `2 min`, `4 min` ... `max`; a `max` below `min` is raised to it.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max: max.max(min), next: min }
    }

    /// The delay after one more failure.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = delay.saturating_mul(2).min(self.max);
        delay
    }

    /// After a success, or a kick: start at the minimum again.
    pub fn reset(&mut self) {
        self.next = self.min;
    }

    /// Waits for the next delay; a kick ends it at once and resets the back-off.
    pub async fn wait(&mut self, kick: &Notify) -> Woken {
        let delay = self.next_delay();
        tokio::select! {
            () = tokio::time::sleep(delay) => Woken::Elapsed,
            () = kick.notified() => {
                self.reset();
                Woken::Kicked
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum_and_start_anew_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        let delays: Vec<u64> = (0..5).map(|_| backoff.next_delay().as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 5, 5]);
        backoff.reset();
        assert_eq!(backoff.next_delay().as_secs(), 1);
        let mut raised = Backoff::new(Duration::from_secs(9), Duration::from_secs(5));
        assert_eq!(raised.next_delay().as_secs(), 9);
        assert_eq!(raised.next_delay().as_secs(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn a_kick_cuts_the_wait_short_and_a_quiet_wait_lasts_its_time() {
        let (kick, mut backoff) = (Notify::new(), Backoff::default());
        let start = tokio::time::Instant::now();
        assert_eq!(backoff.wait(&kick).await, Woken::Elapsed);
        assert_eq!(backoff.wait(&kick).await, Woken::Elapsed);
        assert_eq!(start.elapsed().as_secs(), 3);
        kick.notify_one();
        assert_eq!(backoff.wait(&kick).await, Woken::Kicked);
        assert_eq!(start.elapsed().as_secs(), 3);
        assert_eq!(backoff.next_delay(), DELAY_MIN);
    }
}
