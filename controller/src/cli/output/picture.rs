//! How servers and volumes stand: `status`, `lag`, `get-alive`, `log-usage`.

use proto::v1;
use serde_json::{Value, json};
use server_kit::units::format_size;

use super::upkeep::upkeep_json;
use super::{Report, damage_json, hex, snapshot, time};
use crate::ops::health::{Problem, ProblemKind};
use crate::ops::look::{Status, View, VolumeStatus};
use crate::words;

/// Bytes of the log that wait to be shipped.
fn unsent_bytes(v: &v1::StorageVolume) -> u64 {
    v.latest_lsid.saturating_sub(v.done_lsid).saturating_mul(u64::from(v.physical_block_bytes))
}

fn view_json(server: &str, view: &View) -> Value {
    match view {
        View::Storage(v) => json!({
            "server": server, "role": "storage", "state": v.state, "error": v.error,
            "device": v.device, "size_bytes": v.size_lb * 512, "log_uuid": hex(&v.log_uuid),
            "overflow": v.overflow, "gap_since_s": v.gap_since_s,
            "log_usage_pb": v.log_usage_pb, "log_capacity_pb": v.log_capacity_pb,
            "physical_block_bytes": v.physical_block_bytes, "unsent_bytes": unsent_bytes(v),
            "done_lsid": v.done_lsid, "done_gid": v.done_gid,
            "permanent_lsid": v.permanent_lsid, "latest_lsid": v.latest_lsid,
            "latest_gid": v.latest_gid, "queued_snapshots": v.queued_snapshots,
            "last_sent_s": v.last_sent_s, "last_proxy": v.last_proxy,
            "retry_in_ms": v.retry_in_ms, "gap_cause": gap_cause(v), "auto_resync": v.auto_resync,
            "operation": v.operation, "backup_resumable": v.backup_resumable,
            "archive_gid": v.archive_gid, "archive_asked_s": v.archive_asked_s,
            "suspect_bytes": v.suspect_bytes,
        }),
        View::Proxy(v) => json!({
            "server": server, "role": "proxy", "state": v.state, "error": v.error,
            "size_bytes": v.size_lb * 512, "last_received_s": v.last_received_s,
            "store_uuid": hex(&v.store_uuid),
            "queues": v.queues.iter().map(queue_json).collect::<Vec<_>>(),
        }),
        View::Archive(v) => json!({
            "server": server, "role": "archive", "state": v.state, "error": v.error,
            "size_bytes": v.size_lb * 512, "log_uuid": hex(&v.log_uuid),
            "archive_uuid": hex(&v.archive_uuid),
            "base": snapshot(v.base.as_ref().and_then(|base| base.begin)),
            "applying_to": v.base.as_ref().and_then(|b| b.end).map(|end| snapshot(Some(end))),
            "latest": snapshot(v.latest), "diffs": v.diffs, "diff_bytes": v.diff_bytes,
            "doomed_files": v.doomed_files, "doomed_bytes": v.doomed_bytes,
            "newest_restorable_gid": v.newest_restorable_gid,
            "newest_restorable_s": v.newest_restorable_s,
            "last_received_s": v.last_received_s, "running": v.running,
            "backend": v.backend, "image": v.image,
            "complete_s": v.complete_s, "age_limit_s": v.age_limit_s,
            "stale_since_s": v.stale_since_s, "upkeep": v.upkeep.as_ref().map(upkeep_json),
            "damages": v.damages.iter().map(damage_json).collect::<Vec<_>>(),
            "unchecked_wdiffs": v.unchecked_wdiffs, "rebuilt": v.rebuilt,
        }),
    }
}

/// The name of an enum's value as a key: `WDIFF_RESULT_TOO_NEW` is `too_new`; none: `null`.
fn key(name: &str, prefix: &str) -> Option<String> {
    let name = name.trim_start_matches(prefix).to_lowercase();
    (!matches!(name.as_str(), "none" | "unspecified")).then_some(name)
}

fn gap_cause(leg: &v1::StorageVolume) -> Option<String> {
    key(leg.gap_cause().as_str_name(), "GAP_CAUSE_")
}

fn queue_json(queue: &v1::ProxyQueue) -> Value {
    let archive = queue.archive.as_ref();
    json!({
        "archive": archive.map(|a| a.name.clone()),
        "address": archive.map(|a| a.address.clone()),
        "compression": archive.map(|a| a.compression.clone()),
        "send_delay_ms": archive.map(|a| a.send_delay_ms),
        "wdiffs": queue.wdiffs, "bytes": queue.bytes, "oldest_s": queue.oldest_s,
        "last_sent_s": queue.last_sent_s, "sending": queue.sending,
        "send_error": queue.send_error, "error": queue.error, "retry_in_ms": queue.retry_in_ms,
        "last_result": key(queue.last_result().as_str_name(), "WDIFF_RESULT_"),
        "first_gid": queue.first_gid, "last_gid": queue.last_gid,
    })
}

fn view_summary(view: &View) -> String {
    match view {
        View::Storage(v) if v.state == "Target" => format!(
            "gid {}, unsent {}, log {}%",
            v.latest_gid,
            format_size(unsent_bytes(v)),
            (v.log_usage_pb * 100).checked_div(v.log_capacity_pb).unwrap_or_default()
        ),
        View::Storage(v) => v.device.clone(),
        View::Proxy(v) => {
            let queue = |q: &v1::ProxyQueue| {
                let name = q.archive.as_ref().map_or("?", |a| a.name.as_str());
                format!("{name}: {} wdiffs, {}", q.wdiffs, format_size(q.bytes))
            };
            v.queues.iter().map(queue).collect::<Vec<_>>().join("; ")
        }
        View::Archive(v) => {
            let doomed = || format!(", {} more to be deleted", format_size(v.doomed_bytes));
            format!(
                "latest {}, {} wdiffs, {}{}, image {}",
                snapshot(v.latest),
                v.diffs,
                format_size(v.diff_bytes),
                if v.doomed_files > 0 { doomed() } else { String::new() },
                v.image
            )
        }
    }
}

/// The age of the newest restorable point, for people.
fn age(seconds: Option<u64>) -> String {
    seconds.map_or_else(
        || "none".to_owned(),
        |s| humantime::format_duration(std::time::Duration::from_secs(s)).to_string(),
    )
}

/// A gap with since when it is there, other problems as they are.
fn problem_text(problem: &Problem, volume: &VolumeStatus) -> String {
    let gap_since = volume.views.iter().find_map(|(server, view)| match view {
        View::Storage(v) if *server == problem.server && v.gap_since_s > 0 => Some(v.gap_since_s),
        _ => None,
    });
    match (problem.kind, gap_since) {
        (ProblemKind::Gap, Some(since)) => {
            format!("gap since {}: {}", time(since), problem.message)
        }
        _ => problem.message.clone(),
    }
}

/// `walbc status`: a heading per volume with the age of its newest restorable point first.
#[must_use]
pub fn status(status: &Status) -> Report {
    let mut lines = Vec::new();
    for volume in &status.volumes {
        lines.push(match volume.restorable_age_s {
            Some(_) if volume.up_to_date => format!(
                "{}: up to date: nothing was written since the newest restorable point, {} ago",
                volume.volume,
                age(volume.restorable_age_s)
            ),
            Some(_) => format!(
                "{}: newest restorable point is {} old",
                volume.volume,
                age(volume.restorable_age_s)
            ),
            None => format!("{}: no point can be restored yet", volume.volume),
        });
        for (server, view) in &volume.views {
            let state = match view {
                View::Storage(v) => &v.state,
                View::Proxy(v) => &v.state,
                View::Archive(v) => &v.state,
            };
            lines.push(format!("  {server:<8} {state:<10} {}", view_summary(view)));
            if let View::Archive(v) = view
                && !v.rebuilt.is_empty()
            {
                let note = words::named(&v.rebuilt, server, view.role());
                lines.push(format!("  {server:<8} ! {note}"));
            }
            let error = view.error().map(|error| words::named(&error, server, view.role()));
            lines.extend(error.map(|error| format!("  {server:<8} ! {error}")));
        }
        lines.extend(
            volume.problems.iter().map(|p| {
                format!("  {:<8} ! {}; {}", p.server, problem_text(p, volume), p.next_step)
            }),
        );
    }
    let drift = status.peers.iter().filter_map(|p| Some((&p.server, p.differs.as_ref()?)));
    lines.extend(drift.map(|(server, how)| {
        format!(
            "! {server} {how}; change the file, or `walbc set-peers {server}` tells it the file's"
        )
    }));
    lines.extend(status.unreachable.iter().map(|error| format!("! {error}")));
    let volume_json = |volume: &VolumeStatus| {
        json!({
            "volume": volume.volume,
            "restorable_age_s": volume.restorable_age_s, "up_to_date": volume.up_to_date,
            "servers": volume.views.iter().map(|(s, v)| view_json(s, v)).collect::<Vec<_>>(),
            "problems": volume.problems,
        })
    };
    let unreachable: Vec<_> = status.unreachable.iter().map(ToString::to_string).collect();
    Report {
        text: lines.join("\n"),
        json: json!({
            "volumes": status.volumes.iter().map(volume_json).collect::<Vec<_>>(),
            "unreachable": unreachable,
            "peers": status.peers,
        }),
    }
}

/// `walbc get-alive`.
#[must_use]
pub fn alive(servers: &[crate::ops::look::Alive]) -> Report {
    let row = |s: &crate::ops::look::Alive| {
        let answer = match (&s.problem, s.alive) {
            (Some(problem), _) => problem.clone(),
            (None, true) => "alive".to_owned(),
            (None, false) => "no answer".to_owned(),
        };
        vec![s.server.clone(), s.role.to_string(), s.address.clone(), answer]
    };
    let rows = servers.iter().map(row).collect();
    Report::table(&["SERVER", "ROLE", "ADDRESS", "ANSWER"], rows, json!({ "servers": servers }))
}

/// `walbc lag`: one number per volume.
#[must_use]
pub fn lag(status: &Status) -> Report {
    let unsent = |v: &VolumeStatus| -> u64 {
        let of = |view: &View| match view {
            View::Storage(v) if v.state == "Target" => unsent_bytes(v),
            _ => 0,
        };
        v.views.iter().map(|(_, view)| of(view)).sum()
    };
    let old = |v: &VolumeStatus| match v.up_to_date {
        true => format!("{}, up to date", age(v.restorable_age_s)),
        false => age(v.restorable_age_s),
    };
    let row = |v: &VolumeStatus| vec![v.volume.clone(), old(v), format_size(unsent(v))];
    let entry = |v: &VolumeStatus| {
        json!({
            "volume": v.volume,
            "restorable_age_s": v.restorable_age_s,
            "up_to_date": v.up_to_date,
            "unsent_bytes": unsent(v),
        })
    };
    let json = json!({ "volumes": status.volumes.iter().map(entry).collect::<Vec<_>>() });
    let rows = status.volumes.iter().map(row).collect();
    Report::table(&["VOLUME", "RESTORABLE AGE", "UNSENT"], rows, json)
}

/// `walbc log-usage`.
#[must_use]
pub fn log_usage(volumes: &[v1::StorageVolume]) -> Report {
    let percent = |v: &v1::StorageVolume| {
        (v.log_usage_pb * 100).checked_div(v.log_capacity_pb).unwrap_or_default()
    };
    let row = |v: &v1::StorageVolume| {
        let (used, capacity) = (v.log_usage_pb.to_string(), v.log_capacity_pb.to_string());
        let pbs = v.physical_block_bytes.to_string();
        vec![v.volume.clone(), used, capacity, pbs, format!("{}%", percent(v))]
    };
    let entry = |v: &v1::StorageVolume| {
        json!({
            "volume": v.volume, "usage_pb": v.log_usage_pb, "capacity_pb": v.log_capacity_pb,
            "physical_block_bytes": v.physical_block_bytes, "percent": percent(v),
            "overflow": v.overflow,
        })
    };
    let json = json!({ "volumes": volumes.iter().map(entry).collect::<Vec<_>>() });
    let header = ["VOLUME", "USED PB", "CAPACITY PB", "PB BYTES", "USED"];
    Report::table(&header, volumes.iter().map(row).collect(), json)
}
