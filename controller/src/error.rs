//! What can go wrong with an operation, sorted by what the caller does about it (`cli.md`).

use proto::v1;
use server_kit::error::{Reason, RoleError};

use crate::group::{GroupError, Server};

/// The exit code of a command (`cli.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It is done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line or the group file is wrong.
    Usage = 2,
    /// The answer is "no".
    No = 3,
    /// A server could not be reached.
    Unreachable = 4,
}

impl Exit {
    /// As the process gives it to its parent.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// Why an operation did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The group file is missing, wrong, or lacks the server.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// A server refused or failed; its error says what to do next.
    #[error("{server}: {error}{}", next(&error.detail().next_step))]
    Refused {
        /// Name of the server.
        server: String,
        /// What it said.
        error: Box<RoleError>,
    },
    /// A server does not answer.
    #[error(
        "{server} at {address} cannot be reached: {message}; is it running? \
         see its log, or change its address in the group file"
    )]
    Unreachable {
        /// Name of the server.
        server: String,
        /// Where it should listen.
        address: String,
        /// What the connection said.
        message: String,
    },
    /// A long job of a server ended without success.
    #[error(
        "{server}: {} of {} {}: {}{}",
        operation.kind,
        operation.volume,
        how(operation),
        operation.error,
        next(operation.detail.as_ref().map_or("", |d| &d.next_step))
    )]
    Operation {
        /// Name of the server.
        server: String,
        /// Its last report.
        operation: Box<v1::Operation>,
    },
    /// A server was restarted while it worked on a long job, and does not know it any more.
    #[error(
        "{server} was restarted while its {} of {} ran; type the command again: it goes on",
        operation.kind,
        operation.volume
    )]
    Forgotten {
        /// Name of the server.
        server: String,
        /// The last report before.
        operation: Box<v1::Operation>,
    },
    /// The servers are not in the state that the operation needs.
    #[error("{message}; {next_step}")]
    Precondition {
        /// What is in the way.
        message: String,
        /// What to do about it.
        next_step: String,
    },
    /// Something did not happen in time.
    #[error("{message} within {}; {next_step}", humantime::format_duration(*.waited))]
    Timeout {
        /// What was waited for.
        message: String,
        /// How long.
        waited: std::time::Duration,
        /// What to do about it.
        next_step: String,
    },
}

fn how(operation: &v1::Operation) -> &'static str {
    match operation.status() {
        v1::OperationStatus::Cancelled => "was cancelled",
        _ => "failed",
    }
}

fn next(step: &str) -> String {
    if step.is_empty() { String::new() } else { format!("; {step}") }
}

impl ControlError {
    /// The exit code that tells this from other failures.
    #[must_use]
    pub fn exit(&self) -> Exit {
        match self {
            Self::Group(_) => Exit::Usage,
            Self::Unreachable { .. } => Exit::Unreachable,
            Self::Refused { error, .. } if error.reason() == Reason::Unreachable => {
                Exit::Unreachable
            }
            Self::Refused { .. }
            | Self::Operation { .. }
            | Self::Forgotten { .. }
            | Self::Precondition { .. }
            | Self::Timeout { .. } => Exit::Failed,
        }
    }

    /// From what a gRPC call to `server` gave.
    pub(crate) fn from_status(server: &Server, status: &tonic::Status) -> Self {
        let error = RoleError::from_status(&server.name, status);
        // Without detail it is the way to the server that failed; with detail the server itself
        // speaks, maybe of a third one that it cannot reach.
        if status.details().is_empty() && error.reason() == Reason::Unreachable {
            return Self::Unreachable {
                server: server.name.clone(),
                address: server.address.to_string(),
                message: status.message().to_owned(),
            };
        }
        Self::Refused { server: server.name.clone(), error: Box::new(error) }
    }
}
