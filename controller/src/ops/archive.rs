//! Looking at an archive's history, restoring from it, applying it (semantics.md §6.4).

use std::path::PathBuf;

use proto::v1;
use proto::v1::restore_request::Point;

use super::{Watch, look, lost};
use crate::client::{All, At, Controller, volume_ref};
use crate::error::ControlError;

/// Which snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestorePoint {
    /// The one of this gid.
    Gid(u64),
    /// The last clean one not later than this, in Unix seconds.
    At(u64),
}

/// The restorable snapshots, oldest first; explicit ones only unless `all`.
///
/// # Errors
/// Unknown or unreachable archive, unknown volume.
pub async fn restorable(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    all: bool,
) -> Result<Vec<v1::Restorable>, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let request = v1::RestorableRequest { volume: volume.to_owned(), all };
    let pages = client.list_restorable(request).await.at(server)?.all(server).await?;
    Ok(pages.into_iter().flat_map(|page| page.snapshots).collect())
}

async fn call_restore(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    point: RestorePoint,
    to: Option<PathBuf>,
    dry_run: bool,
) -> Result<v1::RestoreReply, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let point = match point {
        RestorePoint::Gid(gid) => Point::Gid(gid),
        RestorePoint::At(at_s) => Point::AtS(at_s),
    };
    let to_path = to.map_or_else(String::new, |path| path.to_string_lossy().into_owned());
    let request =
        v1::RestoreRequest { volume: volume.to_owned(), point: Some(point), to_path, dry_run };
    client.restore(request).await.at(server)
}

/// What a restore would do.
///
/// # Errors
/// The snapshot is not restorable there.
pub async fn plan_restore(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    point: RestorePoint,
    to: Option<PathBuf>,
) -> Result<v1::RestorePlan, ControlError> {
    let reply = call_restore(ctl, archive, volume, point, to, true).await?;
    Ok(reply.plan.unwrap_or_default())
}

/// Restores a snapshot to an image file of the archive host; returns its plan when it is done.
///
/// # Errors
/// The snapshot is not restorable, the file exists, the disk is full, a wdiff is damaged.
pub async fn restore(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    point: RestorePoint,
    to: Option<PathBuf>,
    watch: Watch<'_>,
) -> Result<v1::RestorePlan, ControlError> {
    let (server, _) = ctl.archive(archive)?;
    let plan = plan_restore(ctl, archive, volume, point, to.clone()).await?;
    // What `at` means was decided by the plan.
    let point = RestorePoint::Gid(plan.gid);
    let call = async || {
        let reply = call_restore(ctl, archive, volume, point, to.clone(), false).await?;
        Ok(reply.operation.unwrap_or_default())
    };
    lost::start_and_follow(ctl, server, ("restore", volume), watch, call).await?;
    Ok(plan)
}

/// The restored images that the archive keeps.
///
/// # Errors
/// Unknown or unreachable archive, unknown volume.
pub async fn restored(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<Vec<v1::Restored>, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    Ok(client.list_restored(volume_ref(volume)).await.at(server)?.restored)
}

/// Deletes a restored image.
///
/// # Errors
/// There is none of that gid.
pub async fn delete_restored(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    gid: u64,
) -> Result<(), ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let request = v1::SnapshotRef { volume: volume.to_owned(), gid };
    let delete = async || client.clone().delete_restored(request.clone()).await.at(server);
    lost::surely(
        async || delete().await.map(drop),
        async || {
            let left = restored(ctl, archive, volume).await?;
            Ok(left.iter().all(|image| image.gid != gid).then_some(()))
        },
    )
    .await
}

/// The wdiffs that the archive keeps, oldest first.
///
/// # Errors
/// Unknown or unreachable archive, unknown volume.
pub async fn diffs(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<Vec<v1::DiffEntry>, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let pages = client.list_diffs(volume_ref(volume)).await.at(server)?.all(server).await?;
    Ok(pages.into_iter().flat_map(|page| page.diffs).collect())
}

/// Moves the base image forward to a snapshot, no faster than `rate` bytes per second (0: as fast
/// as it goes); older snapshots disappear. Nothing to do where the base is that snapshot. Its gid.
///
/// # Errors
/// The snapshot is not reachable, another operation runs, a wdiff is damaged.
pub async fn apply(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    point: RestorePoint,
    rate: u64,
    watch: Watch<'_>,
) -> Result<u64, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let gid = gid_of(ctl, archive, volume, point).await?;
    let base = look::archive_volume(ctl, archive, volume).await?.base.unwrap_or_default();
    let reached = v1::Snapshot { gid_begin: gid, gid_end: gid };
    if base.begin == Some(reached) && base.end.is_none() {
        return Ok(gid);
    }
    let point = Some(v1::apply_request::Point::Gid(gid));
    let request = v1::ApplyRequest { volume: volume.to_owned(), point, bytes_per_s: rate };
    let call = async || client.clone().apply(request.clone()).await.at(server);
    lost::start_and_follow(ctl, server, ("apply", volume), watch, call).await?;
    Ok(gid)
}

/// The gid that a point means now.
async fn gid_of(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    point: RestorePoint,
) -> Result<u64, ControlError> {
    let at = match point {
        RestorePoint::Gid(gid) => return Ok(gid),
        RestorePoint::At(at) => at,
    };
    let list = restorable(ctl, archive, volume, true).await?;
    let found = list.iter().rfind(|s| s.timestamp_s <= at).map(|s| s.gid);
    found.ok_or_else(|| ControlError::Precondition {
        message: format!("{archive} has no snapshot of {volume} that is that old"),
        next_step: format!("`walbc restorable {archive} {volume} --all` lists what there is"),
    })
}

/// Makes one wdiff of those between two snapshots; what lies between is not restorable any more.
/// Nothing to do where it is one already.
///
/// # Errors
/// The gids are no ends of wdiffs, an explicit snapshot lies between, another operation runs.
pub async fn merge(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    (gid_begin, gid_end): (u64, u64),
    rate: u64,
    watch: Watch<'_>,
) -> Result<(), ControlError> {
    if has_diff(ctl, archive, volume, (gid_begin, gid_end)).await? {
        return Ok(());
    }
    let (server, client) = ctl.archive(archive)?;
    let request = v1::MergeRequest {
        volume: volume.to_owned(),
        gid_begin,
        until: Some(v1::merge_request::Until::GidEnd(gid_end)),
        bytes_per_s: rate,
    };
    let call = async || client.clone().merge(request.clone()).await.at(server);
    lost::start_and_follow(ctl, server, ("merge", volume), watch, call).await?;
    if has_diff(ctl, archive, volume, (gid_begin, gid_end)).await? {
        return Ok(());
    }
    Err(ControlError::Precondition {
        message: format!(
            "{archive} has merged, but has no wdiff of {volume} from {gid_begin} to {gid_end}"
        ),
        next_step: format!("`walbc diffs {archive} {volume}` shows what there is"),
    })
}

async fn has_diff(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    (begin, end): (u64, u64),
) -> Result<bool, ControlError> {
    let clean =
        |s: Option<v1::Snapshot>, gid| s.is_some_and(|s| (s.gid_begin, s.gid_end) == (gid, gid));
    let diffs = diffs(ctl, archive, volume).await?;
    let diffs = diffs.into_iter().filter_map(|entry| entry.diff);
    Ok(diffs.into_iter().any(|diff| clean(diff.begin, begin) && clean(diff.end, end)))
}

/// Says of snapshots that merges keep them, or that they may take them. Returns the gids where that
/// is a change.
///
/// # Errors
/// No wdiff begins at a gid; an apply or a merge runs.
pub async fn set_explicit(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    gids: &[u64],
    is_explicit: bool,
) -> Result<Vec<u64>, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let volume = volume.to_owned();
    let request = v1::SetExplicitRequest { volume, gids: gids.to_vec(), is_explicit };
    let call = async || client.clone().set_explicit(request.clone()).await.at(server);
    Ok(lost::again(call).await?.changed)
}

/// Removes wdiffs that no reachable snapshot needs; returns their names.
///
/// # Errors
/// Another operation runs there; unknown or unreachable archive, unknown volume.
pub async fn gc(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<Vec<String>, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let call = async || client.clone().gc(volume_ref(volume)).await.at(server)?.all(server).await;
    Ok(lost::again(call).await?.into_iter().flat_map(|page| page.removed).collect())
}
