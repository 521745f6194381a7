//! The compression types of a wdiff (`formats.md` §6.2): their codes, their names, and the choice
//! that a person types (`zstd:3`).
//!
//! A [`Compression`] that exists is valid: its level is one that every reader can read back.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// How the data of a record is encoded (`formats.md` §6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CompressionKind {
    /// The blocks as they are.
    None,
    /// A zlib stream (RFC 1950), whatever its name says.
    Gzip,
    /// A raw snappy block.
    Snappy,
    /// An .xz container.
    Lzma,
    /// A raw LZ4 block, without frame and size.
    Lz4,
    /// One zstd frame.
    Zstd,
}

impl CompressionKind {
    /// All of them, in the order of their codes.
    pub const ALL: [Self; 6] =
        [Self::None, Self::Gzip, Self::Snappy, Self::Lzma, Self::Lz4, Self::Zstd];

    /// The kind with this code on disk; `None` for an unknown code.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Gzip),
            2 => Some(Self::Snappy),
            3 => Some(Self::Lzma),
            4 => Some(Self::Lz4),
            5 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The code on disk.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Gzip => 1,
            Self::Snappy => 2,
            Self::Lzma => 3,
            Self::Lz4 => 4,
            Self::Zstd => 5,
        }
    }

    /// The name that people type.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Snappy => "snappy",
            Self::Lzma => "lzma",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Levels that a writer may choose; `None` where the codec has no levels.
    ///
    /// Presets 7-9 of xz are left out: the original cannot read what they write.
    const fn levels(self) -> Option<RangeInclusive<i32>> {
        match self {
            Self::None | Self::Snappy | Self::Lz4 => None,
            Self::Gzip => Some(1..=9),
            Self::Lzma => Some(1..=6),
            Self::Zstd => Some(-7..=22),
        }
    }

    const fn default_level(self) -> i32 {
        match self {
            Self::None | Self::Snappy | Self::Lz4 => 0,
            Self::Gzip | Self::Lzma => 6,
            Self::Zstd => 1,
        }
    }
}

impl fmt::Display for CompressionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a writer is asked to use: a kind, and a level where the kind has levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Compression {
    kind: CompressionKind,
    level: Option<i32>,
}

/// The compression that was asked for does not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompressionError {
    /// No codec has this name.
    #[error("unknown compression {0:?}: use none, gzip, snappy, lzma, lz4 or zstd, or NAME:LEVEL")]
    UnknownName(String),
    /// The codec has no such level.
    #[error("{kind} has no level {level}: {}", hint(*kind))]
    Level {
        /// The codec.
        kind: CompressionKind,
        /// What was asked for.
        level: String,
    },
}

fn hint(kind: CompressionKind) -> String {
    match kind.levels() {
        None => "it takes none".to_owned(),
        Some(levels) => {
            format!("use {} to {}, or 0 for the default", levels.start(), levels.end())
        }
    }
}

impl Compression {
    /// Snappy: what the original writes everywhere, and the default of ours.
    pub const SNAPPY: Self = Self::of(CompressionKind::Snappy);
    /// No compression.
    pub const NONE: Self = Self::of(CompressionKind::None);

    /// This kind at its default level.
    #[must_use]
    pub const fn of(kind: CompressionKind) -> Self {
        Self { kind, level: None }
    }

    /// This kind at `level`; 0 is the default of the kind (`formats.md` §6.2).
    ///
    /// # Errors
    /// The kind has no such level.
    pub fn with_level(kind: CompressionKind, level: i32) -> Result<Self, CompressionError> {
        if level == 0 {
            return Ok(Self::of(kind));
        }
        match kind.levels() {
            Some(levels) if levels.contains(&level) => Ok(Self { kind, level: Some(level) }),
            _ => Err(CompressionError::Level { kind, level: level.to_string() }),
        }
    }

    /// The codec.
    #[must_use]
    pub const fn kind(self) -> CompressionKind {
        self.kind
    }

    /// The level that was asked for; `None` for the default.
    #[must_use]
    pub const fn level(self) -> Option<i32> {
        self.level
    }

    /// The level to run the codec at; 0 where it has none.
    pub(crate) fn effective_level(self) -> i32 {
        self.level.unwrap_or_else(|| self.kind.default_level())
    }
}

impl Default for Compression {
    fn default() -> Self {
        Self::SNAPPY
    }
}

impl FromStr for Compression {
    type Err = CompressionError;

    fn from_str(text: &str) -> Result<Self, CompressionError> {
        let (name, level) = match text.split_once(':') {
            Some((name, level)) => (name, Some(level)),
            None => (text, None),
        };
        let kind = CompressionKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| CompressionError::UnknownName(text.to_owned()))?;
        let Some(level) = level else {
            return Ok(Self::of(kind));
        };
        match level.parse() {
            Ok(level) => Self::with_level(kind, level),
            Err(_) => Err(CompressionError::Level { kind, level: level.to_owned() }),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level {
            None => write!(f, "{}", self.kind),
            Some(level) => write!(f, "{}:{level}", self.kind),
        }
    }
}
