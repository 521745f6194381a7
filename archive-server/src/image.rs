//! Writing images: a full backup, diffs on top of a base image, a copy of one.
//!
//! Many requests are in flight, bounded in number and bytes; the merge of the diffs runs on a
//! thread that may block. Invariants: discards become zeros, so that an image equals the device as
//! its application sees it (`semantics.md` §5.15, `zero`); nothing is reported as written before a
//! flush.

use crate::faults;
use crate::jobs::check;
use block_io::device::BlockDevice;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use server_kit::blocking;
use server_kit::durable::DurableDir;
use server_kit::error::RoleError;
use server_kit::pace::Pace;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wdiff_format::merge::Merger;
use wdiff_format::open::{Records, WdiffReader};
use wdiff_format::redo::{Content, DecodedRecord, decode};
use wdiff_format::split::MaxIo;
use wlog_format::units::Lb;

/// Requests in flight on one image.
const DEPTH: usize = 32;
/// Largest request.
const REQUEST_BYTES: usize = 1 << 20;
/// Records that wait between the merge and whoever takes them.
pub(crate) const WAITING: usize = 16;

/// The seam through which images are opened; a test hands in devices that fail or hang.
pub trait Images: Send + Sync + 'static {
    /// Opens an image file for reading and writing in units of 512 bytes.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn BlockDevice>>;
}

/// Images in ordinary files.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileImages;

impl Images for FileImages {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn BlockDevice>> {
        let device = block_io::open(path, block_io::OpenOptions::default())?;
        if device.block_bytes() == block_io::device::SECTOR_BYTES {
            return Ok(device);
        }
        // Records begin and end at any 512 bytes: the page cache does what direct I/O cannot.
        let buffered = block_io::OpenOptions { direct: false, ..Default::default() };
        block_io::open(path, buffered)
    }
}

/// Opens an image, away from the async threads.
pub(crate) async fn open(
    images: &Arc<dyn Images>,
    volume: &str,
    path: PathBuf,
) -> Result<Arc<dyn BlockDevice>, RoleError> {
    let (images, volume) = (images.clone(), volume.to_owned());
    let open = move || images.open(&path).map_err(|e| faults::image(&volume, "open", &path, e));
    server_kit::blocking::run(open).await
}

/// Requests to one image.
pub(crate) struct ImageWriter {
    device: Arc<dyn BlockDevice>,
    volume: String,
    in_flight: FuturesUnordered<BoxFuture<'static, io::Result<()>>>,
}

impl ImageWriter {
    pub(crate) fn new(device: Arc<dyn BlockDevice>, volume: &str) -> Self {
        Self { device, volume: volume.to_owned(), in_flight: FuturesUnordered::new() }
    }

    fn failed(&self, attempt: &str, error: io::Error) -> RoleError {
        faults::image(&self.volume, attempt, Path::new(&self.device.path_hint()), error)
    }

    /// Waits until at most `left` requests are in flight.
    async fn settle(&mut self, left: usize) -> Result<(), RoleError> {
        while self.in_flight.len() > left {
            if let Some(Err(error)) = self.in_flight.next().await {
                return Err(self.failed("write", error));
            }
        }
        Ok(())
    }

    async fn start(
        &mut self,
        request: BoxFuture<'static, io::Result<()>>,
    ) -> Result<(), RoleError> {
        self.settle(DEPTH - 1).await?;
        self.in_flight.push(request);
        // Begins at once; what is done already is taken away.
        if let Some(Some(Err(error))) = futures::FutureExt::now_or_never(self.in_flight.next()) {
            return Err(self.failed("write", error));
        }
        Ok(())
    }

    /// Begins to write; ranges that are in flight together must be disjoint.
    pub(crate) async fn write(&mut self, offset: u64, mut data: Bytes) -> Result<(), RoleError> {
        let mut at = offset;
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(REQUEST_BYTES));
            let (device, here) = (self.device.clone(), at);
            at += piece.len() as u64;
            self.start(Box::pin(async move { device.write(here, vec![piece]).await })).await?;
        }
        Ok(())
    }

    /// Begins to write zeros, as holes where that can be.
    pub(crate) async fn zero(&mut self, offset: u64, len: u64) -> Result<(), RoleError> {
        let device = self.device.clone();
        self.start(Box::pin(async move { device.write_hole(offset, len).await })).await
    }

    /// Begins to copy a range of `from` to where only zeros are: those are not written.
    pub(crate) async fn copy(
        &mut self,
        from: &Arc<dyn BlockDevice>,
        offset: u64,
        len: usize,
    ) -> Result<(), RoleError> {
        let (from, device) = (from.clone(), self.device.clone());
        let request = async move {
            let data = from.read(offset, len).await?;
            if data.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            device.write(offset, vec![data]).await
        };
        self.start(Box::pin(request)).await
    }

    /// Waits for all requests and makes them last.
    pub(crate) async fn flush(&mut self) -> Result<(), RoleError> {
        self.settle(0).await?;
        self.device.flush().await.map_err(|e| self.failed("flush", e))
    }

    /// Waits for all requests, whatever becomes of them: nobody else may touch the image before.
    pub(crate) async fn drain(&mut self) {
        while self.in_flight.next().await.is_some() {}
    }
}

/// Opens wdiff files of a volume's directory, oldest first. Blocks.
pub(crate) fn open_wdiffs(
    volume: &str,
    dir: &dyn DurableDir,
    names: &[String],
) -> Result<Vec<WdiffReader>, RoleError> {
    let open = |name: &String| {
        let path = dir.path().join(name).display().to_string();
        WdiffReader::from_opened(dir.open_file(name), path)
    };
    let opened = names.iter().map(open).collect::<Result<_, _>>();
    opened.map_err(|e| faults::wdiff(volume, e))
}

/// Writes diffs, oldest first, onto an image, no faster than `pace`, and flushes it. `advance`
/// hears of the bytes of the image that are behind, all of it in the end.
pub(crate) async fn write_merged(
    device: Arc<dyn BlockDevice>,
    volume: &str,
    wdiffs: Vec<WdiffReader>,
    token: &CancellationToken,
    pace: &mut Pace,
    advance: impl Fn(u64),
) -> Result<(), RoleError> {
    let (sender, mut steps) = mpsc::channel(WAITING);
    let size = device.size_bytes();
    let merge = {
        let (volume, token) = (volume.to_owned(), token.clone());
        let size = Lb::from_bytes(size);
        move || merge_into(&volume, wdiffs, size, MaxIo::NONE, &token, &sender)
    };
    let merge = tokio::spawn(server_kit::blocking::run_waiting(merge));
    let mut writer = ImageWriter::new(device, volume);
    let mut behind = 0;
    let written = async {
        while let Some(DecodedRecord { address, blocks, content }) = steps.recv().await {
            let (offset, len) = (address.bytes(), Lb(blocks.into()).bytes());
            match content {
                Content::Data(data) => {
                    pace.wait_or(data.len() as u64, token.cancelled()).await;
                    check(token)?;
                    writer.write(offset, data).await?;
                }
                Content::AllZero | Content::Discard => writer.zero(offset, len).await?,
            }
            advance(offset + len - behind);
            behind = offset + len;
        }
        Ok(())
    };
    let written: Result<(), RoleError> = written.await;
    // A writer that failed ends the merge, which then has nothing of its own to tell.
    drop(steps);
    let merged =
        merge.await.map_err(|e| RoleError::new(server_kit::error::Reason::Io, e.to_string()));
    let result = match (written, merged.and_then(|m| m)) {
        (Ok(()), Ok(())) => writer.flush().await,
        (Err(error), _) | (Ok(()), Err(error)) => Err(error),
    };
    writer.drain().await;
    advance(size - behind.min(size));
    result
}

/// Hands the records of merged diffs, decompressed by all cores, to `sender`, in order. Ends early
/// when nobody takes them. Blocks.
pub(crate) fn merge_into(
    volume: &str,
    wdiffs: Vec<WdiffReader>,
    size: Lb,
    max_io: MaxIo,
    token: &CancellationToken,
    sender: &mpsc::Sender<DecodedRecord>,
) -> Result<(), RoleError> {
    let failed = |e| faults::wdiff(volume, e);
    let inputs: Vec<Records> = wdiffs.into_iter().map(|w| Box::new(w) as Records).collect();
    let merged = Merger::new(inputs, max_io).map_err(failed)?;
    for record in decode(merged, blocking::parallelism()) {
        check(token)?;
        let record = record.map_err(failed)?;
        if record.end() > size {
            let (address, end, image_blocks) = (record.address.0, record.end().0, size.0);
            return Err(failed(wdiff_format::error::WdiffError::BeyondEnd {
                address,
                end,
                image_blocks,
            }));
        }
        if server_kit::blocking::wait(sender.send(record)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Copies all that is not zero to an image that reads as zeros, and flushes. Of two sizes the
/// smaller one counts: an image may grow meanwhile.
pub(crate) async fn copy_sparse(
    from: Arc<dyn BlockDevice>,
    to: Arc<dyn BlockDevice>,
    volume: &str,
    token: &CancellationToken,
    advance: impl Fn(u64),
) -> Result<(), RoleError> {
    let size = from.size_bytes().min(to.size_bytes());
    let mut writer = ImageWriter::new(to, volume);
    let copied = async {
        let mut at = 0;
        while at < size {
            let extents = from.extents(at, size - at).await;
            let extents = extents.map_err(|e| writer.failed("find the holes of", e))?;
            if extents.is_empty() {
                let lost = io::Error::other("it has no extents");
                return Err(writer.failed("find the holes of", lost));
            }
            for extent in extents {
                let end = at + extent.len;
                while !extent.hole && at < end {
                    check(token)?;
                    let len = (end - at).min(REQUEST_BYTES as u64);
                    writer.copy(&from, at, wlog_format::units::to_usize(len)).await?;
                    advance(len);
                    at += len;
                }
                advance(end - at);
                at = end;
            }
        }
        writer.flush().await
    };
    let copied = copied.await;
    writer.drain().await;
    copied
}
