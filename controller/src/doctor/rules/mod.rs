//! The rules: from one look at the group to the failures in it. Pure functions, one file per group.
//!
//! Invariants: a healthy group, however busy, gives nothing (what may be a passing moment carries
//! a key that moves, see [`super::diagnosis::Diagnosis::key`]); a volume's failures that hide
//! behind a greater one are not named beside it.

mod archives;
mod logs;
mod promises;
mod queues;
mod servers;
#[cfg(test)]
mod tests;

use super::diagnosis::{Diagnosis, Row, Step, Way};
use super::view::{Case, Look};
use proto::v1;

/// Which rows are not worth naming beside a greater one of the same volume.
const SUPERSEDES: &[(Row, &[Row])] = &[
    (Row::F10x2, &[Row::F2, Row::G3, Row::G4, Row::G12, Row::F9a, Row::F9b]),
    (Row::F10x3, &[Row::F2, Row::G3, Row::G4, Row::G12, Row::F9a, Row::F9b]),
    (Row::F7, &[Row::F2, Row::G12, Row::N3, Row::N7]),
    (Row::F8a, &[Row::N7]),
    (Row::N1, &[Row::F2, Row::G12, Row::N3, Row::N7, Row::F9a]),
    (Row::F9a, &[Row::F9b, Row::G12]),
    (Row::F2, &[Row::F9a]),
    (Row::N6, &[Row::N2, Row::F5, Row::N11]),
    (Row::N9, &[Row::F5, Row::F9a, Row::G12]),
    (Row::N2, &[Row::N11]),
    (Row::N8, &[Row::N11]),
    (Row::N12, &[Row::F5, Row::N11]),
    (Row::G6, &[Row::N11]),
    (Row::F10x1, &[Row::N4]),
    (Row::G5, &[Row::N4, Row::N11]),
    (Row::G7, &[Row::N4, Row::N11]),
];

/// Every failure that the look shows, servers first, then volume by volume.
#[must_use]
pub fn diagnose(look: &Look) -> Vec<Diagnosis> {
    let mut found = servers::diagnose(look);
    for volume in look.volumes() {
        let case = look.case(volume);
        let mut of_volume = logs::diagnose(&case);
        of_volume.extend(queues::diagnose(&case));
        of_volume.extend(archives::diagnose(&case));
        of_volume.extend(promises::diagnose(&case));
        found.extend(greatest(of_volume));
    }
    only_stale(&mut found);
    // Full proxies are what came of an archive that is down: one story, told once.
    if found.iter().any(|d| d.row == Row::F6) {
        found.retain(|d| d.row != Row::F5 || d.volume.is_some());
    }
    found
}

/// That a point is old is what comes of all other failures: it is named where nothing else is.
fn only_stale(found: &mut Vec<Diagnosis>) {
    let other = |d: &&Diagnosis| d.row != Row::N10 && !d.is_over();
    let others: Vec<_> = found.iter().filter(other).map(|d| d.volume.clone()).collect();
    found.retain(|d| d.row != Row::N10 || !others.iter().any(|of| of.is_none() || *of == d.volume));
}

fn greatest(mut found: Vec<Diagnosis>) -> Vec<Diagnosis> {
    let rows: Vec<_> = found.iter().map(|d| d.row).collect();
    let hidden = |row: Row| {
        SUPERSEDES.iter().any(|(greater, less)| rows.contains(greater) && less.contains(&row))
    };
    found.retain(|d| !hidden(d.row));
    found
}

/// The steps of a hash backup, from whatever state the leg is in; secondaries that followed the old
/// log are sent the new one afterwards.
fn hash_backup(case: &Case<'_>, storage: &str, leg: &v1::StorageVolume) -> Vec<Step> {
    let volume = case.volume;
    let mut steps = Vec::new();
    if leg.state == "Target" {
        steps.push(Step::run(&format!("stop {storage} {volume}")));
    }
    steps.push(Step::run(&format!("hash-backup {storage} {volume}")));
    steps.extend(replicate_to_listed(case));
    steps
}

fn replicate_to_listed(case: &Case<'_>) -> Vec<Step> {
    let Some(primary) = case.primary else { return Vec::new() };
    let names = case.archives.iter().map(|(name, _)| *name);
    let others = names.filter(|name| *name != primary && case.is_listed(name));
    others.map(|name| replicate(case, primary, name, true)).collect()
}

fn replicate(case: &Case<'_>, from: &str, to: &str, synchronizing: bool) -> Step {
    let flag = if synchronizing { " --synchronizing" } else { "" };
    Step::run(&format!("replicate {from} {} {to}{flag}", case.volume))
}

/// What heals a gap: the storage server by itself, where its policy says so, or these steps.
fn heal(case: &Case<'_>, storage: &str, leg: &v1::StorageVolume) -> Way {
    let volume = case.volume;
    if leg.auto_resync {
        return Way::Itself(format!(
            "{storage} starts a hash backup by itself; watch `walbc status {volume}`; \
             to start it at once: `walbc hash-backup {storage} {volume}`"
        ));
    }
    Way::Steps(hash_backup(case, storage, leg))
}
