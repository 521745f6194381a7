//! Archives that lost their data or stand half-way: F10, G5, G6, G7, G9, G10, N2, N8, N9.

use proto::v1;

use super::super::diagnosis::{Command, Diagnosis, Row, Step, Way};
use super::super::view::{Case, Sight, has_image};
use super::{hash_backup, replicate};
use crate::group::ServerRole;
use crate::words;

pub(super) fn diagnose(case: &Case<'_>) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    found.extend(primary_lost(case));
    found.extend(other_log(case));
    for (name, sight) in &case.archives {
        if let Some(v) = sight.known().filter(|v| v.rebuildable) {
            found.push(rebuildable(case, name, v));
            continue;
        }
        if case.primary != Some(*name) {
            found.extend(secondary(case, name, *sight));
        }
        if let Some(v) = sight.known() {
            found.extend(applying(case, name, v));
            found.extend(repairable(case, name, v).or_else(|| damaged(case, name, v)));
            found.extend(mended(case, name, v));
        }
    }
    found
}

/// Why the archive has nothing of the volume, though it answers.
fn lost(sight: Sight<'_, v1::ArchiveVolume>) -> Option<String> {
    match sight {
        Sight::Dark => None,
        Sight::Clear => Some("does not know the volume".to_owned()),
        Sight::Known(v) if v.rebuildable => None,
        Sight::Known(v) if v.state == "Broken" => Some(format!("cannot use it: {}", v.error)),
        Sight::Known(v) if v.state == "SyncReady" => Some("has no image of it".to_owned()),
        Sight::Known(_) => None,
    }
}

/// Only the file with its state is lost, and a copy of that is there.
fn rebuildable(case: &Case<'_>, name: &str, v: &v1::ArchiveVolume) -> Diagnosis {
    let volume = case.volume;
    let error = words::named(&v.error, name, ServerRole::Archive);
    let evidence = vec![format!("{name}: {error}"), format!("{name} has a whole copy of it")];
    let steps = ["rebuild", "verify"].map(|verb| Step::run(&format!("{verb} {name} {volume}")));
    let way = Way::Steps(steps.to_vec());
    Diagnosis::of(volume, Row::N9, evidence, way).with_key(name)
}

fn is_broken(sight: Sight<'_, v1::ArchiveVolume>) -> bool {
    sight.known().is_some_and(|v| v.state == "Broken")
}

fn clear(case: &Case<'_>, archive: &str) -> Step {
    let what = format!("what is left of {} at {archive}", case.volume);
    Step::Run(Command::dropping(&format!("clear {archive} {}", case.volume), what))
}

fn primary_lost(case: &Case<'_>) -> Option<Diagnosis> {
    let primary = case.primary?;
    let sight = case.primary_sight()?;
    let why = lost(sight)?;
    let (storage, leg) = case.shipped()?;
    if case.in_backup() {
        return None;
    }
    let volume = case.volume;
    let mut evidence = vec![
        format!("{primary} {}", words::named(&why, primary, ServerRole::Archive)),
        format!("{storage}: {volume} is {}, gid {} was shipped", leg.state, leg.done_gid),
    ];
    let mut steps = Vec::new();
    let heir = case.archives.iter().find(|(name, sight)| {
        *name != primary && case.is_synchronizing(name) && sight.known().is_some_and(has_image)
    });
    if let Some((heir, _)) = heir {
        evidence.push(format!("{heir} is synchronizing: it has, or will get, everything"));
        steps.push(Step::run(&format!("promote {heir}")));
        steps.push(Step::run(&format!("stop-synchronizing {primary} {volume}")));
        if is_broken(sight) {
            steps.push(clear(case, primary));
        }
        steps.push(replicate(case, heir, primary, true));
        return Some(Diagnosis::of(volume, Row::F10x2, evidence, Way::Steps(steps)));
    }
    for (name, sight) in case.archives.iter().filter(|(name, _)| *name != primary) {
        let old = sight.known().filter(|v| has_image(v));
        evidence.extend(old.map(|v| {
            let gid = v.newest_restorable_gid;
            format!("{name} does not follow, but can restore snapshots up to gid {gid}")
        }));
    }
    if is_broken(sight) {
        steps.push(clear(case, primary));
    }
    if leg.state == "Target" {
        steps.push(Step::run(&format!("stop {storage} {volume}")));
    }
    let queues = format!("what waits for {primary} at the proxies (its base is gone)");
    steps.push(Step::Run(Command::dropping(&format!("full-backup {storage} {volume}"), queues)));
    Some(Diagnosis::of(volume, Row::F10x3, evidence, Way::Steps(steps)))
}

/// The primary follows another log than the one that is shipped: it drops all that it gets.
fn other_log(case: &Case<'_>) -> Option<Diagnosis> {
    let (storage, leg) = case.shipped().filter(|(_, v)| v.state == "Target")?;
    let primary = case.primary?;
    let archive = case.primary_sight()?.known().filter(|v| has_image(v))?;
    if archive.log_uuid == leg.log_uuid || leg.gap_since_s > 0 || leg.log_capacity_pb == 0 {
        return None;
    }
    let evidence = vec![
        format!("{storage} ships another log than {primary} follows"),
        format!(
            "{primary} drops what it gets, its newest point stays {}",
            archive.newest_restorable_gid
        ),
    ];
    let way = Way::Steps(hash_backup(case, storage, leg));
    Some(Diagnosis::of(case.volume, Row::G12, evidence, way).with_key(primary))
}

/// The last replication to that archive, if it ended otherwise than done.
fn failed_replication<'a>(case: &Case<'a>, to: &str) -> Option<(&'a str, &'a v1::Operation)> {
    let kind = |op: &v1::Operation| op.kind == "replicate" && op.peer == to;
    let of_kind = case.operations.iter().filter(|(_, op)| kind(op));
    let last = of_kind.max_by_key(|(_, op)| op.started_s).copied()?;
    let ended = [v1::OperationStatus::Failed, v1::OperationStatus::Cancelled];
    Some(last).filter(|(_, op)| ended.contains(&op.status()))
}

fn is_replicating(case: &Case<'_>, to: &str) -> bool {
    let running = |op: &v1::Operation| op.status() == v1::OperationStatus::Running;
    case.operations.iter().any(|(_, op)| op.kind == "replicate" && op.peer == to && running(op))
}

fn secondary(
    case: &Case<'_>,
    name: &str,
    sight: Sight<'_, v1::ArchiveVolume>,
) -> Option<Diagnosis> {
    let primary = case.primary?;
    let source = case.primary_sight()?.known().filter(|v| has_image(v))?;
    let listed = case.is_listed(name);
    if is_replicating(case, name) || case.in_backup() {
        return None;
    }
    let volume = case.volume;
    let failed = failed_replication(case, name);
    let mut evidence: Vec<_> = failed
        .iter()
        .map(|(s, op)| format!("{s}: {} to {name} failed: {}", op.kind, op.error))
        .collect();
    let again = replicate(case, primary, name, listed);
    match sight {
        Sight::Dark => None,
        Sight::Known(v) if v.state == "SyncReady" => {
            evidence.push(format!("{name}: SyncReady, it has no image yet"));
            let (row, step) = match v.needs_resync {
                true => (Row::G7, resync(again)),
                false => (Row::G5, again),
            };
            Some(Diagnosis::of(volume, row, evidence, Way::Steps(vec![step])).with_key(name))
        }
        Sight::Clear | Sight::Known(_) if lost(sight).is_some() => {
            let broken = is_broken(sight);
            if !listed && !broken {
                return None;
            }
            let why = lost(sight).unwrap_or_default();
            evidence.push(format!("{name} {}", words::named(&why, name, ServerRole::Archive)));
            let mut steps = if broken { vec![clear(case, name)] } else { Vec::new() };
            steps.push(again);
            Some(Diagnosis::of(volume, Row::F10x1, evidence, Way::Steps(steps)).with_key(name))
        }
        Sight::Clear => None,
        Sight::Known(v) => behind(case, name, (v, source), evidence, again),
    }
}

/// The same replication, with a resync allowed.
fn resync(step: Step) -> Step {
    match step {
        Step::Run(command) => {
            let what = "what the destination kept of its former history".to_owned();
            let args = command.args.into_iter().chain(["--resync".to_owned()]).collect();
            Step::Run(Command { args, drops: Some(what) })
        }
        person @ Step::Person(_) => person,
    }
}

/// A secondary that follows, or was replicated to, and will not get further by itself.
fn behind(
    case: &Case<'_>,
    name: &str,
    (v, source): (&v1::ArchiveVolume, &v1::ArchiveVolume),
    failed: Vec<String>,
    again: Step,
) -> Option<Diagnosis> {
    let latest = |v: &v1::ArchiveVolume| v.latest.map_or(0, |latest| latest.gid_begin);
    let (has, wanted) = (latest(v), latest(source));
    let why = if case.is_listed(name) {
        stuck(case, name, v, source)
    } else {
        (!failed.is_empty() && has < wanted).then(|| "a replication to it broke off".to_owned())
    }?;
    let mut evidence = failed;
    evidence.push(format!("{name} has everything up to gid {has}, the primary up to {wanted}"));
    evidence.push(format!("{name}: {why}"));
    let same_lineage = v.archive_uuid == source.archive_uuid;
    if let Some((storage, _)) = case.shipped().filter(|(_, leg)| leg.bringing && same_lineage) {
        evidence.push(format!("{storage} has the primary replicate to it by itself"));
        let way = Way::Itself(format!("watch `walbc status {}`", case.volume));
        return Some(Diagnosis::of(case.volume, Row::G6, evidence, way).with_key(name));
    }
    let (row, step) = if same_lineage { (Row::G6, again) } else { (Row::G7, resync(again)) };
    let found = Diagnosis::of(case.volume, row, evidence, Way::Steps(vec![step]));
    Some(found.with_key(format!("{name} {has}")))
}

/// Why an archive that every proxy feeds does not get what it needs.
fn stuck(
    case: &Case<'_>,
    name: &str,
    v: &v1::ArchiveVolume,
    source: &v1::ArchiveVolume,
) -> Option<String> {
    let (_, leg) = case.shipped()?;
    if v.archive_uuid != source.archive_uuid {
        return Some("it has another history than the primary".to_owned());
    }
    if v.log_uuid != source.log_uuid && source.log_uuid == leg.log_uuid {
        return Some("it follows an older log and drops what it gets".to_owned());
    }
    let latest = |v: &v1::ArchiveVolume| v.latest.map_or(0, |latest| latest.gid_begin);
    let dark = case.proxies.iter().any(|(_, sight)| sight.is_dark());
    if dark || latest(v) >= latest(source) {
        return None;
    }
    let at = super::queues::hole(case, name, latest(v), leg.done_gid)?;
    Some(format!("no proxy has the wdiff for it that goes on from gid {at}"))
}

/// The base image is half-way between two snapshots.
fn applying(case: &Case<'_>, name: &str, v: &v1::ArchiveVolume) -> Option<Diagnosis> {
    let end = v.base.as_ref()?.end?;
    let volume = case.volume;
    let operation = |(server, op): &(&str, &v1::Operation)| {
        *server == name && op.kind == "apply" && op.status() == v1::OperationStatus::Running
    };
    // One that somebody has just asked for is no failure.
    if case.operations.iter().any(operation) {
        return None;
    }
    let mut evidence =
        vec![format!("{name}: the base image is being applied to gid {}", end.gid_begin)];
    let way = if v.running.iter().any(|kind| kind == "apply") && v.error.is_empty() {
        evidence.push(format!("{name}: it goes on since the restart"));
        Way::Itself(format!("watch `walbc status {volume}`"))
    } else {
        evidence.extend((!v.error.is_empty()).then(|| format!("{name}: {}", v.error)));
        Way::Steps(vec![Step::run(&format!("apply {name} {volume} {}", end.gid_begin))])
    };
    Some(Diagnosis::of(volume, Row::G9, evidence, way).with_key(name))
}

/// A former process was killed in the middle of something that the start has cleaned up.
fn mended(case: &Case<'_>, name: &str, v: &v1::ArchiveVolume) -> Option<Diagnosis> {
    if v.mended.is_empty() {
        return None;
    }
    let evidence = v.mended.iter().map(|what| format!("{name}: {what}")).collect();
    let way =
        Way::Itself("it is mended; type the restore or merge again if you want it".to_owned());
    Some(Diagnosis::of(case.volume, Row::G10, evidence, way).with_key(name))
}

/// Wdiffs are damaged or missing, and an archive that follows the same history may have them.
fn repairable(case: &Case<'_>, name: &str, v: &v1::ArchiveVolume) -> Option<Diagnosis> {
    use v1::DamageKind::{Missing, Wdiff, WrongSize};
    let of_wdiff =
        |d: &&v1::Damage| d.harmed > 0 && [Wdiff, Missing, WrongSize].contains(&d.kind());
    let first = v.damages.iter().find(of_wdiff)?;
    let follows = |other: &&str, o: &v1::ArchiveVolume| {
        *other != name && o.archive_uuid == v.archive_uuid && o.damages.is_empty() && has_image(o)
    };
    let mut others = case.archives.iter().filter_map(|(n, s)| Some((*n, s.known()?)));
    let (other, _) = others.find(|(n, o)| follows(n, o) && case.is_synchronizing(n))?;
    let volume = case.volume;
    let what = |d: &v1::Damage| {
        let (n, first, last) = (d.harmed, d.first_gid, d.last_gid);
        format!("{name}: {}: it harms {n} snapshots, gid {first} to {last}", d.message)
    };
    let mut evidence: Vec<_> = v.damages.iter().filter(of_wdiff).map(what).collect();
    evidence.push(format!("{other} has the same history, and is synchronizing"));
    let steps = vec![Step::run(&format!("repair {name} {volume} --from {other}"))];
    let found = Diagnosis::of(volume, Row::N8, evidence, Way::Steps(steps));
    Some(found.with_key(format!("{name} {}", first.file)))
}

/// Something that the archive keeps cannot be read, or is missing.
fn damaged(case: &Case<'_>, name: &str, v: &v1::ArchiveVolume) -> Option<Diagnosis> {
    let applying = v.base.as_ref().is_some_and(|base| base.end.is_some());
    let is_damaged = v.error_reason() == v1::Reason::Damaged;
    // Without an image there is nothing yet that could be damaged.
    if !is_damaged || v.state == "Broken" || applying || !has_image(v) {
        return None;
    }
    let volume = case.volume;
    let evidence = vec![format!("{name}: {}", words::named(&v.error, name, ServerRole::Archive))];
    let mut steps = vec![Step::person(format!(
        "bring the file back if you have it elsewhere, and restart {name}; else go on"
    ))];
    if case.primary == Some(name) {
        steps.extend(case.leg().map(|(s, leg)| hash_backup(case, s, leg)).unwrap_or_default());
    } else if let Some(primary) = case.primary {
        steps.push(resync(replicate(case, primary, name, case.is_listed(name))));
    }
    Some(Diagnosis::of(volume, Row::N2, evidence, Way::Steps(steps)).with_key(name))
}
