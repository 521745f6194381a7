//! Writing a snapshot onto the device of a storage host (semantics.md §7.1, F7).

use proto::v1;

use super::{Watch, look, lost};
use crate::client::{At, Controller};
use crate::error::ControlError;

/// Replaces the content of a volume by a snapshot of an archive; its application sees errors until
/// that is done.
///
/// `device` is the name of a volume of the storage server, or `CONTROL#NAME` for one that it does
/// not know (yet).
///
/// # Errors
/// The leg is one whose log is shipped; the device is too small; the snapshot is not restorable.
pub async fn restore_to_device(
    ctl: &Controller,
    (archive, volume, gid): (&str, &str, u64),
    storage: &str,
    device: &str,
    watch: Watch<'_>,
) -> Result<(), ControlError> {
    let from = ctl.archive(archive)?.0;
    let device = if device.contains('#') {
        device.to_owned()
    } else {
        let leg = look::storage_volume(ctl, storage, device).await?;
        address(&leg.state, &leg.device, storage, device)?
    };
    let (server, client) = ctl.storage(storage)?;
    let request = v1::RestoreToDeviceRequest {
        device,
        archive: Some(v1::Peer { id: from.name.clone(), address: from.address.to_string() }),
        volume: volume.to_owned(),
        gid,
    };
    let call = async || client.clone().restore_to_device(request.clone()).await.at(server);
    let kind = ("restore-to-device", volume);
    lost::start_and_follow(ctl, server, kind, watch, call).await.map(drop)
}

/// The decision about the leg: its content may be replaced when nobody ships its log.
fn address(state: &str, device: &str, storage: &str, volume: &str) -> Result<String, ControlError> {
    let next_step = match state {
        "SyncReady" | "Stopped" => return Ok(device.to_owned()),
        "Target" | "Standby" => format!("`walbc stop {storage} {volume}` first"),
        look::CLEAR => "name the device as CONTROL#NAME, or `walbc init-storage` first".to_owned(),
        _ => format!("`walbc status {volume}` shows what runs or is wrong there"),
    };
    let message = format!("{volume} is {state} at {storage}");
    Err(ControlError::Precondition { message, next_step })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leg_that_nobody_ships_is_written_over() {
        for state in ["SyncReady", "Stopped"] {
            assert_eq!(address(state, "/run/c#v", "s0", "v").unwrap(), "/run/c#v");
        }
        for (state, step) in [
            ("Target", "walbc stop s0 v"),
            ("Standby", "walbc stop s0 v"),
            ("Clear", "init-storage"),
            ("HashSync", "walbc status v"),
        ] {
            let error = address(state, "/run/c#v", "s0", "v").unwrap_err().to_string();
            assert!(error.contains(step), "{error}");
        }
    }
}
