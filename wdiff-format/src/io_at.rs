//! Reading and writing at a position: what an indexed file needs, and an image that is changed.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

/// Something that can be read anywhere.
pub trait ReadAt {
    /// Fills `buf` from byte `offset` on.
    ///
    /// # Errors
    /// What the operating system says; `UnexpectedEof` behind the end.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Bytes that can be read.
    ///
    /// # Errors
    /// What the operating system says.
    fn size_bytes(&self) -> io::Result<u64>;
}

/// Something that can be read anywhere, whatever it is.
pub type ReadObject = Arc<dyn ReadAt + Send + Sync>;

/// Something that can be written anywhere inside its size, such as the image of a volume.
pub trait WriteAt {
    /// Writes all of `data` at byte `offset`.
    ///
    /// # Errors
    /// What the operating system says.
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of `pieces`, one behind the other, from byte `offset` on.
    ///
    /// # Errors
    /// What the operating system says; some of them may be written then.
    fn write_all_vectored_at(&self, pieces: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        for piece in pieces {
            self.write_all_at(piece, at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes `len` bytes from `offset` on read as zeros.
    ///
    /// # Errors
    /// What the operating system says.
    fn write_zeros_at(&self, offset: u64, len: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let chunk = ZEROS.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            self.write_all_at(ZEROS.split_at(chunk).0, at)?;
            at += chunk as u64;
        }
        Ok(())
    }
}

/// Reads from the start to the end of something that can be read anywhere.
#[derive(Debug)]
pub struct Sequential<R> {
    input: R,
    at: u64,
    size_bytes: u64,
}

impl<R: ReadAt> Sequential<R> {
    /// From its first byte to the last that it has now.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(input: R) -> io::Result<Self> {
        let size_bytes = input.size_bytes()?;
        Ok(Self { input, at: 0, size_bytes })
    }

    /// Passes over some bytes, to the end at most.
    pub(crate) fn skip(&mut self, bytes: u64) {
        self.at = self.at.saturating_add(bytes).min(self.size_bytes);
    }
}

impl<R: ReadAt> io::Read for Sequential<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.size_bytes - self.at).unwrap_or(usize::MAX);
        let (part, _) = buf.split_at_mut(left.min(buf.len()));
        self.input.read_exact_at(part, self.at)?;
        self.at += part.len() as u64;
        Ok(part.len())
    }
}

impl ReadAt for File {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buf, offset)
    }

    /// The length of a regular file, the size of a block device.
    fn size_bytes(&self) -> io::Result<u64> {
        use std::io::Seek;
        // `metadata` says 0 for a block device; a second handle keeps our position out of this.
        self.try_clone()?.seek(io::SeekFrom::End(0))
    }
}

impl WriteAt for File {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, data, offset)
    }
}

impl ReadAt for Bytes {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = from.saturating_add(buf.len());
        let found = self.get(from..to).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(found);
        Ok(())
    }

    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buf, offset)
    }

    fn size_bytes(&self) -> io::Result<u64> {
        (**self).size_bytes()
    }
}
