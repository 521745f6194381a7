//! How a process of a role ends: asked once it finishes what runs, asked urgently it aborts.
//!
//! Invariant: a forced shutdown is also a requested one. Signals: the first SIGTERM or SIGINT is
//! graceful, the second forces.
use proto::v1::StopMode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The two stages of a shutdown. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    requested: CancellationToken,
    forced: CancellationToken,
}

impl Shutdown {
    /// One that only [`Shutdown::request`] sets off.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One that signals set off as well. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the system refuses a signal handler.
    pub fn from_signals() -> std::io::Result<Self> {
        let shutdown = Self::new();
        let (term, int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::spawn(shutdown.clone().listen(term, int));
        Ok(shutdown)
    }

    async fn listen(self, mut term: Signal, mut int: Signal) {
        for mode in [StopMode::Graceful, StopMode::Force] {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
            }
            tracing::info!(?mode, "a signal asks for shutdown");
            self.request(mode);
        }
    }

    /// Asks for shutdown; `Empty` means graceful to a whole process.
    pub fn request(&self, mode: StopMode) {
        if mode == StopMode::Force {
            self.forced.cancel();
        }
        self.requested.cancel();
    }

    /// Cancelled when shutdown was asked for in any mode: take nothing new.
    #[must_use]
    pub fn requested(&self) -> CancellationToken {
        self.requested.clone()
    }

    /// Cancelled when shutdown shall not wait: abort what runs.
    #[must_use]
    pub fn forced(&self) -> CancellationToken {
        self.forced.clone()
    }
}

/// Tells systemd, if it started us, that the role serves.
pub fn ready() {
    notify(&[sd_notify::NotifyState::Ready]);
}

/// Tells systemd, if it started us, that the role is stopping.
pub fn stopping() {
    notify(&[sd_notify::NotifyState::Stopping]);
}

fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot tell systemd our state");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn force_includes_the_request_and_graceful_does_not_force() {
        let shutdown = Shutdown::new();
        shutdown.request(StopMode::Graceful);
        assert!(shutdown.requested().is_cancelled() && !shutdown.forced().is_cancelled());
        shutdown.request(StopMode::Force);
        assert!(shutdown.forced().is_cancelled());
        let urgent = Shutdown::new();
        urgent.request(StopMode::Force);
        assert!(urgent.requested().is_cancelled());
    }
}
