//! The names of wdiff files (`formats.md` §7): the only durable home of a diff's metadata.
//!
//! `YYYYMMDDhhmmss-MC-B-E.wdiff` when both ends are clean, else
//! `YYYYMMDDhhmmss-MC-B.begin-B.end-E.begin-E.end.wdiff`. One diff has one name: what [`parse`]
//! accepts, [`to_file_name`] gives back.

use crate::gid::{Diff, Gid, GidError, Snapshot};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// What every name ends with.
pub const SUFFIX: &str = ".wdiff";

/// Why a name is not the name of a wdiff.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a wdiff name: {name:?}: {why}")]
pub struct NameError {
    /// The name, or the diff that cannot have one.
    pub name: String,
    /// What is wrong with it.
    pub why: NameFault,
}

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameFault {
    /// It does not end with [`SUFFIX`].
    #[error("it does not end with .wdiff")]
    Suffix,
    /// It is not cut by `-` where a name is.
    #[error("it is not TIME-FLAGS-GIDS")]
    Shape,
    /// The time is no time between 1970 and 9999.
    #[error("the time is no YYYYMMDDhhmmss from 1970 on")]
    Time,
    /// The flags are not `M` or `-`, then `C` or `-`.
    #[error("the flags are not M or -, then C or -")]
    Flags,
    /// There are not 2 or 4 gids.
    #[error("it has {0} gids, not 2 or 4")]
    GidCount(usize),
    /// A gid is no decimal number of 64 bits, or starts with a zero.
    #[error("{0:?} is no gid")]
    Gid(String),
    /// A clean diff with the four gids of a dirty one.
    #[error("a clean diff is named by two gids")]
    LongForm,
    /// The gids make no diff.
    #[error(transparent)]
    Algebra(Box<GidError>),
}

/// The file name of `diff`. Fails when its time is after the year 9999.
pub fn to_file_name(diff: &Diff) -> Result<String, NameError> {
    let time = time_text(diff.timestamp)
        .ok_or_else(|| NameError { name: diff.to_string(), why: NameFault::Time })?;
    let mergeable = if diff.mergeable { 'M' } else { '-' };
    let comparison = if diff.comparison { 'C' } else { '-' };
    let (b, e) = (diff.begin(), diff.end());
    let gids = if diff.is_clean() {
        format!("{}-{}", b.begin(), e.begin())
    } else {
        format!("{}-{}-{}-{}", b.begin(), b.end(), e.begin(), e.end())
    };
    Ok(format!("{time}-{mergeable}{comparison}-{gids}{SUFFIX}"))
}

/// The diff that `name` tells of; its size is 0 (the file knows it).
pub fn parse(name: &str) -> Result<Diff, NameError> {
    parse_parts(name).map_err(|why| NameError { name: name.to_owned(), why })
}

fn parse_parts(name: &str) -> Result<Diff, NameFault> {
    let stem = name.strip_suffix(SUFFIX).ok_or(NameFault::Suffix)?;
    let (time, rest) = stem.split_at_checked(14).ok_or(NameFault::Shape)?;
    let rest = rest.strip_prefix('-').ok_or(NameFault::Shape)?;
    let (flags, rest) = rest.split_at_checked(2).ok_or(NameFault::Shape)?;
    let gids = rest.strip_prefix('-').ok_or(NameFault::Shape)?;
    let timestamp = parse_time(time).ok_or(NameFault::Time)?;
    let (mergeable, comparison) = match flags {
        "--" => (false, false),
        "M-" => (true, false),
        "-C" => (false, true),
        "MC" => (true, true),
        _ => return Err(NameFault::Flags),
    };
    let (begin, end) = parse_gids(gids)?;
    let mut diff = Diff::new(begin, end).map_err(algebra)?;
    diff.mergeable = mergeable;
    diff.comparison = comparison;
    diff.timestamp = timestamp;
    Ok(diff)
}

fn algebra(err: GidError) -> NameFault {
    NameFault::Algebra(Box::new(err))
}

fn parse_gids(text: &str) -> Result<(Snapshot, Snapshot), NameFault> {
    // A fifth is enough to know that there are too many.
    let gids: Vec<Gid> = text.split('-').take(5).map(parse_gid).collect::<Result<_, _>>()?;
    match *gids.as_slice() {
        [begin, end] => Ok((Snapshot::clean(begin), Snapshot::clean(end))),
        [b0, b1, e0, e1] if b0 == b1 && e0 == e1 => Err(NameFault::LongForm),
        [b0, b1, e0, e1] => {
            Ok((Snapshot::new(b0, b1).map_err(algebra)?, Snapshot::new(e0, e1).map_err(algebra)?))
        }
        _ => Err(NameFault::GidCount(gids.len())),
    }
}

fn parse_gid(text: &str) -> Result<Gid, NameFault> {
    let canonical = all_digits(text) && (text == "0" || !text.starts_with('0'));
    let value = if canonical { text.parse().ok() } else { None };
    value.map(Gid).ok_or_else(|| NameFault::Gid(text.to_owned()))
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// `YYYYMMDDhhmmss` in UTC as Unix seconds.
fn parse_time(text: &str) -> Option<u64> {
    if !all_digits(text) {
        return None;
    }
    let digits = |at: usize, len: usize| text.get(at..at + len)?.parse::<i16>().ok();
    let small = |at: usize| i8::try_from(digits(at, 2)?).ok();
    let time =
        DateTime::new(digits(0, 4)?, small(4)?, small(6)?, small(8)?, small(10)?, small(12)?, 0);
    let zoned = time.ok()?.to_zoned(TimeZone::UTC).ok()?;
    u64::try_from(zoned.timestamp().as_second()).ok()
}

fn time_text(timestamp: u64) -> Option<String> {
    let time = jiff::Timestamp::from_second(i64::try_from(timestamp).ok()?).ok()?;
    Some(time.strftime("%Y%m%d%H%M%S").to_string())
}
