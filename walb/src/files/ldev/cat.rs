//! `walb ldev cat`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use wlog_format::redo::Step;
use wlog_format::stream::WlogWriter;
use wlog_format::units::Lsid;

use super::device::LogDevice;
use crate::files::output::Output;

/// Extract a wlog from a log device.
///
/// A pack that begins before --to is extracted whole. The log ends at the first block that is not
/// the pack expected there: that is said on stderr, and is an error only if --to lies beyond it.
#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    /// The log device
    ldev: PathBuf,
    /// The wlog to write; `-` is stdout
    #[arg(short, long, value_name = "WLOG", default_value = "-")]
    output: PathBuf,
    /// Start with the pack at this lsid (default: oldest_lsid)
    #[arg(long, value_name = "LSID")]
    from: Option<u64>,
    /// Stop at this lsid (default: the end of the log)
    #[arg(long, value_name = "LSID")]
    to: Option<u64>,
}

pub(super) fn run(args: &CatArgs) -> anyhow::Result<()> {
    let device = LogDevice::open(&args.ldev)?;
    let begin = args.from.map_or(device.super_block().oldest, Lsid);
    let end = args.to.map_or(Lsid::INVALID, Lsid);
    if begin >= end {
        bail!("nothing lies between --from {begin} and --to {end}: --to must be larger");
    }
    let failed = || format!("cannot write wlog {}", args.output.display());
    let header = device.wlog_header(begin, end);
    let output = Output::create(&args.output)?;
    let mut writer = WlogWriter::new(output, header).with_context(failed)?;
    let mut packs = device.packs(begin);
    while writer.next_lsid() < end {
        match packs.next()? {
            Step::Whole(pack) => writer.write_pack(&pack).with_context(failed)?,
            Step::Shrunk { pack, lost } => {
                writer.write_pack(&pack).with_context(failed)?;
                eprintln!("the last pack is torn: {lost} of its records are left out");
                break;
            }
            Step::End { reason, .. } => {
                eprintln!("the log ends: {:#}", anyhow::Error::new(reason));
                break;
            }
        }
    }
    let reached = writer.next_lsid();
    writer.finish().with_context(failed)?.commit()?;
    if args.to.is_some() && reached < end {
        bail!("the log of {} ends at lsid {reached}, before --to {end}", device.path());
    }
    Ok(())
}
