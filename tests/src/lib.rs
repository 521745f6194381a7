//! The test tool: runs the real binaries as a cluster, hurts them, and drives them from outside
//! with programs that we did not write.
//!
//! - [`cluster`]: a backup group of separate processes below one temporary directory, as its
//!   [`layout`] says
//! - [`volume`]: the helpers of the acceptance scenarios (semantics.md §8.1), and [`writer`], a
//!   writer in the background
//! - [`fault_proxy`]: a network that breaks when the test says so
//! - [`process`]: one role as a process that can be killed and started again
//! - [`outside`]: fio, nbdkit, nbdfuse, losetup, mkfs, mount
//! - [`skip`]: what cannot run on this machine says so, by name
//!
//! Invariants: nothing waits but on a condition with a deadline ([`poll`]); whatever was started
//! or mounted is taken down by its handle's `Drop`, by pid or by path.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod fault_proxy;
pub mod layout;
pub mod outside;
pub mod poll;
pub mod process;
pub mod skip;
pub mod volume;
pub mod writer;
