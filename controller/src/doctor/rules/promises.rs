//! What an archive has promised and does not keep: the age of its newest restorable point (N10),
//! and what it does by itself (N11).

use std::time::{Duration, UNIX_EPOCH};

use proto::v1;
use wdiff_format::retention::Span;

use super::super::diagnosis::{Diagnosis, Row, Step, Way};
use super::super::view::{Case, has_image};
use super::replicate;
use crate::group::ServerRole;
use crate::words;

pub(super) fn diagnose(case: &Case<'_>) -> Vec<Diagnosis> {
    let known = case.archives.iter().filter_map(|(name, sight)| Some((*name, sight.known()?)));
    let mut found = Vec::new();
    for (name, v) in known {
        found.extend(stale(case, name, v));
        found.extend(upkeep_fails(case, name, v));
    }
    found
}

/// Nothing came for longer than the archive's limit.
fn stale(case: &Case<'_>, name: &str, v: &v1::ArchiveVolume) -> Option<Diagnosis> {
    if v.stale_since_s == 0 || case.in_backup() {
        return None;
    }
    let at = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(v.complete_s));
    let limit = Span(v.age_limit_s);
    let mut evidence =
        vec![format!("{name}: everything up to {at} can be restored, its limit is {limit}")];
    let latest = |v: &v1::ArchiveVolume| v.latest.map_or(0, |latest| latest.gid_begin);
    let source = case.primary.filter(|primary| *primary != name).and_then(|primary| {
        let v = case.archive(primary)?.known().filter(|v| has_image(v))?;
        Some((primary, v))
    });
    let way = if case.is_listed(name) {
        let waits = case.queues(name).filter(|(_, q)| q.wdiffs > 0);
        evidence.extend(waits.map(|(proxy, q)| {
            format!("{proxy}: {} wdiffs wait for {name}; last error: {}", q.wdiffs, said(&q.error))
        }));
        evidence.extend(case.shipped().map(|(storage, leg)| {
            let (shipped, error) = (leg.done_gid, said(&leg.error));
            format!("{storage}: gid {shipped} was shipped last; last error: {error}")
        }));
        Way::Steps(vec![Step::run("kick-all")])
    } else if let Some((primary, _)) = source.filter(|(_, source)| latest(source) > latest(v)) {
        evidence.push(format!("no proxy sends to {name}, and {primary} has newer snapshots"));
        Way::Steps(vec![replicate(case, primary, name, false)])
    } else {
        let step = format!(
            "send it from the proxies (walbc start-synchronizing {name} {0}) or by a schedule \
             (walbc replication-schedule ARCHIVE {0} {name} --every 1h), or give it a limit that \
             fits: walbc freshness {name} {0} off",
            case.volume
        );
        evidence.push(format!("no proxy sends to {name}"));
        Way::Steps(vec![Step::person(step)])
    };
    Some(Diagnosis::of(case.volume, Row::N10, evidence, way).with_key(name))
}

fn said(error: &str) -> &str {
    if error.is_empty() { "none" } else { error }
}

/// A policy or a schedule that cannot be followed.
fn upkeep_fails(case: &Case<'_>, name: &str, v: &v1::ArchiveVolume) -> Vec<Diagnosis> {
    let Some(upkeep) = &v.upkeep else { return Vec::new() };
    let replications = upkeep.replications.iter().filter_map(|r| {
        let to = r.schedule.as_ref()?.to.as_ref()?.id.as_str();
        // Who does not answer is named as that.
        let is_dark = case.archive(to).is_some_and(super::super::view::Sight::is_dark);
        let status = r.status.as_ref().filter(|_| !is_dark)?;
        Some((format!("the scheduled replication to {to}"), status))
    });
    let thinning = upkeep.thinning.iter().map(|status| ("the retention".to_owned(), status));
    let failing = thinning.chain(replications).filter(|(_, status)| !status.error.is_empty());
    let diagnosis = |(what, status): (String, &v1::TaskStatus)| {
        let named = |text: &str| words::named(text, name, ServerRole::Archive);
        let evidence = vec![
            format!("{name}: {what} fails: {}", named(&status.error)),
            format!("{name}: it failed {} times and is tried again by itself", status.failures),
        ];
        let way = match status.next_step.as_str() {
            "" => Way::Itself(format!("watch `walbc status {}`", case.volume)),
            step => Way::Steps(vec![Step::person(named(step))]),
        };
        let found = Diagnosis::of(case.volume, Row::N11, evidence, way);
        found.with_key(format!("{name} {what}"))
    };
    failing.map(diagnosis).collect()
}
