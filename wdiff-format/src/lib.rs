//! wdiff files, what is done with them, and the algebra of the diffs that they are
//! (`formats.md` §6 and §7, `semantics.md` §2).
//!
//! ```text
//!  wlog packs --convert--> sorted / indexed file --+
//!                                                  +--merge--> one stream -+-> sorted file
//!  sorted files, indexed files --------------------+                       +-> redo onto an image
//!                                                                          +-> virtual image
//!  files --locate--> index runs: which record of which file holds a block at a snapshot
//! ```
//!
//! Invariants: the records of a diff ascend and are disjoint, newer data wins; nothing that was
//! read is handed on before its checksum was verified; memory is bounded by constants and by what
//! a record may hold, never by a length that a file claims.
#![forbid(unsafe_code)]

pub mod ahead;
pub mod check;
pub mod codec;
pub mod compression;
pub mod convert;
pub mod diff_set;
pub mod error;
pub mod full;
mod gather;
pub mod gid;
pub mod header;
pub mod index_run;
pub mod indexed_reader;
pub mod indexed_writer;
pub mod io_at;
mod layout;
pub mod locate;
pub mod merge;
pub mod name;
pub mod open;
mod placed;
pub mod pool;
pub mod record;
pub mod redo;
pub mod retention;
mod room;
pub mod sorted_reader;
pub mod sorted_writer;
pub mod split;
pub mod stat;
pub mod virtual_image;
mod walk;
pub mod write;
