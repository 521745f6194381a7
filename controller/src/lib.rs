//! The controller: every operation of the recovery manual as one async function, and `walbc`, the
//! command line on top of them.
//!
//! ```text
//!  walb.toml --> Group --> Controller --+-- ops::setup     init, clear, reset, start, stop
//!                                       +-- ops::backup    full backup, snapshot
//!                                       +-- ops::archive   restorable, restore, diffs, apply
//!                                       +-- ops::sync      which archives a volume is sent to
//!                                       +-- ops::look      status, overflow, lag
//!                                       +-- ops::recover   kicks
//!                                       +-- ops::run       operations, shutdown
//! ```
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

pub use client::Controller;
pub use error::{ControlError, Exit};
pub use group::Group;
