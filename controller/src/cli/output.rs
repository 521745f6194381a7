//! Results on stdout: a line or a table for people, JSON for programs.
//!
//! The keys of the JSON are a contract (docs/json.md): only added to. Everything that is not a
//! result goes to stderr.

use std::io::Write;

use comfy_table::{Table, presets};
use proto::v1;
use serde_json::{Value, json};

use crate::ops::look::{Status, View, VolumeStatus};
use server_kit::units::format_size;

/// A result in both forms.
#[derive(Debug)]
pub struct Report {
    /// For people; ends without a newline.
    pub text: String,
    /// For programs.
    pub json: Value,
}

impl Report {
    /// Writes one of the forms to stdout. A closed pipe is no error of ours.
    pub fn print(&self, as_json: bool) {
        let text = if as_json { format!("{:#}", self.json) } else { self.text.clone() };
        if !text.is_empty() {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    /// Nothing to say but that it is done.
    #[must_use]
    pub fn done() -> Self {
        Self { text: String::new(), json: json!({ "done": true }) }
    }

    /// One value, under a key for programs.
    #[must_use]
    pub fn value(key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        let text = match &value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        Self { text, json: json!({ key: value }) }
    }

    /// Lines, under a key for programs.
    #[must_use]
    pub fn lines(key: &str, lines: &[String]) -> Self {
        Self { text: lines.join("\n"), json: json!({ key: lines }) }
    }

    fn table(header: &[&str], rows: Vec<Vec<String>>, json: Value) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(header.to_vec());
        rows.into_iter().for_each(|row| {
            table.add_row(row);
        });
        table.column_iter_mut().for_each(|column| {
            column.set_padding((0, 2));
        });
        Self { text: table.trim_fmt(), json }
    }
}

/// A Unix time as RFC 3339; `-` for "never".
fn time(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or_default();
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) if seconds > 0 => time.to_string(),
        _ => "-".to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `|7|` or `|7,9|` (semantics.md §2.17).
fn snapshot(snapshot: Option<v1::Snapshot>) -> String {
    match snapshot {
        None => "-".to_owned(),
        Some(s) if s.gid_begin == s.gid_end => format!("|{}|", s.gid_begin),
        Some(s) => format!("|{},{}|", s.gid_begin, s.gid_end),
    }
}

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
            "retry_in_ms": v.retry_in_ms,
        }),
        View::Proxy(v) => json!({
            "server": server, "role": "proxy", "state": v.state, "error": v.error,
            "size_bytes": v.size_lb * 512, "last_received_s": v.last_received_s,
            "queues": v.queues.iter().map(queue_json).collect::<Vec<_>>(),
        }),
        View::Archive(v) => json!({
            "server": server, "role": "archive", "state": v.state, "error": v.error,
            "size_bytes": v.size_lb * 512, "log_uuid": hex(&v.log_uuid),
            "archive_uuid": hex(&v.archive_uuid),
            "base": snapshot(v.base.as_ref().and_then(|base| base.begin)),
            "applying_to": v.base.as_ref().and_then(|b| b.end).map(|end| snapshot(Some(end))),
            "latest": snapshot(v.latest), "diffs": v.diffs, "diff_bytes": v.diff_bytes,
            "newest_restorable_gid": v.newest_restorable_gid,
            "newest_restorable_s": v.newest_restorable_s,
            "last_received_s": v.last_received_s, "running": v.running,
        }),
    }
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
        View::Archive(v) => format!(
            "latest {}, {} wdiffs, {}",
            snapshot(v.latest),
            v.diffs,
            format_size(v.diff_bytes)
        ),
    }
}

/// The age of the newest restorable point, for people.
fn age(seconds: Option<u64>) -> String {
    seconds.map_or_else(
        || "none".to_owned(),
        |s| humantime::format_duration(std::time::Duration::from_secs(s)).to_string(),
    )
}

/// `walbc status`: a heading per volume with the age of its newest restorable point first.
#[must_use]
pub fn status(status: &Status) -> Report {
    let mut lines = Vec::new();
    for volume in &status.volumes {
        lines.push(format!(
            "{}: newest restorable point is {} old",
            volume.volume,
            age(volume.restorable_age_s)
        ));
        for (server, view) in &volume.views {
            let state = match view {
                View::Storage(v) => &v.state,
                View::Proxy(v) => &v.state,
                View::Archive(v) => &v.state,
            };
            lines.push(format!("  {server:<8} {state:<10} {}", view_summary(view)));
            lines.extend(view.error().map(|error| format!("  {server:<8} ! {error}")));
        }
    }
    lines.extend(status.unreachable.iter().map(|error| format!("! {error}")));
    let volume_json = |volume: &VolumeStatus| {
        json!({
            "volume": volume.volume,
            "restorable_age_s": volume.restorable_age_s,
            "servers": volume.views.iter().map(|(s, v)| view_json(s, v)).collect::<Vec<_>>(),
        })
    };
    let unreachable: Vec<_> = status.unreachable.iter().map(ToString::to_string).collect();
    Report {
        text: lines.join("\n"),
        json: json!({
            "volumes": status.volumes.iter().map(volume_json).collect::<Vec<_>>(),
            "unreachable": unreachable,
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
    let row =
        |v: &VolumeStatus| vec![v.volume.clone(), age(v.restorable_age_s), format_size(unsent(v))];
    let entry = |v: &VolumeStatus| {
        json!({
            "volume": v.volume,
            "restorable_age_s": v.restorable_age_s,
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

/// `walbc restorable`.
#[must_use]
pub fn restorable(snapshots: &[v1::Restorable]) -> Report {
    let row = |s: &v1::Restorable| {
        let explicit = if s.explicit_snapshot { "explicit" } else { "implicit" };
        let size = format_size(s.change_bytes);
        vec![s.gid.to_string(), time(s.timestamp_s), explicit.to_owned(), size]
    };
    let entry = |s: &v1::Restorable| {
        json!({
            "gid": s.gid, "timestamp_s": s.timestamp_s,
            "explicit": s.explicit_snapshot, "change_bytes": s.change_bytes,
        })
    };
    let json = json!({ "snapshots": snapshots.iter().map(entry).collect::<Vec<_>>() });
    let rows = snapshots.iter().map(row).collect();
    Report::table(&["GID", "TIME", "KIND", "CHANGE"], rows, json)
}

/// `walbc restore` and its dry run.
#[must_use]
pub fn plan(plan: &v1::RestorePlan, dry_run: bool) -> Report {
    let text = if dry_run {
        let wdiffs = plan.wdiffs.iter().map(|name| format!("\n  {name}")).collect::<String>();
        format!(
            "would restore gid {} of {} to {}: {} of {}, then {} wdiffs of {}{wdiffs}",
            plan.gid,
            time(plan.timestamp_s),
            plan.path,
            plan.method,
            format_size(plan.image_bytes),
            plan.wdiffs.len(),
            format_size(plan.wdiff_bytes)
        )
    } else {
        plan.path.clone()
    };
    let json = json!({
        "gid": plan.gid, "timestamp_s": plan.timestamp_s, "path": plan.path,
        "method": plan.method, "image_bytes": plan.image_bytes,
        "wdiffs": plan.wdiffs, "wdiff_bytes": plan.wdiff_bytes, "dry_run": dry_run,
    });
    Report { text, json }
}

/// `walbc restored`.
#[must_use]
pub fn restored(images: &[v1::Restored]) -> Report {
    let row = |r: &v1::Restored| {
        vec![r.gid.to_string(), time(r.created_s), format_size(r.size_bytes), r.path.clone()]
    };
    let entry = |r: &v1::Restored| {
        json!({
            "gid": r.gid, "created_s": r.created_s, "size_bytes": r.size_bytes, "path": r.path,
        })
    };
    let json = json!({ "restored": images.iter().map(entry).collect::<Vec<_>>() });
    Report::table(&["GID", "CREATED", "SIZE", "PATH"], images.iter().map(row).collect(), json)
}

/// `walbc diffs`.
#[must_use]
pub fn diffs(diffs: &[v1::DiffEntry]) -> Report {
    let flags = |d: &v1::DiffMeta| {
        let flag = |set: bool, letter| if set { letter } else { '-' };
        format!("{}{}", flag(d.mergeable, 'M'), flag(d.comparison, 'C'))
    };
    let row = |e: &v1::DiffEntry| {
        let d = e.diff.unwrap_or_default();
        let range = format!("{}-->{}", snapshot(d.begin), snapshot(d.end));
        vec![range, flags(&d), time(d.timestamp_s), format_size(d.size_bytes)]
    };
    let entry = |e: &v1::DiffEntry| {
        let d = e.diff.unwrap_or_default();
        let gids = |s: Option<v1::Snapshot>| s.map(|s| [s.gid_begin, s.gid_end]);
        json!({
            "begin": gids(d.begin), "end": gids(d.end), "mergeable": d.mergeable,
            "comparison": d.comparison, "timestamp_s": d.timestamp_s,
            "size_bytes": d.size_bytes, "file": e.file,
        })
    };
    let json = json!({ "diffs": diffs.iter().map(entry).collect::<Vec<_>>() });
    Report::table(&["DIFF", "FLAGS", "TIME", "SIZE"], diffs.iter().map(row).collect(), json)
}

/// `walbc archive-info`.
#[must_use]
pub fn archive_infos(infos: &[v1::ArchiveInfo]) -> Report {
    let row = |info: &v1::ArchiveInfo| {
        let delay = format!("{} ms", info.send_delay_ms);
        vec![info.name.clone(), info.address.clone(), info.compression.clone(), delay]
    };
    let entry = |info: &v1::ArchiveInfo| {
        json!({
            "name": info.name, "address": info.address,
            "compression": info.compression, "send_delay_ms": info.send_delay_ms,
        })
    };
    let json = json!({ "archives": infos.iter().map(entry).collect::<Vec<_>>() });
    let header = ["ARCHIVE", "ADDRESS", "COMPRESSION", "DELAY"];
    Report::table(&header, infos.iter().map(row).collect(), json)
}

/// One operation for programs.
fn operation_json(server: &str, op: &v1::Operation) -> Value {
    let status = op.status().as_str_name().trim_start_matches("OPERATION_STATUS_").to_lowercase();
    json!({
        "id": op.id, "server": server, "kind": op.kind, "volume": op.volume, "status": status,
        "done_bytes": op.done_bytes, "total_bytes": op.total_bytes,
        "started_s": op.started_s, "finished_s": op.finished_s,
        "error": op.error, "gid": op.gid, "path": op.path,
    })
}

/// `walbc operations`, `progress`, `wait` and `cancel`.
#[must_use]
pub fn operations(operations: &[(String, v1::Operation)]) -> Report {
    let row = |(server, op): &(String, v1::Operation)| {
        let status = op.status().as_str_name().trim_start_matches("OPERATION_STATUS_");
        let done = match op.total_bytes {
            0 => format_size(op.done_bytes),
            total => format!("{} of {}", format_size(op.done_bytes), format_size(total)),
        };
        let (id, kind, volume) = (op.id.clone(), op.kind.clone(), op.volume.clone());
        let error = op.error.clone();
        vec![
            id,
            server.clone(),
            kind,
            volume,
            status.to_lowercase(),
            done,
            time(op.started_s),
            error,
        ]
    };
    let json = operations.iter().map(|(s, op)| operation_json(s, op)).collect::<Vec<_>>();
    let header = ["ID", "SERVER", "KIND", "VOLUME", "STATUS", "DONE", "STARTED", "ERROR"];
    let rows = operations.iter().map(row).collect();
    Report::table(&header, rows, json!({ "operations": json }))
}
