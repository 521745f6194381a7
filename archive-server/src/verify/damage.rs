//! Damage as it is told: which snapshots it harms, and what can be done now.
//!
//! Invariant: a snapshot is called harmed only if what is damaged is on its way from the base
//! image; older ones stay whole, and so do those that lie beside it.

use super::ledger::{Found, Kind};
use crate::load;
use crate::volume::{Catalogue, Volume};
use proto::v1::{Damage, DamageKind};
use server_kit::clock;
use wdiff_format::diff_set::RestorePoint;
use wdiff_format::gid::{Diff, Snapshot};
use wdiff_format::name;

impl From<Kind> for DamageKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Wdiff => Self::Wdiff,
            Kind::Missing => Self::Missing,
            Kind::WrongSize => Self::WrongSize,
            Kind::Foreign => Self::Foreign,
            Kind::Image => Self::Image,
            Kind::Content => Self::Content,
        }
    }
}

/// Everything that is wrong with a volume, oldest snapshot first.
pub(crate) fn list(volume: &Volume) -> Vec<Damage> {
    let found = volume.ledger.damages();
    volume.with(|c| {
        let gap = gap(c);
        if found.is_empty() && gap.is_none() {
            return Vec::new();
        }
        let points = c.diffs.restorable(&c.base, true);
        let told = found.iter().filter_map(|f| describe(volume.name.as_str(), c, &points, f));
        let mut all: Vec<Damage> = told.collect();
        all.extend(gap.map(|gap| missing(volume.name.as_str(), c, &gap)));
        all.sort_by_key(|d| (d.harmed == 0, d.first_gid));
        all
    })
}

/// What would have to be there for the diffs behind a gap to be of use.
pub(crate) fn gap(c: &Catalogue) -> Option<Diff> {
    let reached = c.latest.0;
    let beyond = load::beyond(c)?;
    Diff::new(reached, beyond.begin()).ok()
}

/// The damages as one line for each, for the fault of the volume.
pub(crate) fn text(volume: &Volume, already: &str) -> Vec<String> {
    let line = |d: Damage| match d.harmed {
        1 => format!("{}: it harms snapshot {}", d.message, d.first_gid),
        n => format!("{}: it harms {n} snapshots, {} to {}", d.message, d.first_gid, d.last_gid),
    };
    let kinds = [DamageKind::Foreign, DamageKind::Unspecified];
    let all = list(volume).into_iter();
    // A gap tells of itself.
    let told = all.filter(|d| d.harmed > 0 && !kinds.contains(&d.kind()) && !d.file.is_empty());
    told.filter(|d| !already.contains(&d.file)).map(line).collect()
}

fn describe(volume: &str, c: &Catalogue, points: &[RestorePoint], found: &Found) -> Option<Damage> {
    let diff = name::parse(&found.file).ok().filter(|_| found.kind != Kind::Foreign);
    let stored = diff.and_then(|d| c.diffs.get(&d).copied());
    if diff.is_some() && stored.is_none() {
        // Applied, merged away or replaced since.
        return None;
    }
    let harmed: Vec<&RestorePoint> = match (found.kind, stored) {
        (Kind::Foreign, _) => Vec::new(),
        (Kind::Content, _) => {
            let gid = found.file.parse().ok();
            points.iter().filter(|p| Some(p.gid.0) == gid).collect()
        }
        (_, Some(diff)) => {
            let mut chain = c.diffs.chain(c.base.snapshot());
            let after = chain.find(|(d, _)| *d == diff).map(|(_, after)| after);
            let from = after.map(Snapshot::begin);
            points.iter().filter(|p| from.is_some_and(|from| p.gid >= from)).collect()
        }
        (_, None) => points.iter().collect(),
    };
    if found.kind == Kind::Content && harmed.is_empty() {
        return None;
    }
    let ends = harmed.first().zip(harmed.last());
    let message = match found.kind {
        Kind::Content => format!("snapshot {} {}", found.file, found.why),
        _ => format!("{} {}", found.file, found.why),
    };
    Some(Damage {
        kind: DamageKind::from(found.kind).into(),
        file: found.file.clone(),
        message,
        harmed: harmed.len() as u64,
        first_gid: ends.map_or(0, |(first, _)| first.gid.0),
        last_gid: ends.map_or(0, |(_, last)| last.gid.0),
        first_s: ends.map_or(0, |(first, _)| first.timestamp),
        last_s: ends.map_or(0, |(_, last)| last.timestamp),
        found_s: found.found_s,
        next_step: step(volume, found.kind),
        diff: stored.map(Into::into),
    })
}

fn step(volume: &str, kind: Kind) -> String {
    match kind {
        Kind::Foreign => "it harms nothing; take it away if you do not know it".to_owned(),
        Kind::Image | Kind::Content => format!(
            "from an archive that has the volume: walbc replicate OTHER {volume} ARCHIVE --resync; \
             without one: walbc full-backup STORAGE {volume}"
        ),
        Kind::Wdiff | Kind::Missing | Kind::WrongSize => format!(
            "from an archive that has it: walbc repair ARCHIVE {volume} --from OTHER; without one \
             bring the file back, or take it away, restart this archive, and run: walbc \
             hash-backup STORAGE {volume}"
        ),
    }
}

/// A wdiff that the history lacks; behind it nothing can be restored.
fn missing(volume: &str, c: &Catalogue, gap: &Diff) -> Damage {
    let behind: Vec<&Diff> = c.diffs.range(gap.end().begin(), load::GID_MAX).collect();
    let ends = behind.first().zip(behind.last());
    Damage {
        kind: DamageKind::Missing.into(),
        message: format!("no wdiff leads from {} to {}", gap.begin(), gap.end()),
        harmed: behind.len() as u64,
        first_gid: gap.end().begin().0,
        last_gid: ends.map_or(0, |(_, last)| last.end().begin().0),
        first_s: ends.map_or(0, |(first, _)| first.timestamp),
        last_s: ends.map_or(0, |(_, last)| last.timestamp),
        found_s: clock::unix_seconds(),
        next_step: step(volume, Kind::Missing),
        diff: Some((*gap).into()),
        ..Damage::default()
    }
}
