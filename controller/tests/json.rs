//! The keys of the JSON are a contract: each that is printed is in docs/json.md.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use controller::cli::output::{self, Report};
use controller::group::ServerRole;
use controller::ops::health::{Problem, ProblemKind};
use controller::ops::look::{Alive, Status, View, VolumeStatus};
use controller::ops::peers::StoragePeers;
use controller::ops::resize::Resized;
use proto::v1;
use serde_json::Value;

fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            found.extend(object.keys().cloned());
            object.values().for_each(|value| keys(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
        _ => {}
    }
}

fn peers() -> StoragePeers {
    let (server, archive) = ("s0".to_owned(), "a0".to_owned());
    StoragePeers { server, archive, proxies: Vec::new(), differs: None }
}

fn picture() -> Status {
    let queues = vec![v1::ProxyQueue::default()];
    let views = vec![
        ("s0".to_owned(), View::Storage(Box::default())),
        ("p0".to_owned(), View::Proxy(Box::new(v1::ProxyVolume { queues, ..Default::default() }))),
        ("a0".to_owned(), View::Archive(Box::default())),
    ];
    let problems = vec![Problem {
        server: "s0".to_owned(),
        kind: ProblemKind::Gap,
        message: String::new(),
        next_step: String::new(),
    }];
    let (volume, restorable_age_s) = ("v".to_owned(), None);
    let volume = VolumeStatus { volume, restorable_age_s, up_to_date: false, views, problems };
    Status { volumes: vec![volume], unreachable: Vec::new(), peers: vec![peers()] }
}

#[test]
fn every_key_is_documented() {
    let alive = Alive {
        server: String::new(),
        role: ServerRole::Archive,
        address: String::new(),
        alive: true,
        version: None,
        problem: None,
    };
    let resized = Resized { server: String::new(), old_bytes: 0, new_bytes: 0 };
    let reports = [
        output::status(&picture()),
        output::lag(&picture()),
        output::alive(&[alive]),
        output::log_usage(&[v1::StorageVolume::default()]),
        output::restorable(&[v1::Restorable::default()]),
        output::plan(&v1::RestorePlan::default(), true),
        output::restored(&[v1::Restored::default()]),
        output::diffs(&[v1::DiffEntry::default()]),
        output::archive_infos(&[v1::ArchiveInfo::default()]),
        output::operations(&[(String::new(), v1::Operation::default())]),
        output::resized(&[resized]),
        output::peers(&[peers()]),
        Report::done(),
    ];
    let mut found = BTreeSet::new();
    reports.iter().for_each(|report| keys(&report.json, &mut found));
    assert!(found.len() > 80, "{found:?}");
    let page = include_str!("../../docs/json.md");
    let words: BTreeSet<_> = page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let missing: Vec<_> = found.iter().filter(|key| !words.contains(key.as_str())).collect();
    assert!(missing.is_empty(), "not in docs/json.md: {missing:?}");
}
