//! The header of a wlog file (`formats.md` §5.1).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{checksum, is_sound};
use crate::units::{BlockSize, LOGICAL_BLOCK_BYTES, LogUuid, Lsid, Salt};

/// Size of the header of a wlog file.
pub const HEADER_BYTES: usize = 4096;

const SECTOR_TYPE: u16 = 4;
const LOG_VERSION: u16 = 2;

/// 4096 bytes, of which the first 56 are used.
///
/// | Off | Size | Field |
/// |---|---|---|
/// | 0 | u16 | sector_type = 4 |
/// | 2 | u16 | version = 2 |
/// | 4 | u16 | header_size = 4096 |
/// | 6 | u16 | reserved = 0 |
/// | 8 | u32 | checksum, salt 0 over 4096 bytes |
/// | 12 | u32 | log_checksum_salt of the packs that follow |
/// | 16 | u32 | logical_bs = 512 |
/// | 20 | u32 | physical_bs |
/// | 24 | 16 B | uuid of the log sequence |
/// | 40 | u64 | begin_lsid: of the first pack |
/// | 48 | u64 | end_lsid > begin_lsid: an upper bound, often 2^64-1 |
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawWlogHeader {
    sector_type: U16,
    version: U16,
    header_size: U16,
    reserved: U16,
    checksum: U32,
    log_checksum_salt: U32,
    logical_bs: U32,
    physical_bs: U32,
    uuid: [u8; 16],
    begin_lsid: U64,
    end_lsid: U64,
}

const _: () = assert!(size_of::<RawWlogHeader>() == 56);

/// What the packs of a wlog have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WlogHeader {
    /// Physical block size.
    pub block_size: BlockSize,
    /// Salt of all checksums behind the header.
    pub salt: Salt,
    /// The log sequence that it was cut from.
    pub uuid: LogUuid,
    /// Lsid of the first pack.
    pub begin: Lsid,
    /// An upper bound of the end, often [`Lsid::INVALID`].
    pub end: Lsid,
}

/// Why bytes are no wlog header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WlogHeaderError {
    /// Fewer bytes than a header has.
    #[error("the wlog header is cut short: {0} of {HEADER_BYTES} bytes")]
    Short(usize),
    /// Something else.
    #[error("no wlog here: sector type {0} instead of {SECTOR_TYPE}")]
    SectorType(u16),
    /// The bytes were changed after they were written.
    #[error("the checksum of the wlog header is wrong: it is damaged")]
    Checksum,
    /// A version that we do not know.
    #[error("a wlog of version {0}; this program knows version {LOG_VERSION}")]
    Version(u16),
    /// Sizes that no wlog has.
    #[error("a wlog header of {header} bytes for block sizes {logical}/{physical}")]
    Sizes {
        /// header_size.
        header: u16,
        /// logical_bs.
        logical: u32,
        /// physical_bs.
        physical: u32,
    },
    /// The end is not behind the begin.
    #[error("a wlog from lsid {begin} to {end}")]
    Range {
        /// begin_lsid.
        begin: Lsid,
        /// end_lsid.
        end: Lsid,
    },
}

impl WlogHeader {
    /// Reads the header from the start of `bytes`.
    ///
    /// # Errors
    /// When it is no sound wlog header.
    pub fn decode(bytes: &[u8]) -> Result<Self, WlogHeaderError> {
        let bytes = bytes.get(..HEADER_BYTES).ok_or(WlogHeaderError::Short(bytes.len()))?;
        let (raw, _) = RawWlogHeader::ref_from_prefix(bytes)
            .map_err(|_| WlogHeaderError::Short(bytes.len()))?;
        if raw.sector_type != SECTOR_TYPE {
            return Err(WlogHeaderError::SectorType(raw.sector_type.get()));
        }
        if !is_sound(bytes, Salt(0)) {
            return Err(WlogHeaderError::Checksum);
        }
        if raw.version != LOG_VERSION {
            return Err(WlogHeaderError::Version(raw.version.get()));
        }
        let header = raw.header_size.get();
        let (logical, physical) = (raw.logical_bs.get(), raw.physical_bs.get());
        let block_size = BlockSize::new(physical)
            .filter(|_| u64::from(logical) == LOGICAL_BLOCK_BYTES)
            .filter(|_| usize::from(header) == HEADER_BYTES)
            .ok_or(WlogHeaderError::Sizes { header, logical, physical })?;
        let (begin, end) = (Lsid(raw.begin_lsid.get()), Lsid(raw.end_lsid.get()));
        if begin >= end {
            return Err(WlogHeaderError::Range { begin, end });
        }
        let (salt, uuid) = (Salt(raw.log_checksum_salt.get()), LogUuid(raw.uuid));
        Ok(Self { block_size, salt, uuid, begin, end })
    }

    /// The header's 4096 bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawWlogHeader {
            sector_type: U16::new(SECTOR_TYPE),
            version: U16::new(LOG_VERSION),
            header_size: U16::new(4096),
            reserved: U16::ZERO,
            checksum: U32::ZERO,
            log_checksum_salt: U32::new(self.salt.0),
            logical_bs: U32::new(512),
            physical_bs: U32::new(self.block_size.bytes()),
            uuid: self.uuid.0,
            begin_lsid: U64::new(self.begin.0),
            end_lsid: U64::new(self.end.0),
        };
        // The rest of the header is zero and adds nothing to the sum.
        raw.checksum = U32::new(checksum(raw.as_bytes(), Salt(0)));
        let mut bytes = raw.as_bytes().to_vec();
        bytes.resize(HEADER_BYTES, 0);
        bytes
    }
}
