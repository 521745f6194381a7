//! Growing a volume everywhere (semantics.md §6.6): archives first, so that no wdiff of the grown
//! volume comes to an image that is too small for it.

use proto::v1;
use serde::Serialize;

use super::{look, lost, recover};
use crate::client::{At, Controller};
use crate::error::ControlError;
use crate::group::ServerRole;

/// What became of one server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resized {
    /// The server.
    pub server: String,
    /// Its size before.
    pub old_bytes: u64,
    /// Its size now.
    pub new_bytes: u64,
}

/// What a server needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It has the size already.
    Nothing,
    /// It has to grow.
    Grow,
}

/// Grows a volume to `size_bytes`: first its images at all archives, then the volume at all storage
/// servers, whose data devices must have that size already.
///
/// What has the size is left alone, so a call that was interrupted is repeated.
///
/// # Errors
/// A server has more already (volumes never shrink; nothing is changed then); unknown volume; an
/// unreachable server; a data device that is too small.
pub async fn resize(
    ctl: &Controller,
    volume: &str,
    size_bytes: u64,
) -> Result<Vec<Resized>, ControlError> {
    if size_bytes == 0 || !size_bytes.is_multiple_of(512) {
        return Err(ControlError::Precondition {
            message: format!("a volume cannot have {size_bytes} bytes"),
            next_step: "use a multiple of 512".to_owned(),
        });
    }
    let size_lb = size_bytes / 512;
    let (mut archives, mut storages) = (Vec::new(), Vec::new());
    for name in ctl.names(ServerRole::Archive) {
        let image = look::archive_volume(ctl, &name, volume).await?;
        // Clear, or SyncReady without an image: the next backup makes one of the right size.
        if image.size_lb > 0 {
            archives.push((step(&name, volume, image.size_lb, size_lb)?, name, image.size_lb));
        }
    }
    for name in ctl.names(ServerRole::Storage) {
        let leg = look::storage_volume(ctl, &name, volume).await?;
        if leg.state != look::CLEAR {
            storages.push((step(&name, volume, leg.size_lb, size_lb)?, name, leg.size_lb));
        }
    }
    if archives.is_empty() && storages.is_empty() {
        return Err(ControlError::Precondition {
            message: format!("no server knows a volume {volume:?}"),
            next_step: "`walbc status` shows those that are known".to_owned(),
        });
    }
    let mut done = Vec::new();
    for (step, server, old_lb) in archives {
        if step == Step::Grow {
            resize_archive(ctl, &server, volume, size_lb).await?;
        }
        done.push(Resized { server, old_bytes: old_lb * 512, new_bytes: size_bytes });
    }
    for (step, server, old_lb) in storages {
        if step == Step::Grow {
            resize_storage(ctl, &server, volume, size_lb).await?;
        }
        done.push(Resized { server, old_bytes: old_lb * 512, new_bytes: size_bytes });
    }
    // Proxies whose archive was too small have given up until now.
    for proxy in ctl.names(ServerRole::Proxy) {
        match recover::kick_proxy(ctl, &proxy, volume, "").await {
            Ok(_) | Err(ControlError::Unreachable { .. } | ControlError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

fn step(server: &str, volume: &str, old_lb: u64, new_lb: u64) -> Result<Step, ControlError> {
    match old_lb.cmp(&new_lb) {
        std::cmp::Ordering::Less => Ok(Step::Grow),
        std::cmp::Ordering::Equal => Ok(Step::Nothing),
        std::cmp::Ordering::Greater => Err(ControlError::Precondition {
            message: format!("{volume} has {} bytes at {server}, more than that", old_lb * 512),
            next_step: format!("volumes only grow: `walbc resize {volume} {}`", old_lb * 512),
        }),
    }
}

/// Grows the image at one archive.
///
/// # Errors
/// What the archive answers.
pub async fn resize_archive(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    size_lb: u64,
) -> Result<(), ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let request = v1::ResizeRequest { volume: volume.to_owned(), size_lb };
    lost::again(async || client.clone().resize(request.clone()).await.at(server)).await.map(drop)
}

async fn resize_storage(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    size_lb: u64,
) -> Result<(), ControlError> {
    let (server, client) = ctl.storage(storage)?;
    let request = v1::ResizeRequest { volume: volume.to_owned(), size_lb };
    lost::again(async || client.clone().resize(request.clone()).await.at(server)).await.map(drop)
}
