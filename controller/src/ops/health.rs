//! What is wrong with a volume in the picture of `status`: gaps, legs that nobody ships, archives
//! that do not follow. One look, cheap; `doctor` knows more and says which steps to take.
//!
//! Invariant: a healthy volume, however busy, gives nothing.

use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

use proto::v1;
use serde::Serialize;
use wdiff_format::retention::Span;

use super::look::View;

/// A secondary may be so much older than the newest archive before that is worth a word.
const LAG_LIMIT_S: u64 = 60;

/// What kind of problem; the names are keys of the JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// Logs were lost (I11).
    Gap,
    /// No leg of the volume is shipped.
    NotShipped,
    /// The volume is stopped at a proxy or an archive.
    Stopped,
    /// The proxies' lists of archives differ.
    ListsDiffer,
    /// An archive on the lists follows another log than the one that is shipped.
    OtherLog,
    /// An archive on the lists has not got what another one has.
    Lags,
    /// The newest restorable point is older than the archive's limit.
    Stale,
    /// What an archive shall do by itself fails.
    UpkeepFails,
    /// An archive on the lists does not know the volume.
    NotKnown,
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The server where it shows.
    pub server: String,
    /// What kind.
    pub kind: ProblemKind,
    /// What it is, for people.
    pub message: String,
    /// What heals it.
    pub next_step: String,
}

/// A volume as all servers see it, taken apart by role.
struct Case<'a> {
    volume: &'a str,
    legs: Vec<(&'a str, &'a v1::StorageVolume)>,
    proxies: Vec<(&'a str, &'a v1::ProxyVolume)>,
    archives: Vec<(&'a str, &'a v1::ArchiveVolume)>,
}

/// Everything that is wrong with the volume; `answered` are the servers that told what they know.
#[must_use]
pub fn problems(volume: &str, views: &[(String, View)], answered: &[&str]) -> Vec<Problem> {
    let (mut legs, mut proxies, mut archives) = (Vec::new(), Vec::new(), Vec::new());
    for (server, view) in views {
        match view {
            View::Storage(v) => legs.push((server.as_str(), &**v)),
            View::Proxy(v) => proxies.push((server.as_str(), &**v)),
            View::Archive(v) => archives.push((server.as_str(), &**v)),
        }
    }
    let case = Case { volume, legs, proxies, archives };
    let mut found = case.gaps();
    if found.is_empty() {
        found.extend(case.not_shipped());
    }
    found.extend(case.stopped());
    found.extend(case.lists_differ());
    found.extend(case.not_known(answered));
    found.extend(case.not_following());
    found.extend(case.stale());
    found.extend(case.upkeep_fails());
    found
}

/// Why logs were lost, for people.
fn cause(leg: &v1::StorageVolume) -> &'static str {
    match leg.gap_cause() {
        v1::GapCause::Overflow => "the log overflowed before it was shipped",
        v1::GapCause::LogReset => "somebody else reset the log",
        v1::GapCause::ProxyDataLost => "a proxy lost wdiffs that no archive has",
        v1::GapCause::None => "logs were lost",
    }
}

fn in_backup(leg: &v1::StorageVolume) -> bool {
    matches!(leg.state.as_str(), "FullSync" | "HashSync")
}

fn has_image(archive: &v1::ArchiveVolume) -> bool {
    !matches!(archive.state.as_str(), "Clear" | "SyncReady" | "FullSync" | "Broken")
}

impl<'a> Case<'a> {
    fn problem(
        &self,
        server: &str,
        kind: ProblemKind,
        message: String,
        next_step: String,
    ) -> Problem {
        Problem { server: server.to_owned(), kind, message, next_step }
    }

    fn gaps(&self) -> Vec<Problem> {
        let of = |(server, leg): &(&str, &v1::StorageVolume)| {
            let (volume, running) = (self.volume, in_backup(leg));
            let next_step = if running {
                format!("the backup that runs heals it: `walbc wait {}`", leg.operation)
            } else if leg.auto_resync {
                format!("{server} starts a hash backup by itself; `walbc status {volume}` shows it")
            } else {
                format!("`walbc hash-backup {server} {volume}`")
            };
            let message = format!("{}; snapshots before that stay restorable", cause(leg));
            self.problem(server, ProblemKind::Gap, message, next_step)
        };
        let lost = |leg: &v1::StorageVolume| leg.gap_since_s > 0 && leg.state != "Standby";
        self.legs.iter().filter(|(_, leg)| lost(leg)).map(of).collect()
    }

    /// A volume that has a backup or waits for one, and no leg that is shipped.
    fn not_shipped(&self) -> Option<Problem> {
        let shipped = |leg: &v1::StorageVolume| leg.state == "Target" || in_backup(leg);
        if self.legs.iter().any(|(_, leg)| shipped(leg)) {
            return None;
        }
        let rank = |leg: &v1::StorageVolume| match leg.state.as_str() {
            "Stopped" => 0,
            "SyncReady" => 1,
            _ => 2,
        };
        let (server, leg) = self.legs.iter().min_by_key(|(_, leg)| rank(leg))?;
        let archived = self.archives.iter().any(|(_, archive)| has_image(archive));
        let verb = match (leg.state.as_str(), archived) {
            ("Stopped", _) => "start",
            (_, true) => "hash-backup",
            (_, false) => "full-backup",
        };
        let message = format!("no leg is a target, it is {} here: nothing is shipped", leg.state);
        let step = format!("`walbc {verb} {server} {}`", self.volume);
        Some(self.problem(server, ProblemKind::NotShipped, message, step))
    }

    fn stopped(&self) -> Vec<Problem> {
        let proxies = self.proxies.iter().map(|(server, v)| (*server, v.state.as_str()));
        let archives = self.archives.iter().map(|(server, v)| (*server, v.state.as_str()));
        let stopped = proxies.chain(archives).filter(|(_, state)| *state == "Stopped");
        let of = |(server, _)| {
            let step = format!("`walbc start {server} {}`", self.volume);
            let message = "the volume is stopped here".to_owned();
            self.problem(server, ProblemKind::Stopped, message, step)
        };
        stopped.map(of).collect()
    }

    /// The proxies that have the archive on their list, and those that have not.
    fn lists(&self, archive: &str) -> (Vec<&'a str>, Vec<&'a str>) {
        let names = |v: &v1::ProxyVolume| {
            v.queues.iter().any(|q| q.archive.as_ref().is_some_and(|a| a.name == archive))
        };
        let (with, without): (Vec<_>, Vec<_>) = self.proxies.iter().partition(|(_, v)| names(v));
        let name = |(server, _): (&'a str, &'a v1::ProxyVolume)| server;
        (with.into_iter().map(name).collect(), without.into_iter().map(name).collect())
    }

    /// The archives that some proxy sends the volume to.
    fn listed(&self) -> BTreeSet<&'a str> {
        let queues = self.proxies.iter().flat_map(|(_, v)| &v.queues);
        queues.filter_map(|q| q.archive.as_ref().map(|a| a.name.as_str())).collect()
    }

    /// Archives that are sent the log and have lost all that they had.
    fn not_known(&self, answered: &[&str]) -> Vec<Problem> {
        let known = |name: &str| self.archives.iter().any(|(server, _)| *server == name);
        let lost = |name: &&str| answered.contains(name) && !known(name);
        if self.legs.iter().any(|(_, leg)| in_backup(leg)) {
            return Vec::new();
        }
        let of = |server: &str| {
            let message = "it does not know the volume, which the proxies send to it".to_owned();
            let step = format!("`walbc doctor {}` says what to do", self.volume);
            self.problem(server, ProblemKind::NotKnown, message, step)
        };
        self.listed().into_iter().filter(lost).map(of).collect()
    }

    fn lists_differ(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        for archive in self.listed() {
            let (with, without) = self.lists(archive);
            if let Some(server) = without.first() {
                let message = format!(
                    "{archive} is on the list of {}, not on that of {}",
                    with.join(", "),
                    without.join(", ")
                );
                let step = format!("`walbc start-synchronizing {archive} {}`", self.volume);
                found.push(self.problem(server, ProblemKind::ListsDiffer, message, step));
            }
        }
        found
    }

    fn stale(&self) -> Vec<Problem> {
        let of = |(server, v): &(&str, &v1::ArchiveVolume)| {
            let message = match v.complete_s {
                0 => "it has no restorable point, and a limit of its age".to_owned(),
                at => format!(
                    "everything up to {} can be restored, its limit is {} ago",
                    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(at)),
                    Span(v.age_limit_s)
                ),
            };
            let step = format!("`walbc doctor {}` says what is wrong", self.volume);
            self.problem(server, ProblemKind::Stale, message, step)
        };
        self.archives.iter().filter(|(_, v)| v.stale_since_s > 0).map(of).collect()
    }

    fn upkeep_fails(&self) -> Vec<Problem> {
        let mut found = Vec::new();
        for (server, upkeep) in
            self.archives.iter().filter_map(|(s, v)| Some((s, v.upkeep.as_ref()?)))
        {
            let replications = upkeep.replications.iter().map(|r| {
                let to = r.schedule.as_ref().and_then(|s| s.to.as_ref());
                let to = to.map_or("?", |peer| peer.id.as_str());
                (format!("the scheduled replication to {to}"), r.status.as_ref())
            });
            let thinning = ("the retention".to_owned(), upkeep.thinning.as_ref());
            for (what, status) in std::iter::once(thinning).chain(replications) {
                let Some(status) = status.filter(|status| !status.error.is_empty()) else {
                    continue;
                };
                let message = format!("{what} fails: {}", status.error);
                let again = "it is tried again by itself".to_owned();
                let step = match status.next_step.as_str() {
                    "" => again,
                    step => format!("{again}; {step}"),
                };
                found.push(self.problem(server, ProblemKind::UpkeepFails, message, step));
            }
        }
        found
    }

    /// Archives that are sent the log and cannot use it, or do not get it.
    fn not_following(&self) -> Vec<Problem> {
        let Some((_, leg)) = self.legs.iter().find(|(_, leg)| leg.state == "Target") else {
            return Vec::new();
        };
        let followers = |log: &v1::ArchiveVolume| has_image(log) && log.log_uuid == leg.log_uuid;
        let newest = self.archives.iter().filter(|(_, v)| followers(v));
        let Some((best, best_view)) = newest.max_by_key(|(_, v)| v.newest_restorable_s) else {
            return Vec::new();
        };
        let of = |(server, v): &(&'a str, &'a v1::ArchiveVolume)| {
            let volume = self.volume;
            let replicate = format!("`walbc replicate {best} {volume} {server} --synchronizing`");
            let behind = best_view.newest_restorable_s.saturating_sub(v.newest_restorable_s);
            let listed = !self.lists(server).0.is_empty();
            if !listed || v.state == "Broken" || v.running.iter().any(|kind| kind == "replicate") {
                None
            } else if v.log_uuid != leg.log_uuid {
                let message = "it does not hold the history of the log that is shipped".to_owned();
                Some(self.problem(server, ProblemKind::OtherLog, message, replicate))
            } else if v.newest_restorable_s > 0 && behind > LAG_LIMIT_S {
                let message =
                    format!("its newest restorable point is {behind} s older than {best}'s");
                let step = format!("`walbc kick-all` hurries it; `walbc doctor {volume}` says why");
                Some(self.problem(server, ProblemKind::Lags, message, step))
            } else {
                None
            }
        };
        self.archives.iter().filter_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(state: &str) -> (String, View) {
        let log_uuid = vec![7; 16].into();
        let v = v1::StorageVolume { state: state.into(), log_uuid, ..Default::default() };
        ("s0".into(), View::Storage(Box::new(v)))
    }

    fn proxy(name: &str, archives: &[&str]) -> (String, View) {
        let queue = |name: &&str| v1::ProxyQueue {
            archive: Some(v1::ArchiveInfo { name: (*name).into(), ..Default::default() }),
            ..Default::default()
        };
        let queues = archives.iter().map(queue).collect();
        let v = v1::ProxyVolume { state: "Started".into(), queues, ..Default::default() };
        (name.into(), View::Proxy(Box::new(v)))
    }

    fn archive(name: &str, log: u8, newest_restorable_s: u64) -> (String, View) {
        let v = v1::ArchiveVolume {
            state: "Archived".into(),
            log_uuid: vec![log; 16].into(),
            newest_restorable_s,
            ..Default::default()
        };
        (name.into(), View::Archive(Box::new(v)))
    }

    fn kinds(views: &[(String, View)]) -> Vec<(String, ProblemKind)> {
        problems("v", views, &["a0", "a1", "a2"]).into_iter().map(|p| (p.server, p.kind)).collect()
    }

    #[test]
    fn a_volume_that_is_followed_by_all_its_archives_has_no_problem() {
        let views = [
            leg("Target"),
            proxy("p0", &["a0", "a1"]),
            proxy("p1", &["a0", "a1"]),
            archive("a0", 7, 1000),
            archive("a1", 7, 950),
            archive("a2", 3, 10),
        ];
        assert_eq!(kinds(&views), [], "a2 is a copy that nobody promised to keep up to date");
        let backup = [leg("HashSync"), proxy("p0", &["a0"]), archive("a0", 3, 10)];
        assert_eq!(kinds(&backup), []);
    }

    #[test]
    fn each_problem_is_named_at_its_server() {
        let lists = [leg("Target"), proxy("p0", &["a0"]), proxy("p1", &[]), archive("a0", 7, 9)];
        assert_eq!(kinds(&lists), [("p1".into(), ProblemKind::ListsDiffer)]);
        let views = [
            leg("Target"),
            proxy("p0", &["a0", "a1", "a2"]),
            archive("a0", 7, 1000),
            archive("a1", 3, 1000),
            archive("a2", 7, 900),
        ];
        let expected = [("a1".into(), ProblemKind::OtherLog), ("a2".into(), ProblemKind::Lags)];
        assert_eq!(kinds(&views), expected);
        for (state, step) in [
            ("Stopped", "walbc start s0 v"),
            ("SyncReady", "walbc hash-backup s0 v"),
            ("Standby", "walbc hash-backup s0 v"),
        ] {
            let found = problems("v", &[leg(state), archive("a0", 7, 1)], &[]);
            assert_eq!(found[0].kind, ProblemKind::NotShipped);
            assert!(found[0].next_step.contains(step), "{found:?}");
        }
        let lost = [leg("Target"), proxy("p0", &["a0", "a1", "a3"]), archive("a0", 7, 9)];
        // a3 has not answered, which is told elsewhere.
        assert_eq!(kinds(&lost), [("a1".into(), ProblemKind::NotKnown)]);
        let found = problems("v", &[leg("Standby")], &[]);
        assert!(found[0].next_step.contains("full-backup"), "{found:?}");
    }

    #[test]
    fn what_an_archive_says_of_its_upkeep_is_a_problem() {
        let failing = |error: &str| v1::TaskStatus { error: error.into(), ..Default::default() };
        let with = |change: &dyn Fn(&mut v1::ArchiveVolume)| {
            let (server, mut view) = archive("a0", 7, 100);
            let View::Archive(v) = &mut view else { unreachable!() };
            change(v);
            kinds(&[leg("Target"), (server, view)])
        };
        let fine = v1::Upkeep { thinning: Some(failing("")), ..Default::default() };
        let limited = |v: &mut v1::ArchiveVolume| v.age_limit_s = 60;
        assert_eq!(with(&limited), []);
        assert_eq!(with(&|v| v.upkeep = Some(fine.clone())), []);
        assert_eq!(with(&|v| v.stale_since_s = 1), [("a0".into(), ProblemKind::Stale)]);
        let replication =
            v1::ScheduledReplication { status: Some(failing("away")), ..Default::default() };
        let upkeep = v1::Upkeep {
            thinning: Some(failing("full")),
            replications: vec![replication],
            ..Default::default()
        };
        let expected = vec![("a0".to_owned(), ProblemKind::UpkeepFails); 2];
        assert_eq!(with(&|v| v.upkeep = Some(upkeep.clone())), expected);
    }

    #[test]
    fn a_gap_says_its_cause_and_what_heals_it() {
        let with = |change: fn(&mut v1::StorageVolume)| {
            let mut v = v1::StorageVolume { state: "Stopped".into(), ..Default::default() };
            v.gap_since_s = 1;
            v.set_gap_cause(v1::GapCause::Overflow);
            change(&mut v);
            problems("v", &[("s0".into(), View::Storage(Box::new(v)))], &[])
        };
        let found = with(|_| {});
        assert_eq!(found.len(), 1, "the gap stands for the stopped leg");
        assert!(found[0].message.contains("overflowed"), "{found:?}");
        assert!(found[0].next_step.contains("walbc hash-backup s0 v"), "{found:?}");
        assert!(with(|v| v.auto_resync = true)[0].next_step.contains("by itself"));
        let running = with(|v| {
            v.state = "HashSync".into();
            v.operation = "hash-backup-1".into();
        });
        assert!(running[0].next_step.contains("walbc wait hash-backup-1"), "{running:?}");
    }
}
