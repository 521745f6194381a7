//! The units of the log: blocks, log sequence ids, and the identity of a log (`formats.md` §1).
//!
//! Each is a type of its own, so that sectors, physical blocks and bytes cannot be mixed.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// Bytes of a logical block (`formats.md` §1).
pub const LOGICAL_BLOCK_BYTES: u64 = 512;

const _: () = assert!(usize::BITS == 64, "walb runs on 64-bit hosts only");

/// A length that came from a checked 64-bit field, as an index.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "usize has 64 bits, asserted above")]
pub const fn to_usize(n: u64) -> usize {
    n as usize
}

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

unit! {
    /// A count or an address in logical blocks of 512 bytes.
    Lb
}
unit! {
    /// A count in physical blocks of the log device.
    Pb
}
unit! {
    /// Log sequence id: a position in the endless log, in physical blocks (`formats.md` §1).
    Lsid
}

impl Lb {
    /// The number of whole logical blocks in `bytes`.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes / LOGICAL_BLOCK_BYTES)
    }

    /// Bytes; saturates instead of wrapping.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0.saturating_mul(LOGICAL_BLOCK_BYTES)
    }

    /// `None` on overflow.
    #[must_use]
    pub const fn checked_add(self, n: Self) -> Option<Self> {
        match self.0.checked_add(n.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl Add for Lb {
    type Output = Self;
    fn add(self, n: Self) -> Self {
        Self(self.0 + n.0)
    }
}

impl AddAssign for Lb {
    fn add_assign(&mut self, n: Self) {
        self.0 += n.0;
    }
}

impl Sub for Lb {
    type Output = Self;
    fn sub(self, n: Self) -> Self {
        Self(self.0 - n.0)
    }
}

impl Add for Pb {
    type Output = Self;
    fn add(self, n: Self) -> Self {
        Self(self.0 + n.0)
    }
}

impl AddAssign for Pb {
    fn add_assign(&mut self, n: Self) {
        self.0 += n.0;
    }
}

impl Lsid {
    /// "No lsid" (`formats.md` §1); also the lsid of a terminator block.
    pub const INVALID: Self = Self(u64::MAX);
    /// The largest valid lsid.
    pub const MAX: Self = Self(u64::MAX - 1);

    /// The lsid `n` blocks further; `None` when that is no valid lsid.
    #[must_use]
    pub const fn checked_add(self, n: Pb) -> Option<Self> {
        match self.0.checked_add(n.0) {
            Some(sum) if sum <= Self::MAX.0 => Some(Self(sum)),
            _ => None,
        }
    }

    /// Blocks from `earlier` to this one; 0 when `earlier` is in fact later.
    #[must_use]
    pub const fn distance_from(self, earlier: Self) -> Pb {
        Pb(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Pb> for Lsid {
    type Output = Self;
    fn add(self, n: Pb) -> Self {
        Self(self.0 + n.0)
    }
}

/// Bytes of a physical block of the log device: a multiple of 512 that divides 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSize(u32);

impl BlockSize {
    /// 512 bytes.
    pub const B512: Self = Self(512);
    /// 4096 bytes.
    pub const B4096: Self = Self(4096);

    /// `None` unless `bytes` is a multiple of 512 that divides 4096 (`formats.md` §1).
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        match bytes {
            512 | 1024 | 2048 | 4096 => Some(Self(bytes)),
            _ => None,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// Bytes of one block, as an index.
    #[must_use]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }

    /// Logical blocks in one physical block.
    #[must_use]
    pub const fn logical_blocks(self) -> u64 {
        self.0 as u64 / LOGICAL_BLOCK_BYTES
    }

    /// Physical blocks that hold `n` logical blocks, rounded up.
    #[must_use]
    pub const fn pb(self, n: Lb) -> Pb {
        Pb(n.0.div_ceil(self.logical_blocks()))
    }

    /// Bytes of `n` physical blocks; saturates instead of wrapping.
    #[must_use]
    pub const fn bytes_of(self, n: Pb) -> u64 {
        n.0.saturating_mul(self.0 as u64)
    }
}

/// Salt of the log checksums: random, new with every log sequence (`formats.md` §2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Salt(pub u32);

/// Identity of one log sequence: 16 random bytes, new at format and at every log reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LogUuid(pub [u8; 16]);

impl LogUuid {
    /// All zeros: "none yet".
    pub const ZERO: Self = Self([0; 16]);

    /// A fresh random one.
    #[must_use]
    pub fn random() -> Self {
        Self(*uuid::Uuid::new_v4().as_bytes())
    }

    /// `None` unless `bytes` has length 16.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for LogUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
