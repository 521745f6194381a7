//! The archive role: a base image and wdiffs for each volume, and any snapshot made of them.
//!
//! ```text
//!  storage --full backup--> full_sync --> base.img <--clone-- restore --> restored/GID.img
//!                                            ^     <--reads-- mount ----> NBD clients
//!                                            |  (I7)             ^
//!  proxy ----wdiff--------> receive --> *.wdiff ---------> apply-+
//!                            (I5)       |   ^  ^
//!                                       +merge history: which snapshots are kept
//!  storage --hash backup--> hash_sync --hash_sink--> a wdiff, or (resync) base.img
//!     ^ hashes of a snapshot: view, base.img and wdiffs read front to back
//!  another archive <--replicate: full_sync, hash_sync, receive there; replica there says which
//!                 upkeep: policies, schedules, limits of age: apply, merge, replicate by itself
//!                 load: names are the catalogue (DiffSet)
//!  verify, by hand or by itself: all of it is read back, what is wrong becomes a fault
//!  another archive --repair: what is damaged or missing--> *.wdiff; rebuild: a lost `state`
//! ```
//! Below the base directory each volume has a directory: `state` (one small file, changed as a
//! whole) and its copy, `base.img`, `*.wdiff`, `restored/`, `index/` (derived from the wdiffs),
//! `checks` (what was read back, and when), and `full-sync` while a full backup can be resumed.
//! Base image and restored ones are elsewhere under other backends than `file` (`backend`).
//!
//! | invariant | where |
//! |---|---|
//! | I5 an answer "stored" follows file, name and directory on the disk | `receive` |
//! | I7 an image that is being applied says so | `apply` |
//! | I8 what is read is checked; damage names volume, file and offset | `faults`, wdiff-format |
//! | I9 half-made things are known by their name and removed at start | `load` |
//! | I10 a full disk refuses early, loses nothing and ends by itself | `receive`, `apply`, `merge` |
//! | I13 equal gids of different logs are not the same | `replica`, `replicate` |
//! | I12 one task deletes, and nothing that somebody reads | `deleter`, `leases`; who marks: `apply`, `merge`, `history` ... |
#![forbid(unsafe_code)]

mod apply;
mod archive;
mod args;
mod backend;
mod background;
mod deleter;
mod faults;
mod full_sync;
mod hash_sink;
mod hash_sync;
mod history;
mod image;
mod index;
mod jobs;
mod leases;
mod load;
mod merge;
mod mount;
mod overlay;
mod read_snapshot;
mod rebuild;
mod receive;
mod record;
mod repair;
mod replica;
mod replicate;
mod resize;
mod restore;
mod server;
mod service;
mod sessions;
mod state;
mod upkeep;
mod verify;
mod view;
mod volume;
mod world;

pub use archive::Settings;
pub use args::{Backend, ImageDevice, ServeArgs, serve};
pub use backend::BackendChoice;
pub use image::{FileImages, Images};
pub use mount::inside::Inside;
pub use server::{Loaded, Server};
pub use verify::scrub::Scrub;
pub use world::World;
