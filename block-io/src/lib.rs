//! block-io: bytes between memory and block devices. It knows no volumes.
//!
//! ```text
//!   roles ──► device::BlockDevice ──┬─ open()  ─► io_uring engine | plain thread pool ─► file, /dev/*
//!                                   └─ sim     ─► memory that loses, tears and reorders what was not flushed
//!   NBD clients ──► nbd ──► Export (a role)
//!   buffer::AlignedBuf: the memory of all of them, frozen into `Bytes` without a copy
//! ```
//!
//! - [`buffer`]: page-aligned memory that becomes [`bytes::Bytes`] without a copy, and comes back to a pool.
//! - [`device`]: the trait that every role does its I/O through, and its error conventions.
//! - [`nbd`]: serves volumes to NBD clients.
//!
//! Invariants:
//! - Memory that the kernel reads or writes outlives the request, whatever happens to the future.
//! - A flush that succeeded covers every write that had completed before the flush was asked for.
//! - No error loses its cause: which operation, on which path, offset and length.
//! - `unsafe` is confined to small modules that say so, each block with its reason.

pub mod buffer;
pub mod device;
pub mod nbd;
