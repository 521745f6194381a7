//! The walb log: checksum, super sector, log packs, log-device geometry and the wlog stream
//! (`formats.md` §1-§5). Types, encoding, decoding and validation only: no I/O, nothing async.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod pack;
pub mod redo;
pub mod ring;
pub mod stream;
pub mod superblock;
pub mod units;
