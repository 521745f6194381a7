//! A snapshot as an NBD export: what the clients wrote, if they may, over the view.

use super::cow::Cow;
use super::view::{Part, View};
use block_io::nbd::{Chunk, Export, ExportError, Extent, WriteZeroes};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt, stream};
use server_kit::error::RoleError;
use std::io;
use std::sync::Arc;
use wlog_format::units::to_usize;

/// Parts of one request that are read at a time.
const PARTS_AT_A_TIME: usize = 8;

/// The export of a mount.
pub(super) struct SnapshotExport {
    volume: String,
    view: Arc<View>,
    cow: Option<Cow>,
}

/// Where a part of a request comes from.
enum Source {
    Side { offset: u64, len: u64 },
    View(Part),
}

impl SnapshotExport {
    pub(super) fn new(volume: &str, view: Arc<View>, cow: Option<Cow>) -> Self {
        Self { volume: volume.to_owned(), view, cow }
    }

    /// What a range is made of, in order.
    fn sources(&self, offset: u64, len: u64) -> Vec<Source> {
        let parts = match &self.cow {
            Some(cow) => cow.split(offset, len),
            None => vec![(offset, offset + len, false)],
        };
        let source = |(start, end, written)| -> Vec<Source> {
            let len = end - start;
            if written {
                return vec![Source::Side { offset: start, len }];
            }
            self.view.parts(start, len).into_iter().map(Source::View).collect()
        };
        parts.into_iter().flat_map(source).collect()
    }

    async fn read_source(&self, source: Source) -> Result<Chunk, ExportError> {
        match (source, &self.cow) {
            (Source::Side { offset, len }, Some(cow)) => {
                Ok(Chunk::Data(cow.side().read(offset, to_usize(len)).await?))
            }
            (Source::Side { len, .. }, None) | (Source::View(Part::Zeros { len }), _) => {
                // A part of a request, whose length has 32 bits.
                Ok(Chunk::Zeroes(u32::try_from(len).unwrap_or(u32::MAX)))
            }
            (Source::View(Part::Base { offset, len }), _) => {
                Ok(Chunk::Data(self.view.base(offset, len).await?))
            }
            (Source::View(Part::Data { piece }), _) => {
                let data = self.view.data(piece).await;
                Ok(Chunk::Data(data.map_err(|e| self.failed(&e))?))
            }
        }
    }

    /// The extents of a source, and whether they are all of it.
    async fn extents_of(&self, source: Source) -> io::Result<(Vec<Extent>, bool)> {
        let holes = |extents: Vec<block_io::device::Extent>, len: u64| {
            let covered: u64 = extents.iter().map(|e| e.len).sum();
            let status =
                |e: block_io::device::Extent| Extent { len: e.len, hole: e.hole, zero: e.hole };
            (extents.into_iter().map(status).collect(), covered >= len)
        };
        Ok(match (source, &self.cow) {
            (Source::Side { offset, len }, Some(cow)) => {
                holes(cow.side().extents(offset, len).await?, len)
            }
            (Source::View(Part::Base { offset, len }), _) => {
                holes(self.view.base_extents(offset, len).await?, len)
            }
            (Source::Side { len, .. }, None) | (Source::View(Part::Zeros { len }), _) => {
                (vec![Extent { len, hole: true, zero: true }], true)
            }
            (Source::View(Part::Data { piece }), _) => {
                let len = u64::from(piece.blocks) * u64::from(block_io::device::SECTOR_BYTES);
                (vec![Extent { len, hole: false, zero: false }], true)
            }
        })
    }

    /// Damage is told to the client and to whoever reads the log (I8).
    fn failed(&self, error: &RoleError) -> ExportError {
        let text = error.full_message();
        tracing::error!(volume = self.volume, error = text, "a mount cannot be read");
        ExportError::Io(io::Error::other(text))
    }

    fn cow(&self) -> Result<&Cow, ExportError> {
        let read_only = || ExportError::NotPermitted("the mount is read-only".into());
        self.cow.as_ref().ok_or_else(read_only)
    }
}

impl Export for SnapshotExport {
    fn size_bytes(&self) -> u64 {
        self.view.size_bytes()
    }

    fn read_only(&self) -> bool {
        self.cow.is_none()
    }

    fn zeroes_are_fast(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<Chunk>, ExportError>> {
        let sources = self.sources(offset, len.into());
        let read = stream::iter(sources).map(|source| self.read_source(source));
        Box::pin(read.buffered(PARTS_AT_A_TIME).try_collect())
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.cow()?.write(offset, data).await?;
            if fua { self.flush().await } else { Ok(()) }
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            match &self.cow {
                Some(cow) => Ok(cow.side().flush().await?),
                None => Ok(()),
            }
        })
    }

    fn trim(&self, offset: u64, len: u32, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        let how = WriteZeroes { fua, ..WriteZeroes::default() };
        self.write_zeroes(offset, len, how)
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u32,
        how: WriteZeroes,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.cow()?.zero(offset, len.into()).await?;
            if how.fua { self.flush().await } else { Ok(()) }
        })
    }

    fn block_status(
        &self,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'_, Result<Vec<Extent>, ExportError>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for source in self.sources(offset, len.into()) {
                let (extents, all) = self.extents_of(source).await?;
                found.extend(extents);
                if !all {
                    // The client asks for the rest.
                    break;
                }
            }
            Ok(found)
        })
    }
}
