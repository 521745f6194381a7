//! What waits at the proxies, and why: F6, F9, G1, G2, G8, G11, and N3, N4, N6, N12.

use proto::v1;
use proto::v1::{Reason, WdiffResult};
use server_kit::units::format_size;

use super::super::diagnosis::{Diagnosis, Row, Step, Way};
use super::super::view::{Case, Sight, has_image, queue_name};
use super::{hash_backup, heal};

pub(super) fn diagnose(case: &Case<'_>) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    found.extend(refused(case));
    found.extend(holes(case));
    found.extend(grown(case));
    for (archive, sight) in &case.archives {
        if !sight.is_dark() {
            found.extend(unreachable(case, archive));
            found.extend(full(case, archive));
            found.extend(unusable(case, archive));
            found.extend(given_up(case, archive));
        }
        found.extend(differs(case, archive));
    }
    found.extend(case.known_proxies().filter_map(|(proxy, v)| drain(case, proxy, v)));
    found.extend(stopped(case));
    found
}

fn free(case: &Case<'_>, server: &str) -> String {
    let host = case.hosts.iter().find(|(name, _)| *name == server);
    host.map_or_else(String::new, |(_, info)| {
        format!(", {} are free in {}", format_size(info.free_bytes), info.base_dir)
    })
}

fn waiting(queue: &v1::ProxyQueue) -> String {
    format!("{} wdiffs, {} wait for {}", queue.wdiffs, format_size(queue.bytes), queue_name(queue))
}

/// No proxy takes the log although some answer us: they are full (F6), or cut off (G1).
fn refused(case: &Case<'_>) -> Option<Diagnosis> {
    let (storage, v) = case.shipped().filter(|(_, v)| v.state == "Target")?;
    let answering: Vec<_> = case.proxies.iter().filter(|(_, s)| !s.is_dark()).collect();
    if v.refusals.is_empty() || answering.is_empty() || v.gap_since_s > 0 {
        return None;
    }
    let mut evidence: Vec<_> = v
        .refusals
        .iter()
        .map(|refusal| {
            format!("{storage}: {} did not take the log: {}", refusal.address, refusal.message)
        })
        .collect();
    let percent = (v.log_usage_pb * 100).checked_div(v.log_capacity_pb).unwrap_or_default();
    evidence.push(format!("{storage}: the log is {percent} % full"));
    let kick = Step::run("kick-all");
    let is = |reason| move |refusal: &v1::ProxyRefusal| refusal.reason() == reason;
    if v.refusals.iter().any(is(Reason::NoSpace)) {
        evidence.extend(case.known_proxies().flat_map(|(proxy, volume)| {
            let queues = volume.queues.iter().filter(|q| q.wdiffs > 0);
            queues.map(move |q| format!("{proxy}: {}{}", waiting(q), free(case, proxy)))
        }));
        let dark = case.archives.iter().filter(|(_, sight)| sight.is_dark());
        let mut steps: Vec<_> = dark
            .map(|(name, _)| Step::person(format!("start {name} again: the proxies wait for it")))
            .collect();
        if steps.is_empty() {
            steps.push(Step::person("free space on the proxies' file systems"));
        }
        steps.push(kick);
        return Some(Diagnosis::of(case.volume, Row::F6, evidence, Way::Steps(steps)));
    }
    if !v.refusals.iter().all(is(Reason::Unreachable)) {
        return None;
    }
    let names: Vec<_> = answering.iter().map(|(name, _)| *name).collect();
    let names = names.join(", ");
    evidence.push(format!("{names} answer walbc: the way from {storage} to them is cut"));
    let repair = Step::person(format!("repair the network between {storage} and {names}"));
    Some(Diagnosis::of(case.volume, Row::G1, evidence, Way::Steps(vec![repair, kick])))
}

/// Where the wdiffs that lead from what an archive has to what the proxies have acknowledged break
/// off, if they do.
pub(super) fn hole(case: &Case<'_>, archive: &str, have: u64, need: u64) -> Option<u64> {
    let mut at = have;
    while at < need {
        let next = case.queues(archive).filter_map(|(_, q)| Some((q.first_gid?, q.last_gid?)));
        let reach = next.filter(|(first, last)| *first <= at && *last > at).map(|(_, last)| last);
        match reach.max() {
            Some(further) => at = further,
            None => return Some(at),
        }
    }
    None
}

/// Proxies that lost what they had: F9a where wdiffs are gone that an archive needs, else F9b.
fn holes(case: &Case<'_>) -> Option<Diagnosis> {
    let (storage, leg) = case.shipped()?;
    let primary = case.primary?;
    // What an archive with a fault says of its newest snapshot is not what it was given.
    let archive = case.primary_sight()?.known().filter(|v| has_image(v) && v.error.is_empty())?;
    if case.in_backup() || leg.gap_since_s > 0 || leg.overflow || leg.log_capacity_pb == 0 {
        return None;
    }
    let blank: Vec<_> =
        case.proxies.iter().filter(|(_, s)| s.is_clear()).map(|(p, _)| *p).collect();
    let mut evidence: Vec<_> =
        blank.iter().map(|proxy| format!("{proxy} does not know {}", case.volume)).collect();
    let again =
        |archive: &str| Step::run(&format!("start-synchronizing {archive} {}", case.volume));
    let register: Vec<_> = match blank.is_empty() {
        true => Vec::new(),
        false => listed_or_primary(case).iter().map(|name| again(name)).collect(),
    };
    let have = archive.latest.map_or(0, |latest| latest.gid_begin);
    let same_log = archive.log_uuid == leg.log_uuid;
    let dark = case.proxies.iter().any(|(_, s)| s.is_dark());
    let hole = hole(case, primary, have, leg.done_gid).filter(|_| same_log && !dark);
    if let Some(at) = hole {
        evidence.push(format!("{primary} has everything up to gid {have}"));
        evidence.push(format!("{storage} was told that gid {} is safe", leg.done_gid));
        evidence.push(format!("no proxy has the wdiff that goes on from gid {at}"));
        let way = match heal(case, storage, leg) {
            Way::Itself(_) if !register.is_empty() => Way::Steps(register),
            Way::Steps(steps) => Way::Steps(register.into_iter().chain(steps).collect()),
            way @ Way::Itself(_) => way,
        };
        let key = format!("{have} {at}");
        return Some(Diagnosis::of(case.volume, Row::F9a, evidence, way).with_key(key));
    }
    if blank.is_empty() {
        return None;
    }
    evidence.push(format!("{primary} has, or will get, everything up to gid {}", leg.done_gid));
    Some(Diagnosis::of(case.volume, Row::F9b, evidence, Way::Steps(register)))
}

fn listed_or_primary<'a>(case: &Case<'a>) -> Vec<&'a str> {
    let names = case.archives.iter().map(|(name, _)| *name);
    names.filter(|name| case.primary == Some(*name) || case.is_listed(name)).collect()
}

/// The archive's image is smaller than the volume.
fn grown(case: &Case<'_>) -> Option<Diagnosis> {
    let (storage, leg) = case.shipped()?;
    let small = |(name, sight): &(&str, Sight<'_, v1::ArchiveVolume>)| {
        let v = sight.known().filter(|v| has_image(v) && v.size_lb < leg.size_lb)?;
        let follows = case.is_listed(name) || case.primary == Some(*name);
        follows.then(|| format!("{name}: {} has {} bytes", case.volume, v.size_lb * 512))
    };
    let mut evidence: Vec<_> = case.archives.iter().filter_map(small).collect();
    if evidence.is_empty() {
        return None;
    }
    let bytes = leg.size_lb * 512;
    evidence.push(format!("{storage}: {} has {bytes} bytes", case.volume));
    for (archive, _) in &case.archives {
        let errors = case.queues(archive).filter(|(_, q)| q.send_error);
        evidence.extend(errors.map(|(proxy, q)| format!("{proxy}: send error, {}", waiting(q))));
    }
    let resize = Step::run(&format!("resize {} {bytes}", case.volume));
    let steps = vec![resize, Step::run("kick-all")];
    Some(Diagnosis::of(case.volume, Row::G8, evidence, Way::Steps(steps)))
}

/// The archive answers us and not the proxy.
fn unreachable(case: &Case<'_>, archive: &str) -> Option<Diagnosis> {
    let cut = |q: &v1::ProxyQueue| q.wdiffs > 0 && q.error_reason() == Reason::Unreachable;
    let cut: Vec<_> = case.queues(archive).filter(|(_, q)| cut(q)).collect();
    let (first, _) = cut.first()?;
    let mut evidence: Vec<_> =
        cut.iter().map(|(proxy, q)| format!("{proxy}: {}: {}", waiting(q), q.error)).collect();
    evidence.push(format!("{archive} answers walbc: the way from the proxy to it is cut"));
    let steps = vec![
        Step::person(format!("repair the network between {first} and {archive}")),
        Step::run("kick-all"),
    ];
    let found = Diagnosis::of(case.volume, Row::G2, evidence, Way::Steps(steps));
    Some(found.with_key(archive))
}

fn full(case: &Case<'_>, archive: &str) -> Option<Diagnosis> {
    let mut evidence = cannot(case, archive, Reason::NoSpace)?;
    evidence.push(format!("{archive} is full{}", free(case, archive)));
    let steps = vec![
        Step::person(format!("free space on the file system of {archive}")),
        Step::run("kick-all"),
    ];
    Some(Diagnosis::of(case.volume, Row::N6, evidence, Way::Steps(steps)).with_key(archive))
}

/// What an archive, and those that send to it, say of why it cannot keep or read something.
fn cannot(case: &Case<'_>, archive: &str, reason: Reason) -> Option<Vec<String>> {
    let refused = case.queues(archive).filter(|(_, q)| q.wdiffs > 0 && q.error_reason() == reason);
    let mut evidence: Vec<_> =
        refused.map(|(proxy, q)| format!("{proxy}: {}: {}", waiting(q), q.error)).collect();
    let own = case.archive(archive).and_then(Sight::known);
    let own = own.filter(|v| v.error_reason() == reason);
    evidence.extend(own.map(|v| format!("{archive}: {}", v.error)));
    (!evidence.is_empty()).then_some(evidence)
}

/// The operating system fails the archive.
fn unusable(case: &Case<'_>, archive: &str) -> Option<Diagnosis> {
    let evidence = cannot(case, archive, Reason::Io)?;
    let host = case.hosts.iter().find(|(name, _)| *name == archive);
    let dir = host.map_or("its files", |(_, info)| info.base_dir.as_str());
    let what = format!(
        "find out why {archive} cannot use {dir} (its log and the kernel's say), and mend that: a \
         file system that went read-only, a disk that fails"
    );
    let steps = vec![Step::person(what), Step::run("kick-all")];
    Some(Diagnosis::of(case.volume, Row::N12, evidence, Way::Steps(steps)).with_key(archive))
}

/// The proxy has stopped trying: a kick resumes, unless what it holds is damaged.
fn given_up(case: &Case<'_>, archive: &str) -> Option<Diagnosis> {
    let (proxy, queue) = case.queues(archive).find(|(_, q)| q.send_error)?;
    let evidence = vec![format!("{proxy}: send error, {}: {}", waiting(queue), queue.error)];
    let volume = case.volume;
    if queue.error_reason() == Reason::Damaged {
        let (storage, leg) = case.shipped()?;
        let mut steps = hash_backup(case, storage, leg);
        if let Some(Step::Run(command)) = steps.last_mut() {
            command.drops = Some(format!("what waits for {archive} at the proxies"));
        }
        return Some(Diagnosis::of(volume, Row::F9a, evidence, Way::Steps(steps)));
    }
    match queue.last_result() {
        // Named by what is behind them.
        WdiffResult::SmallerSize | WdiffResult::ArchiveNotFound => None,
        _ => {
            let kick = Step::run(&format!("kick {proxy} {volume} {archive}"));
            let key = format!("{proxy} {archive}");
            Some(Diagnosis::of(volume, Row::F5, evidence, Way::Steps(vec![kick])).with_key(key))
        }
    }
}

/// Some proxies send the volume to the archive, others know it and do not.
fn differs(case: &Case<'_>, archive: &str) -> Option<Diagnosis> {
    let lists = |v: &v1::ProxyVolume| v.queues.iter().any(|q| queue_name(q) == archive);
    let (with, without): (Vec<_>, Vec<_>) = case.known_proxies().partition(|(_, v)| lists(v));
    if with.is_empty() || without.is_empty() || case.in_backup() || case.runs("replicate") {
        return None;
    }
    let name =
        |(proxy, _): &(&str, &v1::ProxyVolume)| format!("{proxy} does not send to {archive}");
    let mut evidence: Vec<_> = without.iter().map(name).collect();
    evidence.extend(with.iter().map(|(proxy, _)| format!("{proxy} sends to {archive}")));
    let step = Step::run(&format!("start-synchronizing {archive} {}", case.volume));
    let found = Diagnosis::of(case.volume, Row::N4, evidence, Way::Steps(vec![step]));
    Some(found.with_key(archive))
}

/// `stop --mode empty` waits for an archive that does not take what waits.
fn drain(case: &Case<'_>, proxy: &str, v: &v1::ProxyVolume) -> Option<Diagnosis> {
    let stuck = |q: &&v1::ProxyQueue| q.wdiffs > 0 && !q.error.is_empty();
    let queue = v.queues.iter().find(stuck).filter(|_| v.state == "WaitForEmpty")?;
    let evidence = vec![
        format!("{proxy}: a stop waits for empty queues, {}", waiting(queue)),
        format!("{proxy}: {}", queue.error),
    ];
    let volume = case.volume;
    let steps = vec![
        Step::run(&format!("stop {proxy} {volume} --mode force")),
        Step::run(&format!("start {proxy} {volume}")),
    ];
    Some(Diagnosis::of(volume, Row::G11, evidence, Way::Steps(steps)).with_key(proxy))
}

/// Somebody stopped it, and continuous backup needs it.
fn stopped(case: &Case<'_>) -> Vec<Diagnosis> {
    let volume = case.volume;
    let mut names = Vec::new();
    if let Some((storage, v)) = case.shipped()
        && v.state == "Stopped"
        && v.gap_since_s == 0
        && !v.overflow
        && v.log_capacity_pb > 0
    {
        names.push(storage);
    }
    if case.shipped().is_some() {
        let proxies = case.known_proxies().filter(|(_, v)| v.state == "Stopped");
        names.extend(proxies.map(|(name, _)| name));
        let archives = case.archives.iter().filter(|(name, sight)| {
            let follows = case.is_listed(name) || case.primary == Some(*name);
            follows && sight.known().is_some_and(|v| v.state == "Stopped")
        });
        names.extend(archives.map(|(name, _)| *name));
    }
    let one = |name: &str| {
        let evidence = vec![format!("{name}: {volume} is Stopped")];
        let step = Step::run(&format!("start {name} {volume}"));
        Diagnosis::of(volume, Row::N3, evidence, Way::Steps(vec![step])).with_key(name)
    };
    names.into_iter().map(one).collect()
}
