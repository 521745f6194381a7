//! Snapshots as NBD exports of an archive, without a restore.

use proto::v1;
use proto::v1::mount_request::Point;

use super::archive::RestorePoint;
use crate::client::{At, Controller};
use crate::error::ControlError;

/// How a snapshot is mounted.
#[derive(Clone, Debug, Default)]
pub struct MountOptions {
    /// `unix:PATH` or `HOST:PORT` of the archive host; a socket in the archive's directory if none.
    pub nbd: Option<String>,
    /// Clients may write, into a layer that is gone with the mount.
    pub writable: bool,
}

/// Mounts a snapshot. What an answer that was lost made is seen by [`mounts`].
///
/// # Errors
/// The snapshot cannot be restored there, or the address cannot be listened on.
pub async fn mount(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    point: RestorePoint,
    options: MountOptions,
) -> Result<v1::Mounted, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let point = match point {
        RestorePoint::Gid(gid) => Point::Gid(gid),
        RestorePoint::At(at_s) => Point::AtS(at_s),
    };
    let MountOptions { nbd, writable } = options;
    let (volume, nbd) = (volume.to_owned(), nbd.unwrap_or_default());
    let request = v1::MountRequest { volume, point: Some(point), nbd, writable };
    client.mount(request).await.at(server)
}

/// What an archive has mounted, of one volume or of all.
///
/// # Errors
/// Unknown or unreachable archive, unknown volume.
pub async fn mounts(
    ctl: &Controller,
    archive: &str,
    volume: Option<&str>,
) -> Result<Vec<v1::Mounted>, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let volume = volume.unwrap_or_default().to_owned();
    Ok(client.list_mounts(v1::VolumeRef { volume }).await.at(server)?.mounts)
}

/// Ends a mount, disconnecting its clients. Without `id`: the only one of the volume.
///
/// # Errors
/// There is no such mount, or none is named and there are several.
pub async fn unmount(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    id: Option<&str>,
) -> Result<(), ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let id = match id {
        Some(id) => id.to_owned(),
        None => only(archive, volume, mounts(ctl, archive, Some(volume)).await?)?,
    };
    client.unmount(v1::UnmountRequest { volume: volume.to_owned(), id }).await.at(server)?;
    Ok(())
}

fn only(archive: &str, volume: &str, mut mounts: Vec<v1::Mounted>) -> Result<String, ControlError> {
    let (message, next_step) = match (mounts.pop(), mounts.len()) {
        (Some(mounted), 0) => return Ok(mounted.id),
        (None, _) => (
            format!("{archive} has no mount of volume {volume}"),
            format!("see what is mounted: walbc mounts {archive}"),
        ),
        (Some(_), more) => (
            format!("{archive} has {} mounts of volume {volume}", more + 1),
            format!("see their ids: walbc mounts {archive} {volume}"),
        ),
    };
    Err(ControlError::Precondition { message, next_step })
}
