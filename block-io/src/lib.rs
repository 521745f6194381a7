//! block-io: bytes between memory and block devices. It knows no volumes.
//!
//! ```text
//!  roles -> device::BlockDevice -+- open() -> io_uring | plain threads -> file, /dev/*
//!                                `- sim    -> memory that loses and tears the unflushed
//!  NBD clients -> nbd -> Export (a role)
//!  buffer::AlignedBuf: the memory of all of them, frozen into `Bytes` without a copy
//! ```
//!
//! - [`buffer`]: page-aligned memory that becomes [`bytes::Bytes`] without a copy, pooled.
//! - [`device`]: the trait that every role does its I/O through, and its error conventions.
//! - [`open`], [`probe()`], [`grow`]: files and block devices of the host.
//! - [`sim`]: a disk in memory that loses, tears, fails and hangs on request.
//! - [`nbd`]: serves volumes to NBD clients.
//!
//! Invariants:
//! - Memory that the kernel reads or writes outlives the request, whatever happens to the future.
//! - A flush that succeeded covers every write that had completed before it was asked for.
//! - No error loses its cause: which operation, on which path, offset and length.
//! - `unsafe` is confined to small modules that say so, each block with its reason.

mod admission;
mod backend;
pub mod buffer;
pub mod device;
mod extents;
mod file;
pub mod nbd;
mod probe;
mod request;
pub mod sim;
mod sys;
mod uring;
mod workers;

pub use backend::Engine;
pub use probe::{Kind, OpenOptions, Probe, grow, open, probe};
