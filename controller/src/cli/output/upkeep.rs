//! What an archive does by itself: `retention`, `replication-schedule`, `freshness`.

use proto::v1;
use serde_json::{Value, json};
use server_kit::units::format_size;
use wdiff_format::retention::Span;

use super::{Report, time};

fn task_json(task: &v1::TaskStatus) -> Value {
    json!({
        "started_s": task.started_s, "ended_s": task.ended_s, "next_s": task.next_s,
        "done": task.done, "error": task.error, "failures": task.failures,
        "next_step": task.next_step, "waits_for": task.waits_for,
    })
}

fn replication_json(r: &v1::ScheduledReplication) -> Value {
    let schedule = r.schedule.clone().unwrap_or_default();
    let to = schedule.to.unwrap_or_default();
    json!({
        "to": to.id, "address": to.address, "every_s": schedule.every_s,
        "max_send_bytes": schedule.max_send_bytes, "compression": schedule.compression,
        "max_merge_bytes": schedule.max_merge_bytes, "dont_merge": schedule.dont_merge,
        "scan_bytes_per_s": schedule.scan_bytes_per_s, "paused": schedule.paused, "gid": r.gid,
        "run": r.status.as_ref().map(task_json),
    })
}

/// The JSON of it.
pub(super) fn upkeep_json(upkeep: &v1::Upkeep) -> Value {
    let retention = upkeep.retention.as_ref().map(|r| {
        json!({
            "policy": r.policy, "bytes_per_s": r.bytes_per_s, "apply_every_s": r.apply_every_s,
            "merge_every_s": r.merge_every_s, "merge_max_bytes": r.merge_max_bytes,
        })
    });
    json!({
        "volume": upkeep.volume, "retention": retention,
        "run": upkeep.thinning.as_ref().map(task_json),
        "replications": upkeep.replications.iter().map(replication_json).collect::<Vec<_>>(),
        "age_limit_s": upkeep.age_limit_s,
    })
}

fn row(task: &str, what: String, status: Option<&v1::TaskStatus>) -> Vec<String> {
    let status = status.cloned().unwrap_or_default();
    let said = [
        (!status.error.is_empty()).then(|| format!("failed: {}", status.error)),
        (!status.waits_for.is_empty()).then(|| format!("waits: {}", status.waits_for)),
        Some(status.done).filter(|done| !done.is_empty()),
    ];
    let said = said.into_iter().flatten().next().unwrap_or_else(|| "-".to_owned());
    vec![task.to_owned(), what, time(status.ended_s), time(status.next_s), said]
}

/// All of it.
#[must_use]
pub fn upkeep(upkeep: &v1::Upkeep) -> Report {
    let limited = |what: &str, bytes: u64| match bytes {
        0 => String::new(),
        bytes => format!(", {what} {}", format_size(bytes)),
    };
    let span = |what: &str, s: u64| match s {
        0 => String::new(),
        s => format!(", {what} every {}", Span(s)),
    };
    let retention = upkeep.retention.as_ref().map_or_else(
        || "keep everything".to_owned(),
        |r| {
            let rate = limited("per second", r.bytes_per_s);
            let (applies, merges) =
                (span("apply", r.apply_every_s), span("merge", r.merge_every_s));
            let most = limited("merges up to", r.merge_max_bytes);
            format!("{}{rate}{applies}{merges}{most}", r.policy)
        },
    );
    let mut rows = vec![row("retention", retention, upkeep.thinning.as_ref())];
    for r in &upkeep.replications {
        let schedule = r.schedule.clone().unwrap_or_default();
        let paused = if schedule.paused { ", paused" } else { "" };
        let most = limited("each run", schedule.max_send_bytes);
        let what = format!("every {}{most}{paused}", Span(schedule.every_s));
        let to = schedule.to.unwrap_or_default().id;
        rows.push(row(&format!("replicate to {to}"), what, r.status.as_ref()));
    }
    let limit = match upkeep.age_limit_s {
        0 => "no limit".to_owned(),
        s => format!("at most {} old", Span(s)),
    };
    rows.push(row("freshness", limit, None));
    Report::table(&["TASK", "SET", "LAST", "NEXT", "WHAT"], rows, upkeep_json(upkeep))
}
