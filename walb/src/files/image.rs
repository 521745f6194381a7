//! The image that a log or a diff is written onto: a file or block device, never changed in size.

use std::fs::File;
use std::io::{self, IoSlice, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::pwritev;
use wdiff_format::io_at::WriteAt;
use wlog_format::pack::Record;
use wlog_format::units::{Lb, to_usize};

/// Pieces that the kernel writes at once.
const WRITE_PIECES_MAX: usize = 1024;

/// An image that is open for writing.
#[derive(Debug)]
pub(crate) struct Image {
    path: PathBuf,
    file: File,
    size: Lb,
}

impl Image {
    /// Opens one that exists.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let open = || -> io::Result<(File, u64)> {
            let mut file = File::options().read(true).write(true).open(path)?;
            let bytes = file.seek(SeekFrom::End(0))?;
            Ok((file, bytes))
        };
        let (file, bytes) =
            open().with_context(|| format!("cannot open image {}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file, size: Lb::from_bytes(bytes) })
    }

    /// Its whole logical blocks.
    pub(crate) const fn size(&self) -> Lb {
        self.size
    }

    /// Does the I/O lie on the image, all of it?
    pub(crate) fn holds(&self, io: &Record) -> bool {
        io.end() <= self.size
    }

    /// Writes `data`.
    pub(crate) fn write(&self, address: Lb, data: &[u8]) -> anyhow::Result<()> {
        FileExt::write_all_at(&self.file, data, address.bytes())
            .with_context(|| self.failed("write", address))
    }

    /// Makes `len` read as zeros, as a hole where the image can have holes.
    pub(crate) fn zero(&self, address: Lb, len: Lb) -> anyhow::Result<()> {
        if self.punch_hole(address, len).is_some() {
            return Ok(());
        }
        let zeros = vec![0; 1 << 20];
        let (mut at, end) = (address.bytes(), (address + len).bytes());
        while at < end {
            let part = zeros.get(..to_usize(end - at)).unwrap_or(&zeros);
            FileExt::write_all_at(&self.file, part, at)
                .with_context(|| self.failed("zero", address))?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// `None` when the image cannot have holes.
    fn punch_hole(&self, address: Lb, len: Lb) -> Option<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (start, len) = (i64::try_from(address.bytes()), i64::try_from(len.bytes()));
        fallocate(&self.file, flags, start.ok()?, len.ok()?).ok()
    }

    /// Makes everything durable.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        self.file
            .sync_data()
            .with_context(|| format!("cannot make {} durable", self.path.display()))
    }

    fn failed(&self, what: &str, address: Lb) -> String {
        format!("cannot {what} image {} at sector {address}", self.path.display())
    }
}

impl WriteAt for Image {
    fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.write(Lb::from_bytes(offset), data).map_err(io::Error::other)
    }

    fn write_all_vectored_at(&self, mut pieces: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
        let mut at = offset;
        while !pieces.is_empty() {
            let some = pieces.get(..WRITE_PIECES_MAX).unwrap_or(pieces);
            let written =
                match pwritev(&self.file, some, i64::try_from(at).map_err(io::Error::other)?) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Err(Errno::EINTR) => 0,
                    written => written?,
                };
            at += written as u64;
            IoSlice::advance_slices(&mut pieces, written);
        }
        Ok(())
    }

    fn write_zeros_at(&self, offset: u64, len: u64) -> io::Result<()> {
        self.zero(Lb::from_bytes(offset), Lb::from_bytes(len)).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_pieces_than_the_kernel_takes_at_once_are_written_in_their_order() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, vec![9; 20_000]).unwrap();
        let image = Image::open(file.path()).unwrap();
        let pieces: Vec<Vec<u8>> = (0..3000_u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        image.write_all_vectored_at(&mut slices, 1000).unwrap();
        let expected = [vec![9; 1000], pieces.concat(), vec![9; 7000]].concat();
        assert!(std::fs::read(&file).unwrap() == expected);
    }
}
