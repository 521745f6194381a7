//! The numbers and wire structures of the NBD protocol (`proto.md` of the NetworkBlockDevice
//! project, the names there in parentheses). Everything on the wire is big-endian.
//!
//! Invariant: decoding never fails on content. What a number means, and whether it is allowed, is
//! decided by who reads it, so an unknown number can be answered instead of breaking the stream.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First word of the server (`NBDMAGIC`).
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of the server, first of every option (`IHAVEOPT`).
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// First word of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// First word of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// First word of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// First word of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Largest payload of a read or write in bytes: what the protocol says every server should take.
pub const MAX_PAYLOAD_BYTES: u32 = 32 << 20;
/// Longest string (export name, message, query) in bytes.
pub const MAX_STRING_BYTES: u32 = 4096;
/// Most extents in a block status reply.
pub const MAX_EXTENTS: usize = 4096;

/// Server handshake flags: fixed newstyle, no zeroes (`NBD_FLAG_FIXED_NEWSTYLE`, `_NO_ZEROES`).
pub mod handshake_flags {
    /// Options get replies (same bit in the client's flags).
    pub const FIXED_NEWSTYLE: u16 = 1 << 0;
    /// No padding after `EXPORT_NAME` (same bit in the client's flags).
    pub const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags: what an export can do (`NBD_FLAG_*`).
pub mod transmission_flags {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA command flag works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` works.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF command flag works (structured replies only).
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers writes of all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// The `FAST_ZERO` command flag works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Options of the handshake (`NBD_OPT_*`).
pub mod option {
    /// Enter transmission the old way: no errors possible.
    pub const EXPORT_NAME: u32 = 1;
    /// Leave.
    pub const ABORT: u32 = 2;
    /// List exports.
    pub const LIST: u32 = 3;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and enter transmission.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// List metadata contexts.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Replies to options (`NBD_REP_*`).
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One fact about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    /// Bit of all errors.
    pub const ERROR_BIT: u32 = 1 << 31;
    /// Option unknown.
    pub const ERR_UNSUP: u32 = ERROR_BIT | 1;
    /// Option malformed or out of place.
    pub const ERR_INVALID: u32 = ERROR_BIT | 3;
    /// No such export.
    pub const ERR_UNKNOWN: u32 = ERROR_BIT | 6;
    /// Server is stopping.
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT | 7;
    /// Option too long.
    pub const ERR_TOO_BIG: u32 = ERROR_BIT | 9;
}

/// Kinds of facts about an export (`NBD_INFO_*`).
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// Canonical name.
    pub const NAME: u16 = 1;
    /// Size constraints.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Request types (`NBD_CMD_*`).
pub mod command {
    /// Read.
    pub const READ: u16 = 0;
    /// Write; the payload follows the request.
    pub const WRITE: u16 = 1;
    /// Disconnect; there is no reply.
    pub const DISC: u16 = 2;
    /// Flush.
    pub const FLUSH: u16 = 3;
    /// Trim (discard).
    pub const TRIM: u16 = 4;
    /// Write zeroes.
    pub const WRITE_ZEROES: u16 = 6;
    /// Query metadata contexts.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests (`NBD_CMD_FLAG_*`).
pub mod command_flags {
    /// Reply only when the data is stable.
    pub const FUA: u16 = 1 << 0;
    /// Zero without punching holes.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Do not fragment the reply.
    pub const DF: u16 = 1 << 2;
    /// One extent only.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zero only if that is fast.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Structured reply chunks (`NBD_REPLY_TYPE_*`, `NBD_REPLY_FLAG_DONE`).
pub mod chunk {
    /// Flag: last chunk of the reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Data at an offset.
    pub const OFFSET_DATA: u16 = 1;
    /// Zeroes at an offset.
    pub const OFFSET_HOLE: u16 = 2;
    /// Extents of a metadata context.
    pub const BLOCK_STATUS: u16 = 5;
    /// An error with a message.
    pub const ERROR: u16 = (1 << 15) | 1;
}

/// The metadata context that tells holes and zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its number in replies.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// Extent flag of `base:allocation`: not allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// Extent flag of `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// The error numbers of NBD replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Errno {
    /// `EPERM`
    NotPermitted = 1,
    /// `EIO`
    Io = 5,
    /// `ENOMEM`
    NoMemory = 12,
    /// `EINVAL`
    Invalid = 22,
    /// `ENOSPC`
    NoSpace = 28,
    /// `EOVERFLOW`
    Overflow = 75,
    /// `ENOTSUP`
    NotSupported = 95,
    /// `ESHUTDOWN`
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }
}

/// What the server says first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Greeting {
    /// [`NBD_MAGIC`]
    pub magic: U64,
    /// [`OPTION_MAGIC`]
    pub option_magic: U64,
    /// [`handshake_flags`]
    pub flags: U16,
}

/// Head of an option; `len` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionHeader {
    /// [`OPTION_MAGIC`]
    pub magic: U64,
    /// [`option`]
    pub option: U32,
    /// Length of the data in bytes.
    pub len: U32,
}

/// Head of a reply to an option; `len` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct OptionReplyHeader {
    /// [`OPTION_REPLY_MAGIC`]
    pub magic: U64,
    /// The option that is answered.
    pub option: U32,
    /// [`option_reply`]
    pub reply: U32,
    /// Length of the data in bytes.
    pub len: U32,
}

/// The fact [`info::EXPORT`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InfoExport {
    /// [`info::EXPORT`]
    pub kind: U16,
    /// Size in bytes.
    pub size_bytes: U64,
    /// [`transmission_flags`]
    pub flags: U16,
}

/// The fact [`info::BLOCK_SIZE`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct InfoBlockSize {
    /// [`info::BLOCK_SIZE`]
    pub kind: U16,
    /// Unit of offsets and lengths in bytes.
    pub minimum: U32,
    /// Good unit in bytes.
    pub preferred: U32,
    /// Largest payload in bytes.
    pub maximum: U32,
}

/// A request; the payload of a write follows.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct RequestHeader {
    /// [`REQUEST_MAGIC`]
    pub magic: U32,
    /// [`command_flags`]
    pub flags: U16,
    /// [`command`]
    pub command: U16,
    /// The client's own number, returned in the reply.
    pub cookie: U64,
    /// Offset in bytes.
    pub offset: U64,
    /// Length in bytes.
    pub len: U32,
}

/// A reply without structure; the data of a read follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct SimpleReply {
    /// [`SIMPLE_REPLY_MAGIC`]
    pub magic: U32,
    /// 0 or an [`Errno`].
    pub error: U32,
    /// Cookie of the request.
    pub cookie: U64,
}

/// Head of a structured reply chunk; `len` bytes follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ChunkHeader {
    /// [`STRUCTURED_REPLY_MAGIC`]
    pub magic: U32,
    /// [`chunk::FLAG_DONE`] or 0.
    pub flags: U16,
    /// [`chunk`]
    pub kind: U16,
    /// Cookie of the request.
    pub cookie: U64,
    /// Length of what follows in bytes.
    pub len: U32,
}

/// Head of [`chunk::OFFSET_DATA`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct DataChunk {
    /// The chunk's head.
    pub header: ChunkHeader,
    /// Offset of the data on the export in bytes.
    pub offset: U64,
}

/// All of [`chunk::OFFSET_HOLE`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct HoleChunk {
    /// The chunk's head.
    pub header: ChunkHeader,
    /// Offset of the hole on the export in bytes.
    pub offset: U64,
    /// Its length in bytes.
    pub len: U32,
}

/// Head of [`chunk::ERROR`]; the message follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct ErrorChunk {
    /// The chunk's head.
    pub header: ChunkHeader,
    /// [`Errno`]
    pub error: U32,
    /// Length of the message in bytes.
    pub message_len: U16,
}

/// Head of [`chunk::BLOCK_STATUS`]; descriptors follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct StatusChunk {
    /// The chunk's head.
    pub header: ChunkHeader,
    /// Number of the metadata context.
    pub context: U32,
}

/// One extent of a block status reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct StatusDescriptor {
    /// Length in bytes.
    pub len: U32,
    /// [`STATE_HOLE`], [`STATE_ZERO`].
    pub flags: U32,
}
