//! Messages to the types of the snapshot algebra and back. What arrives is checked: a message with
//! a missing field or with gids that make no snapshot or diff does not become a value.

use crate::v1;
use wdiff_format::gid::{BaseState, Diff, Gid, GidError, Snapshot};
use wlog_format::units::LogUuid;

/// Why a message is no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A field that must be there is not.
    #[error("message {message} lacks field {field}")]
    Missing {
        /// Name of the message.
        message: &'static str,
        /// Name of the field.
        field: &'static str,
    },
    /// The gids break a rule of the algebra.
    #[error(transparent)]
    Gid(#[from] GidError),
    /// A uuid that has not 16 bytes.
    #[error("a uuid of {0} bytes, not 16")]
    Uuid(usize),
}

fn required<T>(
    value: Option<T>,
    message: &'static str,
    field: &'static str,
) -> Result<T, ConvertError> {
    value.ok_or(ConvertError::Missing { message, field })
}

/// A uuid field; fails unless it has 16 bytes.
pub fn uuid(bytes: &[u8]) -> Result<LogUuid, ConvertError> {
    LogUuid::from_slice(bytes).ok_or(ConvertError::Uuid(bytes.len()))
}

/// A uuid as the bytes of a field.
#[must_use]
pub fn uuid_bytes(uuid: LogUuid) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&uuid.0)
}

impl From<Snapshot> for v1::Snapshot {
    fn from(s: Snapshot) -> Self {
        Self { gid_begin: s.begin().0, gid_end: s.end().0 }
    }
}

impl TryFrom<v1::Snapshot> for Snapshot {
    type Error = ConvertError;
    fn try_from(s: v1::Snapshot) -> Result<Self, ConvertError> {
        Ok(Self::new(Gid(s.gid_begin), Gid(s.gid_end))?)
    }
}

impl From<Diff> for v1::DiffMeta {
    fn from(d: Diff) -> Self {
        Self {
            begin: Some(d.begin().into()),
            end: Some(d.end().into()),
            mergeable: d.mergeable,
            comparison: d.comparison,
            timestamp_s: d.timestamp,
            size_bytes: d.size,
        }
    }
}

impl TryFrom<v1::DiffMeta> for Diff {
    type Error = ConvertError;
    fn try_from(d: v1::DiffMeta) -> Result<Self, ConvertError> {
        let begin = required(d.begin, "DiffMeta", "begin")?.try_into()?;
        let end = required(d.end, "DiffMeta", "end")?.try_into()?;
        let mut diff = Self::new(begin, end)?;
        diff.mergeable = d.mergeable;
        diff.comparison = d.comparison;
        diff.timestamp = d.timestamp_s;
        diff.size = d.size_bytes;
        Ok(diff)
    }
}

impl From<BaseState> for v1::BaseState {
    fn from(b: BaseState) -> Self {
        Self {
            begin: Some(b.snapshot().into()),
            end: b.applying_to().map(Into::into),
            timestamp_s: b.timestamp,
        }
    }
}

impl TryFrom<v1::BaseState> for BaseState {
    type Error = ConvertError;
    fn try_from(b: v1::BaseState) -> Result<Self, ConvertError> {
        let begin = required(b.begin, "BaseState", "begin")?.try_into()?;
        match b.end {
            Some(end) => Ok(Self::applying(begin, end.try_into()?, b.timestamp_s)?),
            None => Ok(Self::at(begin, b.timestamp_s)),
        }
    }
}
