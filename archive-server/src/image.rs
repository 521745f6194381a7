//! Writing images: a full backup, and diffs on top of a base image or of a clone of one.
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
use wdiff_format::error::WdiffError;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::open::{Records, WdiffReader};
use wdiff_format::redo::{Content, DecodedRecord, decode};
use wdiff_format::split::MaxIo;
use wlog_format::units::Lb;

/// Requests in flight on one image.
const DEPTH: usize = 32;
/// Largest request.
const REQUEST_BYTES: usize = 1 << 20;
/// A batch of records, between the merge and whoever takes them, is closed at so many records or
/// bytes.
const BATCH_RECORDS: usize = 32;
const BATCH_BYTES: usize = 1 << 20;
/// Batches that wait.
const WAITING: usize = 4;

/// The seam through which images are opened; a test hands in devices that fail or hang.
pub trait Images: Send + Sync + 'static {
    /// Opens an image file for reading and writing in units of 512 bytes.
    ///
    /// # Errors
    /// What the system says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn BlockDevice>>;

    /// As [`Images::open`], for reading alone, small pieces and the same ones again.
    ///
    /// # Errors
    /// What the system says.
    fn open_cached(&self, path: &Path) -> io::Result<Arc<dyn BlockDevice>> {
        self.open(path)
    }
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

    /// The page cache of a file follows direct writes to it.
    fn open_cached(&self, path: &Path) -> io::Result<Arc<dyn BlockDevice>> {
        let options = block_io::OpenOptions { direct: false, ..block_io::OpenOptions::read_only() };
        block_io::open(path, options)
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

/// What a request to an image failed at.
pub(crate) struct Failed {
    attempt: &'static str,
    path: String,
    error: io::Error,
}

impl Failed {
    fn of(self, volume: &str) -> RoleError {
        let Self { attempt, path, error } = self;
        faults::image(volume, attempt, Path::new(&path), error)
    }
}

/// Makes errors of a device tell what was attempted on it.
pub(crate) fn attempt(
    attempt: &'static str,
    device: &Arc<dyn BlockDevice>,
) -> impl Fn(io::Error) -> Failed {
    let device = device.clone();
    move |error| Failed { attempt, path: device.path_hint(), error }
}

/// One request, begun when it is polled.
pub(crate) type Request = BoxFuture<'static, Result<(), Failed>>;

/// Requests to one image.
pub(crate) struct ImageWriter {
    device: Arc<dyn BlockDevice>,
    volume: String,
    depth: usize,
    in_flight: FuturesUnordered<Request>,
}

impl ImageWriter {
    pub(crate) fn new(device: Arc<dyn BlockDevice>, volume: &str) -> Self {
        let in_flight = FuturesUnordered::new();
        Self { device, volume: volume.to_owned(), depth: DEPTH, in_flight }
    }

    /// With so many requests in flight.
    pub(crate) fn with_depth(self, depth: usize) -> Self {
        Self { depth, ..self }
    }

    pub(crate) fn failed(&self, failed: Failed) -> RoleError {
        failed.of(&self.volume)
    }

    /// Waits until at most `left` requests are in flight.
    async fn settle(&mut self, left: usize) -> Result<(), RoleError> {
        while self.in_flight.len() > left {
            if let Some(Err(error)) = self.in_flight.next().await {
                return Err(self.failed(error));
            }
        }
        Ok(())
    }

    /// Begins a request, which must not touch what others do that are in flight.
    pub(crate) async fn start(&mut self, request: Request) -> Result<(), RoleError> {
        self.settle(self.depth - 1).await?;
        self.in_flight.push(request);
        // Begins at once: what is done already is taken away first, all of it.
        while let Some(Some(done)) = futures::FutureExt::now_or_never(self.in_flight.next()) {
            done.map_err(|e| self.failed(e))?;
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
            let write = async move {
                device.write(here, vec![piece]).await.map_err(attempt("write", &device))
            };
            self.start(Box::pin(write)).await?;
        }
        Ok(())
    }

    /// Begins to write zeros, as holes where that can be.
    pub(crate) async fn zero(&mut self, offset: u64, len: u64) -> Result<(), RoleError> {
        let device = self.device.clone();
        let zero =
            async move { device.write_hole(offset, len).await.map_err(attempt("write", &device)) };
        self.start(Box::pin(zero)).await
    }

    /// Waits for all requests and makes them last.
    pub(crate) async fn flush(&mut self) -> Result<(), RoleError> {
        self.settle(0).await?;
        let flushed = self.device.flush().await.map_err(attempt("flush", &self.device));
        flushed.map_err(|e| self.failed(e))
    }

    /// Makes last what was begun so far, beside what is begun from now on. Who drops it before its
    /// end knows nothing of those requests.
    pub(crate) fn flush_behind(
        &mut self,
    ) -> impl Future<Output = Result<(), RoleError>> + Send + 'static {
        let (device, volume) = (self.device.clone(), self.volume.clone());
        let behind = std::mem::take(&mut self.in_flight);
        async move {
            // All of them, whatever becomes of one: nothing may be in flight when this ends.
            let ended: Vec<_> = behind.collect().await;
            let written = ended.into_iter().collect::<Result<(), Failed>>();
            written.map_err(|e| e.of(&volume))?;
            device.flush().await.map_err(attempt("flush", &device)).map_err(|e| e.of(&volume))
        }
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
        move || {
            let merged = merged(&volume, wdiffs, Lb::from_bytes(size))?;
            send_batches(merged, &token, &sender)
        }
    };
    let merge = tokio::spawn(server_kit::blocking::run_waiting(merge));
    let mut writer = ImageWriter::new(device, volume);
    let (mut behind, mut told) = (0, 0);
    let written = async {
        while let Some(batch) = steps.recv().await {
            for DecodedRecord { address, blocks, content } in batch {
                let (offset, len) = (address.bytes(), Lb(blocks.into()).bytes());
                match content {
                    Content::Data(data) => {
                        pace.wait_or(data.len() as u64, token.cancelled()).await;
                        check(token)?;
                        writer.write(offset, data).await?;
                    }
                    Content::AllZero | Content::Discard => writer.zero(offset, len).await?,
                }
                behind = offset + len;
            }
            advance(behind - told);
            told = behind;
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
    advance(size - told.min(size));
    result
}

/// Hands records to `sender`, a batch at a time. Ends early when nobody takes them. Blocks.
fn send_batches(
    records: impl Iterator<Item = Result<DecodedRecord, RoleError>>,
    token: &CancellationToken,
    sender: &mpsc::Sender<Vec<DecodedRecord>>,
) -> Result<(), RoleError> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for record in records {
        check(token)?;
        let record = record?;
        if let Content::Data(data) = &record.content {
            bytes += data.len();
        }
        batch.push(record);
        if batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
            continue;
        }
        bytes = 0;
        if blocking::wait(sender.send(std::mem::take(&mut batch))).is_err() {
            return Ok(());
        }
    }
    // Who takes no more has a reason of his own.
    let _gone = blocking::wait(sender.send(batch));
    Ok(())
}

/// The records of merged diffs, oldest first, decompressed by all cores. Blocks.
pub(crate) fn merged(
    volume: &str,
    wdiffs: Vec<WdiffReader>,
    size: Lb,
) -> Result<impl Iterator<Item = Result<DecodedRecord, RoleError>>, RoleError> {
    let failed = |e| faults::wdiff(volume, e);
    let inputs: Vec<Records> = wdiffs.into_iter().map(|w| Box::new(w) as Records).collect();
    let merged = Merger::new(inputs, MaxIo::NONE, Pieces::Joined).map_err(failed)?;
    Ok(decode(merged, blocking::parallelism()).map(move |record| {
        let record = record.map_err(failed)?;
        if record.end() > size {
            let (address, end, image_blocks) = (record.address.0, record.end().0, size.0);
            return Err(failed(WdiffError::BeyondEnd { address, end, image_blocks }));
        }
        Ok(record)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_io::sim::SimDisk;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn a_request_begins_when_it_is_given_though_another_has_just_ended() {
        let mut writer = ImageWriter::new(SimDisk::new("image", 1 << 20, 512), "v");
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let first = async move {
            let _ = ended.await;
            Ok(())
        };
        writer.start(Box::pin(first)).await.unwrap();
        end.send(()).unwrap();
        let begun = Arc::new(AtomicBool::new(false));
        let here = begun.clone();
        let second = async move {
            here.store(true, Ordering::Relaxed);
            std::future::pending().await
        };
        writer.start(Box::pin(second)).await.unwrap();
        assert!(begun.load(Ordering::Relaxed), "it waits for nobody");
    }
}
