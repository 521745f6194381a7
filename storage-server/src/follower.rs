//! The task that follows one device: ships its log (target) or throws it away (standby).
//!
//! One task per volume at work, no thread; it sleeps until the device, a command or a timer wakes
//! it, so an idle volume costs nothing. A failed attempt is repeated with back-off, which events
//! of the device do not shorten and a kick or a snapshot does. Logs that were lost end the task:
//! [`Ended::Lost`].

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use server_kit::error::{Reason, RoleError};
use server_kit::retry::Backoff;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::device::Seen;
use crate::loss::Loss;
use crate::volume::Volume;
use crate::{discard, ship};

/// While logs remain in the ring, things are looked at again after this long at the latest, should
/// an event have been missed.
pub const REARM: Duration = Duration::from_secs(10);

/// What is done with the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// It goes to a proxy.
    Ship,
    /// It is released.
    Discard,
}

/// Why a follower has ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// It was asked to.
    Stopped,
    /// Logs were lost: what happened.
    Lost(Loss),
}

/// What to do after a round of work.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// There is more to do.
    Now,
    /// Wait for a change, and not longer than this.
    Wait(Option<Instant>),
}

/// Why a round failed.
#[derive(Debug)]
pub enum Failure {
    /// Logs were lost; trying again cannot help.
    Lost(Loss),
    /// Trying again may help.
    Retry(RoleError),
}

impl From<RoleError> for Failure {
    fn from(error: RoleError) -> Self {
        Self::Retry(error)
    }
}

/// A handle of the task. Clones share it.
#[derive(Clone)]
pub struct Follower {
    stop: CancellationToken,
    abort: CancellationToken,
    ended: watch::Receiver<Option<Ended>>,
}

impl Follower {
    /// Starts the task.
    #[must_use]
    pub fn start(volume: Arc<Volume>, work: Work) -> Self {
        let (tell, ended) = watch::channel(None);
        let follower =
            Self { stop: CancellationToken::new(), abort: CancellationToken::new(), ended };
        let task = follower.clone();
        tokio::spawn(async move {
            let end = task.run(&volume, work).await;
            tell.send_replace(Some(end.clone()));
            if let Ended::Lost(loss) = end {
                volume.lost(&loss).await;
            }
        });
        follower
    }

    /// Asks it to end: after the transfer that runs, or with `force` in the middle of it.
    pub fn request_stop(&self, force: bool) {
        self.stop.cancel();
        if force {
            self.abort.cancel();
        }
    }

    /// Waits until it has ended.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        let end = ended.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        end.unwrap_or(Ended::Stopped)
    }

    /// Why it has ended, if it has.
    #[must_use]
    pub fn has_ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    async fn run(&self, volume: &Arc<Volume>, work: Work) -> Ended {
        let seen = volume.device.watch();
        let mut worker = match work {
            Work::Ship => Worker::Ship(ship::Shipper::new(Arc::clone(volume), seen.clone())),
            Work::Discard => Worker::Discard(discard::Discarder::new(Arc::clone(volume))),
        };
        let (min, max) = (volume.shared.config.retry_min, volume.shared.config.retry_max);
        let mut waiting =
            Waiting { volume, stop: &self.stop, seen, backoff: Backoff::new(min, max) };
        while !self.stop.is_cancelled() {
            let now = waiting.look();
            let round = AssertUnwindSafe(worker.round(now)).catch_unwind();
            let result = tokio::select! {
                result = round => result.unwrap_or_else(|_| Err(panicked().into())),
                () = self.abort.cancelled() => break,
            };
            match result {
                Ok(next) => {
                    waiting.backoff.reset();
                    if let Next::Wait(until) = next {
                        waiting.for_change(until).await;
                    }
                }
                Err(Failure::Retry(error)) => waiting.after(&error).await,
                Err(Failure::Lost(loss)) => return Ended::Lost(loss),
            }
        }
        Ended::Stopped
    }
}

fn panicked() -> RoleError {
    RoleError::new(Reason::Io, "the task of the volume panicked (see the log)")
}

/// What a follower does, by its work.
enum Worker {
    Ship(ship::Shipper),
    Discard(discard::Discarder),
}

impl Worker {
    async fn round(&mut self, seen: Seen) -> Result<Next, Failure> {
        match self {
            Self::Ship(shipper) => shipper.round(seen).await,
            Self::Discard(discarder) => discarder.round(seen).await,
        }
    }
}

/// Everything that can wake a follower.
struct Waiting<'a> {
    volume: &'a Volume,
    stop: &'a CancellationToken,
    seen: watch::Receiver<Seen>,
    backoff: Backoff,
}

impl Waiting<'_> {
    /// The device as it is known now; later changes wake.
    fn look(&mut self) -> Seen {
        self.seen.borrow_and_update().clone()
    }

    async fn for_change(&mut self, until: Option<Instant>) {
        let timer = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        let change = async {
            if self.seen.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = timer => {}
            () = change => {}
            () = self.volume.wake.notified() => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// Waits for the next attempt after a failure.
    async fn after(&mut self, error: &RoleError) {
        let delay = self.backoff.next_delay();
        let volume = &self.volume.name;
        tracing::warn!(%volume, error = error.full_message(), ?delay, "will try again");
        self.volume.progress.failed(error, Some(delay));
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.volume.wake.notified() => self.backoff.reset(),
            () = self.stop.cancelled() => {}
        }
    }
}
