//! Proving that an archive can restore what it has, and mending it: verify, drill, repair, rebuild.

use proto::v1;

use super::{Event, Watch, archive, look, lost, replicate};
use crate::client::{At, Controller, volume_ref};
use crate::error::ControlError;
use crate::group::Server;

/// What is wrong with one volume.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The volume.
    pub volume: String,
    /// What was read back, and what is wrong.
    pub found: v1::DamageList,
}

/// Reads back all that an archive has of a volume, or of all; what is wrong is told, volume by
/// volume.
///
/// # Errors
/// Unknown or unreachable archive, unknown volume; a verification was broken off.
pub async fn verify(
    ctl: &Controller,
    archive: &str,
    volume: Option<&str>,
    scan_bytes_per_s: u64,
    watch: Watch<'_>,
) -> Result<Vec<Verified>, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let volumes = match volume {
        Some(volume) => vec![volume.to_owned()],
        None => with_image(ctl, archive).await?,
    };
    let mut all = Vec::with_capacity(volumes.len());
    for volume in volumes {
        let request = v1::VerifyRequest { volume: volume.clone(), scan_bytes_per_s };
        let call = async || client.clone().verify(request.clone()).await.at(server);
        lost::start_and_follow(ctl, server, ("verify", &volume), &mut *watch, call).await?;
        let found = damages(ctl, server, &volume).await?;
        all.push(Verified { volume, found });
    }
    Ok(all)
}

/// The volumes of which an archive has something to read.
async fn with_image(ctl: &Controller, archive: &str) -> Result<Vec<String>, ControlError> {
    let (server, mut client) = ctl.archive(archive)?;
    let all = client.list(v1::Empty {}).await.at(server)?.volumes;
    let with_image = all.into_iter().filter(|v| v.latest.is_some());
    Ok(with_image.map(|v| v.volume).collect())
}

async fn damages(
    ctl: &Controller,
    server: &Server,
    volume: &str,
) -> Result<v1::DamageList, ControlError> {
    let (_, client) = ctl.archive(&server.name)?;
    lost::again(async || client.clone().list_damage(volume_ref(volume)).await.at(server)).await
}

/// Reads all of a snapshot, a random one if none is named, as a mount would, and compares it with
/// what earlier drills of it read.
///
/// # Errors
/// It reads as something else, cannot be read, or the archive's drill command does not accept it.
pub async fn drill(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    (gid, scan_bytes_per_s): (Option<u64>, u64),
    watch: Watch<'_>,
) -> Result<v1::DrillResult, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let request = v1::DrillRequest { volume: volume.to_owned(), gid, scan_bytes_per_s };
    let call = async || client.clone().drill(request.clone()).await.at(server);
    let done = lost::start_and_follow(ctl, server, ("drill", volume), watch, call).await?;
    let list =
        lost::again(async || client.clone().list_drills(volume_ref(volume)).await.at(server));
    let drills = list.await?.drills;
    let found = drills.into_iter().find(|d| Some(d.gid) == done.gid);
    found.ok_or_else(|| ControlError::Precondition {
        message: format!("{archive} has drilled {volume}, and the snapshot is gone since"),
        next_step: "type it again".to_owned(),
    })
}

/// What a repair did.
#[derive(Clone, Debug)]
pub struct Repaired {
    /// What was wrong before.
    pub before: Vec<v1::Damage>,
    /// What is wrong still.
    pub left: Vec<v1::Damage>,
}

/// Fetches what is damaged or missing at `archive` from `from`, which has the volume too. What
/// cannot be fetched, since it has gone there, is bridged by a replication.
///
/// # Errors
/// The two archives have different histories; what they have in common differs; one of them does
/// not answer.
pub async fn repair(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    from: &str,
    watch: Watch<'_>,
) -> Result<Repaired, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let (source, _) = ctl.archive(from)?;
    if archive == from {
        return Err(ControlError::Precondition {
            message: format!("{archive} cannot repair itself from itself"),
            next_step: "name another archive".to_owned(),
        });
    }
    let before = damages(ctl, server, volume).await?.damages;
    // Whether it answers walbc: what `archive` finds of it is told by `archive`.
    look::archive_volume(ctl, from, volume).await?;
    let peer = v1::Peer { id: source.name.clone(), address: source.address.to_string() };
    let request = v1::RepairRequest { volume: volume.to_owned(), from: Some(peer) };
    let call = async || client.clone().repair(request.clone()).await.at(server);
    lost::start_and_follow(ctl, server, ("repair", volume), &mut *watch, call).await?;
    let mut left = damages(ctl, server, volume).await?.damages;
    if left.iter().any(is_gap) {
        watch(Event::Note(&format!(
            "{from} has no wdiffs for what {archive} lacks: comparing the snapshots instead"
        )));
        let options = replicate::ReplicateOptions::default();
        replicate::replicate(ctl, from, volume, archive, options, watch).await?;
        left = damages(ctl, server, volume).await?.damages;
    }
    Ok(Repaired { before, left })
}

/// A hole in the history, which has no file.
fn is_gap(damage: &v1::Damage) -> bool {
    damage.kind() == v1::DamageKind::Missing && damage.file.is_empty()
}

/// What a person says of a volume whose catalogue is made anew.
#[derive(Clone, Debug, Default)]
pub struct RebuildOptions {
    /// Where the base image is.
    pub base_gid: Option<u64>,
    /// The log of the newest wdiff; empty: as the wdiffs say.
    pub log_uuid: Vec<u8>,
    /// The lineage; empty: unknown.
    pub archive_uuid: Vec<u8>,
}

/// Makes the catalogue of a volume anew from what its directory has.
///
/// # Errors
/// Something cannot be known, and was not said; the volume does not need it.
pub async fn rebuild(
    ctl: &Controller,
    archive: &str,
    volume: &str,
    options: RebuildOptions,
) -> Result<v1::RebuildReply, ControlError> {
    let (server, client) = ctl.archive(archive)?;
    let request = v1::RebuildRequest {
        volume: volume.to_owned(),
        base_gid: options.base_gid,
        log_uuid: options.log_uuid.into(),
        archive_uuid: options.archive_uuid.into(),
    };
    let call = async || client.clone().rebuild(request.clone()).await.at(server);
    lost::surely(call, async || {
        let now = look::archive_volume(ctl, archive, volume).await?;
        if now.state == "Broken" {
            return Ok(None);
        }
        let wdiffs = archive::diffs(ctl, archive, volume).await?.len() as u64;
        let (base, latest) = (now.base, now.latest);
        Ok(Some(v1::RebuildReply { notes: vec![now.rebuilt], base, latest, wdiffs }))
    })
    .await
}
