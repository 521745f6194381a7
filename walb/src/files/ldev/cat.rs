//! `walb ldev cat`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;
use wlog_format::redo::Step;
use wlog_format::stream::WlogWriter;
use wlog_format::units::Lsid;

use super::device::LogDevice;
use crate::files::output::Output;
use crate::files::print_result;

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
    /// One JSON document: {"packs", "begin_lsid", "end_lsid", "log_end"}; needs -o
    #[arg(long)]
    json: bool,
}

/// The keys are a contract.
#[derive(Debug, Serialize)]
struct Extracted {
    packs: u64,
    begin_lsid: u64,
    end_lsid: u64,
    /// What was found behind the last pack; null when --to came first.
    log_end: Option<String>,
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
    let to_stdout = args.output.as_os_str() == "-";
    if args.json && to_stdout {
        bail!("cannot write both the wlog and JSON to stdout: give -o, or leave --json out");
    }
    let output = Output::create(&args.output)?;
    let mut writer = WlogWriter::new(output, header).with_context(failed)?;
    let mut done = Extracted { packs: 0, begin_lsid: begin.0, end_lsid: begin.0, log_end: None };
    let mut packs = device.packs(begin);
    while writer.next_lsid() < end && done.log_end.is_none() {
        let pack = match packs.next()? {
            Step::Whole(pack) => pack,
            Step::Shrunk { pack, lost } => {
                done.log_end = Some(format!("the last pack is torn: {lost} records are left out"));
                pack
            }
            Step::End { reason, .. } => {
                done.log_end = Some(format!("{:#}", anyhow::Error::new(reason)));
                break;
            }
        };
        writer.write_pack(&pack).with_context(failed)?;
        done.packs += 1;
    }
    done.end_lsid = writer.next_lsid().0;
    writer.finish().with_context(failed)?.commit()?;
    report(args, &done, to_stdout)?;
    if args.to.is_some() && done.end_lsid < end.0 {
        let reached = done.end_lsid;
        bail!("the log of {} ends at lsid {reached}, before --to {end}", device.path());
    }
    Ok(())
}

fn report(args: &CatArgs, done: &Extracted, to_stdout: bool) -> anyhow::Result<()> {
    if let Some(log_end) = &done.log_end {
        eprintln!("the log ends: {log_end}");
    }
    if to_stdout {
        return Ok(());
    }
    print_result(args.json, done, |out| {
        writeln!(out, "{} packs, lsid {} to {}", done.packs, done.begin_lsid, done.end_lsid)
    })
}
