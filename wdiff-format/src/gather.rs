//! An output that small pieces are handed to one by one, and that writes many of them at once
//! without copying them together.

use std::io::{self, IoSlice, Write};

use bytes::Bytes;

use crate::error::WdiffError;

/// Waiting pieces are written at so many bytes, which are still in the processor's cache then, or
/// at so many pieces: more the kernel does not take at once.
const WRITE_BYTES: usize = 256 << 10;
const WRITE_PIECES: usize = 512;

/// An output, and what waits to be written to it.
#[derive(Debug)]
pub(crate) struct Gather<W> {
    output: W,
    /// Bytes that were written.
    written: u64,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
}

impl<W: Write> Gather<W> {
    pub(crate) fn new(output: W) -> Self {
        let waiting = Vec::with_capacity(WRITE_PIECES);
        Self { output, written: 0, waiting, waiting_bytes: 0 }
    }

    /// Where the next piece will lie.
    pub(crate) const fn offset(&self) -> u64 {
        self.written + self.waiting_bytes as u64
    }

    /// Adds a piece behind all others.
    pub(crate) fn put(&mut self, piece: Bytes) -> Result<(), WdiffError> {
        self.waiting_bytes += piece.len();
        self.waiting.push(piece);
        if self.waiting_bytes >= WRITE_BYTES || self.waiting.len() == WRITE_PIECES {
            self.write()?;
        }
        Ok(())
    }

    /// Gives back the flushed output.
    pub(crate) fn finish(mut self) -> Result<W, WdiffError> {
        self.write()?;
        let offset = self.written;
        self.output.flush().map_err(|source| WdiffError::Output { offset, source })?;
        Ok(self.output)
    }

    /// Writes all that waits.
    fn write(&mut self) -> Result<(), WdiffError> {
        let mut slices: Vec<_> = self.waiting.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut left = slices.as_mut_slice();
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let offset = self.written;
            let taken = match self.output.write_vectored(left) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
                taken => taken,
            };
            let taken = taken.map_err(|source| WdiffError::Output { offset, source })?;
            self.written += taken as u64;
            IoSlice::advance_slices(&mut left, taken);
        }
        self.waiting.clear();
        self.waiting_bytes = 0;
        Ok(())
    }
}
