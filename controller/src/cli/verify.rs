//! `walbc verify`, `drill`, `repair`, `rebuild`.

use clap::Args;
use proto::v1;
use serde_json::{Value, json};
use server_kit::units::format_size;

use super::output::{Report, damage_json, damage_kind, snapshot, time};
use super::progress::Progress;
use super::values::{Target, parse_size, parse_uuid, parse_volume};
use crate::client::Controller;
use crate::error::{ControlError, Exit};
use crate::group::ServerRole;
use crate::ops::Event;
use crate::ops::verify::{self, RebuildOptions};
use crate::words;

/// Arguments of `walbc verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// An archive of the group file
    pub server: String,
    /// This volume only
    #[arg(value_parser = parse_volume)]
    pub volume: Option<String>,
    /// Read no more than this per second
    #[arg(long, value_name = "RATE", value_parser = parse_size)]
    pub scan_rate: Option<u64>,
}

/// Arguments of `walbc drill`.
#[derive(Debug, Args)]
pub struct DrillArgs {
    /// An archive of the group file, and the volume
    #[command(flatten)]
    pub target: Target,
    /// The snapshot's gid [default: a random one]
    pub gid: Option<u64>,
    /// Read no more than this per second
    #[arg(long, value_name = "RATE", value_parser = parse_size)]
    pub scan_rate: Option<u64>,
}

/// Arguments of `walbc repair`.
#[derive(Debug, Args)]
pub struct RepairArgs {
    /// An archive of the group file, and the volume
    #[command(flatten)]
    pub target: Target,
    /// The archive that has what is missing
    #[arg(long, value_name = "A2")]
    pub from: String,
}

/// Arguments of `walbc rebuild`.
#[derive(Debug, Args)]
pub struct RebuildArgs {
    /// An archive of the group file, and the volume
    #[command(flatten)]
    pub target: Target,
    /// The snapshot that the base image is at, if nothing there tells
    #[arg(long, value_name = "GID")]
    pub base: Option<u64>,
    /// The log of the newest wdiff, if no wdiff tells: 32 hexadecimal digits, from `walbc status`
    #[arg(long, value_name = "UUID", value_parser = parse_uuid)]
    pub log_uuid: Option<[u8; 16]>,
    /// The `archive_uuid` of the volume at another archive, so that the two can replicate again
    #[arg(long, value_name = "UUID", value_parser = parse_uuid)]
    pub archive_uuid: Option<[u8; 16]>,
}

type Answer = Result<(Report, Exit), ControlError>;

/// Reads everything back, and prints what is wrong.
pub(super) async fn verify(ctl: &Controller, args: &VerifyArgs, json: bool) -> Answer {
    let VerifyArgs { server, volume, scan_rate } = args;
    let mut progress = Progress::new(json);
    let seen = &mut |event: Event<'_>| progress.show(event);
    let rate = scan_rate.unwrap_or_default();
    let all = verify::verify(ctl, server, volume.as_deref(), rate, seen).await?;
    let mut rows = Vec::new();
    for of in &all {
        rows.extend(of.found.damages.iter().map(|d| row(server, &of.volume, d)));
    }
    let entry = |of: &verify::Verified| {
        let found = &of.found;
        json!({
            "volume": of.volume, "wdiffs": found.wdiffs, "wdiff_bytes": found.wdiff_bytes,
            "checked_wdiffs": found.checked_wdiffs, "oldest_check_s": found.oldest_check_s,
            "verified_s": found.verified_s,
            "damages": found.damages.iter().map(damage_json).collect::<Vec<_>>(),
        })
    };
    let document = json!({ "volumes": all.iter().map(entry).collect::<Vec<_>>() });
    let well = rows.is_empty();
    let report = if well {
        let line = |of: &verify::Verified| {
            let bytes = format_size(of.found.wdiff_bytes);
            format!(
                "{}: {} wdiffs of {bytes} and the base image are well",
                of.volume, of.found.wdiffs
            )
        };
        Report { text: all.iter().map(line).collect::<Vec<_>>().join("\n"), json: document }
    } else {
        Report::table(&HEADER, rows, document)
    };
    Ok((report, if well { Exit::Done } else { Exit::Failed }))
}

const HEADER: [&str; 5] = ["VOLUME", "DAMAGE", "HARMS", "WHAT", "NEXT STEP"];

fn row(server: &str, volume: &str, d: &v1::Damage) -> Vec<String> {
    let harms = match d.harmed {
        0 => "nothing".to_owned(),
        1 => format!("gid {}, {}", d.first_gid, time(d.first_s)),
        n => format!(
            "{n} snapshots, gid {} to {}, {} to {}",
            d.first_gid,
            d.last_gid,
            time(d.first_s),
            time(d.last_s)
        ),
    };
    let step = words::named(&d.next_step, server, ServerRole::Archive);
    vec![volume.to_owned(), damage_kind(d), harms, d.message.clone(), step]
}

/// Drills, and prints the hash.
pub(super) async fn drill(ctl: &Controller, args: &DrillArgs, json: bool) -> Answer {
    let DrillArgs { target: t, gid, scan_rate } = args;
    let mut progress = Progress::new(json);
    let seen = &mut |event: Event<'_>| progress.show(event);
    let how = (*gid, scan_rate.unwrap_or_default());
    let d = verify::drill(ctl, &t.server, &t.volume, how, seen).await?;
    let text = format!("gid {}: {} (recorded {})", d.gid, d.hash, time(d.recorded_s));
    let json = json!({
        "gid": d.gid, "hash": d.hash, "recorded_s": d.recorded_s, "drilled_s": d.drilled_s,
    });
    Ok((Report { text, json }, Exit::Done))
}

/// Repairs, and prints what is wrong still.
pub(super) async fn repair(ctl: &Controller, args: &RepairArgs, json: bool) -> Answer {
    let RepairArgs { target: t, from } = args;
    let mut progress = Progress::new(json);
    let seen = &mut |event: Event<'_>| progress.show(event);
    let done = verify::repair(ctl, &t.server, &t.volume, from, seen).await?;
    let is_left =
        |d: &&v1::Damage| done.left.iter().all(|left| left.file != d.file || left.kind != d.kind);
    let mended: Vec<Value> = done.before.iter().filter(is_left).map(damage_json).collect();
    let document = json!({
        "repaired": mended, "left": done.left.iter().map(damage_json).collect::<Vec<_>>(),
    });
    let well = done.left.iter().all(|d| d.harmed == 0);
    let report = if done.left.is_empty() {
        Report { text: format!("{} damages are repaired", mended.len()), json: document }
    } else {
        let rows = done.left.iter().map(|d| row(&t.server, &t.volume, d)).collect();
        Report::table(&HEADER, rows, document)
    };
    Ok((progress.noted(report), if well { Exit::Done } else { Exit::Failed }))
}

/// Rebuilds, and prints what was taken from where.
pub(super) async fn rebuild(ctl: &Controller, args: &RebuildArgs) -> Answer {
    let RebuildArgs { target: t, base, log_uuid, archive_uuid } = args;
    let bytes = |uuid: &Option<[u8; 16]>| uuid.map_or_else(Vec::new, |uuid| uuid.to_vec());
    let options = RebuildOptions {
        base_gid: *base,
        log_uuid: bytes(log_uuid),
        archive_uuid: bytes(archive_uuid),
    };
    let made = verify::rebuild(ctl, &t.server, &t.volume, options).await?;
    let base = snapshot(made.base.and_then(|base| base.begin));
    let latest = snapshot(made.latest);
    let json = json!({
        "base": base, "latest": latest, "wdiffs": made.wdiffs, "notes": made.notes,
    });
    let first = format!("base image at {base}, {} wdiffs, latest {latest}", made.wdiffs);
    let lines: Vec<String> = std::iter::once(first).chain(made.notes).collect();
    Ok((Report { text: lines.join("\n"), json }, Exit::Done))
}
