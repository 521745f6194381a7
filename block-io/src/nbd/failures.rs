//! Failed requests in the log: the first hard one of a connection with all that is known, a count
//! of the rest at its end. A disk that is dying fails thousands of requests a second.

use super::export::ExportError;
use super::protocol::Errno;
use super::request::Request;

/// The failures of one connection.
pub(super) struct Failures {
    export: String,
    hard: u64,
}

impl Failures {
    pub(super) fn new(export: &str) -> Self {
        Self { export: export.to_owned(), hard: 0 }
    }

    /// Name of the export.
    pub(super) fn export(&self) -> &str {
        &self.export
    }

    pub(super) fn log(&mut self, request: &Request, error: &ExportError) {
        let Request { kind, offset, len, .. } = request;
        let hard = matches!(error.errno(), Errno::Io | Errno::NoMemory | Errno::NoSpace);
        if hard && self.hard == 0 {
            tracing::error!(export = self.export, ?kind, offset, len, %error, "request failed");
        } else {
            tracing::debug!(export = self.export, ?kind, offset, len, %error, "request failed");
        }
        self.hard += u64::from(hard);
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        if self.hard > 1 {
            tracing::warn!(export = self.export, failed_requests = self.hard, "connection ended");
        }
    }
}
