//! What people want to know of a volume that is at work: the last error, when the next attempt
//! is, when and to whom something was shipped last.

use parking_lot::Mutex;
use proto::v1::ProxyRefusal;
use server_kit::clock::unix_seconds;
use server_kit::error::{Reason, RoleError};
use tokio::time::{Duration, Instant};

/// What is shown.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The last failure; cleared by success.
    pub error: Option<String>,
    /// Of what kind it is.
    pub reason: Option<Reason>,
    /// Why no proxy took the log, when that is what failed.
    pub refusals: Vec<ProxyRefusal>,
    /// When the next attempt is.
    pub retry_at: Option<Instant>,
    /// Unix seconds of the last acknowledged transfer; 0: none since the server was started.
    pub last_sent_s: u64,
    /// The proxy that acknowledged it.
    pub last_proxy: String,
}

/// The progress of one volume.
#[derive(Debug, Default)]
pub struct Progress(Mutex<View>);

impl Progress {
    /// What is shown now.
    #[must_use]
    pub fn view(&self) -> View {
        self.0.lock().clone()
    }

    /// A transfer was acknowledged.
    pub fn sent(&self, proxy: &str) {
        *self.0.lock() =
            View { last_sent_s: unix_seconds(), last_proxy: proxy.to_owned(), ..View::default() };
    }

    /// No proxy took the log, each for a reason. To be called before [`Progress::failed`].
    pub fn refused(&self, refusals: Vec<ProxyRefusal>) {
        self.0.lock().refusals = refusals;
    }

    /// An attempt failed; the next is after `delay`, or when something changes.
    pub fn failed(&self, error: &RoleError, delay: Option<Duration>) {
        let mut view = self.0.lock();
        view.error = Some(error.full_message());
        view.reason = Some(error.reason());
        view.retry_at = delay.map(|d| Instant::now() + d);
    }

    /// All is well, though nothing was shipped.
    pub fn well(&self) {
        let mut view = self.0.lock();
        (view.error, view.reason, view.retry_at) = (None, None, None);
        view.refusals.clear();
    }
}
