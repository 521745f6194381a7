//! A snapshot behind the view of a mount, for readers inside of this process: what they read is
//! what the clients of a mount would.

use super::export::SnapshotExport;
use super::{Files, enter};
use crate::archive::Archive;
use crate::view::View;
use crate::volume::Volume;
use block_io::nbd::{Chunk, Export, ExportError};
use bytes::{Bytes, BytesMut};
use proto::v1::{MountRequest, mount_request};
use server_kit::error::{Reason, RoleError};
use std::sync::Arc;
use wdiff_format::gid::Gid;
use wlog_format::units::to_usize;

/// How much is asked for at a time when holes are looked for.
const STATUS_BYTES: u64 = 64 << 20;

/// An open snapshot. It takes the place of a mount until [`Inside::end`].
pub struct Inside {
    export: SnapshotExport,
    files: Files,
    volume: String,
}

impl Inside {
    /// Opens the clean snapshot `gid`.
    pub(crate) async fn open(
        archive: &Arc<Archive>,
        volume: &Arc<Volume>,
        gid: Gid,
    ) -> Result<Self, RoleError> {
        let name = volume.name.to_string();
        let point = Some(mount_request::Point::Gid(gid.0));
        let request = MountRequest { volume: name.clone(), point, ..MountRequest::default() };
        let (place, selected, (below, size)) = enter(archive, volume, &request).await?;
        let files = Files { volume: volume.clone(), below, size, side: None, place };
        let view =
            async { View::open(archive, volume, files.open_base().await?, selected.lease).await };
        match view.await {
            Ok(view) => {
                let export = SnapshotExport::new(&name, Arc::new(view), None);
                Ok(Self { export, files, volume: name })
            }
            Err(error) => {
                files.remove().await;
                Err(error)
            }
        }
    }

    /// Size of the image.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.export.size_bytes()
    }

    fn failed(&self, offset: u64, error: &ExportError) -> RoleError {
        let message =
            format!("cannot read a snapshot of {} at byte {offset}: {error}", self.volume);
        RoleError::new(Reason::Damaged, message).with_volume(&self.volume)
    }

    /// Bytes from `offset` on; zeroes behind the end.
    ///
    /// # Errors
    /// What it is made of cannot be read, or is damaged.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, RoleError> {
        let rest = to_usize(self.size_bytes().saturating_sub(offset)).min(len);
        let mut data = BytesMut::with_capacity(len);
        let asked = u32::try_from(rest).unwrap_or(u32::MAX);
        let read = if asked == 0 { Ok(Vec::new()) } else { self.export.read(offset, asked).await };
        for chunk in read.map_err(|e| self.failed(offset, &e))? {
            match chunk {
                Chunk::Data(part) => data.extend_from_slice(&part),
                Chunk::Zeroes(zeros) => {
                    data.resize(data.len() + to_usize(u64::from(zeros)), 0);
                }
            }
        }
        data.resize(len, 0);
        Ok(data.freeze())
    }

    /// How many bytes from `offset` on are zeroes without being read; 0: they have to be read.
    pub(crate) async fn zeroes(&self, offset: u64) -> Result<u64, RoleError> {
        let asked = self.size_bytes().saturating_sub(offset).min(STATUS_BYTES);
        let asked = u32::try_from(asked).unwrap_or(u32::MAX);
        if asked == 0 {
            return Ok(0);
        }
        let extents = self.export.block_status(offset, asked).await;
        let extents = extents.map_err(|e| self.failed(offset, &e))?;
        Ok(extents.iter().take_while(|e| e.zero).map(|e| e.len).sum())
    }

    /// Gives the place and the leases back.
    pub async fn end(self) {
        let Self { export, files, .. } = self;
        drop(export);
        files.remove().await;
    }
}
