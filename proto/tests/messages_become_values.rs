//! Conversions between messages and the snapshot algebra: lossless for values, strict with
//! messages.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a test may panic")]

use proto::convert::{ConvertError, uuid, uuid_bytes};
use proto::v1;
use wdiff_format::gid::{BaseState, Diff, Gid, Snapshot};
use wlog_format::units::LogUuid;

fn dirty(begin: u64, end: u64) -> Snapshot {
    Snapshot::new(Gid(begin), Gid(end)).unwrap()
}

#[test]
fn values_come_back() {
    let mut d = Diff::new(dirty(5, 8), dirty(16, 20)).unwrap();
    (d.mergeable, d.comparison, d.timestamp, d.size) = (true, true, 7, 9);
    let message = v1::DiffMeta::from(d);
    assert_eq!((message.timestamp_s, message.size_bytes), (7, 9));
    let back = Diff::try_from(message).unwrap();
    assert_eq!(back, d);
    assert_eq!((back.mergeable, back.comparison, back.timestamp, back.size), (true, true, 7, 9));
    for b in
        [BaseState::at(dirty(0, 3), 5), BaseState::applying(dirty(0, 3), dirty(4, 4), 6).unwrap()]
    {
        assert_eq!(BaseState::try_from(v1::BaseState::from(b)).unwrap(), b);
    }
    let id = LogUuid([3; 16]);
    assert_eq!(uuid(&uuid_bytes(id)).unwrap(), id);
}

#[test]
fn incomplete_or_impossible_messages_are_refused() {
    let backwards = v1::Snapshot { gid_begin: 2, gid_end: 1 };
    assert!(matches!(Snapshot::try_from(backwards), Err(ConvertError::Gid(_))));
    let full = v1::DiffMeta::from(Diff::clean(Gid(1), Gid(2)).unwrap());
    let lacks = |d: v1::DiffMeta, field| {
        let err = Diff::try_from(d).unwrap_err();
        assert_eq!(err, ConvertError::Missing { message: "DiffMeta", field });
    };
    lacks(v1::DiffMeta { begin: None, ..full }, "begin");
    lacks(v1::DiffMeta { end: None, ..full }, "end");
    let still = v1::DiffMeta { end: full.begin, ..full };
    assert!(matches!(Diff::try_from(still), Err(ConvertError::Gid(_))));
    assert!(BaseState::try_from(v1::BaseState::default()).is_err());
    let s = Some(v1::Snapshot { gid_begin: 3, gid_end: 3 });
    let still = v1::BaseState { begin: s, end: s, timestamp_s: 0 };
    assert!(matches!(BaseState::try_from(still), Err(ConvertError::Gid(_))));
    assert_eq!(uuid(&[0; 15]), Err(ConvertError::Uuid(15)));
}
