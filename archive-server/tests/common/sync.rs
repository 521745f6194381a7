//! A storage as far as a hash backup goes.
#![allow(dead_code, reason = "each test file uses its part")]

use super::{Answer, Client, VOLUME};
use block_io::device::BlockDevice;
use bytes::Bytes;
use proto::v1::hash_sync_end::Result as End;
use proto::v1::{HashSyncStart, PrepareHashSyncReply, PrepareHashSyncRequest, Snapshot};
use server_kit::error::RoleError;
use server_kit::hash_sync::{self, Sending, Sent};
use server_kit::operations::{OperationHandle, Operations};
use server_kit::scan;
use std::sync::Arc;
use wdiff_format::compression::Compression;
use wlog_format::units::LogUuid;

pub fn snapshot(begin: u64, end: u64) -> Snapshot {
    Snapshot { gid_begin: begin, gid_end: end }
}

/// A device with this content.
pub fn device(content: &[u8]) -> (tempfile::TempDir, Arc<dyn BlockDevice>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    std::fs::write(&path, content).unwrap();
    let options = block_io::OpenOptions { direct: false, ..Default::default() };
    (dir, block_io::open(&path, options).unwrap())
}

pub async fn handle() -> OperationHandle {
    let (started, handle) = tokio::sync::oneshot::channel();
    Operations::new().start("test", VOLUME, |handle| async move {
        let _ = started.send(handle);
        Ok(Default::default())
    });
    handle.await.unwrap()
}

impl Client {
    pub async fn prepare_hash(&mut self, size_lb: u64) -> Answer<PrepareHashSyncReply> {
        let (volume, started_s) = (VOLUME.into(), 1_800_000_000);
        let request = PrepareHashSyncRequest { volume, size_lb, started_s };
        Ok(self.archive.prepare_hash_sync(request).await?.into_inner())
    }

    /// The rest of a hash backup of `content`, which becomes `|begin,end|`.
    pub async fn hash_rest(
        &self,
        session: String,
        content: &[u8],
        uuid: LogUuid,
        (begin, end): (u64, u64),
        change: HashSyncStart,
    ) -> Result<Sent, RoleError> {
        let start = HashSyncStart {
            volume: VOLUME.into(),
            session,
            log_uuid: Bytes::copy_from_slice(&uuid.0),
            size_lb: content.len() as u64 / 512,
            ..change
        };
        let (_dir, own) = device(content);
        let cells = scan::cells(own, hash_sync::spans(&start).unwrap(), start.scan_bytes_per_s);
        let progress = handle().await;
        let compression = Compression::default();
        let sending = Sending { peer: "a0", start, cells, compression, progress: &progress };
        let last = async { Ok(End::Backup(snapshot(begin, end))) };
        hash_sync::send(self.archive.clone(), sending, last).await
    }

    /// A whole hash backup; the snapshot that it was compared with.
    pub async fn hash_backup(
        &mut self,
        content: &[u8],
        uuid: LogUuid,
        end: u64,
    ) -> Result<Snapshot, RoleError> {
        let prepared = self.prepare_hash(content.len() as u64 / 512).await;
        let prepared = prepared.map_err(|s| RoleError::from_status("a0", &s))?;
        let from = prepared.latest.unwrap();
        let to = (from.gid_end + 1, end);
        self.hash_rest(prepared.session, content, uuid, to, HashSyncStart::default()).await?;
        Ok(from)
    }
}
