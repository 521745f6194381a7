//! The controller: every operation of the recovery manual as one async function, and `walbc`, the
//! command line on top of them.
//!
//! ```text
//!  walb.toml --> Group --> Controller --+-- ops::setup     init, clear, reset, start, stop
//!                                       +-- ops::backup    full backup, snapshot
//!                                       +-- ops::hash      hash backup
//!                                       +-- ops::archive   restorable, restore, apply, merge
//!                                       +-- ops::replicate from one archive to another
//!                                       +-- ops::sync      which archives a volume is sent to
//!                                       +-- ops::peers     which archive is the primary
//!                                       +-- ops::resize    growing a volume everywhere
//!                                       +-- ops::device    a snapshot onto a device
//!                                       +-- ops::look      status, overflow, lag
//!                                       +-- ops::health    what is wrong in the status
//!                                       +-- ops::recover   kicks
//!                                       +-- ops::run       operations, shutdown
//! ```
//!
//! Operations of several steps look first and change then, and each step finds out by itself
//! whether it is done: an operation that was killed is repeated as it is. An answer that was lost
//! is asked for again after a look (`ops::lost`).
//!
//! The controller keeps nothing: what it says is what the servers answer now. It branches on typed
//! reasons and states, never on text. The command line ([`cli`]) adds arguments, tables, progress
//! and exit codes, and no decisions.
#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
pub mod doctor;
pub mod error;
pub mod group;
pub mod ops;
mod words;

pub use client::Controller;
pub use error::{ControlError, Exit};
pub use group::Group;
