//! NBD: network block devices, served to clients that we did not write (QEMU, libnbd, nbd-client,
//! fio) by the protocol of the NetworkBlockDevice project.
//!
//! ```text
//!   client ──► server ──► handshake ──► transmission ──► Export (a role)
//!                                        request: judged before anything is allocated
//!                                        budget:  memory that may be held
//!                                        reply:   sent from where the export put it
//! ```
//!
//! - [`export`]: what is served, the trait that a volume implements.
//! - [`server`]: listening and connections.
//! - [`client`]: a small client of our own.
//! - [`protocol`]: numbers and wire structures.
//!
//! Invariant: a peer can send anything, or nothing; the answer is an error or a closed connection,
//! never a panic, a hang, or memory without bound.

mod budget;
pub mod client;
pub mod export;
mod failures;
mod handshake;
mod input;
pub mod protocol;
mod reply;
mod request;
pub mod server;
mod socket;
mod transmission;

pub use client::{Client, ClientError};
pub use export::{Chunk, Export, ExportError, Extent, WriteZeroes};
pub use protocol::Errno;
pub use server::{Limits, Listener, NbdServer, ServerError};
