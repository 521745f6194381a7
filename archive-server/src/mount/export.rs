//! A snapshot as an NBD export: what the clients wrote, if they may, over the view.

use super::cow::Cow;
use crate::view::{Owner, Part, View};
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

    /// The range in parts: start, end, and whether the clients wrote it.
    fn split(&self, offset: u64, len: u64) -> Vec<(u64, u64, bool)> {
        match &self.cow {
            Some(cow) => cow.split(offset, len),
            None => vec![(offset, offset + len, false)],
        }
    }

    /// What a range is made of, in order.
    async fn sources(&self, offset: u64, len: u64) -> Result<Vec<Source>, ExportError> {
        let mut sources = Vec::new();
        for (start, end, written) in self.split(offset, len) {
            let len = end - start;
            if written {
                sources.push(Source::Side { offset: start, len });
            } else {
                let parts = self.view.parts(start, len).await.map_err(|e| self.failed(&e))?;
                sources.extend(parts.into_iter().map(Source::View));
            }
        }
        Ok(sources)
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
            (Source::View(Part::Data(data)), _) => Ok(Chunk::Data(data)),
        }
    }

    /// Adds the extents of a part of the view; whether they are all of it.
    async fn extents_of(&self, owner: Owner, found: &mut Vec<Extent>) -> io::Result<bool> {
        let (len, hole) = match owner {
            Owner::Base { offset, len } => {
                return Ok(add(found, &self.view.base_extents(offset, len).await?, len));
            }
            Owner::Zeros { len } => (len, true),
            Owner::Wdiff { len } => (len, false),
        };
        found.push(Extent { len, hole, zero: hole });
        Ok(true)
    }

    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>, ExportError> {
        let mut found = Vec::new();
        for (start, end, written) in self.split(offset, len) {
            let len = end - start;
            if let (true, Some(cow)) = (written, &self.cow) {
                if !add(&mut found, &cow.side().extents(start, len).await?, len) {
                    break;
                }
                continue;
            }
            let owners = self.view.owners(start, len).await.map_err(|e| self.failed(&e))?;
            let mut covered = 0;
            for owner in owners {
                covered += owner.len();
                if !self.extents_of(owner, &mut found).await? {
                    return Ok(found);
                }
            }
            if covered < len {
                break;
            }
        }
        // The client asks for the rest.
        Ok(found)
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

/// Adds what a device says of a range; whether it is all of it.
fn add(found: &mut Vec<Extent>, extents: &[block_io::device::Extent], len: u64) -> bool {
    let covered: u64 = extents.iter().map(|e| e.len).sum();
    found.extend(extents.iter().map(|e| Extent { len: e.len, hole: e.hole, zero: e.hole }));
    covered >= len
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
        Box::pin(async move {
            let sources = self.sources(offset, len.into()).await?;
            let read = stream::iter(sources).map(|source| self.read_source(source));
            read.buffered(PARTS_AT_A_TIME).try_collect().await
        })
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
        Box::pin(self.extents(offset, len.into()))
    }
}
