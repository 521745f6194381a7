//! NBD: network block devices, served to clients that we did not write (QEMU, libnbd, nbd-client,
//! fio) by the protocol of the NetworkBlockDevice project.
//!
//! - [`export`]: what is served, the trait that a volume implements.
//! - [`protocol`]: numbers and wire structures.

pub mod export;
pub mod protocol;

pub use export::{Chunk, Export, ExportError, Extent, WriteZeroes};
pub use protocol::Errno;
