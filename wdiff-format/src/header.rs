//! The header of a wdiff file: its type and the log that it came from (`formats.md` §6.1).

use std::fmt;

use wlog_format::units::LogUuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::layout::{
    FILE_HEADER_BYTES, RawFileHeader, TYPE_INDEXED, TYPE_SORTED, WDIFF_VERSION, is_sound,
    own_checksum,
};

/// The two kinds of wdiff file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Records in the order of their addresses, in packs: can be read as a stream.
    Sorted,
    /// Data in the order of arrival, the sorted index last: needs a file that can be read anywhere.
    Indexed,
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sorted => "sorted",
            Self::Indexed => "indexed",
        })
    }
}

/// The first 32 bytes of a wdiff file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// How the rest of the file is laid out.
    pub file_type: FileType,
    /// The log sequence that the data came from; zeros when it came from several or from none.
    pub uuid: LogUuid,
}

/// Why 32 bytes are no header of a wdiff file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a wdiff, or damaged.
    #[error("the file header contradicts its checksum: no wdiff, or damaged")]
    Checksum,
    /// A version that nobody writes.
    #[error("the file has wdiff version {0}, we know version {WDIFF_VERSION} only")]
    Version(u16),
    /// A type that nobody writes.
    #[error("the file has the unknown wdiff type {0}")]
    Type(u8),
}

impl FileHeader {
    /// Bytes of a header on disk.
    pub const BYTES: usize = FILE_HEADER_BYTES;

    /// Reads a header.
    ///
    /// # Errors
    /// Wrong checksum, or a version or type that we do not know.
    pub fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, HeaderError> {
        if !is_sound(bytes) {
            return Err(HeaderError::Checksum);
        }
        let raw = RawFileHeader::read_from_bytes(bytes).map_err(|_| HeaderError::Checksum)?;
        if raw.version.get() != WDIFF_VERSION {
            return Err(HeaderError::Version(raw.version.get()));
        }
        let file_type = match raw.file_type {
            TYPE_SORTED => FileType::Sorted,
            TYPE_INDEXED => FileType::Indexed,
            unknown => return Err(HeaderError::Type(unknown)),
        };
        Ok(Self { file_type, uuid: LogUuid(raw.uuid) })
    }

    /// The header as it lies on disk.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut raw = RawFileHeader {
            version: WDIFF_VERSION.into(),
            file_type: match self.file_type {
                FileType::Sorted => TYPE_SORTED,
                FileType::Indexed => TYPE_INDEXED,
            },
            uuid: self.uuid.0,
            ..RawFileHeader::default()
        };
        raw.checksum = own_checksum(raw.as_bytes());
        zerocopy::transmute!(raw)
    }
}
