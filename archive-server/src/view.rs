//! The image of a snapshot, read from front to back without making it: the base image, and over it
//! what the diffs up to the snapshot say (`semantics.md` §5.16).
//!
//! The diffs are merged and decompressed on all cores while the base image is read ahead. Memory is
//! bounded: one record of each file, and what waits between the two. Invariants: what a view needs
//! is opened before anything is promised; its wdiffs are leased for as long as it lives (I12); an
//! apply may not run beside it ([`EXCLUDED`]), since it reads the base image as it is.

use crate::backend::Image;
use crate::faults;
use crate::image::{self, WAITING, merge_into};
use crate::jobs::{APPLY, RESIZE};
use crate::leases::Lease;
use crate::volume::Volume;
use block_io::device::BlockDevice;
use bytes::BytesMut;
use futures::stream::{self, TryStreamExt};
use server_kit::blocking;
use server_kit::error::{Reason, RoleError};
use server_kit::scan::{self, Bulk, Bulks, Content};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wdiff_format::gid::Gid;
use wdiff_format::open::WdiffReader;
use wdiff_format::redo::{Content as Written, DecodedRecord};
use wdiff_format::split::MaxIo;
use wlog_format::units::to_usize;

/// What must not run while a view is open.
pub(crate) const EXCLUDED: [&str; 2] = [APPLY, RESIZE];

/// Wdiffs that one view has open.
const OPEN_MAX: usize = 1024;

/// The image of a snapshot.
pub(crate) struct View {
    volume: Arc<Volume>,
    base: Arc<dyn BlockDevice>,
    lease: Lease,
}

impl View {
    /// Opens the image of the snapshot that begins at `gid`, clean or not. Everything that it needs
    /// is there when this returns.
    pub(crate) async fn open(volume: &Arc<Volume>, gid: Gid) -> Result<Self, RoleError> {
        let name = volume.name.as_str();
        let lease = volume.with(|c| {
            let list = c.diffs.scan_list(&c.base, gid).map_err(|e| faults::snapshot(name, &e))?;
            Ok::<_, RoleError>(volume.leases.take(volume.diff_names(&list)?))
        })?;
        let files = lease.names().len();
        if files > OPEN_MAX {
            let message = format!(
                "cannot read snapshot {gid} of volume {name} as it is: {files} wdiffs lead there, \
                 more than {OPEN_MAX}"
            );
            let step = format!("merge or apply some: walbc apply ARCHIVE {name} GID");
            return Err(RoleError::new(Reason::WrongState, message)
                .with_volume(name)
                .with_next_step(step));
        }
        let base = volume.open_image(Image::Base, volume.size()).await?;
        let view = Self { volume: volume.clone(), base, lease };
        view.wdiffs().await?;
        Ok(view)
    }

    async fn wdiffs(&self) -> Result<Vec<WdiffReader>, RoleError> {
        let (volume, lease) = (self.volume.clone(), self.lease.clone());
        let open = move || {
            lease.open(0..lease.names().len(), |names| {
                image::open_wdiffs(volume.name.as_str(), &*volume.dir, names)
            })
        };
        blocking::run(open).await
    }

    /// The cells of `spans`, no faster than `bytes_per_s` (0: as fast as it goes).
    pub(crate) async fn cells(
        self,
        spans: Vec<Range<u64>>,
        bytes_per_s: u64,
    ) -> Result<Bulks, RoleError> {
        let cells = scan::cells(self.base.clone(), spans, bytes_per_s);
        let wdiffs = self.wdiffs().await?;
        let records = Records::merge(&self.volume, wdiffs);
        // The lease lives as long as the stream.
        let state = (cells, records, self.lease);
        Ok(Box::pin(stream::try_unfold(state, |(mut cells, mut records, lease)| async move {
            let Some(cell) = cells.try_next().await? else { return Ok(None) };
            let cell = records.over(cell).await?;
            Ok(Some((cell, (cells, records, lease))))
        })))
    }
}

/// The merged records of some diffs, in order.
struct Records {
    records: mpsc::Receiver<DecodedRecord>,
    merge: Option<JoinHandle<Result<(), RoleError>>>,
    /// The record that reaches beyond the last cell, or begins there.
    head: Option<DecodedRecord>,
}

impl Records {
    fn merge(volume: &Arc<Volume>, wdiffs: Vec<WdiffReader>) -> Self {
        let (sender, records) = mpsc::channel(WAITING);
        if wdiffs.is_empty() {
            return Self { records, merge: None, head: None };
        }
        let volume = volume.clone();
        let merge = move || {
            // Whoever reads the cells gives up by dropping them.
            let never = CancellationToken::new();
            let max_io = MaxIo::default();
            merge_into(volume.name.as_str(), wdiffs, volume.size(), max_io, &never, &sender)
        };
        Self { records, merge: Some(tokio::spawn(blocking::run_waiting(merge))), head: None }
    }

    /// The next record that begins before byte `end`.
    async fn before(&mut self, end: u64) -> Result<Option<DecodedRecord>, RoleError> {
        let next = match self.head.take() {
            Some(head) => Some(head),
            None => self.records.recv().await,
        };
        match next {
            Some(record) if record.address.bytes() < end => Ok(Some(record)),
            Some(record) => {
                self.head = Some(record);
                Ok(None)
            }
            None => {
                let broke = |e| RoleError::new(Reason::Io, format!("the merge broke: {e}"));
                if let Some(merge) = self.merge.take() {
                    merge.await.map_err(broke)??;
                }
                Ok(None)
            }
        }
    }

    /// A cell with the records over it.
    async fn over(&mut self, cell: Bulk) -> Result<Bulk, RoleError> {
        let end = cell.offset + cell.len();
        let mut patched = Patched { cell, data: None };
        while let Some(record) = self.before(end).await? {
            patched.put(&record);
            if record.end().bytes() > end {
                self.head = Some(record);
                break;
            }
        }
        Ok(patched.finish())
    }
}

/// A cell that is written to.
struct Patched {
    cell: Bulk,
    data: Option<BytesMut>,
}

impl Patched {
    fn put(&mut self, record: &DecodedRecord) {
        let (begin, end) = (self.cell.offset, self.cell.offset + self.cell.len());
        let start = record.address.bytes();
        let (from, to) = (start.max(begin), record.end().bytes().min(end));
        if from >= to {
            return;
        }
        let source = match &record.content {
            Written::Data(data) => data.get(to_usize(from - start)..to_usize(to - start)),
            Written::AllZero | Written::Discard => None,
        };
        if source.is_none() && self.data.is_none() && matches!(self.cell.content, Content::Zeros(_))
        {
            return;
        }
        let target = self.data().get_mut(to_usize(from - begin)..to_usize(to - begin));
        match (target, source) {
            (Some(target), Some(source)) => target.copy_from_slice(source),
            (Some(target), None) => target.fill(0),
            (None, _) => {}
        }
    }

    fn data(&mut self) -> &mut BytesMut {
        let content = &self.cell.content;
        self.data.get_or_insert_with(|| match content {
            Content::Data(data) => BytesMut::from(&data[..]),
            Content::Zeros(len) => BytesMut::zeroed(to_usize(*len)),
        })
    }

    fn finish(self) -> Bulk {
        let Some(data) = self.data else { return self.cell };
        let content = if data.iter().all(|b| *b == 0) {
            Content::Zeros(data.len() as u64)
        } else {
            Content::Data(data.freeze())
        };
        Bulk { offset: self.cell.offset, content }
    }
}
