//! Servers that do not answer, or are not who they should be: F1, F3, F4, F5, N5.

use proto::v1;

use super::super::diagnosis::{Diagnosis, Row, Step, Way};
use super::super::view::{Look, ServerLook};
use crate::group::ServerRole;

pub(super) fn diagnose(look: &Look) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    found.extend(down(look, ServerRole::Storage).map(|server| storage(look, server)));
    found.extend(proxies(look));
    found.extend(down(look, ServerRole::Archive).map(archive));
    found.extend(look.servers.iter().filter_map(impostor));
    found
}

fn down(look: &Look, role: ServerRole) -> impl Iterator<Item = &ServerLook> {
    look.of_role(role).filter(|server| server.seen.is_err())
}

fn silence(server: &ServerLook) -> String {
    let why = server.seen.as_ref().err().map_or("", String::as_str);
    format!("{} at {} does not answer: {why}", server.name, server.address)
}

fn start(server: &ServerLook) -> Step {
    Step::person(format!("start {} again (walb-{} serve) on its host", server.name, server.role))
}

fn storage(look: &Look, server: &ServerLook) -> Diagnosis {
    let mut evidence = vec![silence(server)];
    evidence.push("its devices keep logging; it goes on where it was when it is back".to_owned());
    evidence.extend(newest(look));
    Diagnosis::of_server(Row::F1, &server.name, evidence, Way::Steps(vec![start(server)]))
}

/// How old the newest restorable points are: what grows while nothing is shipped.
fn newest(look: &Look) -> Vec<String> {
    let seen = look.servers.iter().filter_map(|s| Some((&s.name, s.seen.as_ref().ok()?)));
    let volumes = seen.flat_map(|(name, seen)| seen.archives.iter().map(move |v| (name, v)));
    let known = volumes.filter(|(_, v)| v.newest_restorable_s > 0);
    let age = |at_s: u64| {
        let age_s = crate::ops::look::now_s().saturating_sub(at_s);
        humantime::format_duration(std::time::Duration::from_secs(age_s)).to_string()
    };
    known
        .map(|(name, v)| {
            let (volume, gid) = (&v.volume, v.newest_restorable_gid);
            format!("{name}: newest point of {volume} is {gid}, {} old", age(v.newest_restorable_s))
        })
        .collect()
}

fn proxies(look: &Look) -> Vec<Diagnosis> {
    let dead: Vec<_> = down(look, ServerRole::Proxy).collect();
    let all = look.of_role(ServerRole::Proxy).count();
    let mut steps: Vec<_> = dead.iter().map(|server| start(server)).collect();
    steps.push(Step::run("kick-all"));
    if dead.is_empty() {
        return Vec::new();
    }
    if dead.len() == all {
        let mut evidence: Vec<_> = dead.iter().map(|server| silence(server)).collect();
        evidence.extend(usages(look));
        return vec![Diagnosis::of_server(Row::F4, "proxies", evidence, Way::Steps(steps))];
    }
    let one = |server: &&ServerLook| {
        let mut evidence = vec![silence(server)];
        let left = all - dead.len();
        evidence.push(format!("{left} of {all} proxies answer: logs go through them"));
        let steps = vec![start(server), Step::run("kick-all")];
        Diagnosis::of_server(Row::F3, &server.name, evidence, Way::Steps(steps))
    };
    dead.iter().map(one).collect()
}

/// How full the logs are that nobody takes.
fn usages(look: &Look) -> Vec<String> {
    let seen = look.servers.iter().filter_map(|s| Some((&s.name, s.seen.as_ref().ok()?)));
    let volumes = seen.flat_map(|(name, seen)| seen.storages.iter().map(move |v| (name, v)));
    let usage = |(name, v): (&String, &v1::StorageVolume)| {
        let percent = (v.log_usage_pb * 100).checked_div(v.log_capacity_pb)?;
        let overflow = if v.overflow { ", overflowed" } else { "" };
        Some(format!("{name}: the log of {} is {percent} % full{overflow}", v.volume))
    };
    volumes.filter(|(_, v)| v.state == "Target").filter_map(usage).collect()
}

fn archive(server: &ServerLook) -> Diagnosis {
    let mut evidence = vec![silence(server)];
    evidence.push("wdiffs for it wait at the proxies; they drain when it is back".to_owned());
    let steps = vec![start(server), Step::run("kick-all")];
    Diagnosis::of_server(Row::F5, &server.name, evidence, Way::Steps(steps))
}

fn impostor(server: &ServerLook) -> Option<Diagnosis> {
    let info = &server.seen.as_ref().ok()?.info;
    let expected = match server.role {
        ServerRole::Storage => v1::Role::Storage,
        ServerRole::Proxy => v1::Role::Proxy,
        ServerRole::Archive => v1::Role::Archive,
    };
    if info.role() == expected && info.id == server.name {
        return None;
    }
    let evidence = vec![format!(
        "at {} answers {:?} {:?}, expected is {} {:?}",
        server.address,
        info.role(),
        info.id,
        server.role,
        server.name
    )];
    let step = Step::person("correct the address in the group file, or the server's --id");
    Some(Diagnosis::of_server(Row::N5, &server.name, evidence, Way::Steps(vec![step])))
}
