//! `walb ldev show`.

use std::path::PathBuf;

use clap::Args;
use wlog_format::redo::Step;
use wlog_format::units::Lsid;

use super::device::LogDevice;
use crate::files::packs::{ListWriter, Stat};
use crate::files::stdout;

/// List the packs and records of a log device.
///
/// The log ends at the first block that is not the pack expected there; that is no error. Of a torn
/// last pack, the records before the damage are listed.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The log device
    ldev: PathBuf,
    /// Start with the pack at this lsid (default: oldest_lsid)
    #[arg(long, value_name = "LSID")]
    from: Option<u64>,
    /// Stop before the first pack from this lsid on (default: the end of the log)
    #[arg(long, value_name = "LSID")]
    to: Option<u64>,
    /// One JSON document: {"wlogs": [{"header", "packs", "stat"}], "error"}
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let device = LogDevice::open(&args.ldev)?;
    let begin = args.from.map_or(device.super_block().oldest, Lsid);
    let end = args.to.map_or(Lsid::INVALID, Lsid);
    let mut list = ListWriter::new(stdout(), args.json)?;
    list.header(&device.wlog_header(begin, end))?;
    let mut stat = Stat::new(begin);
    let mut packs = device.packs(begin);
    loop {
        let (pack, last) = match packs.next()? {
            Step::Whole(pack) => (pack, false),
            Step::Shrunk { pack, .. } => (pack, true),
            Step::End { .. } => break,
        };
        if pack.header.lsid() >= end {
            break;
        }
        stat.add(&pack);
        list.pack(&pack.header)?;
        if last {
            break;
        }
    }
    list.stat(&stat, end)?;
    Ok(list.finish(None)?)
}
