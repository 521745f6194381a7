//! `walbc retention`, `replication-schedule` and `freshness`: what an archive does by itself.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use proto::v1;
use serde_json::json;
use server_kit::units::parse_duration;
use wdiff_format::retention::{BadPolicy, Policy};

use super::output::{self, Report, time};
use super::progress::Progress;
use super::values::{Target, parse_size};
use crate::client::Controller;
use crate::error::{ControlError, Exit};
use crate::ops::{Event, upkeep};

type Answer = Result<(Report, Exit), ControlError>;

/// A policy, or none.
#[derive(Clone, Debug)]
pub enum PolicyOrOff {
    /// Nothing is thinned out.
    Off,
    /// What is kept.
    Policy(Policy),
}

impl FromStr for PolicyOrOff {
    type Err = BadPolicy;

    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        if text == "off" { Ok(Self::Off) } else { text.parse().map(Self::Policy) }
    }
}

/// Arguments of `walbc retention`.
#[derive(Debug, Args)]
pub struct RetentionArgs {
    /// An archive of the group file, and the volume
    #[command(flatten)]
    pub target: Target,
    /// What is kept, as one word: "all 1h, every 1m 1d, every 1h 7d, every 1d 30d"; off: everything
    /// [default: show what is set]
    pub policy: Option<PolicyOrOff>,
    /// Say what would go, and why; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Merges and applies write no more than this per second
    #[arg(long, value_name = "RATE", value_parser = parse_size, requires = "policy")]
    pub rate: Option<u64>,
    /// Shortest time between two applies
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "policy")]
    pub apply_every: Option<Duration>,
    /// Shortest time between two rounds of merges
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "policy")]
    pub merge_every: Option<Duration>,
    /// Leave diffs alone that are larger together
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "policy")]
    pub merge_max: Option<u64>,
}

/// Arguments of `walbc replication-schedule`.
#[derive(Debug, Args)]
pub struct ScheduleArgs {
    /// The archive that sends, and the volume
    #[command(flatten)]
    pub target: Target,
    /// The archive that receives [default: show what is set]
    pub to: Option<String>,
    /// Shortest time from one start to the next
    #[arg(long, value_name = "TIME", value_parser = parse_duration, requires = "to")]
    pub every: Option<Duration>,
    /// End each run after so much; the next one goes on
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "every")]
    pub max_send: Option<u64>,
    /// Merge no more than this into one wdiff [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, requires = "every")]
    pub max_merge: Option<u64>,
    /// Compression on the wire, as in zstd:1 or lz4 [default: zstd:1]
    #[arg(long, value_name = "TYPE", requires = "every")]
    pub compress: Option<String>,
    /// Send every wdiff as it is
    #[arg(long, requires = "every")]
    pub dont_merge: bool,
    /// Read no more than this per second for a comparison
    #[arg(long, value_name = "RATE", value_parser = parse_size, requires = "every")]
    pub scan_rate: Option<u64>,
    /// Keep the schedule, and do not follow it until it is set again
    #[arg(long, requires = "to", conflicts_with = "drop")]
    pub pause: bool,
    /// Take the schedule away
    #[arg(long, requires = "to", conflicts_with = "every")]
    pub drop: bool,
}

/// Arguments of `walbc freshness`.
#[derive(Debug, Args)]
pub struct FreshnessArgs {
    /// An archive of the group file, and the volume
    #[command(flatten)]
    pub target: Target,
    /// How old the newest restorable point may be, like 5m; off: as old as it likes
    /// [default: show what is set]
    #[arg(value_parser = parse_limit)]
    pub limit: Option<u64>,
}

fn parse_limit(text: &str) -> Result<u64, String> {
    if text == "off" { Ok(0) } else { parse_duration(text).map(|limit| limit.as_secs().max(1)) }
}

fn seconds(time: Option<Duration>) -> u64 {
    time.map_or(0, |time| time.as_secs().max(1))
}

/// Shows, plans, sets or takes away how a history is thinned out.
pub(super) async fn retention(ctl: &Controller, args: &RetentionArgs, json: bool) -> Answer {
    let (archive, volume) = (args.target.server.as_str(), args.target.volume.as_str());
    let mut progress = Progress::new(json);
    let seen = &mut |event: Event<'_>| progress.show(event);
    let policy = match &args.policy {
        None if !args.dry_run => {
            return Ok((output::upkeep(&upkeep::get(ctl, archive, volume).await?), Exit::Done));
        }
        Some(PolicyOrOff::Off) => {
            if !args.dry_run {
                upkeep::set_retention(ctl, archive, volume, None).await?;
            }
            return Ok((Report::done(), Exit::Done));
        }
        None => String::new(),
        Some(PolicyOrOff::Policy(policy)) => policy.to_string(),
    };
    let plan = upkeep::plan(ctl, archive, volume, &policy, &mut *seen).await?;
    if !args.dry_run {
        let retention = v1::Retention {
            policy,
            bytes_per_s: args.rate.unwrap_or_default(),
            apply_every_s: seconds(args.apply_every),
            merge_every_s: seconds(args.merge_every),
            merge_max_bytes: args.merge_max.unwrap_or_default(),
        };
        upkeep::set_retention(ctl, archive, volume, Some(retention)).await?;
        upkeep::run_retention(ctl, archive, volume, seen).await?;
    }
    Ok((progress.noted(planned(&plan, args.dry_run)), Exit::Done))
}

fn planned(plan: &v1::RetentionPlan, dry_run: bool) -> Report {
    let row = |p: &v1::DroppedSnapshot| vec![p.gid.to_string(), time(p.timestamp_s), p.why.clone()];
    let json = json!({
        "policy": plan.policy, "apply": plan.apply, "held_by": plan.held_by,
        "merges": plan.merges.iter().map(|m| [m.begin, m.end]).collect::<Vec<_>>(),
        "dropped": plan.dropped.iter().map(|p| p.gid).collect::<Vec<_>>(), "dry_run": dry_run,
    });
    Report::table(&["DROPPED", "TIME", "WHY"], plan.dropped.iter().map(row).collect(), json)
}

/// Shows, sets or takes away when a volume is replicated.
pub(super) async fn schedule(ctl: &Controller, args: &ScheduleArgs) -> Answer {
    let (archive, volume) = (args.target.server.as_str(), args.target.volume.as_str());
    let kept = match (&args.to, args.every) {
        (Some(to), _) if args.drop => upkeep::drop_replication(ctl, archive, volume, to).await?,
        (Some(to), Some(every)) => {
            let schedule = v1::ReplicationSchedule {
                to: None,
                every_s: seconds(Some(every)),
                max_send_bytes: args.max_send.unwrap_or_default(),
                compression: args.compress.clone().unwrap_or_default(),
                max_merge_bytes: args.max_merge.unwrap_or_default(),
                dont_merge: args.dont_merge,
                scan_bytes_per_s: args.scan_rate.unwrap_or_default(),
                paused: args.pause,
            };
            upkeep::set_replication(ctl, archive, volume, to, schedule).await?
        }
        (Some(to), None) if args.pause => {
            upkeep::pause_replication(ctl, archive, volume, to).await?
        }
        _ => upkeep::get(ctl, archive, volume).await?,
    };
    Ok((output::upkeep(&kept), Exit::Done))
}

/// Shows or sets how old the newest restorable point may be.
pub(super) async fn freshness(ctl: &Controller, args: &FreshnessArgs) -> Answer {
    let (archive, volume) = (args.target.server.as_str(), args.target.volume.as_str());
    let kept = match args.limit {
        Some(limit) => upkeep::set_age_limit(ctl, archive, volume, limit).await?,
        None => upkeep::get(ctl, archive, volume).await?,
    };
    Ok((output::upkeep(&kept), Exit::Done))
}
