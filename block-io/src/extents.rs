//! Holes of a sparse file, by `SEEK_DATA` and `SEEK_HOLE`.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::libc::off_t;
use nix::unistd::{Whence, lseek};

use crate::device::{Extent, MAX_EXTENTS};

/// The extents of `[offset, offset + len)`, at most [`MAX_EXTENTS`]. Only whole blocks count as
/// holes. A filesystem that cannot tell says that all is data.
pub(crate) fn list(file: &File, offset: u64, len: u64, block: u64) -> io::Result<Vec<Extent>> {
    let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
    let mut extents: Vec<Extent> = Vec::new();
    let mut at = offset;
    while at < end && extents.len() < MAX_EXTENTS {
        let data = seek(file, at, Whence::SeekData)?.unwrap_or(end).min(end);
        let hole_end = data - data % block;
        if hole_end > at {
            push(&mut extents, hole_end - at, true);
            at = hole_end;
        } else {
            let hole = seek(file, data, Whence::SeekHole)?.unwrap_or(end);
            // A hole punched this very moment could be at `at`: always get on by a block.
            let data_end = hole.next_multiple_of(block).max(at + block).min(end);
            push(&mut extents, data_end - at, false);
            at = data_end;
        }
    }
    Ok(extents)
}

fn push(extents: &mut Vec<Extent>, len: u64, hole: bool) {
    match extents.last_mut() {
        Some(last) if last.hole == hole => last.len += len,
        _ => extents.push(Extent { len, hole }),
    }
}

/// `None` when there is nothing of the kind up to the end of the file.
fn seek(file: &File, at: u64, whence: Whence) -> io::Result<Option<u64>> {
    let at = off_t::try_from(at).map_err(io::Error::other)?;
    match lseek(file, at, whence) {
        Ok(found) => Ok(u64::try_from(found).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
