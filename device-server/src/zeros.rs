//! One shared buffer of zeros, for padding, zeroed ranges and reads of discarded blocks.

use std::sync::OnceLock;

use block_io::buffer::AlignedBuf;
use bytes::Bytes;

use crate::options::MAX_RECORD_BYTES;
use wlog_format::units::to_usize;

/// `len` zero bytes of the shared buffer; at most [`MAX_RECORD_BYTES`] of them.
pub(crate) fn zeros(len: usize) -> Bytes {
    static ZEROS: OnceLock<Bytes> = OnceLock::new();
    let all = ZEROS.get_or_init(|| AlignedBuf::zeroed(to_usize(MAX_RECORD_BYTES)).freeze());
    all.slice(..len.min(all.len()))
}
