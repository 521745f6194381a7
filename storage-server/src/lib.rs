//! The storage role: one per host. It follows the log device of every volume, ships the logs to
//! proxies, makes full and hash backups, and restores a snapshot onto a device (`design.md` §5,
//! `semantics.md` §3).
//!
//! ```text
//!  device role                                this crate                              elsewhere
//!  control socket --events--> device::control --> follower --wakes--> ship / discard
//!                 <--set oldest, checkpoint, reset--'                   | plan: what, which gids
//!  log device ----O_DIRECT reads----> log, reader: checks every pack ---'
//!                                                 |
//!                                                 '--> transfer --------------------> proxy
//!  data device ---large reads-------> server_kit::scan --> backup ------------------> archive
//!                                                                  book: state, done, queue
//! ```
//!
//! One task per volume at work, woken by events; idle volumes cost nothing. Memory for log data is
//! one [`budget`] for all. What a volume remembers is one small file, the [`book`].
//!
//! # Invariants
//! - **I4** Logs are released only below `done`, which is durable, which a proxy has acknowledged:
//!   [`ship`]. A standby volume releases everything: [`discard`].
//! - **I6** A gid is durable with its lsid before anybody hears of it: [`book`] shows only what is
//!   on the disk, and everything told is read from there. What a pair of gids means never changes:
//!   [`plan`].
//! - **I8** Every pack is checked before its last byte leaves: [`reader`]; the message that gives
//!   it gids comes after that: [`transfer`].
//! - **I9** Every step can be killed: the record changes as a whole; a directory without one is no
//!   volume: [`registry`]; a backup falls back to `SyncReady` and is resumed: [`backup`].
//! - **I11** A log that is not the continuation of what was shipped - overflowed, reset by others,
//!   released by others - ends the shipping, is remembered, and is shown until a backup has ended:
//!   [`loss`], [`gap`]; [`resync`] heals it.
#![forbid(unsafe_code)]

pub mod archive_view;
pub mod backup;
pub mod book;
pub mod budget;
pub mod device;
pub mod discard;
pub mod follower;
pub mod followers;
pub mod gap;
pub mod heartbeat;
pub mod ledger;
pub mod log;
pub mod loss;
pub mod marks;
pub mod peers;
pub mod plan;
pub mod progress;
pub mod proxies;
pub mod reader;
pub mod registry;
pub mod restore;
pub mod resync;
pub mod serve;
pub mod service;
pub mod shared;
pub mod ship;
pub mod snapshot;
pub mod state;
pub mod transfer;
pub mod view;
pub mod volume;
