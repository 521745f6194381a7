//! How old the newest restorable point is, and the alarm when it is too old.
//!
//! A volume that nobody writes to gets no new snapshots and is not behind. So its source says every
//! few seconds: there was no write beyond this snapshot until now. An archive that has that
//! snapshot can restore everything up to then; one that hears nothing is cut off, and its age
//! grows. Invariant: what the source says counts for the log that it speaks of alone.

use crate::archive::Archive;
use crate::volume::Volume;
use proto::v1::CompleteTo;
use server_kit::error::RoleError;
use wdiff_format::gid::Gid;
use wlog_format::units::LogUuid;

/// Seconds after the start of the archive for which nothing is said: its sources have yet to be
/// heard.
const QUIET_S: u64 = 30;

/// What a source has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    log_uuid: LogUuid,
    gid: Gid,
    at_s: u64,
}

/// What is known of one volume.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Freshness {
    /// The last that was said.
    claim: Option<Claim>,
    /// The last that was said of a snapshot that is here.
    proved: Option<Claim>,
    /// Since when the newest restorable point is too old.
    pub(crate) stale_since_s: u64,
}

impl Freshness {
    fn say(&mut self, claim: Claim, newest: Option<Gid>) {
        self.settle(newest);
        self.claim = Some(claim);
        self.settle(newest);
    }

    /// A claim whose snapshot has come is proved.
    fn settle(&mut self, newest: Option<Gid>) {
        self.proved = match (self.proved, self.claim) {
            (_, Some(claim)) if newest.is_some_and(|gid| claim.gid <= gid) => Some(claim),
            (proved, _) => proved,
        };
    }
}

/// The source of volumes says how far they are complete. What is not known here is not told.
pub(crate) fn heard(archive: &Archive, volumes: &[CompleteTo]) -> Result<(), RoleError> {
    for said in volumes {
        let bad = |e: &dyn std::fmt::Display| RoleError::bad_request(e.to_string());
        let log_uuid = proto::convert::uuid(&said.log_uuid).map_err(|e| bad(&e))?;
        let Some(volume) = archive.find(&said.volume)? else { continue };
        if log_uuid != volume.with(|c| c.record.log_uuid) {
            continue;
        }
        let claim = Claim { log_uuid, gid: Gid(said.gid), at_s: said.at_s };
        let newest = volume.newest_restorable().map(|p| p.gid);
        volume.upkeep.freshness(|f| f.say(claim, newest));
    }
    Ok(())
}

/// Up to when everything can be restored, and with which snapshot; nothing without an image.
pub(crate) fn complete(volume: &Volume) -> Option<(Gid, u64)> {
    let (has_image, log_uuid) =
        volume.with(|c| (c.record.state != crate::record::Kept::SyncReady, c.record.log_uuid));
    let newest = volume.newest_restorable().filter(|_| has_image)?;
    let proved = volume.upkeep.freshness(|f| {
        f.settle(Some(newest.gid));
        f.proved
    });
    let proved = proved.filter(|p| p.log_uuid == log_uuid && p.gid <= newest.gid);
    Some((newest.gid, newest.timestamp.max(proved.map_or(0, |p| p.at_s))))
}

/// What a replica of this volume is told.
pub(crate) fn message(volume: &Volume) -> Option<CompleteTo> {
    let (gid, at_s) = complete(volume)?;
    let log_uuid = proto::convert::uuid_bytes(volume.with(|c| c.record.log_uuid));
    Some(CompleteTo { volume: volume.name.to_string(), log_uuid, gid: gid.0, at_s })
}

/// Raises the alarm of a volume, or ends it; says so once.
pub(crate) fn watch(volume: &Volume, up_s: u64, now_s: u64) {
    let limit = volume.upkeep.kept().age_limit_s;
    let age = now_s.saturating_sub(complete(volume).map_or(0, |(_, at_s)| at_s));
    let stale = limit > 0 && age > limit;
    let name = &volume.name;
    volume.upkeep.freshness(|f| match (stale, f.stale_since_s) {
        (true, 0) if up_s >= QUIET_S => {
            f.stale_since_s = now_s;
            tracing::error!(volume = %name, age, limit, "the newest restorable point is too old");
        }
        (false, since) if since > 0 => {
            f.stale_since_s = 0;
            tracing::info!(volume = %name, age, "the newest restorable point is fresh again");
        }
        _ => {}
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_counts_when_its_snapshot_is_here() {
        let claim = |gid, at_s| Claim { log_uuid: LogUuid([1; 16]), gid: Gid(gid), at_s };
        let mut f = Freshness::default();
        f.say(claim(5, 100), Some(Gid(4)));
        assert_eq!(f.proved, None);
        f.settle(Some(Gid(5)));
        assert_eq!(f.proved, Some(claim(5, 100)));
        // A busy source is always ahead; what was proved stays so.
        f.say(claim(7, 110), Some(Gid(6)));
        assert_eq!(f.proved, Some(claim(5, 100)));
        f.say(claim(9, 120), Some(Gid(8)));
        assert_eq!(f.proved, Some(claim(7, 110)), "it came before the next was said");
        f.say(claim(9, 130), Some(Gid(9)));
        assert_eq!(f.proved, Some(claim(9, 130)));
    }
}
