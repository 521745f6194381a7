//! A volume in service: opening it, its I/O, and stopping it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use block_io::device::{BlockDevice, Extent, MAX_EXTENTS, check_range};
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use server_kit::durable::DurableDir;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wlog_format::pack::MAX_DISCARD;
use wlog_format::units::{LOGICAL_BLOCK_BYTES, Lb, to_usize};

use crate::commit::Committer;
use crate::core::{Core, Kept, LogIdentity, State, Status};
use crate::error::{OpenError, VolumeError};
use crate::options::{MAX_RECORD_BYTES, MIN_PENDING_BYTES, VolumeOptions};
use crate::overlay::Payload;
use crate::plan::max_record;
use crate::positions::Positions;
use crate::redo::{RedoOptions, RedoReport, Redone, redo_with_map};
use crate::request::{Body, Request, UnsaltedSum};
use crate::zeros::zeros;
use crate::{checkpoint, data_writer, flusher};

/// A piece of what was read from a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadPiece {
    /// These bytes.
    Data(Bytes),
    /// So many zero bytes: discarded blocks.
    Zeros(u64),
}

/// One protected volume: a log device and a data device behind one block device.
///
/// Must live in a tokio runtime. Dropping it without [`Volume::close`] is like a crash: nothing
/// that was acknowledged is lost, the next start redoes it.
pub struct Volume {
    core: Arc<Core>,
    requests: mpsc::UnboundedSender<Request>,
    tasks: TaskTracker,
    home: Handle,
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.core.stop.cancel();
    }
}

impl Volume {
    /// Redoes the log of these devices and puts the volume into service.
    ///
    /// # Errors
    /// When the log device is not the log of this data device, or a device fails.
    pub async fn open(
        name: &str,
        log: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        options: VolumeOptions,
    ) -> Result<(Self, RedoReport), OpenError> {
        Self::open_with_state(name, log, data, options, None).await
    }

    /// [`Volume::open`] with a directory of its own, in which the volume keeps what does not belong
    /// on its devices: the map of written regions, and whether its content is being replaced.
    ///
    /// # Errors
    /// The same, or the directory fails.
    pub async fn open_with_state(
        name: &str,
        log: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        options: VolumeOptions,
        state_dir: Option<Arc<dyn DurableDir>>,
    ) -> Result<(Self, RedoReport), OpenError> {
        let core = Core::open(name, log, data, options, state_dir).await?;
        let (core, report) = (Arc::new(core.0), core.1);
        let (requests, queue) = mpsc::unbounded_channel();
        let tasks = TaskTracker::new();
        tasks.spawn(guarded(Arc::clone(&core), Committer::new(Arc::clone(&core), queue).run()));
        tasks.spawn(guarded(Arc::clone(&core), flusher::run(Arc::clone(&core))));
        tasks.spawn(guarded(Arc::clone(&core), data_writer::run(Arc::clone(&core))));
        tasks.spawn(guarded(Arc::clone(&core), checkpoint::run(Arc::clone(&core))));
        tasks.close();
        Ok((Self { core, requests, tasks, home: Handle::current() }, report))
    }

    /// The runtime that its tasks run in.
    pub(crate) const fn home(&self) -> &Handle {
        &self.home
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Its log device.
    #[must_use]
    pub fn log(&self) -> &Arc<dyn BlockDevice> {
        &self.core.log
    }

    /// Its data device.
    #[must_use]
    pub fn data(&self) -> &Arc<dyn BlockDevice> {
        &self.core.data
    }

    /// Its choices.
    #[must_use]
    pub fn options(&self) -> &VolumeOptions {
        &self.core.options
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.core.state.lock().size.bytes()
    }

    /// The unit of offsets and lengths in bytes: the sector of the data device. The log takes any
    /// whole number of 512-byte sectors, whatever its block size.
    #[must_use]
    pub fn sector_bytes(&self) -> u32 {
        self.core.data.block_bytes()
    }

    /// What the volume looks like now.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from(&*self.core.state.lock())
    }

    /// Follows the status: shows the latest whenever the log became more permanent, was released or
    /// reset, and so on. Changes that nobody looked at in between are not kept.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.core.status.subscribe()
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), VolumeError> {
        let (sector, size) = (self.sector_bytes(), self.size_bytes());
        check_range(offset, len, size, sector).map_err(|_| VolumeError::Range {
            offset,
            len,
            sector,
            size,
        })
    }

    /// Reads `len` bytes at `offset`: pieces in order.
    ///
    /// What was acknowledged before is seen (I3): a block that is pending comes from the map of
    /// pending writes, and only one that is not is taken from the data device. The map is asked
    /// first; what leaves it in the meantime is on the data device already.
    ///
    /// # Errors
    /// When the range is wrong or the data device fails.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Vec<ReadPiece>, VolumeError> {
        self.check(offset, len as u64)?;
        let (start, blocks) = (Lb::from_bytes(offset), Lb::from_bytes(len as u64));
        let runs = {
            let state = self.core.state.lock();
            state.check_in_use()?;
            if state.overlay.is_empty() { None } else { Some(state.overlay.lookup(start, blocks)) }
        };
        let Some(runs) = runs else {
            return Ok(vec![ReadPiece::Data(self.core.data.read(offset, len).await?)]);
        };
        let device = if runs.iter().any(|run| run.payload.is_none()) {
            self.core.data.read(offset, len).await?
        } else {
            Bytes::new()
        };
        let pieces = runs.into_iter().map(|run| match run.payload {
            Some(Payload::Data(data)) => ReadPiece::Data(data),
            Some(Payload::Zero) => ReadPiece::Zeros(run.blocks.bytes()),
            None => {
                let from = to_usize((run.start - start).bytes());
                ReadPiece::Data(device.slice(from..from + to_usize(run.blocks.bytes())))
            }
        });
        Ok(pieces.collect())
    }

    /// Which parts of a range hold nothing (and read as zeros), in order from its start on: at most
    /// [`MAX_EXTENTS`], so that they may end before the range does. A hint: it may be late for what
    /// is written at the same time.
    ///
    /// # Errors
    /// When the range is wrong or the data device fails.
    pub async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>, VolumeError> {
        self.check(offset, len)?;
        let (start, blocks) = (Lb::from_bytes(offset), Lb::from_bytes(len));
        let runs = {
            let state = self.core.state.lock();
            state.check_in_use()?;
            state.overlay.lookup(start, blocks)
        };
        let mut extents = Vec::new();
        for run in runs {
            if extents.len() >= MAX_EXTENTS {
                break;
            }
            let len = run.blocks.bytes();
            let Some(payload) = run.payload else {
                let found = self.core.data.extents(run.start.bytes(), len).await?;
                let told: u64 = found.iter().map(|extent| extent.len).sum();
                extents.extend(found);
                if told < len {
                    break;
                }
                continue;
            };
            extents.push(Extent { len, hole: payload == Payload::Zero });
        }
        extents.truncate(MAX_EXTENTS);
        Ok(extents)
    }

    /// Writes `data` at `offset`. When it returns, the write is on the log device, and durable
    /// there with `fua` (I2). The buffer is kept until it is on the data device; it should be
    /// page-aligned.
    ///
    /// # Errors
    /// When the range is wrong, the volume has failed or is stopping, or the log is full and the
    /// policy is `error`. Then parts of the write may have been done.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), VolumeError> {
        self.check(offset, data.len() as u64)?;
        let step = self.record_bytes();
        let mut answers = Vec::with_capacity(1);
        let mut rest = data;
        let mut address = Lb::from_bytes(offset);
        while !rest.is_empty() {
            let part = rest.split_to(step.min(rest.len()));
            let blocks = Lb::from_bytes(part.len() as u64);
            let body = Body::Write { sum: UnsaltedSum::of(&part), data: part };
            answers.push(self.queue(address, blocks, body, fua).await?);
            address += blocks;
        }
        all(answers).await
    }

    /// Discards a range: it reads as zeros afterwards, on the volume as in every backup of it.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), VolumeError> {
        self.check(offset, len)?;
        let mut answers = Vec::with_capacity(1);
        let step = MAX_DISCARD.bytes() / u64::from(self.sector_bytes());
        let step = step * u64::from(self.sector_bytes());
        for at in (offset..offset + len).step_by(to_usize(step)) {
            let blocks = Lb::from_bytes(step.min(offset + len - at));
            answers.push(self.queue(Lb::from_bytes(at), blocks, Body::Discard, fua).await?);
        }
        all(answers).await
    }

    /// Makes a range read as zeros; with `keep_allocated`, by writing zeros to it.
    ///
    /// # Errors
    /// As [`Volume::write`].
    pub async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        fua: bool,
        keep_allocated: bool,
    ) -> Result<(), VolumeError> {
        if !keep_allocated {
            return self.trim(offset, len, fua).await;
        }
        self.check(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let part = (end - at).min(MAX_RECORD_BYTES);
            self.write(at, zeros(to_usize(part)), fua).await?;
            at += part;
        }
        Ok(())
    }

    /// Makes everything that was acknowledged before durable.
    ///
    /// # Errors
    /// When the log device fails, or has failed.
    pub async fn flush(&self) -> Result<(), VolumeError> {
        self.core.state.lock().flush.rhythm.asked();
        self.core.flush_log().await
    }

    /// Bytes of the largest record in this log, whole sectors of the volume.
    fn record_bytes(&self) -> usize {
        let log = self.core.state.lock().log;
        let sector = u64::from(self.sector_bytes());
        let largest = max_record(&log).bytes();
        to_usize((largest / sector).max(1) * sector)
    }

    /// Waits for room and hands a request to the committer.
    async fn queue(
        &self,
        address: Lb,
        blocks: Lb,
        body: Body,
        fua: bool,
    ) -> Result<oneshot::Receiver<Result<(), VolumeError>>, VolumeError> {
        let sectors = match &body {
            Body::Write { data, .. } => data.len() as u64 / LOGICAL_BLOCK_BYTES,
            Body::Discard => 1,
        };
        let sectors = u32::try_from(sectors).unwrap_or(u32::MAX);
        let memory = self.core.reserve(sectors).await?;
        let (answer, answered) = oneshot::channel();
        let request = Request { address, blocks, body, fua, memory, answer };
        self.requests.send(request).map_err(|_| VolumeError::Stopping)?;
        Ok(answered)
    }

    /// Stops the volume: new writes are refused, everything accepted goes to the data device, and
    /// the super block says so. A volume that has failed is left as it is, for redo.
    ///
    /// # Errors
    /// When a device fails on the way; redo will do the rest at the next start.
    pub async fn close(&self) -> Result<(), VolumeError> {
        self.core.state.lock().stopping = true;
        self.core.publish();
        let done = async {
            self.core.drain().await?;
            self.core.checkpoint().await
        };
        let result = done.await;
        self.core.stop.cancel();
        self.tasks.wait().await;
        result
    }
}

/// A task of a volume. If it panics (a broken invariant), the volume fails: nobody waits for ever
/// for what it would have done, and nothing is acknowledged any more.
async fn guarded(core: Arc<Core>, task: impl Future<Output = ()>) {
    if AssertUnwindSafe(task).catch_unwind().await.is_err() {
        core.fail("a task of the volume has panicked", &"this is a bug, see the log");
    }
}

/// Waits for all parts of one request; the first error decides.
async fn all(answers: Vec<oneshot::Receiver<Result<(), VolumeError>>>) -> Result<(), VolumeError> {
    let mut result = Ok(());
    for answer in answers {
        let part = answer.await.unwrap_or(Err(VolumeError::Stopping));
        result = result.and(part);
    }
    result
}

impl Core {
    async fn open(
        name: &str,
        log: Arc<dyn BlockDevice>,
        data: Arc<dyn BlockDevice>,
        options: VolumeOptions,
        state_dir: Option<Arc<dyn DurableDir>>,
    ) -> Result<(Self, RedoReport), OpenError> {
        check_fit(&log, &data).await?;
        let kept = state_dir.map(|dir| Kept::new(dir, name));
        let overwriting = match &kept {
            Some(kept) => kept.overwrite.is_set().await?,
            None => false,
        };
        let keeper = kept.as_ref().map(|kept| &kept.regions);
        let redone = redo_with_map(&log, &data, RedoOptions::default(), keeper).await?;
        let Redone { super_block, report, regions } = redone;
        let ring = super_block.ring(log.size_bytes()).map_err(|found| OpenError::NotFormatted {
            log: log.path_hint(),
            data: data.path_hint(),
            found,
        })?;
        let (uuid, salt) = (super_block.uuid, super_block.salt);
        let identity = LogIdentity { epoch: 0, uuid, salt, ring };
        let positions = Positions::settled(super_block.oldest, report.end);
        let mut state = State::new(positions, identity, super_block.device_size, report.overflow);
        (state.overwriting, state.regions) = (overwriting, regions);
        let room = options.max_pending_bytes.max(MIN_PENDING_BYTES) / LOGICAL_BLOCK_BYTES;
        let (status, _) = watch::channel(Status::from(&state));
        let core = Self {
            name: name.to_owned(),
            log,
            data,
            options,
            kept,
            state: Mutex::new(state),
            super_block: tokio::sync::Mutex::new(super_block),
            memory: Arc::new(Semaphore::new(to_usize(room).min(Semaphore::MAX_PERMITS))),
            flush_bell: Notify::new(),
            data_bell: Notify::new(),
            checkpoint_bell: Notify::new(),
            progress: Notify::new(),
            status,
            stop: CancellationToken::new(),
        };
        Ok((core, report))
    }

    /// Makes what has completed permanent.
    pub(crate) async fn flush_log(&self) -> Result<(), VolumeError> {
        let answered = {
            let mut state = self.state.lock();
            state.check_sound()?;
            let target = state.positions.completed;
            if target <= state.positions.permanent {
                return Ok(());
            }
            let (answer, answered) = oneshot::channel();
            state.flush.waiters.push_back((target, answer));
            answered
        };
        self.hurry_flush();
        answered.await.unwrap_or(Err(VolumeError::Stopping))
    }

    /// Waits until everything admitted is permanent. The caller has made sure that nothing new is.
    pub(crate) async fn settle(&self) -> Result<(), VolumeError> {
        self.wait_until(|state| {
            let complete = state.positions.completed == state.positions.latest;
            state.check_sound().map(|()| complete.then_some(())).transpose()
        })
        .await?;
        self.flush_log().await
    }

    /// The same, and on the data device.
    pub(crate) async fn drain(&self) -> Result<(), VolumeError> {
        self.settle().await?;
        self.hurry_data();
        self.wait_until(|state| {
            let drained = state.positions.is_drained();
            state.check_sound().map(|()| drained.then_some(())).transpose()
        })
        .await
    }
}

/// Refuses devices that cannot belong together, before anything is written.
async fn check_fit(
    log: &Arc<dyn BlockDevice>,
    data: &Arc<dyn BlockDevice>,
) -> Result<(), OpenError> {
    let (super_block, _) = crate::redo::read_super_block(log, &data.path_hint()).await?;
    let mismatch =
        |why| Err(OpenError::Mismatch { log: log.path_hint(), data: data.path_hint(), why });
    let (want, have) = (super_block.device_size.bytes(), data.size_bytes());
    if have < want {
        return mismatch(format!(
            "the super block says that the volume has {want} bytes, the data device has {have}"
        ));
    }
    let (block, sector) = (super_block.block_size.bytes(), log.block_bytes());
    if block < sector {
        return mismatch(format!(
            "the log has blocks of {block} bytes, its device takes no less than {sector}; \
             format it anew with --block-size {sector}"
        ));
    }
    if want % u64::from(data.block_bytes()) != 0 {
        let sector = data.block_bytes();
        return mismatch(format!("the volume of {want} bytes has no whole sectors of {sector}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use block_io::sim::SimDisk;
    use wlog_format::superblock::DeviceName;
    use wlog_format::units::BlockSize;

    #[tokio::test]
    async fn a_panic_of_a_task_stops_the_volume_for_writes() {
        let log: Arc<dyn BlockDevice> = SimDisk::new("log", 1 << 20, 512);
        let data: Arc<dyn BlockDevice> = SimDisk::new("data", 1 << 20, 512);
        let format = crate::format_devices(&log, &data, BlockSize::B512, DeviceName::EMPTY);
        format.await.unwrap();
        let options = VolumeOptions::default();
        let (volume, _) = Volume::open("v", log, data, options).await.unwrap();
        guarded(Arc::clone(&volume.core), async { panic!("a broken invariant") }).await;
        let refused = volume.write(0, zeros(512), false).await;
        assert!(matches!(refused, Err(VolumeError::Failed(_))), "{refused:?}");
        assert!(volume.read(0, 512).await.is_ok());
    }
}
