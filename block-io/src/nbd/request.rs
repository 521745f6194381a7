//! What a client may ask for: every request is judged here, before anything is allocated for it.
//!
//! Invariant: a [`Request`] lies inside the export, is aligned to its blocks, is not empty, and has
//! a payload (in either direction) of at most [`MAX_PAYLOAD_BYTES`].

use super::export::WriteZeroes;
use super::protocol::{
    Errno, MAX_PAYLOAD_BYTES, REQUEST_MAGIC, RequestHeader, command, command_flags,
};

/// The most that one query for block status looks at in bytes; the client asks on from there. It
/// bounds how many extents there can be.
pub(super) const MAX_STATUS_BYTES: u32 = 64 << 20;

/// What the extents of [`MAX_STATUS_BYTES`] may take when every other page is a hole.
const STATUS_MEMORY_BYTES: u32 = 512 << 10;

/// A request that may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) cookie: u64,
    /// Offset in bytes.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) len: u32,
    pub(super) kind: Kind,
}

impl Request {
    /// Memory in bytes that carrying it out takes; 0 if that is next to nothing.
    pub(super) fn memory_bytes(&self) -> u32 {
        match self.kind {
            Kind::Read { .. } | Kind::Write { .. } => self.len,
            Kind::BlockStatus { .. } => STATUS_MEMORY_BYTES,
            Kind::Flush | Kind::Trim { .. } | Kind::WriteZeroes(_) => 0,
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read { one_chunk: bool },
    Write { fua: bool },
    Flush,
    Trim { fua: bool },
    WriteZeroes(WriteZeroes),
    BlockStatus { one_extent: bool },
}

/// A judgement on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Do(Request),
    /// To be answered with an error, after `skip_bytes` of payload.
    Refuse {
        cookie: u64,
        errno: Errno,
        why: &'static str,
        skip_bytes: u32,
    },
    Disconnect,
    /// Not a request: the stream cannot be understood any more.
    Garbage,
}

/// What an export and a handshake permit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) size_bytes: u64,
    pub(super) block_bytes: u32,
    pub(super) read_only: bool,
    pub(super) zeroes_are_fast: bool,
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

type Refusal = (Errno, &'static str);

/// Judges a request.
pub(super) fn judge(header: &RequestHeader, rules: &Rules) -> Verdict {
    if header.magic != REQUEST_MAGIC {
        return Verdict::Garbage;
    }
    let command = header.command.get();
    if command == command::DISC {
        return Verdict::Disconnect;
    }
    let (cookie, offset, len) = (header.cookie.get(), header.offset.get(), header.len.get());
    match kind_of(header, rules).and_then(|kind| check_range(offset, len, kind, rules)) {
        Ok(kind) => Verdict::Do(Request { cookie, offset, len, kind }),
        Err((errno, why)) => {
            let skip_bytes = if command == command::WRITE { len } else { 0 };
            Verdict::Refuse { cookie, errno, why, skip_bytes }
        }
    }
}

fn kind_of(header: &RequestHeader, rules: &Rules) -> Result<Kind, Refusal> {
    use command_flags as flags;
    let set = header.flags.get();
    let has = |flag| set & flag != 0;
    let fua = has(flags::FUA);
    // FUA is valid with all commands, and means nothing with those that do not write.
    let (kind, allowed) = match header.command.get() {
        command::READ if rules.structured => (Kind::Read { one_chunk: has(flags::DF) }, flags::DF),
        command::READ => (Kind::Read { one_chunk: true }, 0),
        command::WRITE => (Kind::Write { fua }, 0),
        command::FLUSH => (Kind::Flush, 0),
        command::TRIM => (Kind::Trim { fua }, 0),
        command::WRITE_ZEROES => {
            let how = WriteZeroes { fua, no_hole: has(flags::NO_HOLE) };
            (Kind::WriteZeroes(how), flags::NO_HOLE | flags::FAST_ZERO)
        }
        command::BLOCK_STATUS if rules.allocation => {
            (Kind::BlockStatus { one_extent: has(flags::REQ_ONE) }, flags::REQ_ONE)
        }
        command::BLOCK_STATUS => return Err((Errno::Invalid, "no metadata context negotiated")),
        _ => return Err((Errno::Invalid, "unknown command")),
    };
    if set & !(allowed | flags::FUA) != 0 {
        return Err((Errno::Invalid, "unknown command flag"));
    }
    let modifies = matches!(kind, Kind::Write { .. } | Kind::Trim { .. } | Kind::WriteZeroes(_));
    if modifies && rules.read_only {
        return Err((Errno::NotPermitted, "export is read-only"));
    }
    if has(flags::FAST_ZERO) && !rules.zeroes_are_fast {
        return Err((Errno::NotSupported, "zeroing is not faster than writing"));
    }
    Ok(kind)
}

fn check_range(offset: u64, len: u32, kind: Kind, rules: &Rules) -> Result<Kind, Refusal> {
    if kind == Kind::Flush {
        let zero = offset == 0 && len == 0;
        return if zero { Ok(kind) } else { Err((Errno::Invalid, "flush with a range")) };
    }
    if len == 0 {
        return Err((Errno::Invalid, "empty request"));
    }
    if len > MAX_PAYLOAD_BYTES && matches!(kind, Kind::Read { .. } | Kind::Write { .. }) {
        let errno = match kind {
            Kind::Read { .. } if rules.structured => Errno::Overflow,
            _ => Errno::Invalid,
        };
        return Err((errno, "payload longer than the advertised maximum"));
    }
    let end = offset.checked_add(u64::from(len));
    if end.is_none_or(|end| end > rules.size_bytes) {
        let errno = match kind {
            Kind::Write { .. } | Kind::WriteZeroes(_) => Errno::NoSpace,
            _ => Errno::Invalid,
        };
        return Err((errno, "beyond the end of the export"));
    }
    if !offset.is_multiple_of(u64::from(rules.block_bytes))
        || !len.is_multiple_of(rules.block_bytes)
    {
        return Err((Errno::Invalid, "not aligned to the minimum block size"));
    }
    Ok(kind)
}

#[cfg(test)]
mod tests {
    use zerocopy::big_endian::{U16, U32, U64};

    use super::*;

    const RULES: Rules = Rules {
        size_bytes: 1 << 30,
        block_bytes: 512,
        read_only: false,
        zeroes_are_fast: false,
        structured: true,
        allocation: true,
    };

    fn header(command: u16, flags: u16, offset: u64, len: u32) -> RequestHeader {
        RequestHeader {
            magic: U32::new(REQUEST_MAGIC),
            flags: U16::new(flags),
            command: U16::new(command),
            cookie: U64::new(7),
            offset: U64::new(offset),
            len: U32::new(len),
        }
    }

    fn refused(header: RequestHeader, rules: &Rules) -> (u32, u32) {
        match judge(&header, rules) {
            Verdict::Refuse { errno, skip_bytes, .. } => (errno.code(), skip_bytes),
            other => panic!("{header:?} gave {other:?}"),
        }
    }

    #[test]
    fn ranges_are_checked_without_overflow() {
        let size = RULES.size_bytes;
        assert!(matches!(judge(&header(0, 0, size - 512, 512), &RULES), Verdict::Do(_)));
        assert_eq!(refused(header(0, 0, size - 512, 1024), &RULES), (22, 0));
        assert_eq!(refused(header(0, 0, u64::MAX - 511, 512), &RULES), (22, 0));
        assert_eq!(refused(header(1, 0, u64::MAX - 511, 512), &RULES), (28, 512));
        assert_eq!(refused(header(6, 0, size, 512), &RULES), (28, 0));
        assert_eq!(refused(header(4, 0, size, 512), &RULES), (22, 0));
        assert_eq!(refused(header(7, 0, size, 512), &RULES), (22, 0));
        assert_eq!(refused(header(0, 0, 1, 512), &RULES), (22, 0));
        assert_eq!(refused(header(1, 0, 512, 511), &RULES), (22, 511));
        assert_eq!(refused(header(1, 0, 0, 0), &RULES), (22, 0));
    }

    #[test]
    fn payloads_longer_than_the_maximum_are_refused_but_effects_are_not() {
        let too_long = (32 << 20) + 512;
        assert_eq!(refused(header(0, 0, 0, too_long), &RULES), (75, 0));
        let simple = Rules { structured: false, ..RULES };
        assert_eq!(refused(header(0, 0, 0, too_long), &simple), (22, 0));
        assert_eq!(refused(header(1, 0, 0, too_long), &RULES), (22, too_long));
        for command in [4, 6, 7] {
            assert!(matches!(judge(&header(command, 0, 0, 1 << 30), &RULES), Verdict::Do(_)));
        }
    }

    #[test]
    fn flags_are_accepted_only_where_they_mean_something() {
        for (command, flags) in [(0, 2), (1, 4), (3, 8), (4, 2), (6, 4), (7, 16), (1, 1 << 9)] {
            let len = if command == 3 { 0 } else { 512 };
            assert_eq!(refused(header(command, flags, 0, len), &RULES).0, 22, "{command} {flags}");
            let fua = judge(&header(command, 1, 0, len), &RULES);
            assert!(matches!(fua, Verdict::Do(_)), "{command} with FUA: {fua:?}");
        }
        let simple = Rules { structured: false, ..RULES };
        assert_eq!(refused(header(0, 4, 0, 512), &simple).0, 22);
        assert_eq!(refused(header(6, 16, 0, 512), &RULES).0, 95);
        let fast = Rules { zeroes_are_fast: true, ..RULES };
        assert!(matches!(judge(&header(6, 16, 0, 512), &fast), Verdict::Do(_)));
    }

    #[test]
    fn a_read_only_export_refuses_what_modifies() {
        let rules = Rules { read_only: true, ..RULES };
        for (command, skip) in [(1, 512), (4, 0), (6, 0)] {
            assert_eq!(refused(header(command, 0, 0, 512), &rules), (1, skip));
        }
        assert!(matches!(judge(&header(3, 0, 0, 0), &rules), Verdict::Do(_)));
    }

    #[test]
    fn what_is_no_request_is_told_from_what_is_unknown() {
        let mut garbage = header(0, 0, 0, 512);
        garbage.magic = U32::new(0x1256_0953);
        assert_eq!(judge(&garbage, &RULES), Verdict::Garbage);
        assert_eq!(judge(&header(2, 0, 0, 0), &RULES), Verdict::Disconnect);
        assert_eq!(refused(header(99, 0, 0, 512), &RULES), (22, 0));
        let plain = Rules { allocation: false, ..RULES };
        assert_eq!(refused(header(7, 0, 0, 512), &plain), (22, 0));
    }
}
