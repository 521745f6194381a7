//! The wlog stream: a file header, packs back to back, an end block (`formats.md` §5.1-§5.3).
//!
//! [`PackDecoder`] does the work and knows no source of bytes: the same one reads files, the
//! network and the ring of a log device. [`WlogReader`] and [`WlogWriter`] put it on files.
//!
//! A pack is handed out only after its header and the data of all its records were verified.

mod decoder;
mod file;
mod header;

pub use decoder::{DecodeError, Pack, PackDecoder, TornPack};
pub use file::{WlogError, WlogReader, WlogWriter};
pub use header::{HEADER_BYTES, WlogHeader, WlogHeaderError};
