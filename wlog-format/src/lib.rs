//! The walb log: checksum, super sector, log packs, log-device geometry and the wlog stream
//! (`formats.md` §1-§5). Types, encoding, decoding and validation only: no I/O, nothing async.
//!
//! ```text
//!  log device:  |reserved 4 KiB|super|(super 1)| ring ............................|
//!                               |                ^ lsid mod ring size
//!                               oldest, written  |
//!                                                 pack | pack | pack | ...
//!  pack:        |header block: records|data of record 0|data of record 1|...
//!  wlog file:   |header 4 KiB| pack | pack | ... |end block|
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`units`] | sectors, physical blocks, lsids: types that cannot be mixed |
//! | [`checksum`](mod@checksum) | the additive, salted checksum of everything here |
//! | [`superblock`], [`ring`] | a log device: identity, persistent lsids, where an lsid lies |
//! | [`pack`] | pack headers and records; [`pack::PackBuilder`] makes them by the ring rules |
//! | [`stream`] | bytes to packs ([`stream::PackDecoder`]), wlog files |
//! | [`redo`] | what a redo does with each pack, without doing it |
//! | [`reuse`] | memory for large data, used again without being cleared |
//!
//! Invariants:
//! - A [`pack::PackHeader`] in hand is consistent: every check of §4.4 was passed, or it was built.
//! - A [`stream::Pack`] is handed out only after the data of all its records was verified.
//! - No length from outside is trusted with memory before the checksum over it was right, and then
//!   no more than one pack is held.
//! - Payloads that came in one piece are never copied.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod pack;
pub mod redo;
pub mod reuse;
pub mod ring;
pub mod stream;
pub mod superblock;
pub mod units;
