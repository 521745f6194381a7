//! What every role shares, and none of what one role knows.
//!
//! | module | for |
//! |---|---|
//! | [`durable`] | small files and directories that survive a crash at any instant |
//! | [`state_machine`] | the state of a volume, changed by transactions |
//! | [`error`] | one error type, equal on both sides of the wire |
//! | [`net`], [`chunks`], [`pages`], [`nbd`] | listening, connecting, byte streams and lists over gRPC |
//! | [`scan`], [`packing`] | a device read from front to end, and as messages |
//! | [`hash_sync`] | two devices compared over the wire: what differs travels |
//! | [`operations`], [`host`] | long jobs, and the service that every role has |
//! | [`retry`], [`blocking`], [`clock`] | back-off, blocking work, the wall clock |
//! | [`simulation`] | the same without chance |
//! | [`role`], [`shutdown`], [`telemetry`], [`config`] | the life of a process |
//! | [`volume_name`], [`units`] | names that are safe in paths; sizes and times as typed |
//!
//! Invariants: nobody but [`durable`] renames files; nothing here knows a role; nothing waits by
//! polling; time that matters is `tokio::time`.
#![forbid(unsafe_code)]

pub mod blocking;
pub mod chunks;
pub mod clock;
pub mod config;
pub mod durable;
pub mod error;
pub mod hash_sync;
pub mod host;
pub mod nbd;
pub mod net;
pub mod operations;
pub mod pace;
pub mod packing;
pub mod pages;
pub mod retry;
pub mod role;
pub mod scan;
pub mod shutdown;
pub mod simulation;
pub mod state_machine;
pub mod telemetry;
pub mod units;
pub mod volume_name;
