//! The super sector of a log device: identity, geometry and the two persistent lsids
//! (`formats.md` §3.1-§3.5).
//!
//! The original does not verify its checksum when it reads; we do, always.

use rand::random;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{checksum, is_sound};
use crate::ring::Ring;
use crate::units::{BlockSize, LOGICAL_BLOCK_BYTES, Lb, LogUuid, Lsid, Pb, Salt};

/// Where the super sector starts, whatever the block size.
pub const SUPER_OFFSET_BYTES: u64 = 4096;

/// The smallest ring that we format: room for a few small packs.
pub const MIN_RING: Pb = Pb(16);

const SECTOR_TYPE: u16 = 1;
const LOG_VERSION: u16 = 2;
/// Bytes of the name field, terminating NUL included.
const NAME_BYTES: usize = 32;

/// 104 bytes, the rest of the physical block is zero.
///
/// | Off | Size | Field |
/// |---|---|---|
/// | 0 | u16 | sector_type = 1 |
/// | 2 | u16 | version = 2 |
/// | 4 | u32 | checksum, salt 0 over the physical block |
/// | 8 | u32 | logical_bs = 512 |
/// | 12 | u32 | physical_bs |
/// | 16 | u32 | metadata_size: legacy metadata blocks, 0 today |
/// | 20 | u32 | log_checksum_salt |
/// | 24 | 16 B | uuid |
/// | 40 | 32 B | name, NUL-terminated |
/// | 72 | u64 | ring_buffer_size [pb] |
/// | 80 | u64 | oldest_lsid |
/// | 88 | u64 | written_lsid |
/// | 96 | u64 | device_size [lb] |
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawSuperBlock {
    sector_type: U16,
    version: U16,
    checksum: U32,
    logical_bs: U32,
    physical_bs: U32,
    metadata_size: U32,
    log_checksum_salt: U32,
    uuid: [u8; 16],
    name: [u8; NAME_BYTES],
    ring_buffer_size: U64,
    oldest_lsid: U64,
    written_lsid: U64,
    device_size: U64,
}

const _: () = assert!(size_of::<RawSuperBlock>() == 104);

/// What the super sector says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SuperBlock {
    /// Physical block size of log and data device.
    pub block_size: BlockSize,
    /// Legacy metadata blocks between the super sectors; 0 on every log device of today.
    pub metadata_blocks: u32,
    /// Salt of the log checksums.
    pub salt: Salt,
    /// Identity of this log sequence.
    pub uuid: LogUuid,
    /// Default name of the volume.
    pub name: DeviceName,
    /// Blocks in the ring.
    pub ring_size: Pb,
    /// Logs before it may be overwritten.
    pub oldest: Lsid,
    /// Logs before it are on the data device; redo starts here.
    pub written: Lsid,
    /// Size of the volume.
    pub device_size: Lb,
}

/// Why bytes are no super sector, or why none can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperBlockError {
    /// Fewer bytes than a physical block.
    #[error("the super sector is cut short: {got} of {want} bytes")]
    Short {
        /// Bytes needed.
        want: usize,
        /// Bytes given.
        got: usize,
    },
    /// Another kind of block: most likely not a walb log device.
    #[error(
        "no super sector here: sector type {0} instead of {SECTOR_TYPE}; is this a log device?"
    )]
    SectorType(u16),
    /// A version that we do not know.
    #[error("super sector of log version {0}; this program knows version {LOG_VERSION}")]
    Version(u16),
    /// The block sizes make no sense.
    #[error("super sector with block sizes {logical}/{physical}, which no log device has")]
    BlockSize {
        /// logical_bs.
        logical: u32,
        /// physical_bs.
        physical: u32,
    },
    /// The bytes were changed after they were written.
    #[error(
        "the checksum of the super sector is wrong: it is damaged, and the log behind it cannot be \
         trusted (format the log device anew, then take a hash backup)"
    )]
    Checksum,
    /// The name field has no terminating NUL.
    #[error("the name in the super sector is not terminated")]
    Name,
    /// The lsids contradict each other.
    #[error("super sector with oldest lsid {oldest} and written lsid {written}")]
    Lsids {
        /// oldest_lsid.
        oldest: Lsid,
        /// written_lsid.
        written: Lsid,
    },
    /// A ring or a device of impossible size.
    #[error("super sector with a ring of {ring} blocks and a volume of {device} sectors")]
    Geometry {
        /// ring_buffer_size.
        ring: Pb,
        /// device_size.
        device: Lb,
    },
    /// The ring does not lie on the log device.
    #[error("the ring ends at byte {ring_end}, the log device at {log_bytes}: it was cut short")]
    Cut {
        /// First byte behind the ring.
        ring_end: u64,
        /// Size of the log device.
        log_bytes: u64,
    },
    /// Too small to be formatted.
    #[error("a log device of {0} bytes is too small: its ring needs at least {MIN_RING} blocks")]
    TooSmall(u64),
}

impl SuperBlock {
    /// A new log for a log device of `log_bytes`: fresh uuid and salt, empty ring.
    ///
    /// # Errors
    /// When the log device is too small for a ring.
    pub fn for_format(
        log_bytes: u64,
        block_size: BlockSize,
        device_size: Lb,
        name: DeviceName,
    ) -> Result<Self, SuperBlockError> {
        let mut made = Self {
            block_size,
            metadata_blocks: 0,
            salt: Salt(0),
            uuid: LogUuid::ZERO,
            name,
            ring_size: Pb(0),
            oldest: Lsid(0),
            written: Lsid(0),
            device_size,
        };
        made.reset(log_bytes)?;
        Ok(made)
    }

    /// Starts a new log sequence (`formats.md` §3.5): new uuid and salt, all lsids zero, the ring
    /// as large as the device allows. The caller also overwrites the block of lsid 0 with zeros.
    ///
    /// # Errors
    /// When the log device is too small for a ring.
    pub fn reset(&mut self, log_bytes: u64) -> Result<(), SuperBlockError> {
        let blocks = log_bytes / u64::from(self.block_size.bytes());
        let ring_size = Pb(blocks.saturating_sub(self.ring_offset().0));
        if ring_size.0 < MIN_RING.0 {
            return Err(SuperBlockError::TooSmall(log_bytes));
        }
        self.ring_size = ring_size;
        self.salt = Salt(random());
        self.uuid = LogUuid::random();
        self.oldest = Lsid(0);
        self.written = Lsid(0);
        self.check()
    }

    /// Reads the bytes from [`SUPER_OFFSET_BYTES`] on; bytes behind the physical block are ignored,
    /// so 4096 of them always suffice.
    ///
    /// # Errors
    /// When this is no sound super sector.
    pub fn decode(bytes: &[u8]) -> Result<Self, SuperBlockError> {
        let short = |want| SuperBlockError::Short { want, got: bytes.len() };
        let (raw, _) =
            RawSuperBlock::ref_from_prefix(bytes).map_err(|_| short(size_of::<RawSuperBlock>()))?;
        if raw.sector_type != SECTOR_TYPE {
            return Err(SuperBlockError::SectorType(raw.sector_type.get()));
        }
        let (logical, physical) = (raw.logical_bs.get(), raw.physical_bs.get());
        let block_size = BlockSize::new(physical)
            .filter(|_| u64::from(logical) == LOGICAL_BLOCK_BYTES)
            .ok_or(SuperBlockError::BlockSize { logical, physical })?;
        let block =
            bytes.get(..block_size.as_usize()).ok_or_else(|| short(block_size.as_usize()))?;
        if !is_sound(block, Salt(0)) {
            return Err(SuperBlockError::Checksum);
        }
        if raw.version != LOG_VERSION {
            return Err(SuperBlockError::Version(raw.version.get()));
        }
        let found = Self {
            block_size,
            metadata_blocks: raw.metadata_size.get(),
            salt: Salt(raw.log_checksum_salt.get()),
            uuid: LogUuid(raw.uuid),
            name: DeviceName::from_field(raw.name)?,
            ring_size: Pb(raw.ring_buffer_size.get()),
            oldest: Lsid(raw.oldest_lsid.get()),
            written: Lsid(raw.written_lsid.get()),
            device_size: Lb(raw.device_size.get()),
        };
        found.check()?;
        Ok(found)
    }

    /// The physical block to write at [`SUPER_OFFSET_BYTES`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut raw = RawSuperBlock {
            sector_type: U16::new(SECTOR_TYPE),
            version: U16::new(LOG_VERSION),
            checksum: U32::ZERO,
            logical_bs: U32::new(512),
            physical_bs: U32::new(self.block_size.bytes()),
            metadata_size: U32::new(self.metadata_blocks),
            log_checksum_salt: U32::new(self.salt.0),
            uuid: self.uuid.0,
            name: self.name.0,
            ring_buffer_size: U64::new(self.ring_size.0),
            oldest_lsid: U64::new(self.oldest.0),
            written_lsid: U64::new(self.written.0),
            device_size: U64::new(self.device_size.0),
        };
        // The rest of the block is zero and adds nothing to the sum.
        raw.checksum = U32::new(checksum(raw.as_bytes(), Salt(0)));
        let mut block = raw.as_bytes().to_vec();
        block.resize(self.block_size.as_usize(), 0);
        block
    }

    fn check(&self) -> Result<(), SuperBlockError> {
        let (oldest, written) = (self.oldest, self.written);
        if oldest > written || written > Lsid::MAX {
            return Err(SuperBlockError::Lsids { oldest, written });
        }
        let whole_bytes = self.device_size.0.checked_mul(LOGICAL_BLOCK_BYTES).is_some();
        if !whole_bytes || self.checked_ring().is_none() {
            let (ring, device) = (self.ring_size, self.device_size);
            return Err(SuperBlockError::Geometry { ring, device });
        }
        Ok(())
    }

    /// First block of the ring: behind the reserved page, two super sectors and the metadata.
    #[must_use]
    pub fn ring_offset(&self) -> Pb {
        let super0 = SUPER_OFFSET_BYTES / u64::from(self.block_size.bytes());
        Pb(super0 + 2 + u64::from(self.metadata_blocks))
    }

    fn checked_ring(&self) -> Option<Ring> {
        Ring::new(self.block_size, self.ring_offset(), self.ring_size)
    }

    /// The ring of this log device of `log_bytes`.
    ///
    /// # Errors
    /// When the ring does not lie on the device.
    pub fn ring(&self, log_bytes: u64) -> Result<Ring, SuperBlockError> {
        let (ring_size, device) = (self.ring_size, self.device_size);
        let ring =
            self.checked_ring().ok_or(SuperBlockError::Geometry { ring: ring_size, device })?;
        let ring_end = ring.end_bytes();
        if ring_end > log_bytes {
            return Err(SuperBlockError::Cut { ring_end, log_bytes });
        }
        Ok(ring)
    }
}

/// The default name of a volume, as the super sector holds it: at most 31 bytes, may be empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceName([u8; NAME_BYTES]);

/// The name does not fit the super sector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name for a log device: at most 25 bytes, none of them NUL")]
pub struct BadDeviceName(String);

impl DeviceName {
    /// The longest name that the original driver accepts.
    pub const MAX_BYTES: usize = 25;
    /// No name.
    pub const EMPTY: Self = Self([0; NAME_BYTES]);

    /// The field as it is, kept with all that follows the NUL.
    fn from_field(field: [u8; NAME_BYTES]) -> Result<Self, SuperBlockError> {
        if field.contains(&0) { Ok(Self(field)) } else { Err(SuperBlockError::Name) }
    }

    fn text(&self) -> &[u8] {
        self.0.split(|b| *b == 0).next().unwrap_or_default()
    }

    /// No name at all?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.text().is_empty()
    }
}

impl std::str::FromStr for DeviceName {
    type Err = BadDeviceName;

    fn from_str(name: &str) -> Result<Self, BadDeviceName> {
        let mut field = [0; NAME_BYTES];
        match field.get_mut(..name.len()) {
            Some(start) if name.len() <= Self::MAX_BYTES && !name.contains('\0') => {
                start.copy_from_slice(name.as_bytes());
                Ok(Self(field))
            }
            _ => Err(BadDeviceName(name.to_owned())),
        }
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        String::from_utf8_lossy(self.text()).fmt(f)
    }
}
