//! The four ways in which one archive fills another one.

use super::Replication;
use super::plan::Batch;
use crate::backend::Image;
use crate::faults;
use crate::view::View;
use block_io::device::BlockDevice;
use futures::TryStreamExt;
use proto::v1::full_sync_request::Step as FullStep;
use proto::v1::hash_sync_end::Result as HashEnd;
use proto::v1::wdiff_transfer_request::Step as WdiffStep;
use proto::v1::{
    FullSyncEnd, FullSyncRequest, FullSyncStart, HashSyncStart, PrepareReplicationReply, WdiffEnd,
    WdiffResult, WdiffSender, WdiffStart, WdiffTransferRequest,
};
use server_kit::blocking;
use server_kit::chunks::{ChunkSender, IN_FLIGHT};
use server_kit::durable::DurableDir;
use server_kit::error::{Reason, RoleError};
use server_kit::hash_sync::{self, Sending};
use server_kit::scan::{self, CELL_BYTES};
use std::io::Write;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use wdiff_format::gid::{BaseState, Diff, Snapshot};
use wdiff_format::header::FileType;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::open::{Records, WdiffReader};
use wdiff_format::split::MaxIo;
use wdiff_format::write::{WriteOptions, write_records};
use wlog_format::units::{Lb, LogUuid, to_usize};

/// Messages between what is sent and the connection.
const QUEUE: usize = 2;

impl Replication {
    /// The image, which stays as it is for as long as this job runs.
    async fn image(&self) -> Result<Arc<dyn BlockDevice>, RoleError> {
        self.volume.open_image(Image::Base, self.volume.size()).await
    }

    fn said(&self) -> (LogUuid, Lb, BaseState) {
        self.volume.with(|c| (c.record.archive_uuid, Lb(c.record.size_lb), c.base))
    }

    /// The base image as it is.
    pub(super) async fn full(&self, reply: PrepareReplicationReply) -> Result<(), RoleError> {
        let (archive_uuid, size, base) = self.said();
        let log_uuid = self.log_at(base.snapshot()).await?;
        let start = FullSyncStart {
            volume: self.volume.name.to_string(),
            session: reply.session,
            log_uuid: proto::convert::uuid_bytes(log_uuid),
            archive_uuid: proto::convert::uuid_bytes(archive_uuid),
        };
        let device = self.image().await?;
        self.handle.set_total(size.bytes());
        self.handle.advance(reply.start_bytes);
        let (messages, receiver) = mpsc::channel(QUEUE);
        let produce = async move {
            // A queue that nobody reads any more: the answer says why.
            let put = async |step| {
                messages.send(FullSyncRequest { step: Some(step) }).await.map_err(|_| gone())
            };
            put(FullStep::Start(start)).await?;
            let bulks = scan::bulks(device, reply.start_bytes, size.bytes(), CELL_BYTES);
            let bulks = scan::paced(bulks, self.scan_bytes_per_s);
            let mut packed = scan::packed(bulks, self.way);
            while let Some((len, bulk)) = packed.try_next().await? {
                put(FullStep::Bulk(bulk)).await?;
                self.handle.advance(len);
            }
            let (at, timestamp_s) = (Some(base.snapshot().into()), base.timestamp);
            put(FullStep::End(FullSyncEnd { base: at, timestamp_s })).await
        };
        let mut client = self.client.clone();
        let call = client.full_sync(ReceiverStream::new(receiver));
        let refused = |status| RoleError::from_status(&self.peer, &status);
        tokio::pin!(call, produce);
        tokio::select! {
            answer = &mut call => answer.map(|_| ()).map_err(refused),
            produced = &mut produce => match produced {
                Err(error) if error.reason() != Reason::Cancelled => Err(error),
                _ => call.await.map(|_| ()).map_err(refused),
            },
        }
    }

    /// The announcement of a comparison with our snapshot `at`.
    async fn hash_start(&self, session: String, at: Snapshot) -> Result<HashSyncStart, RoleError> {
        let (archive_uuid, size, _) = self.said();
        let log_uuid = self.log_at(at).await?;
        Ok(HashSyncStart {
            volume: self.volume.name.to_string(),
            session,
            log_uuid: proto::convert::uuid_bytes(log_uuid),
            archive_uuid: proto::convert::uuid_bytes(archive_uuid),
            size_lb: size.0,
            scan_bytes_per_s: self.scan_bytes_per_s,
            ..HashSyncStart::default()
        })
    }

    async fn compare(
        &self,
        start: HashSyncStart,
        cells: scan::Bulks,
        end: HashEnd,
    ) -> Result<(), RoleError> {
        let sending = Sending {
            peer: &self.peer,
            start,
            cells,
            compression: self.compression,
            progress: &self.handle,
        };
        hash_sync::send(self.client.clone(), sending, async { Ok(end) }).await.map(|_| ())
    }

    /// What differs between the two base images. What the other archive has is given up.
    pub(super) async fn resync(&self, reply: PrepareReplicationReply) -> Result<(), RoleError> {
        let (.., base) = self.said();
        let start = self.hash_start(reply.session, base.snapshot()).await?;
        let spans = hash_sync::spans(&start)?;
        let cells = scan::cells(self.image().await?, spans, self.scan_bytes_per_s);
        self.compare(start, cells, HashEnd::Base(base.into())).await
    }

    /// What differs between the other archive's latest snapshot and our oldest clean one.
    pub(super) async fn hash(
        &self,
        reply: PrepareReplicationReply,
        from: Snapshot,
        (to, timestamp): (Snapshot, u64),
    ) -> Result<(), RoleError> {
        let failed =
            |e: wdiff_format::gid::GidError| faults::snapshot(self.volume.name.as_str(), &e.into());
        let mut diff = Diff::new(from, to).map_err(failed)?;
        (diff.mergeable, diff.comparison, diff.timestamp) = (true, true, timestamp);
        let start = self.hash_start(reply.session, to).await?;
        let view = View::of_snapshot(&self.archive, &self.volume, to.begin()).await?;
        let cells = view.cells(hash_sync::spans(&start)?, self.scan_bytes_per_s);
        self.compare(start, cells, HashEnd::Diff(diff.into())).await
    }

    /// Some wdiffs, as one.
    pub(super) async fn diff(&self, batch: Batch) -> Result<(), RoleError> {
        let Batch { merged, lease, log_uuid, bytes } = batch;
        let start = WdiffStart {
            volume: self.volume.name.to_string(),
            sender_id: self.archive.id.to_string(),
            sender: WdiffSender::Archive.into(),
            log_uuid: proto::convert::uuid_bytes(log_uuid),
            size_lb: self.volume.size().0,
            diff: Some(merged.into()),
        };
        let (messages, receiver) = mpsc::channel(IN_FLIGHT);
        let first = WdiffTransferRequest { step: Some(WdiffStep::Start(start)) };
        messages.send(first).await.map_err(|_| gone())?;
        let wdiffs = self.open(&lease).await?;
        let as_it_is = self.dont_merge
            && wdiffs.iter().all(|wdiff| wdiff.header().file_type == FileType::Sorted);
        let output = Output {
            dir: self.volume.dir.clone(),
            volume: self.volume.name.to_string(),
            messages,
            options: WriteOptions {
                file_type: FileType::Sorted,
                uuid: log_uuid,
                compression: self.compression,
                max_io: MaxIo::default(),
                threads: blocking::parallelism(),
            },
        };
        let sent = lease.clone();
        let writing = blocking::run_waiting(move || {
            if as_it_is { output.pass_through(&sent) } else { output.merge(wdiffs) }
        });
        let mut client = self.client.clone();
        let call = client.wdiff_transfer(ReceiverStream::new(receiver));
        let (written, answer) = tokio::join!(writing, call);
        match written {
            Err(error) if error.reason() != Reason::Cancelled => return Err(error),
            _ => {}
        }
        let answer = answer.map_err(|s| RoleError::from_status(&self.peer, &s))?.into_inner();
        drop(lease);
        match answer.result() {
            // Others may have sent it in the meantime.
            WdiffResult::Stored | WdiffResult::TooOld => {
                self.handle.advance(bytes);
                Ok(())
            }
            WdiffResult::Busy | WdiffResult::Syncing | WdiffResult::SmallerSize => Err(
                RoleError::busy(&self.volume.name, format!("{}: {}", self.peer, answer.message)),
            ),
            _ => {
                let message = format!("{} does not take {merged}: {}", self.peer, answer.message);
                Err(RoleError::new(Reason::WrongState, message)
                    .with_next_step("look at it: walbc status"))
            }
        }
    }
}

/// Whoever should take it has given up, and says why.
fn gone() -> RoleError {
    RoleError::cancelled("the other archive takes no more")
}

/// A wdiff on its way.
pub(crate) struct Output {
    pub(crate) dir: Arc<dyn DurableDir>,
    pub(crate) volume: String,
    pub(crate) messages: mpsc::Sender<WdiffTransferRequest>,
    pub(crate) options: WriteOptions,
}

impl Output {
    fn sender(&self) -> ChunkSender<WdiffTransferRequest> {
        ChunkSender::new(self.messages.clone(), |chunk| WdiffTransferRequest {
            step: Some(WdiffStep::Chunk(chunk)),
        })
    }

    fn end(&self, total_bytes: u64) -> Result<(), RoleError> {
        let end = WdiffStep::End(WdiffEnd { total_bytes });
        let sent = self.messages.send(WdiffTransferRequest { step: Some(end) });
        blocking::wait(sent).map_err(|_| gone())
    }

    /// The wdiffs merged into one. Blocks.
    pub(crate) fn merge(&self, wdiffs: Vec<WdiffReader>) -> Result<(), RoleError> {
        let failed = |e| match e {
            wdiff_format::error::WdiffError::Output { .. } => gone(),
            e => faults::wdiff(&self.volume, e),
        };
        let inputs = wdiffs.into_iter().map(|w| Box::new(w) as Records).collect();
        let records = Merger::new(inputs, self.options.max_io, Pieces::Joined).map_err(failed)?;
        let written = write_records(records, self.sender(), &self.options).map_err(failed)?;
        self.end(written.sent_bytes())
    }

    /// The file as it is; the other archive checks it. Blocks.
    fn pass_through(&self, lease: &crate::leases::Lease) -> Result<(), RoleError> {
        let file = lease.open(0..lease.len(), |names| {
            let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
            names.first().ok_or_else(missing).and_then(|name| self.dir.open_file(name))
        });
        let failed = |e| RoleError::io("read a wdiff in", self.dir.path(), e);
        let file = file.map_err(failed)?;
        let size = file.size_bytes().map_err(failed)?;
        let mut sender = self.sender();
        let mut at = 0;
        let mut buffer = vec![0; 256 << 10];
        while at < size {
            let len = to_usize((size - at).min(buffer.len() as u64));
            let (part, _) = buffer.split_at_mut(len);
            file.read_exact_at(part, at).map_err(failed)?;
            sender.write_all(part).map_err(|_| gone())?;
            at += len as u64;
        }
        sender.flush().map_err(|_| gone())?;
        self.end(sender.sent_bytes())
    }
}
