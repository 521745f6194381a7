//! The storage server and its device: F2, F7, F8, the broken-off backups G3, G4, G12, and the
//! device role that does not answer (N1), legs of which none is a target (N7).

use proto::v1;
use proto::v1::{GapCause, Reason};

use super::super::diagnosis::{Diagnosis, Row, Step, Way};
use super::super::view::{Case, has_image};
use super::{hash_backup, heal};

pub(super) fn diagnose(case: &Case<'_>) -> Vec<Diagnosis> {
    let known = case.storages.iter().filter_map(|(name, sight)| Some((*name, sight.known()?)));
    let mut found: Vec<_> = known
        .flat_map(|(name, v)| [device(case, name, v), standby(case, name, v), gap(case, name, v)])
        .flatten()
        .collect();
    found.extend(broken_backup(case));
    found.extend(lost_state(case));
    found.extend(all_standby(case));
    found
}

/// The storage server answers, its device does not work.
fn device(case: &Case<'_>, storage: &str, v: &v1::StorageVolume) -> Option<Diagnosis> {
    // Everything about the device comes from the device: without an answer it is blank.
    if v.log_capacity_pb > 0 || v.error.is_empty() || v.state == "Damaged" {
        return None;
    }
    let mut evidence = vec![format!("{storage}: {}", v.error)];
    if v.error_reason() == Reason::Unreachable {
        let step = Step::person(format!("start the device role (walb-device serve) of {storage}"));
        evidence.push("it goes on by itself when the device role is back".to_owned());
        return Some(Diagnosis::of(case.volume, Row::N1, evidence, Way::Steps(vec![step])));
    }
    let (volume, device) = (case.volume, v.device.as_str());
    let mut steps = Vec::new();
    if v.state == "Target" {
        // Or the empty device would be backed up by itself as soon as it is there.
        steps.push(Step::run(&format!("stop {storage} {volume}")));
    }
    steps.push(Step::person(format!(
        "make new data and log devices for {device} where the lost ones were, format the log \
         (walb ldev format --log LOG --data DATA --name NAME), restart the device role"
    )));
    let name = device.split_once('#').map_or(volume, |(_, name)| name);
    if let Some((archive, newest)) = newest_restorable(case) {
        evidence.push(format!("{archive} can restore gid {newest}"));
        steps.push(Step::run(&format!(
            "restore-to-device {archive} {volume} {newest} {storage} {name}"
        )));
    }
    steps.push(Step::run(&format!("hash-backup {storage} {volume}")));
    Some(Diagnosis::of(volume, Row::F7, evidence, Way::Steps(steps)))
}

fn newest_restorable<'a>(case: &Case<'a>) -> Option<(&'a str, u64)> {
    let known = case.archives.iter().filter_map(|(name, sight)| Some((*name, sight.known()?)));
    let points = known.filter(|(_, v)| v.newest_restorable_s > 0);
    let points: Vec<_> = points.map(|(name, v)| (name, v.newest_restorable_gid)).collect();
    // Of several with the same point the first in the group file.
    points.into_iter().rev().max_by_key(|(_, gid)| *gid)
}

/// A standby discards its log; one that overflowed must begin anew.
fn standby(case: &Case<'_>, storage: &str, v: &v1::StorageVolume) -> Option<Diagnosis> {
    if v.state != "Standby" || !v.overflow {
        return None;
    }
    let evidence = vec![format!("{storage}: the log of the standby overflowed")];
    let volume = case.volume;
    let stop = Step::run(&format!("stop {storage} {volume}"));
    let again = Step::run(&format!("go-standby {storage} {volume}"));
    Some(Diagnosis::of(volume, Row::F2, evidence, Way::Steps(vec![stop, again])))
}

/// Logs were lost (I11).
fn gap(case: &Case<'_>, storage: &str, v: &v1::StorageVolume) -> Option<Diagnosis> {
    let lost = v.gap_since_s > 0 || v.overflow;
    // A broken-off backup is told as such; without its device nothing can be said.
    if !lost || v.log_capacity_pb == 0 || matches!(v.state.as_str(), "Standby" | "SyncReady") {
        return None;
    }
    let row = match v.gap_cause() {
        GapCause::ProxyDataLost => Row::F9a,
        GapCause::LogReset if !v.overflow => Row::G12,
        _ => Row::F2,
    };
    let mut evidence = vec![format!("{storage}: {} ({})", lost_text(v), v.state)];
    if v.suspect_bytes > 0 {
        let size = server_kit::units::format_size(v.suspect_bytes);
        evidence.push(format!("{storage}: {size} have to be compared"));
    }
    let way = match running_backup(case) {
        Some(way) => way,
        None => heal(case, storage, v),
    };
    Some(Diagnosis::of(case.volume, row, evidence, way))
}

fn lost_text(v: &v1::StorageVolume) -> String {
    match v.error.is_empty() {
        true => "the log overflowed".to_owned(),
        false => v.error.clone(),
    }
}

/// The backup that runs, as a way that goes on by itself.
fn running_backup(case: &Case<'_>) -> Option<Way> {
    let running = |op: &v1::Operation| op.status() == v1::OperationStatus::Running;
    let backup = |op: &v1::Operation| matches!(op.kind.as_str(), "hash-backup" | "full-backup");
    let (_, op) = case.operations.iter().find(|(_, op)| backup(op) && running(op))?;
    Some(Way::Itself(format!("the {} that heals it runs: watch `walbc wait {}`", op.kind, op.id)))
}

/// A leg in SyncReady that was on its way to be the target: the backup broke off.
fn broken_backup(case: &Case<'_>) -> Option<Diagnosis> {
    let (storage, v) = case.leg().filter(|(_, v)| v.state == "SyncReady")?;
    if case.in_backup() || v.log_capacity_pb == 0 {
        return None;
    }
    let archive = case.primary_sight()?.known()?;
    let primary = case.primary?;
    let volume = case.volume;
    let mut evidence = vec![
        format!("{storage}: SyncReady, nothing is shipped"),
        format!("{primary}: {}", archive.state),
    ];
    let last = last_backup(case);
    evidence.extend(last.map(|(server, op)| format!("{server}: {} failed: {}", op.kind, op.error)));
    if !has_image(archive) {
        let from = if v.backup_resumable { "it goes on where it was" } else { "from block 0" };
        evidence.push(format!("a new full backup runs {from}"));
        let step = Step::run(&format!("full-backup {storage} {volume}"));
        return Some(Diagnosis::of(volume, Row::G3, evidence, Way::Steps(vec![step])));
    }
    if v.gap_since_s > 0 {
        evidence.push(format!("{storage}: {}", lost_text(v)));
    }
    let cut = last.and_then(|(_, op)| op.detail.as_ref()).map(v1::ErrorDetail::reason);
    let row = match cut {
        Some(Reason::Unreachable | Reason::Cancelled) => Row::G4,
        _ => Row::G12,
    };
    let way = match v.gap_since_s > 0 {
        true => heal(case, storage, v),
        false => Way::Steps(hash_backup(case, storage, v)),
    };
    Some(Diagnosis::of(volume, row, evidence, way))
}

/// The last backup, if it ended otherwise than done.
fn last_backup<'a>(case: &Case<'a>) -> Option<(&'a str, &'a v1::Operation)> {
    let last = case.last_operation(&["hash-backup", "full-backup"])?;
    let ended = [v1::OperationStatus::Failed, v1::OperationStatus::Cancelled];
    Some(last).filter(|(_, op)| ended.contains(&op.status()))
}

/// A storage server that answers and does not know a volume that belongs on it.
fn lost_state(case: &Case<'_>) -> Vec<Diagnosis> {
    let elsewhere = case.shipped().is_some() || case.in_backup();
    let in_archive = case.archives.iter().filter_map(|(_, s)| s.known()).any(has_image);
    let is_used = in_archive && case.known_proxies().next().is_some();
    let nobody = case.storages.iter().all(|(_, sight)| sight.is_clear());
    let alone = nobody && case.storages.len() == 1;
    let mut found = Vec::new();
    for (storage, _) in case.storages.iter().filter(|(_, sight)| sight.is_clear()) {
        let named = case.legs.iter().any(|leg| leg.storage == *storage);
        if elsewhere && named {
            found.push(lost_standby(case, storage));
        } else if !elsewhere && is_used && (named || alone) && no_leg_may_be_hidden(case) {
            found.push(lost_target(case, storage));
        }
    }
    found
}

/// A volume that has a backup, and whose legs are all standbys: nothing is shipped.
fn all_standby(case: &Case<'_>) -> Option<Diagnosis> {
    let known = case.storages.iter().filter_map(|(name, sight)| Some((*name, sight.known()?)));
    let (storage, leg) = known.into_iter().find(|(_, v)| v.state == "Standby")?;
    let in_archive = case.archives.iter().filter_map(|(_, s)| s.known()).any(has_image);
    if case.leg().is_some() || !in_archive || !no_leg_may_be_hidden(case) {
        return None;
    }
    let evidence = vec![
        format!("{storage}: Standby, and no other leg is a target: nothing is shipped"),
        "an archive has its backup: one leg was a target".to_owned(),
    ];
    let steps = hash_backup(case, storage, leg);
    Some(Diagnosis::of(case.volume, Row::N7, evidence, Way::Steps(steps)))
}

/// No server that is silent now could be the one that holds the target.
fn no_leg_may_be_hidden(case: &Case<'_>) -> bool {
    !case.storages.iter().any(|(_, sight)| sight.is_dark())
}

fn init(case: &Case<'_>, storage: &str) -> Step {
    let volume = case.volume;
    match case.device_at(storage) {
        Some(device) => Step::run(&format!("init-storage {storage} {volume} --device {device}")),
        None => Step::person(format!(
            "walbc init-storage {storage} {volume} --device CONTROL#{volume}, CONTROL being the \
             control socket of the device role there"
        )),
    }
}

fn lost_target(case: &Case<'_>, storage: &str) -> Diagnosis {
    let volume = case.volume;
    let archives = case.archives.iter().filter(|(_, s)| s.known().is_some_and(has_image));
    let names: Vec<_> = archives.map(|(name, _)| *name).collect();
    let evidence = vec![
        format!("{storage} does not know {volume}, and no other storage server ships it"),
        format!("{} has its backup: it was a target", names.join(", ")),
    ];
    let mut steps = vec![init(case, storage)];
    steps.push(Step::run(&format!("hash-backup {storage} {volume}")));
    steps.extend(super::replicate_to_listed(case));
    Diagnosis::of(volume, Row::F8a, evidence, Way::Steps(steps))
}

fn lost_standby(case: &Case<'_>, storage: &str) -> Diagnosis {
    let target = case.leg().map_or("another server", |(name, _)| name);
    let evidence = vec![
        format!("{storage} does not know {}, the group file has it there", case.volume),
        format!("{target} ships it: the leg at {storage} was a standby"),
    ];
    Diagnosis::of(case.volume, Row::F8b, evidence, Way::Steps(vec![init(case, storage)]))
        .with_key(storage)
}
