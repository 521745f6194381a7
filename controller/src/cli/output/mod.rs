//! Results on stdout: a line or a table for people, JSON for programs.
//!
//! The keys of the JSON are a contract (docs/json.md): only added to. Everything that is not a
//! result goes to stderr.

mod history;
mod picture;
mod upkeep;

use std::io::Write;

use comfy_table::{Table, presets};
use proto::v1;
use serde_json::{Value, json};

use server_kit::units::format_size;

use crate::ops::peers::StoragePeers;
use crate::ops::resize::Resized;

pub use history::{diffs, plan, restorable, restored};
pub use picture::{alive, lag, log_usage, status};
pub use upkeep::upkeep;

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

    pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>, json: Value) -> Self {
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
pub(super) fn time(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or_default();
    match jiff::Timestamp::from_second(seconds) {
        Ok(time) if seconds > 0 => time.to_string(),
        _ => "-".to_owned(),
    }
}

/// What kind of damage it is, as a key.
pub(super) fn damage_kind(d: &v1::Damage) -> String {
    let name = d.kind().as_str_name().trim_start_matches("DAMAGE_KIND_");
    name.to_lowercase()
}

/// Damage for programs.
pub(super) fn damage_json(d: &v1::Damage) -> Value {
    json!({
        "kind": damage_kind(d), "file": d.file, "message": d.message, "harmed": d.harmed,
        "first_gid": d.first_gid, "last_gid": d.last_gid, "first_s": d.first_s,
        "last_s": d.last_s, "found_s": d.found_s, "next_step": d.next_step,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `|7|` or `|7,9|` (semantics.md §2.17).
pub(super) fn snapshot(snapshot: Option<v1::Snapshot>) -> String {
    match snapshot {
        None => "-".to_owned(),
        Some(s) if s.gid_begin == s.gid_end => format!("|{}|", s.gid_begin),
        Some(s) => format!("|{},{}|", s.gid_begin, s.gid_end),
    }
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

/// `walbc resize`.
#[must_use]
pub fn resized(servers: &[Resized]) -> Report {
    let row =
        |r: &Resized| vec![r.server.clone(), format_size(r.old_bytes), format_size(r.new_bytes)];
    let rows = servers.iter().map(row).collect();
    Report::table(&["SERVER", "BEFORE", "NOW"], rows, json!({ "servers": servers }))
}

/// `walbc promote` and `walbc set-peers`.
#[must_use]
pub fn peers(servers: &[StoragePeers]) -> Report {
    let row = |p: &StoragePeers| vec![p.server.clone(), p.archive.clone(), p.proxies.join(", ")];
    let rows = servers.iter().map(row).collect();
    Report::table(&["STORAGE", "ARCHIVE", "PROXIES"], rows, json!({ "storages": servers }))
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
