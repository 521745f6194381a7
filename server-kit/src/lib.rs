//! What every role shares, and none of what one role knows.
//!
//! | module | for |
//! |---|---|
//! | [`durable`] | small files and directories that survive a crash at any instant |
//! | [`state_machine`] | the state of a volume, changed by transactions |
//! | [`error`] | one error type, equal on both sides of the wire |
//! | [`retry`], [`blocking`], [`clock`] | back-off, blocking work, the wall clock |
//! | [`shutdown`], [`telemetry`] | the life of a process |
//! | [`units`] | sizes and durations as people type them |
//! | [`volume_name`] | names that are safe in paths |
//!
//! Invariants: nobody but [`durable`] renames files; nothing here knows a role; nothing waits by
//! polling; time that matters is `tokio::time`.
#![forbid(unsafe_code)]

pub mod blocking;
pub mod clock;
pub mod durable;
pub mod error;
pub mod retry;
pub mod shutdown;
pub mod state_machine;
pub mod telemetry;
pub mod units;
pub mod volume_name;
