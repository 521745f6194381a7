//! One write or discard on its way into the log.

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;
use wlog_format::checksum::checksum;
use wlog_format::units::{Lb, Salt};

use crate::core::Answer;
use crate::overlay::Payload;

/// The checksum of a payload before it is known which log it goes to.
///
/// The walb checksum is `-(salt + sum of words)`, so the salt can be put in later. This lets the
/// writers compute it, each for its own payload and all at the same time, while the one task that
/// orders writes only subtracts; and a log reset (new salt) may come in between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UnsaltedSum(u32);

impl UnsaltedSum {
    pub(crate) fn of(data: &[u8]) -> Self {
        Self(checksum(data, Salt(0)))
    }

    pub(crate) const fn with(self, salt: Salt) -> u32 {
        self.0.wrapping_sub(salt.0)
    }
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Body {
    Write { data: Bytes, sum: UnsaltedSum },
    Discard,
}

/// A write or discard that fits one record.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) address: Lb,
    pub(crate) blocks: Lb,
    pub(crate) body: Body,
    /// Acknowledge only when permanent.
    pub(crate) fua: bool,
    pub(crate) memory: OwnedSemaphorePermit,
    pub(crate) answer: Answer,
}

impl Request {
    /// What is written to the log for it, besides its record.
    pub(crate) const fn data(&self) -> Option<&Bytes> {
        match &self.body {
            Body::Write { data, .. } => Some(data),
            Body::Discard => None,
        }
    }

    /// What its range contains afterwards.
    pub(crate) fn payload(&self) -> Payload {
        match &self.body {
            Body::Write { data, .. } => Payload::Data(data.clone()),
            Body::Discard => Payload::Zero,
        }
    }

    /// Bytes of memory that it keeps until it is on the data device.
    pub(crate) fn payload_bytes(&self) -> u64 {
        self.data().map_or(0, |data| data.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_salt_can_be_put_in_later() {
        for salt in [0, 1, 0x1234_5678, u32::MAX] {
            let sum = UnsaltedSum::of(b"abcde");
            assert_eq!(sum.with(Salt(salt)), checksum(b"abcde", Salt(salt)));
        }
        // formats.md §2.1
        assert_eq!(UnsaltedSum::of(b"abcde").with(Salt(0x1234_5678)), 0x8968_46c2);
    }
}
