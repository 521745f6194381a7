//! What an archive holds and restores: `restorable`, `restore`, `restored`, `diffs`.

use proto::v1;
use serde_json::json;
use server_kit::units::format_size;

use super::{Report, snapshot, time};

/// `walbc restorable`.
#[must_use]
pub fn restorable(snapshots: &[v1::Restorable]) -> Report {
    let row = |s: &v1::Restorable| {
        let explicit = if s.explicit_snapshot { "explicit" } else { "implicit" };
        let size = format_size(s.change_bytes);
        let verified = match s.verified_s {
            0 => "-".to_owned(),
            at => format!("{} {}", s.verified_how, time(at)),
        };
        vec![s.gid.to_string(), time(s.timestamp_s), explicit.to_owned(), size, verified]
    };
    let entry = |s: &v1::Restorable| {
        json!({
            "gid": s.gid, "timestamp_s": s.timestamp_s,
            "explicit": s.explicit_snapshot, "change_bytes": s.change_bytes,
            "verified_s": s.verified_s,
            "verified_how": (s.verified_s > 0).then_some(&s.verified_how),
        })
    };
    let json = json!({ "snapshots": snapshots.iter().map(entry).collect::<Vec<_>>() });
    let rows = snapshots.iter().map(row).collect();
    Report::table(&["GID", "TIME", "KIND", "CHANGE", "VERIFIED"], rows, json)
}

/// `walbc restore` and its dry run.
#[must_use]
pub fn plan(plan: &v1::RestorePlan, dry_run: bool) -> Report {
    let text = if dry_run {
        let mut wdiffs = plan.wdiffs.iter().map(|name| format!("\n  {name}")).collect::<String>();
        let more = plan.wdiff_count.saturating_sub(plan.wdiffs.len() as u64);
        if more > 0 {
            wdiffs += &format!("\n  and {more} more");
        }
        format!(
            "would restore gid {} of {} to {}: {} of {}, then {} wdiffs of {}{wdiffs}",
            plan.gid,
            time(plan.timestamp_s),
            plan.path,
            plan.method,
            format_size(plan.image_bytes),
            plan.wdiff_count,
            format_size(plan.wdiff_bytes)
        )
    } else {
        plan.path.clone()
    };
    let json = json!({
        "gid": plan.gid, "timestamp_s": plan.timestamp_s, "path": plan.path,
        "method": plan.method, "image_bytes": plan.image_bytes,
        "wdiffs": plan.wdiffs, "wdiff_count": plan.wdiff_count,
        "wdiff_bytes": plan.wdiff_bytes, "dry_run": dry_run,
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
