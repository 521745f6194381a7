//! Looking at an archive's history, restoring from it, applying it (semantics.md §6.4).

use std::path::PathBuf;

use proto::v1;
use proto::v1::restore_request::Point;

use super::run;
use crate::client::{At, Controller, volume_ref};
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
    Ok(client.list_restorable(request).await.at(server)?.snapshots)
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
    seen: &mut (dyn FnMut(&v1::Operation) + Send),
) -> Result<v1::RestorePlan, ControlError> {
    let reply = call_restore(ctl, archive, volume, point, to, false).await?;
    let (server, _) = ctl.archive(archive)?;
    if let Some(operation) = reply.operation {
        run::follow(ctl, server, operation, seen).await?;
    }
    Ok(reply.plan.unwrap_or_default())
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
    let (server, mut client) = ctl.archive(archive)?;
    let request = v1::SnapshotRef { volume: volume.to_owned(), gid };
    client.delete_restored(request).await.at(server).map(drop)
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
    Ok(client.list_diffs(volume_ref(volume)).await.at(server)?.diffs)
}

/// Moves the base image forward to a snapshot; older snapshots disappear.
///
/// # Errors
/// The snapshot is not reachable, another operation runs, a wdiff is damaged.
pub async fn apply(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    gid: u64,
    seen: &mut (dyn FnMut(&v1::Operation) + Send),
) -> Result<(), ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let request = v1::SnapshotRef { volume: volume.to_owned(), gid };
    let operation = client.apply(request).await.at(server)?;
    run::follow(ctl, server, operation, seen).await.map(drop)
}
