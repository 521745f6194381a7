//! Restore: an image of a snapshot, made of a clone of the base image and the diffs up to it
//! (`semantics.md` §5.7).
//!
//! Invariants: "where is the base image" and the clone of it are one step for an apply
//! (`image_gate`, `semantics.md` §9.2 #10); the wdiffs are leased until the image is done (I12); an
//! image takes its name when it is whole and durable.

use crate::archive::{Archive, turn};
use crate::faults;
use crate::image;
use crate::jobs::{Job, RESTORE};
use crate::leases::Lease;
use crate::record::Elsewhere;
use crate::volume::{RESTORED_DIR, Volume};
use proto::v1::{Operation, RestorePlan, RestoreReply, RestoreRequest, Restored, restore_request};
use server_kit::blocking;
use server_kit::durable::{DurableDir, RealDir, TMP_SUFFIX};
use server_kit::error::RoleError;
use server_kit::operations::{OperationHandle, Outcome};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use tokio::sync::OwnedRwLockReadGuard;
use wdiff_format::gid::{BaseState, Diff, Gid};

/// How the names of restored images end.
const SUFFIX: &str = ".img";

/// Whether files can be cloned in this directory. Blocks.
pub(crate) fn can_reflink(dir: &RealDir) -> bool {
    let names = ["reflink-from.tmp".to_owned(), "reflink-to.tmp".to_owned()];
    let [from, to] = names.each_ref().map(|n| dir.path().join(n));
    let cloned = fs::write(&from, [1; 4096]).and_then(|()| reflink_copy::reflink(&from, &to));
    // Half-made by their names: what cannot be removed now goes at the next start.
    let _ = dir.remove_all(&names);
    cloned.is_ok()
}

/// What a restore will do.
struct Plan {
    gid: Gid,
    timestamp: u64,
    base: BaseState,
    diffs: Vec<Diff>,
    /// Names of their files, which stay for as long as the plan does.
    lease: Lease,
    target: PathBuf,
}

/// Plans a restore and, unless it is a dry run, starts it.
pub(crate) async fn start(
    archive: &Arc<Archive>,
    mut request: RestoreRequest,
) -> Result<RestoreReply, RoleError> {
    let volume = archive.volume(&request.volume)?;
    volume.require_active("restore")?;
    let plan = plan(&volume, &request)?;
    let (checked, base) = (plan.target.clone(), archive.base.path().to_owned());
    let own = request.to_path.is_empty();
    blocking::run(move || check_target(&checked, &base, own)).await?;
    let message = describe(archive, &volume, &plan);
    if request.dry_run {
        return Ok(RestoreReply { plan: Some(message), operation: None });
    }
    // A time means what it meant when the plan was made.
    request.point = Some(restore_request::Point::Gid(plan.gid.0));
    drop(plan);
    let job = volume.jobs.begin(volume.name.as_str(), RESTORE, &[RESTORE])?;
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
async fn release(volume: &Arc<Volume>, plan: Plan, failed: bool) {
    let volume = volume.clone();
    let cleaned = blocking::run(move || -> Result<(), RoleError> {
        let tmp = half_made(&plan.target);
        drop(plan.lease);
        if failed && tmp.exists() {
            fs::remove_file(&tmp).map_err(|e| RoleError::io("remove", &tmp, e))?;
        }
        Ok(volume.elsewhere.remove()?)
    });
    if let Err(error) = cleaned.await {
        tracing::warn!(error = error.full_message(), "a half-made restore is left");
    }
}

fn plan(volume: &Volume, request: &RestoreRequest) -> Result<Plan, RoleError> {
    let name = volume.name.as_str();
    let point = request.point.ok_or_else(|| {
        RoleError::bad_request("restore what: a gid or a time is needed").with_volume(name)
    })?;
    let (gid, base, diffs, lease) = volume.with(|c| {
        let gid = match point {
            restore_request::Point::Gid(gid) => Gid(gid),
            restore_request::Point::AtS(time) => {
                let found = c.diffs.restorable_at(&c.base, time).map(|p| p.gid);
                found.ok_or_else(|| {
                    let message = format!("volume {name}: no clean snapshot is that old");
                    RoleError::unknown_snapshot(name, message)
                })?
            }
        };
        let list = c.diffs.restore_list(&c.base, gid).map_err(|e| faults::snapshot(name, &e))?;
        // Under the lock: no apply can take them out of the catalogue and delete them in between.
        let names = list.iter().map(|d| volume.diff_name(d)).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, RoleError>((gid, c.base, list, volume.leases.take(names)))
    })?;
    let timestamp = diffs.last().map_or(base.timestamp, |d| d.timestamp);
    let target = if request.to_path.is_empty() {
        volume.dir.path().join(RESTORED_DIR).join(format!("{gid}{SUFFIX}"))
    } else {
        PathBuf::from(&request.to_path)
    };
    Ok(Plan { gid, timestamp, base, diffs, lease, target })
}

/// Fails unless a new file can be made there. Blocks.
fn check_target(target: &Path, base: &Path, own: bool) -> Result<(), RoleError> {
    let shown = target.display();
    if fs::symlink_metadata(target).is_ok() {
        let message = format!("cannot restore to {shown}: it exists");
        return Err(RoleError::already_exists(message)
            .with_file(shown.to_string())
            .with_next_step("delete it (walbc del-restored), or restore to another path"));
    }
    if own {
        return Ok(());
    }
    let bad = |why: &str| {
        RoleError::bad_request(format!("cannot restore to {shown}: {why}"))
            .with_file(shown.to_string())
    };
    let parent = target.parent().filter(|_| target.is_absolute() && target.file_name().is_some());
    let parent = parent.ok_or_else(|| bad("it is no absolute path of a file"))?;
    let parent = parent.canonicalize().map_err(|_| bad("its directory does not exist"))?;
    if base.canonicalize().is_ok_and(|base| parent.starts_with(base)) {
        return Err(bad("that directory is the archive's own"));
    }
    Ok(())
}

fn describe(archive: &Archive, volume: &Volume, plan: &Plan) -> RestorePlan {
    let own = plan.target.starts_with(archive.base.path());
    RestorePlan {
        gid: plan.gid.0,
        timestamp_s: plan.timestamp,
        wdiffs: plan.lease.names().to_vec(),
        wdiff_bytes: plan.diffs.iter().map(|d| d.size).sum(),
        image_bytes: volume.size().bytes(),
        path: plan.target.display().to_string(),
        method: if archive.reflinks && own { "reflink" } else { "copy" }.to_owned(),
    }
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
        volume.note_restore(plan.gid, &done);
        release(volume, plan, done.is_err()).await;
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
    let (name, size) = (volume.name.as_str(), volume.size().bytes());
    let rounds = rounds(plan, archive.settings.max_open);
    handle.set_total(size.saturating_mul(1 + rounds.len() as u64));
    let advance = |bytes| handle.advance(bytes);
    let tmp = half_made(&plan.target);
    let (here, to) = (volume.clone(), tmp.clone());
    let reflinked = blocking::run(move || clone_or_create(&here, &to, size)).await?;
    let device = image::open(&archive.images, name, tmp.clone()).await?;
    if reflinked {
        advance(size);
    } else {
        let from = image::open(&archive.images, name, volume.image_path()).await?;
        image::copy_sparse(from, device.clone(), name, &job.token, advance).await?;
    }
    drop(gate);
    let mut first = 0;
    for round in rounds {
        let which = first..first + round.len();
        first = which.end;
        let (opened, lease) = (name.to_owned(), plan.lease.clone());
        let open = move || lease.open(which, |paths| image::open_wdiffs(&opened, paths));
        let wdiffs = blocking::run(open).await?;
        image::write_merged(device.clone(), name, wdiffs, &job.token, advance).await?;
    }
    drop(device);
    let target = plan.target.clone();
    blocking::run(move || commit(&tmp, &target)).await?;
    Ok(Outcome { gid: Some(plan.gid.0), path: Some(plan.target.display().to_string()) })
}

/// The diffs in portions that can be open together; the first one has all that an unfinished apply
/// needs.
fn rounds(plan: &Plan, max_open: usize) -> Vec<&[Diff]> {
    let mut first = max_open.max(1).min(plan.diffs.len());
    while first < plan.diffs.len()
        && !plan.diffs.get(..first).is_some_and(|list| plan.base.can_apply(list))
    {
        first += 1;
    }
    let (first, rest) = plan.diffs.split_at(first);
    std::iter::once(first).filter(|r| !r.is_empty()).chain(rest.chunks(max_open.max(1))).collect()
}

fn half_made(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(TMP_SUFFIX);
    name.into()
}

/// The half-made image: a clone of the base image (true), or an empty file of its size. Blocks.
fn clone_or_create(volume: &Volume, to: &Path, size: u64) -> Result<bool, RoleError> {
    if let Some(dir) = to.parent() {
        RealDir::create(dir)?;
    }
    if !to.starts_with(volume.dir.path()) {
        volume.elsewhere.store(&Elsewhere { half_made: to.to_owned() })?;
    }
    if to.exists() {
        fs::remove_file(to).map_err(|e| RoleError::io("remove the half-made", to, e))?;
    }
    if reflink_copy::reflink(volume.image_path(), to).is_ok() {
        return Ok(true);
    }
    let file = fs::File::create(to).map_err(|e| RoleError::io("create", to, e))?;
    file.set_len(size).map_err(|e| RoleError::io("size", to, e))?;
    Ok(false)
}

/// Makes the image last under its name. Blocks.
fn commit(tmp: &Path, target: &Path) -> Result<(), RoleError> {
    let failed = |e| RoleError::io("finish", target, e);
    fs::File::open(tmp).and_then(|f| f.sync_all()).map_err(failed)?;
    let name = |path: &Path| path.file_name().and_then(|n| n.to_str()).map(str::to_owned);
    let (Some(dir), Some(from), Some(to)) = (target.parent(), name(tmp), name(target)) else {
        return Err(RoleError::bad_request("the path is no name of a file"));
    };
    let dir = RealDir::open(dir)?;
    dir.rename(&from, &to).map_err(failed)?;
    dir.sync().map_err(failed)
}

/// The restored images below the volume's directory. Blocks.
pub(crate) fn list(volume: &Volume) -> Result<Vec<Restored>, RoleError> {
    let path = volume.dir.path().join(RESTORED_DIR);
    if !path.is_dir() {
        return Ok(Vec::new());
    }
    let dir = RealDir::open(&path)?;
    let mut found = Vec::new();
    for name in dir.list()? {
        let gid = name.strip_suffix(SUFFIX).and_then(|gid| gid.parse().ok());
        let Some(gid) = gid else { continue };
        let path = path.join(&name);
        let meta = fs::metadata(&path).map_err(|e| RoleError::io("look at", &path, e))?;
        let since = meta.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        let created_s = since.map_or(0, |t| t.as_secs());
        let path = path.display().to_string();
        found.push(Restored { gid, path, size_bytes: meta.len(), created_s });
    }
    found.sort_by_key(|r| r.gid);
    Ok(found)
}

/// Deletes a restored image below the volume's directory. Blocks.
pub(crate) fn delete(volume: &Volume, gid: Gid) -> Result<(), RoleError> {
    if !list(volume)?.iter().any(|r| r.gid == gid.0) {
        let message = format!("volume {}: gid {gid} is not restored here", volume.name);
        return Err(RoleError::unknown_snapshot(&volume.name, message));
    }
    let dir = RealDir::open(volume.dir.path().join(RESTORED_DIR))?;
    Ok(dir.remove(&format!("{gid}{SUFFIX}"))?)
}
