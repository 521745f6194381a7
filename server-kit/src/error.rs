//! One error type for every role: what was attempted, on what, why it failed, what to do next.
//!
//! Invariants: each error has exactly one [`Reason`], on which callers branch; it crosses the wire
//! as a gRPC code plus an encoded [`ErrorDetail`] and comes back as the same error. A status
//! without detail was not made by one of our servers, so it speaks about the connection.
use crate::durable::DurableError;
use prost::Message;
use proto::v1::ErrorDetail;
pub use proto::v1::Reason;
use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use tonic::{Code, Status};

/// An error of a role. Cheap to move; build it with a constructor per reason and refine it.
#[derive(Debug)]
pub struct RoleError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    detail: ErrorDetail,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl RoleError {
    /// An error with this reason; `message` says what was attempted and on what.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        let detail = ErrorDetail { reason: reason.into(), ..ErrorDetail::default() };
        Self(Box::new(Inner { detail, message: message.into(), source: None }))
    }

    /// The volume is not known to this server.
    #[must_use]
    pub fn unknown_volume(volume: impl AsRef<str>) -> Self {
        let volume = volume.as_ref();
        Self::new(Reason::UnknownVolume, format!("volume {volume} is not known here"))
            .with_volume(volume)
            .with_next_step("list what is: walbc list-volumes SERVER")
    }

    /// The volume's state does not allow `attempt`; `allowed` would.
    #[must_use]
    pub fn wrong_state(
        volume: impl AsRef<str>,
        attempt: &str,
        state: impl fmt::Display,
        allowed: &[String],
    ) -> Self {
        let volume = volume.as_ref();
        let message = format!(
            "cannot {attempt} volume {volume}: its state is {state}, needed is {}",
            allowed.join(" or ")
        );
        Self::new(Reason::WrongState, message).with_volume(volume).with_state(state, allowed)
    }

    /// Another operation on this volume runs.
    #[must_use]
    pub fn busy(volume: impl AsRef<str>, message: impl Into<String>) -> Self {
        Self::new(Reason::Busy, message).with_volume(volume)
    }

    /// The volume or the server is being stopped.
    #[must_use]
    pub fn stopping(message: impl Into<String>) -> Self {
        Self::new(Reason::Stopping, message)
    }

    /// No space left where `attempt` wanted to write.
    #[must_use]
    pub fn no_space(attempt: impl Into<String>) -> Self {
        Self::new(Reason::NoSpace, attempt)
            .with_next_step("free space there; it goes on by itself then")
    }

    /// Logs were lost; a backup must start anew.
    #[must_use]
    pub fn overflow(volume: impl AsRef<str>, message: impl Into<String>) -> Self {
        Self::new(Reason::Overflow, message).with_volume(volume)
    }

    /// A file, device or stream fails its check (I8).
    #[must_use]
    pub fn damaged(message: impl Into<String>) -> Self {
        Self::new(Reason::Damaged, message)
    }

    /// No such snapshot.
    #[must_use]
    pub fn unknown_snapshot(volume: impl AsRef<str>, message: impl Into<String>) -> Self {
        Self::new(Reason::UnknownSnapshot, message).with_volume(volume)
    }

    /// Two sizes that had to agree do not.
    #[must_use]
    pub fn wrong_size(message: impl Into<String>) -> Self {
        Self::new(Reason::WrongSize, message)
    }

    /// The peer is another role, volume or log history than expected.
    #[must_use]
    pub fn wrong_peer(message: impl Into<String>) -> Self {
        Self::new(Reason::WrongPeer, message)
    }

    /// The request itself makes no sense.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// A server that this one needs does not answer.
    #[must_use]
    pub fn unreachable(peer: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::new(Reason::Unreachable, format!("cannot reach {peer}: {why}"))
    }

    /// Something of that name is there already.
    #[must_use]
    pub fn already_exists(message: impl Into<String>) -> Self {
        Self::new(Reason::AlreadyExists, message)
    }

    /// Somebody asked for this to be given up.
    #[must_use]
    pub fn cancelled(message: impl Into<String>) -> Self {
        Self::new(Reason::Cancelled, message)
    }

    /// The operating system failed `attempt` on `file`; a full disk is [`Reason::NoSpace`].
    #[must_use]
    pub fn io(attempt: &str, file: impl AsRef<Path>, source: io::Error) -> Self {
        let file = file.as_ref().display().to_string();
        let message = format!("cannot {attempt} {file}");
        let error = match source.kind() {
            _ if is_no_space(&source) => Self::no_space(message),
            io::ErrorKind::ReadOnlyFilesystem => Self::new(Reason::Io, message).with_next_step(
                "its file system is read-only: the kernel's log says why; mount it writable again",
            ),
            _ => Self::new(Reason::Io, message),
        };
        error.with_file(file).with_source(source)
    }

    /// Names the volume.
    #[must_use]
    pub fn with_volume(mut self, volume: impl AsRef<str>) -> Self {
        volume.as_ref().clone_into(&mut self.0.detail.volume);
        self
    }

    /// Tells the state that was met and those that would do.
    #[must_use]
    pub fn with_state(mut self, state: impl fmt::Display, allowed: &[String]) -> Self {
        self.0.detail.state = state.to_string();
        self.0.detail.allowed_states = allowed.to_vec();
        self
    }

    /// Names the file, device or stream.
    #[must_use]
    pub fn with_file(mut self, file: impl Into<String>) -> Self {
        self.0.detail.file = file.into();
        self
    }

    /// Says what a person can do now.
    #[must_use]
    pub fn with_next_step(mut self, step: impl Into<String>) -> Self {
        self.0.detail.next_step = step.into();
        self
    }

    /// Keeps the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What to branch on.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.0.detail.reason()
    }

    /// The typed part, as it goes over the wire.
    #[must_use]
    pub fn detail(&self) -> &ErrorDetail {
        &self.0.detail
    }

    /// What was attempted, without its causes.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The message followed by every cause, on one line.
    #[must_use]
    pub fn full_message(&self) -> String {
        chain(self)
    }

    /// Whether a file system that is read-only is behind it.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        let mut cause = self.source();
        while let Some(error) = cause {
            let io = error.downcast_ref::<io::Error>();
            if io.is_some_and(|e| e.kind() == io::ErrorKind::ReadOnlyFilesystem) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// The error behind a status that `peer` answered, or that the way to it produced.
    #[must_use]
    pub fn from_status(peer: impl fmt::Display, status: &Status) -> Self {
        match ErrorDetail::decode(status.details()) {
            Ok(detail) if detail.reason() != Reason::Unspecified => {
                let message = status.message().to_owned();
                Self(Box::new(Inner { detail, message, source: None }))
            }
            _ => Self::from_bare_status(peer, status),
        }
    }

    fn from_bare_status(peer: impl fmt::Display, status: &Status) -> Self {
        let said = format!("{peer} answered {:?}: {}", status.code(), status.message());
        match status.code() {
            Code::Unimplemented => Self::wrong_peer(said)
                .with_next_step("check the address: another role or version answers there"),
            Code::InvalidArgument | Code::OutOfRange | Code::ResourceExhausted => {
                Self::bad_request(said)
            }
            _ => {
                let cause = status.source().map(|e| format!(" ({})", chain(e))).unwrap_or_default();
                Self::unreachable(peer, format!("{}{cause}", status.message()))
            }
        }
    }
}

/// An error and its causes, on one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        // Some errors tell their causes themselves.
        if !text.ends_with(&next_text) {
            text = format!("{text}: {next_text}");
        }
        cause = next.source();
    }
    text
}

/// Whether the operating system says that a disk or quota is full.
#[must_use]
pub fn is_no_space(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn code(reason: Reason) -> Code {
    match reason {
        Reason::Unspecified => Code::Unknown,
        Reason::UnknownVolume | Reason::UnknownSnapshot => Code::NotFound,
        Reason::WrongState
        | Reason::Overflow
        | Reason::WrongSize
        | Reason::WrongPeer
        | Reason::NeedsResync => Code::FailedPrecondition,
        Reason::Busy => Code::Aborted,
        Reason::Stopping | Reason::Unreachable => Code::Unavailable,
        Reason::NoSpace => Code::ResourceExhausted,
        Reason::Damaged => Code::DataLoss,
        Reason::BadRequest => Code::InvalidArgument,
        Reason::Io => Code::Internal,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::Cancelled => Code::Cancelled,
    }
}

impl fmt::Display for RoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl Error for RoleError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

impl From<RoleError> for Status {
    fn from(error: RoleError) -> Self {
        let detail = error.0.detail.encode_to_vec();
        Status::with_details(code(error.reason()), error.full_message(), detail.into())
    }
}

impl From<DurableError> for RoleError {
    fn from(error: DurableError) -> Self {
        match error {
            DurableError::Io { attempt, file, source } => Self::io(attempt, file, source),
            DurableError::Damaged { ref file, .. } => {
                let file = file.display().to_string();
                Self::damaged(error.to_string()).with_file(file)
            }
            DurableError::Foreign { ref dir, .. } => {
                let file = dir.display().to_string();
                Self::wrong_peer(error.to_string()).with_file(file)
            }
            DurableError::BadName { .. } => Self::bad_request(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_crosses_the_wire_unchanged() {
        for number in 1..=16 {
            let reason = Reason::try_from(number).unwrap();
            let error = RoleError::new(reason, "cannot do it")
                .with_volume("v0")
                .with_state("Stopped", &["Started".into()])
                .with_file("/d/f")
                .with_next_step("start v0");
            let sent = error.detail().clone();
            let back = RoleError::from_status("p0", &Status::from(error));
            assert_eq!(back.reason(), reason);
            assert_eq!(back.detail(), &sent);
            assert_eq!(back.to_string(), "cannot do it");
        }
        assert!(Reason::try_from(17).is_err(), "a new reason: extend this test");
    }

    #[test]
    fn a_status_of_the_transport_is_an_unreachable_peer_by_name() {
        for code in [Code::Unavailable, Code::Unknown, Code::DeadlineExceeded, Code::Cancelled] {
            let error = RoleError::from_status("a0", &Status::new(code, "tcp connect error"));
            assert_eq!(error.reason(), Reason::Unreachable);
            assert_eq!(error.to_string(), "cannot reach a0: tcp connect error");
        }
        let other = RoleError::from_status("a0", &Status::new(Code::Unimplemented, ""));
        assert_eq!(other.reason(), Reason::WrongPeer);
    }

    #[test]
    fn garbage_in_the_details_is_no_detail() {
        let status = Status::with_details(Code::Unavailable, "x", vec![0xff; 9].into());
        assert_eq!(RoleError::from_status("a0", &status).reason(), Reason::Unreachable);
    }

    #[test]
    fn a_full_disk_is_told_from_other_failures_and_causes_are_kept() {
        let full = RoleError::io("write", "/d/f", io::Error::from_raw_os_error(28));
        assert_eq!(full.reason(), Reason::NoSpace);
        let broken = RoleError::io("write", "/d/f", io::Error::from_raw_os_error(5));
        assert_eq!(broken.reason(), Reason::Io);
        assert_eq!(broken.detail().file, "/d/f");
        let status = Status::from(broken);
        assert!(status.message().starts_with("cannot write /d/f: Input/output error"));
    }
}
