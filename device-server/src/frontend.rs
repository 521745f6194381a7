//! A volume as an NBD export.
//!
//! Flush covers every write that was acknowledged before it, on whichever connection, so the export
//! can be used over several connections at once.

use std::io;
use std::sync::Arc;

use block_io::nbd::{Chunk, Export, ExportError, Extent, WriteZeroes};
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use wlog_format::units::to_usize;

use crate::error::VolumeError;
use crate::volume::{ReadPiece, Volume};

/// The NBD export of a volume.
pub struct VolumeExport(Arc<Volume>);

impl VolumeExport {
    /// Of this volume.
    #[must_use]
    pub fn new(volume: Arc<Volume>) -> Self {
        Self(volume)
    }
}

impl Export for VolumeExport {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn block_bytes(&self) -> u32 {
        self.0.sector_bytes()
    }

    fn zeroes_are_fast(&self) -> bool {
        true
    }

    fn home(&self) -> Option<Handle> {
        Some(self.0.home().clone())
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<Chunk>, ExportError>> {
        Box::pin(async move {
            let pieces = self.0.read(offset, to_usize(len.into())).await?;
            let chunk = |piece| match piece {
                ReadPiece::Data(data) => Chunk::Data(data),
                // A read is at most `len` long, so is each of its pieces.
                ReadPiece::Zeros(bytes) => Chunk::Zeroes(u32::try_from(bytes).unwrap_or(len)),
            };
            Ok(pieces.into_iter().map(chunk).collect())
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move { Ok(self.0.write(offset, data, fua).await?) })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move { Ok(self.0.flush().await?) })
    }

    fn trim(&self, offset: u64, len: u32, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move { Ok(self.0.trim(offset, len.into(), fua).await?) })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u32,
        how: WriteZeroes,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(
            async move { Ok(self.0.write_zeroes(offset, len.into(), how.fua, how.no_hole).await?) },
        )
    }

    fn block_status(
        &self,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'_, Result<Vec<Extent>, ExportError>> {
        Box::pin(async move {
            let extents = self.0.extents(offset, len.into()).await?;
            let status = |extent: block_io::device::Extent| Extent {
                len: extent.len,
                hole: extent.hole,
                zero: extent.hole,
            };
            Ok(extents.into_iter().map(status).collect())
        })
    }
}

impl From<VolumeError> for ExportError {
    fn from(error: VolumeError) -> Self {
        match error {
            VolumeError::LogFull | VolumeError::NoSpace(_) => Self::NoSpace(error.to_string()),
            VolumeError::Stopping => Self::ShuttingDown,
            VolumeError::Range { .. } => Self::Invalid(error.to_string()),
            VolumeError::Io(cause) => Self::Io(io::Error::new(cause.kind(), cause)),
            other => Self::Io(io::Error::other(other)),
        }
    }
}
