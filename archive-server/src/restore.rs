//! Restore: an image of a snapshot, made of the base image and the diffs up to it (`semantics.md`
//! §5.7): the diffs are written over a clone of it, or both in one pass where there are no clones.
//!
//! Invariants: "where is the base image" and the clone of it, or the reading of it, are one step
//! for an apply (`image_gate`, `semantics.md` §9.2 #10); the wdiffs are leased until the image is
//! done (I12); what an unfinished apply has written to the base image, the diffs write again; an
//! image takes its name when it is whole and durable.

use crate::archive::{Archive, turn};
use crate::backend::{CloneMethod, Image};
use crate::faults;
use crate::image;
use crate::jobs::{Job, RESTORE, RESYNC};
use crate::leases::Lease;
use crate::overlay;
use crate::record::Elsewhere;
use crate::verify;
use crate::volume::{Catalogue, Volume};
use block_io::device::BlockDevice;
use proto::v1::{Operation, RestorePlan, RestoreReply, RestoreRequest, restore_request};
use server_kit::durable::TMP_SUFFIX;
use server_kit::error::RoleError;
use server_kit::operations::{OperationHandle, Outcome};
use server_kit::pace::Pace;
use server_kit::{blocking, clock};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::OwnedRwLockReadGuard;
use wdiff_format::gid::Gid;
use wdiff_format::open::WdiffReader;
use wlog_format::units::Lb;

/// Names of wdiffs that a plan tells: more do not fit a message.
const NAMES_MAX: usize = 1000;

/// What a restore will do.
struct Plan {
    gid: Gid,
    /// The diffs, whose files stay for as long as the plan does.
    lease: Lease,
    target: Target,
}

/// Where a restored image goes.
#[derive(Clone)]
enum Target {
    /// Where the volume has its images.
    Own(Gid),
    /// A file outside of that, which a person chose.
    Elsewhere { dir: PathBuf, name: String },
}

impl Target {
    /// The whole, for messages.
    fn path(&self, volume: &Volume) -> PathBuf {
        match self {
            Self::Own(gid) => volume.images.path(Image::Restored(*gid)),
            Self::Elsewhere { dir, name } => dir.join(name),
        }
    }

    /// Lays out the half-made image: a clone of the base image (true), or one that reads as zeroes.
    /// Blocks.
    fn lay_out(&self, archive: &Archive, volume: &Volume, size: Lb) -> Result<bool, RoleError> {
        let images = &volume.images;
        match self {
            Self::Own(gid) => {
                let image = Image::Restoring(*gid);
                images.room(archive.settings.reserve_bytes)?;
                images.remove(image)?;
                if images.clone_base(image)? {
                    return Ok(true);
                }
                images.create(image, size)?;
            }
            Self::Elsewhere { dir, name } => {
                let dir = (archive.world.open_dir)(dir)?;
                let tmp = half_made(name);
                volume.elsewhere.store(&Elsewhere { half_made: dir.path().join(&tmp) })?;
                dir.remove(&tmp)?;
                if images.reflink_into(&*dir, &tmp) {
                    return Ok(true);
                }
                let failed = |e| RoleError::io("create", dir.path().join(&tmp), e);
                dir.set_len(&tmp, size.bytes()).map_err(failed)?;
            }
        }
        Ok(false)
    }

    /// Opens the half-made image.
    async fn open(
        &self,
        archive: &Archive,
        volume: &Volume,
        size: Lb,
    ) -> Result<Arc<dyn BlockDevice>, RoleError> {
        match self {
            Self::Own(gid) => volume.open_image(Image::Restoring(*gid), size).await,
            Self::Elsewhere { dir, name } => {
                let tmp = dir.join(half_made(name));
                image::open(&archive.world.images, volume.name.as_str(), tmp).await
            }
        }
    }

    /// Makes the image last under its name. Blocks.
    fn commit(&self, archive: &Archive, volume: &Volume) -> Result<(), RoleError> {
        let (dir, name) = match self {
            Self::Own(gid) => return volume.images.commit_restored(*gid),
            Self::Elsewhere { dir, name } => ((archive.world.open_dir)(dir)?, name),
        };
        let tmp = half_made(name);
        dir.sync_file(&tmp).map_err(|e| RoleError::io("finish", dir.path().join(name), e))?;
        Ok(dir.commit_dir(&tmp, name)?)
    }

    /// Removes a half-made image. Blocks.
    fn abandon(&self, archive: &Archive, volume: &Volume) -> Result<(), RoleError> {
        match self {
            Self::Own(gid) => volume.images.remove(Image::Restoring(*gid)),
            Self::Elsewhere { dir, name } => {
                Ok((archive.world.open_dir)(dir)?.remove(&half_made(name))?)
            }
        }
    }
}

fn half_made(name: &str) -> String {
    format!("{name}{TMP_SUFFIX}")
}

/// Plans a restore and, unless it is a dry run, starts it.
pub(crate) async fn start(
    archive: &Arc<Archive>,
    mut request: RestoreRequest,
) -> Result<RestoreReply, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active("restore")?;
    let (gid, message, target) = preview(&volume, &request)?;
    let (checked, owner, base) = (target, volume.clone(), archive.base.clone());
    blocking::run(move || check_target(&checked, &owner, base.path())).await?;
    if request.dry_run {
        return Ok(RestoreReply { plan: Some(message), operation: None });
    }
    // A time means what it meant when the plan was made.
    request.point = Some(restore_request::Point::Gid(gid.0));
    let job = volume.jobs.begin(volume.name.as_str(), RESTORE, &[RESTORE, RESYNC])?;
    let operation = begin(archive, &volume, job, request);
    Ok(RestoreReply { plan: Some(message), operation: Some(operation) })
}

fn begin(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    job: Job,
    request: RestoreRequest,
) -> Operation {
    let (archive, volume) = (archive.clone(), volume.clone());
    let name = volume.name.clone();
    archive.operations.clone().start(RESTORE, name, |handle| async move {
        run(&archive, &volume, &request, &job, &handle).await
    })
}

/// Lets go of the wdiffs, and of a half-made image.
async fn release(archive: &Arc<Archive>, volume: &Arc<Volume>, plan: Plan, failed: bool) {
    let (archive, volume) = (archive.clone(), volume.clone());
    let cleaned = blocking::run(move || -> Result<(), RoleError> {
        drop(plan.lease);
        if failed {
            plan.target.abandon(&archive, &volume)?;
        }
        Ok(volume.elsewhere.remove()?)
    });
    if let Err(error) = cleaned.await {
        tracing::warn!(error = error.full_message(), "a half-made restore is left");
    }
}

/// A snapshot, and what it is made of.
pub(crate) struct Selected {
    pub(crate) gid: Gid,
    pub(crate) timestamp: u64,
    pub(crate) lease: Lease,
}

/// The last clean snapshot not later than `time`, in Unix seconds.
pub(crate) fn restorable_at(volume: &Volume, time: u64) -> Result<Gid, RoleError> {
    volume.with(|c| at(c, volume.name.as_str(), time))
}

fn at(c: &Catalogue, name: &str, time: u64) -> Result<Gid, RoleError> {
    let found = c.diffs.restorable_at(&c.base, time).map(|p| p.gid);
    found.ok_or_else(|| {
        let message = format!("volume {name}: no clean snapshot is that old");
        RoleError::unknown_snapshot(name, message).with_next_step(faults::see_restorable(name))
    })
}

/// The snapshot of a point.
fn meant(c: &Catalogue, name: &str, point: restore_request::Point) -> Result<Gid, RoleError> {
    match point {
        restore_request::Point::Gid(gid) => Ok(Gid(gid)),
        restore_request::Point::AtS(time) => at(c, name, time),
    }
}

/// Picks a snapshot and leases its wdiffs.
pub(crate) fn select(
    volume: &Volume,
    point: restore_request::Point,
) -> Result<Selected, RoleError> {
    let name = volume.name.as_str();
    volume.with(|c| {
        let gid = meant(c, name, point)?;
        let list = c.diffs.restore_list(&c.base, gid).map_err(|e| faults::snapshot(name, &e))?;
        let timestamp = list.last().map_or(c.base.timestamp, |d| d.timestamp);
        // Under the lock: no apply can take them out of the catalogue and delete them in between.
        let lease = volume.leases.take(list);
        Ok(Selected { gid, timestamp, lease })
    })
}

fn point(volume: &Volume, request: &RestoreRequest) -> Result<restore_request::Point, RoleError> {
    request.point.ok_or_else(|| {
        let message = "restore what: a gid or a time is needed";
        RoleError::bad_request(message).with_volume(&volume.name)
    })
}

fn target(volume: &Volume, request: &RestoreRequest, gid: Gid) -> Result<Target, RoleError> {
    if request.to_path.is_empty() {
        return Ok(Target::Own(gid));
    }
    let chosen = elsewhere(PathBuf::from(&request.to_path));
    chosen.map_err(|e| e.with_volume(&volume.name))
}

fn plan(volume: &Volume, request: &RestoreRequest) -> Result<Plan, RoleError> {
    let Selected { gid, lease, .. } = select(volume, point(volume, request)?)?;
    let target = target(volume, request, gid)?;
    Ok(Plan { gid, lease, target })
}

/// What a restore would do, without a hold on anything.
fn preview(
    volume: &Volume,
    request: &RestoreRequest,
) -> Result<(Gid, RestorePlan, Target), RoleError> {
    let (name, point) = (volume.name.as_str(), point(volume, request)?);
    let (gid, summary) = volume.with(|c| {
        let gid = meant(c, name, point)?;
        let summary = c.diffs.restore_summary(&c.base, gid, NAMES_MAX);
        Ok::<_, RoleError>((gid, summary.map_err(|e| faults::snapshot(name, &e))?))
    })?;
    let target = target(volume, request, gid)?;
    let method = match target {
        Target::Own(_) => volume.images.clone_method(),
        Target::Elsewhere { .. } => CloneMethod::Copy,
    };
    let message = RestorePlan {
        gid: gid.0,
        timestamp_s: summary.timestamp,
        wdiffs: volume.diff_names(&summary.first)?,
        wdiff_count: summary.count as u64,
        wdiff_bytes: summary.bytes,
        image_bytes: volume.size().bytes(),
        path: target.path(volume).display().to_string(),
        method: method.as_str().to_owned(),
    };
    Ok((gid, message, target))
}

fn no_target(path: &Path, why: &str) -> RoleError {
    let path = path.display().to_string();
    RoleError::bad_request(format!("cannot restore to {path}: {why}"))
        .with_file(path)
        .with_next_step("name a file that is not there yet, in a directory that is")
}

fn taken(path: &Path, how_to_delete: &str) -> RoleError {
    let shown = path.display().to_string();
    RoleError::already_exists(format!("cannot restore to {shown}: it exists"))
        .with_file(shown)
        .with_next_step(format!("{how_to_delete}, or restore to another path"))
}

/// The path of a file that a person chose.
fn elsewhere(path: PathBuf) -> Result<Target, RoleError> {
    let name = path.file_name().and_then(|n| n.to_str()).map(str::to_owned);
    match (path.parent(), name) {
        (Some(parent), Some(name)) if path.is_absolute() => {
            Ok(Target::Elsewhere { dir: parent.to_owned(), name })
        }
        _ if fs::symlink_metadata(&path).is_ok() => Err(taken(&path, "delete it there")),
        _ => Err(no_target(&path, "it is no absolute path of a file")),
    }
}

/// Fails unless a new file can be made there. Blocks.
fn check_target(target: &Target, volume: &Volume, base: &Path) -> Result<(), RoleError> {
    let path = target.path(volume);
    let name = &volume.name;
    let parent = match target {
        Target::Own(gid) if volume.images.restored()?.iter().any(|r| r.gid == gid.0) => {
            let how = format!("delete it: walbc del-restored ARCHIVE {name} {gid}");
            return Err(taken(&path, &how).with_volume(name));
        }
        Target::Own(_) => return Ok(()),
        // Outside of what is ours: the file system itself.
        Target::Elsewhere { .. } if fs::symlink_metadata(&path).is_ok() => {
            return Err(taken(&path, "delete it there").with_volume(name));
        }
        Target::Elsewhere { dir, .. } => dir,
    };
    let bad = |why| no_target(&path, why).with_volume(name);
    let parent = parent.canonicalize().map_err(|_| bad("its directory does not exist"))?;
    if base.canonicalize().is_ok_and(|base| parent.starts_with(base)) {
        return Err(bad("that directory is the archive's own"));
    }
    Ok(())
}

async fn run(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    request: &RestoreRequest,
    job: &Job,
    handle: &OperationHandle,
) -> Result<Outcome, RoleError> {
    let work = async {
        let _turn = turn(&archive.writers, job).await?;
        // From here on no apply can begin to write before the base image has been cloned.
        let gate = volume.image_gate.clone().read_owned().await;
        // Planned again: an apply may have ended since.
        let plan = plan(volume, request)?;
        let done = make(archive, volume, &plan, job, handle, gate).await;
        match &done {
            Ok(_) => volume.ledger.restored(plan.gid, clock::unix_seconds()),
            Err(error) => verify::check::met(volume, error),
        }
        if let Err(error) = verify::store(volume).await {
            tracing::warn!(error = error.full_message(), "that it was restored is not noted");
        }
        release(archive, volume, plan, done.is_err()).await;
        done
    };
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = handle.cancelled() => job.token.cancel(),
    }
    work.await
}

async fn make(
    archive: &Arc<Archive>,
    volume: &Arc<Volume>,
    plan: &Plan,
    job: &Job,
    handle: &OperationHandle,
    gate: OwnedRwLockReadGuard<()>,
) -> Result<Outcome, RoleError> {
    let (name, size) = (volume.name.as_str(), volume.size());
    let mut rounds = rounds(plan.lease.len(), archive.settings.max_open).into_iter();
    let advance = |bytes| handle.advance(bytes);
    let (owner, here, target) = (archive.clone(), volume.clone(), plan.target.clone());
    let cloned = blocking::run(move || target.lay_out(&owner, &here, size)).await?;
    let device = plan.target.open(archive, volume, size).await?;
    if cloned {
        handle.set_total(size.bytes().saturating_mul(1 + rounds.len() as u64));
        advance(size.bytes());
    } else {
        handle.set_total(size.bytes().saturating_mul(rounds.len().max(1) as u64));
        let base = volume.open_image(Image::Base, size).await?;
        let wdiffs = open(volume, plan, rounds.next().unwrap_or(0..0)).await?;
        let images = (base, device.clone());
        overlay::write(images, name, wdiffs, &job.token, advance).await?;
    }
    drop(gate);
    for round in rounds {
        let wdiffs = open(volume, plan, round).await?;
        let free = &mut Pace::new(0);
        image::write_merged(device.clone(), name, wdiffs, &job.token, free, advance).await?;
    }
    drop(device);
    let (owner, here, target) = (archive.clone(), volume.clone(), plan.target.clone());
    blocking::run(move || target.commit(&owner, &here)).await?;
    let path = plan.target.path(volume).display().to_string();
    Ok(Outcome { gid: Some(plan.gid.0), path: Some(path) })
}

/// Opens wdiffs of the plan, by their numbers.
async fn open(
    volume: &Arc<Volume>,
    plan: &Plan,
    which: Range<usize>,
) -> Result<Vec<WdiffReader>, RoleError> {
    let (owner, lease) = (volume.clone(), plan.lease.clone());
    let open = move || {
        let open = |names: &[String]| image::open_wdiffs(owner.name.as_str(), &*owner.dir, names);
        lease.open(which, open)
    };
    blocking::run(open).await
}

/// The numbers of `diffs` diffs in portions that can be open together.
fn rounds(diffs: usize, max_open: usize) -> Vec<Range<usize>> {
    let max_open = max_open.max(1);
    let portion = |begin: usize| begin..diffs.min(begin.saturating_add(max_open));
    (0..diffs).step_by(max_open).map(portion).collect()
}

/// Deletes a restored image. Blocks.
pub(crate) fn delete(volume: &Volume, gid: Gid) -> Result<(), RoleError> {
    if !volume.images.restored()?.iter().any(|r| r.gid == gid.0) {
        let message = format!("volume {}: gid {gid} is not restored here", volume.name);
        let step = format!("see what is: walbc restored ARCHIVE {}", volume.name);
        return Err(RoleError::unknown_snapshot(&volume.name, message).with_next_step(step));
    }
    volume.images.remove(Image::Restored(gid))
}
