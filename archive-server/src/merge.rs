//! Merge: diffs that follow each other become one, and the snapshots between them go
//! (`semantics.md` §2.5, §2.9, §5.10).
//!
//! Invariants, in this order: the merged file durable -> one step in the catalogue puts it in the
//! place of its inputs -> the inputs marked for deletion (I12). A
//! crash in between leaves the inputs beside the merged file; the walk from the base image prefers
//! what goes further, so it takes the merged one, and the next start removes the rest (`load`).
//! Memory is bounded: no more than `max_open` files are read at a time, more are merged in several
//! passes, of which those that were done stay done when the merge is broken off. The latest
//! snapshot stays what it was.

use crate::archive::{Archive, turn};
use crate::deleter::Deleter;
use crate::faults;
use crate::image;
use crate::jobs::{APPLY, GC, Job, KEEP, MERGE, check};
use crate::verify;
use crate::volume::{Catalogue, Volume};
use proto::v1::{MergeRequest, Operation, merge_request::Until};
use server_kit::blocking;
use server_kit::error::{Reason, RoleError};
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::pace::Pace;
use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use wdiff_format::compression::Compression;
use wdiff_format::error::WdiffError;
use wdiff_format::gid::{Diff, Gid, GidError};
use wdiff_format::header::FileType;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::open::Records;
use wdiff_format::record::DiffRecord;
use wdiff_format::split::MaxIo;
use wdiff_format::write::{WriteOptions, write_records};
use wlog_format::units::LogUuid;

/// Less than this is not worth threads.
const PARALLEL_FROM_BYTES: u64 = 4 << 20;
/// Memory before the file.
const BUFFER_BYTES: usize = 256 << 10;

/// Starts to merge what the request names.
pub(crate) fn start(
    archive: &Arc<Archive>,
    request: &MergeRequest,
) -> Result<Operation, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active(MERGE)?;
    let name = volume.name.clone();
    let until = request.until.ok_or_else(|| {
        RoleError::bad_request("merge how far: a gid or a size is needed").with_volume(&name)
    })?;
    let task = begin(&volume, Gid(request.gid_begin), until)?;
    let (archive, bytes_per_s) = (archive.clone(), request.bytes_per_s);
    Ok(archive.operations.clone().start(MERGE, name, move |handle| async move {
        to_its_end(&archive, &volume, task, &handle, bytes_per_s).await
    }))
}

/// The right to merge, and what.
pub(crate) struct Task {
    job: Job,
    list: Vec<Diff>,
}

impl Task {
    /// How many diffs become one.
    pub(crate) fn inputs(&self) -> usize {
        self.list.len()
    }
}

/// Takes the right to merge, if there is something that merges.
pub(crate) fn begin(volume: &Volume, first: Gid, until: Until) -> Result<Task, RoleError> {
    volume.require_active(MERGE)?;
    let job = volume.jobs.begin(volume.name.as_str(), MERGE, &[APPLY, MERGE, KEEP, GC])?;
    let list = plan(volume, first, until)?;
    Ok(Task { job, list })
}

/// Merges, no faster than asked (0: as fast as it goes).
pub(crate) async fn to_its_end(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    task: Task,
    handle: &OperationHandle,
    bytes_per_s: u64,
) -> Result<Outcome, RoleError> {
    let Task { job, list } = task;
    let work = passes(archive, volume, (&job, bytes_per_s), handle, list);
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = handle.cancelled() => job.token.cancel(),
    }
    work.await
}

/// The diffs to merge, two at least.
fn plan(volume: &Volume, first: Gid, until: Until) -> Result<Vec<Diff>, RoleError> {
    let name = volume.name.as_str();
    volume.with(|c| {
        if c.base.applying_to().is_some() {
            // A merged diff could lead beyond where the image has to come to (§2.15).
            let message = format!("cannot merge volume {name}: its base image is {}", c.base);
            let step = "wait for the apply, or finish it: walbc apply ARCHIVE VOLUME GID";
            return Err(RoleError::busy(name, message).with_next_step(step));
        }
        let list = match until {
            Until::GidEnd(end) => c.diffs.mergeable_up_to(first, Gid(end)),
            Until::MaxBytes(bytes) => c.diffs.mergeable_up_to_size(first, bytes),
        };
        if let Until::GidEnd(end) = until {
            exact(c, name, &list, first, Gid(end))?;
        }
        if list.len() < 2 {
            let message =
                format!("volume {name}: there are no two diffs to merge from gid {first}");
            let step = "see the diffs and their flags: walbc diffs ARCHIVE VOLUME";
            return Err(RoleError::new(Reason::WrongState, message)
                .with_volume(name)
                .with_next_step(step));
        }
        Ok(list)
    })
}

/// Fails unless `list` leads from `first` to `end` exactly; says what is in the way.
fn exact(
    c: &Catalogue,
    volume: &str,
    list: &[Diff],
    first: Gid,
    end: Gid,
) -> Result<(), RoleError> {
    let cannot = format!("cannot merge volume {volume} from gid {first} to {end}");
    if end <= first {
        let error = RoleError::bad_request(format!("{cannot}: that is backwards"));
        return Err(error.with_volume(volume).with_next_step("name the older gid first"));
    }
    let no_start = |gid: Gid| {
        let step = format!("see the diffs: walbc diffs ARCHIVE {volume}");
        RoleError::unknown_snapshot(volume, format!("{cannot}: no diff starts at gid {gid}"))
            .with_next_step(step)
    };
    let Some(last) =
        list.last().filter(|_| list.first().is_some_and(|d| d.begin().begin() == first))
    else {
        return Err(no_start(first));
    };
    let reached = last.end().begin();
    if reached == end {
        return Ok(());
    }
    if reached > end {
        let why = format!("{cannot}: diff {last} leads past gid {end}");
        return Err(RoleError::unknown_snapshot(volume, why));
    }
    // What comes next does not merge.
    let next = c.diffs.range(reached, Gid(reached.0.saturating_add(1))).last();
    let Some(next) = next else { return Err(no_start(reached)) };
    let refused = |why: String| RoleError::new(Reason::WrongState, why).with_volume(volume);
    if next.comparison || list.iter().any(|d| d.comparison) {
        return Err(refused(format!("{cannot}: a diff there was made by comparing ({next})")));
    }
    Err(refused(format!("{cannot}: snapshot {reached} is explicit, so it is kept"))
        .with_next_step(format!("give it up: walbc disable-snapshot ARCHIVE {volume} {reached}")))
}

/// Merges until one diff is left; each pass takes no more files together than may be open.
async fn passes(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    speed: (&Job, u64),
    handle: &OperationHandle,
    mut list: Vec<Diff>,
) -> Result<Outcome, RoleError> {
    let mut total = 0;
    while list.len() > 1 {
        let groups: Vec<Vec<Diff>> =
            list.chunks(archive.settings.max_open.max(2)).map(<[Diff]>::to_vec).collect();
        total += list.iter().map(|d| d.size).sum::<u64>();
        handle.set_total(total);
        list = Vec::with_capacity(groups.len());
        for group in groups {
            if let [single] = group.as_slice() {
                handle.advance(single.size);
                list.push(*single);
            } else {
                list.push(one(archive, volume, speed, handle, group).await?);
            }
        }
    }
    archive.indexer.tend(volume);
    let Some(merged) = list.pop() else { return Ok(Outcome::default()) };
    let path = volume.dir.path().join(volume.diff_name(&merged)?).display().to_string();
    Ok(Outcome { gid: Some(merged.end().begin().0), path: Some(path) })
}

/// Merges a group into one diff, which takes its place.
async fn one(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    (job, bytes_per_s): (&Job, u64),
    handle: &OperationHandle,
    group: Vec<Diff>,
) -> Result<Diff, RoleError> {
    let _turn = turn(&archive.writers, job).await?;
    let work = Work {
        volume: volume.clone(),
        token: job.token.clone(),
        handle: handle.clone(),
        compression: archive.settings.merge_compression,
        reserve_bytes: archive.settings.reserve_bytes,
        deleter: archive.deleter.clone(),
        bytes_per_s,
    };
    let done = blocking::run_waiting(move || work.merge(&group)).await;
    if let Err(error) = &done {
        verify::check::met(volume, error);
    }
    done
}

/// What the thread of a merge holds.
struct Work {
    volume: Arc<Volume>,
    token: CancellationToken,
    handle: OperationHandle,
    compression: Compression,
    reserve_bytes: u64,
    deleter: Deleter,
    bytes_per_s: u64,
}

impl Work {
    /// Blocks.
    fn merge(&self, group: &[Diff]) -> Result<Diff, RoleError> {
        let volume = &self.volume;
        let failed = |e: GidError| faults::snapshot(volume.name.as_str(), &e.into());
        let Some((first, others)) = group.split_first() else {
            return Err(RoleError::bad_request("there is nothing to merge"));
        };
        let mut merged = merged(first, others).map_err(failed)?;
        let bytes = group.iter().map(|d| d.size).sum();
        self.check_space(bytes)?;
        let name = volume.diff_name(&merged)?;
        let mut tmp = volume.dir.create_tmp()?;
        merged.size = self.write(group, bytes, &mut tmp)?;
        // A merge that was broken off has not seen all of its inputs.
        check(&self.token)?;
        let failed = |e| RoleError::from(e).with_volume(&volume.name);
        volume.dir.commit(tmp, &name).map_err(failed)?;
        volume.replace_merged(merged, group)?;
        tracing::info!(volume = %volume.name, file = name, inputs = group.len(), "merged");
        Ok(merged)
    }

    /// I10: what comes in must not find the disk full of what is made here.
    fn check_space(&self, bytes: u64) -> Result<(), RoleError> {
        let volume = &self.volume;
        let needed = self.reserve_bytes.saturating_add(bytes);
        let free = blocking::wait(self.deleter.free_bytes(volume, needed))?;
        if free >= needed {
            return Ok(());
        }
        let dir = volume.dir.path().display().to_string();
        let message = format!(
            "cannot merge volume {}: {dir} has {free} bytes free, needed are {needed}",
            volume.name
        );
        Err(RoleError::no_space(message)
            .with_volume(&volume.name)
            .with_file(dir)
            .with_next_step("free space there, apply, or merge fewer diffs at a time"))
    }

    /// Writes the overlay of the group; the bytes of the file.
    fn write(&self, group: &[Diff], bytes: u64, output: impl Write) -> Result<u64, RoleError> {
        let name = self.volume.name.as_str();
        let failed = |e: WdiffError| faults::wdiff(name, e);
        let names = self.volume.diff_names(group)?;
        let wdiffs = image::open_wdiffs(name, &*self.volume.dir, &names)?;
        let uuid = wdiffs.last().map(|w| w.header().uuid).unwrap_or(LogUuid::ZERO);
        let options = WriteOptions {
            file_type: FileType::Sorted,
            uuid,
            compression: self.compression,
            max_io: MaxIo::default(),
            threads: if bytes < PARALLEL_FROM_BYTES { 1 } else { blocking::parallelism() },
        };
        let inputs = wdiffs.into_iter().map(|w| Box::new(w) as Records).collect();
        let blocks = self.volume.size().0.max(1);
        let mut told = 0;
        let mut pace = Pace::new(self.bytes_per_s);
        let records = Merger::new(inputs, options.max_io, Pieces::Joined).map_err(failed)?;
        let records = records.take_while(|_| !self.token.is_cancelled()).inspect(|record| {
            let stored = record.as_ref().ok().and_then(DiffRecord::stored);
            let stored = stored.map_or(0, |stored| stored.bytes.len() as u64);
            blocking::wait(pace.wait_or(stored, self.token.cancelled()));
            // Where it is in the image tells how far it is.
            let end = record.as_ref().map_or(0, |r| r.end().0.min(blocks));
            let done = u128::from(bytes) * u128::from(end) / u128::from(blocks);
            let done = u64::try_from(done).unwrap_or(bytes);
            self.handle.advance(done.saturating_sub(told));
            told = told.max(done);
        });
        let output = Counted { output: BufWriter::with_capacity(BUFFER_BYTES, output), bytes: 0 };
        let written = write_records(records, output, &options).map_err(failed)?;
        self.handle.advance(bytes.saturating_sub(told));
        Ok(written.bytes)
    }
}

/// What comes of merging `first` with the others, oldest first.
fn merged(first: &Diff, others: &[Diff]) -> Result<Diff, GidError> {
    others.iter().try_fold(*first, |merged, next| merged.merge(next))
}

/// Counts what it hands on.
struct Counted<W> {
    output: W,
    bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.output.write(data)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}
