//! What has to be so before a backup starts (semantics.md §6.3): one leg, quiet others, the primary
//! archive on the list of every proxy; no other archive on any before a full backup, and before a
//! hash backup the same others on all.
//!
//! Invariants: everything is looked at before anything is changed; a proxy that does not answer
//! does not keep a volume unprotected, it is named with what heals it.

use std::collections::{BTreeMap, BTreeSet};

use proto::v1;

use super::{Event, Watch, look, lost, setup, sync};
use crate::client::Controller;
use crate::error::ControlError;
use crate::group::{Server, ServerRole};

/// The two backups of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The whole volume is copied; the archive begins a history with it.
    Full,
    /// What differs is copied; the archive's history goes on.
    Hash,
}

impl Kind {
    /// The verb, which is the kind of the storage server's operation too.
    pub(crate) const fn verb(self) -> &'static str {
        match self {
            Self::Full => "full-backup",
            Self::Hash => "hash-backup",
        }
    }
}

/// How the storage server's leg gets to where a backup can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LegStep {
    /// It is there.
    Nothing,
    /// A standby is stopped.
    Stop,
    /// What a stopped target has not shipped is given up.
    Reset,
}

/// An earlier attempt of whoever asks now.
pub(crate) enum Earlier {
    /// It still runs.
    Runs(Box<v1::Operation>),
    /// It has ended well, and nothing was lost since.
    Ended {
        /// The gid of its snapshot.
        gid: u64,
        /// What the archive gets, if all is as well as it looks.
        arrives: u64,
    },
    /// There is none to go on with.
    None,
}

/// Looks whether a backup that was begun before is still to be waited for.
pub(crate) async fn earlier(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    kind: Kind,
    primary: &Server,
) -> Result<Earlier, ControlError> {
    let server = ctl.group().server_of(storage, ServerRole::Storage)?;
    let mut operations = lost::operations_of(ctl, server, kind.verb(), volume).await?;
    let Some(newest) = operations.pop() else { return Ok(Earlier::None) };
    match (newest.status(), newest.gid) {
        (v1::OperationStatus::Running, _) => Ok(Earlier::Runs(Box::new(newest))),
        (v1::OperationStatus::Done, Some(gid)) => {
            let leg = look::storage_volume(ctl, storage, volume).await?;
            let image = look::archive_volume(ctl, &primary.name, volume).await?;
            // An archive that has lost its data since then will not get the snapshot.
            let has_base = !matches!(image.state.as_str(), look::CLEAR | "SyncReady");
            let follows = has_base && image.log_uuid == leg.log_uuid && leg.state == "Target";
            if !follows || leg.gap_since_s > 0 {
                return Ok(Earlier::None);
            }
            if restorable_gid(&image) < Some(gid) {
                return Ok(Earlier::Ended { gid, arrives: gid });
            }
            // A full backup would be another one. What a hash backup is for is there already, if
            // the archive gets all that was shipped since.
            let arrives = leg.done_gid.max(gid);
            let fed = kind == Kind::Hash
                && matches!(sync::is_synchronizing(ctl, &primary.name, volume).await, Ok(true));
            Ok(if fed { Earlier::Ended { gid, arrives } } else { Earlier::None })
        }
        _ => Ok(Earlier::None),
    }
}

/// The newest snapshot that an archive can restore, if there is one.
pub(crate) async fn newest_restorable(
    ctl: &Controller,
    archive: &str,
    volume: &str,
) -> Result<Option<u64>, ControlError> {
    Ok(restorable_gid(&look::archive_volume(ctl, archive, volume).await?))
}

fn restorable_gid(image: &v1::ArchiveVolume) -> Option<u64> {
    (image.newest_restorable_s > 0).then_some(image.newest_restorable_gid)
}

/// The decision about the leg that is to be backed up.
pub(crate) fn leg_step(
    kind: Kind,
    state: &str,
    storage: &str,
    volume: &str,
) -> Result<LegStep, ControlError> {
    let backup = kind.verb();
    let (message, next_step) = match state {
        "SyncReady" => return Ok(LegStep::Nothing),
        "Standby" => return Ok(LegStep::Stop),
        // A hash backup resets the log itself, when the archive has agreed.
        "Stopped" if kind == Kind::Hash => return Ok(LegStep::Nothing),
        "Stopped" => return Ok(LegStep::Reset),
        look::CLEAR => (
            format!("{storage} does not know a volume {volume:?}"),
            format!("`walbc init-storage {storage} {volume} --device CONTROL#{volume}` first"),
        ),
        "Target" => (
            format!("{volume} is a target at {storage}: its log is being shipped"),
            format!(
                "`walbc status {volume}` shows whether anything is wrong; to back it up anew: \
                 `walbc stop {storage} {volume}` first, then `walbc {backup} {storage} {volume}`"
            ),
        ),
        other => (
            format!("{volume} is {other} at {storage}"),
            format!(
                "a {backup} starts from SyncReady, Standby or Stopped; `walbc operations` shows \
                 what runs, `walbc status {volume}` what is wrong"
            ),
        ),
    };
    Err(ControlError::Precondition { message, next_step })
}

/// Every other leg must be one whose log nobody ships.
pub(crate) async fn others_are_quiet(
    ctl: &Controller,
    storage: &str,
    volume: &str,
) -> Result<(), ControlError> {
    for other in ctl.names(ServerRole::Storage).into_iter().filter(|name| name != storage) {
        let state = setup::state(ctl, &other, volume).await?;
        if !matches!(state.as_str(), "Standby" | look::CLEAR) {
            return Err(ControlError::Precondition {
                message: format!("{volume} is {state} at {other}; only one leg may be shipped"),
                next_step: format!("`walbc go-standby {other} {volume}` first"),
            });
        }
    }
    Ok(())
}

/// Brings the leg to where the backup can start.
pub(crate) async fn ready_leg(
    ctl: &Controller,
    storage: &str,
    volume: &str,
    step: LegStep,
) -> Result<(), ControlError> {
    match step {
        LegStep::Nothing => Ok(()),
        LegStep::Stop => setup::stop(ctl, storage, volume, v1::StopMode::Graceful).await,
        LegStep::Reset => setup::reset(ctl, storage, volume).await,
    }
}

/// Puts `primary` on the proxies' lists. For a full backup all queues go, and the other archives
/// with them: nothing of theirs fits the new history. For a hash backup all stay, whose new log
/// makes the archives refuse what is old, and who follows at one proxy follows at all.
///
/// Returns the other archives that were on a list.
pub(crate) async fn make_lists(
    ctl: &Controller,
    volume: &str,
    kind: Kind,
    primary: &Server,
    watch: Watch<'_>,
) -> Result<BTreeSet<String>, ControlError> {
    let info = sync::info_of(primary);
    let (mut others, mut silent, mut answered) = (BTreeMap::new(), None, false);
    let mut lists = Vec::new();
    for proxy in ctl.names(ServerRole::Proxy) {
        let list = sync::archive_infos(ctl, &proxy, volume).await;
        let besides = list.iter().flatten().filter(|listed| listed.name != primary.name);
        others.extend(besides.map(|listed| (listed.name.clone(), listed.clone())));
        lists.push((proxy, list));
    }
    for (proxy, list) in lists {
        let change = async {
            let list = list?;
            if kind == Kind::Full {
                for listed in &list {
                    sync::delete_archive_info(ctl, &proxy, volume, &listed.name).await?;
                }
                return sync::ensure_listed(ctl, &proxy, volume, &info).await;
            }
            for info in others.values().chain([&info]) {
                sync::ensure_listed(ctl, &proxy, volume, info).await?;
            }
            Ok(())
        };
        match change.await {
            Ok(()) => answered = true,
            Err(error @ ControlError::Unreachable { .. }) => {
                watch(Event::Note(&format!(
                    "{error}; when it is back: `walbc start-synchronizing {} {volume}`",
                    primary.name
                )));
                silent = Some(error);
            }
            Err(error) => return Err(error),
        }
    }
    match silent {
        Some(error) if !answered => Err(error),
        _ => Ok(others.into_keys().collect()),
    }
}

/// Tells how the archives that were synchronizing get back to it.
pub(crate) fn note_others(
    others: &BTreeSet<String>,
    volume: &str,
    kind: Kind,
    primary: &str,
    watch: Watch<'_>,
) {
    for other in others {
        watch(Event::Note(&match kind {
            Kind::Full => format!(
                "{other} does not follow {volume} any more, for it has another history now; \
                 afterwards `walbc replicate {primary} {volume} {other} --synchronizing --resync` \
                 brings it back"
            ),
            Kind::Hash => format!(
                "{other} comes along by itself: {primary} replicates to it when the backup has \
                 ended; `walbc status {volume}` shows when it follows again"
            ),
        }));
    }
}
