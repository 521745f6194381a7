//! `walbc retention`.

use clap::Args;
use serde_json::json;
use wdiff_format::retention::Policy;

use super::output::{Report, time};
use super::progress::Progress;
use super::values::Target;
use crate::client::Controller;
use crate::error::{ControlError, Exit};
use crate::ops::{Event, retention};

/// Arguments of `walbc retention`.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// An archive of the group file, and the volume
    #[command(flatten)]
    pub target: Target,
    /// What is kept, as one word: "all 1h, every 1m 1d, every 1h 7d, every 1d 30d"
    pub policy: Policy,
    /// Say what would go, and why
    #[arg(long)]
    pub dry_run: bool,
}

/// Thins out, and prints what went.
pub(super) async fn run(
    ctl: &Controller,
    args: &RetentionArgs,
    json: bool,
) -> Result<(Report, Exit), ControlError> {
    let RetentionArgs { target: t, policy, dry_run } = args;
    let mut progress = Progress::new(json);
    let seen = &mut |event: Event<'_>| progress.show(event);
    let (archive, volume) = (t.server.as_str(), t.volume.as_str());
    let done = retention::retention(ctl, archive, volume, policy, *dry_run, seen).await?;
    let plan = &done.plan;
    let why = |gid| {
        let merged = plan.merges.iter().find(|(begin, end)| *begin < gid && gid < *end);
        let old = || format!("older than {policy}");
        merged.map_or_else(old, |(b, e)| format!("one wdiff is made of {b} to {e}"))
    };
    let dropped = done.points.iter().filter(|p| plan.dropped.contains(&p.gid));
    let row =
        |p: &wdiff_format::retention::Point| vec![p.gid.to_string(), time(p.timestamp), why(p.gid)];
    let json = json!({
        "apply": plan.apply.map(|g| g.0), "held_by": plan.held_by.map(|g| g.0),
        "merges": plan.merges.iter().map(|(b, e)| [b.0, e.0]).collect::<Vec<_>>(),
        "dropped": plan.dropped.iter().map(|g| g.0).collect::<Vec<_>>(), "dry_run": dry_run,
    });
    let report = Report::table(&["DROPPED", "TIME", "WHY"], dropped.map(row).collect(), json);
    Ok((progress.noted(report), Exit::Done))
}
