//! `walb ldev redo`: the redo of the device role, run once.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use block_io::device::BlockDevice;
use clap::Args;
use device_server::{
    DeviceRole, RedoOptions, RedoReport, StaleSearch, open_device, read_super_block, redo,
};
use serde::Serialize;

use crate::files::print_result;

/// Bring a data device up to the end of the log, from written_lsid on.
///
/// A torn last pack is cut, and packs behind the end are made unreadable, so that no later redo
/// takes them for its continuation. Then written_lsid becomes the end of the log.
#[derive(Debug, Args)]
pub(crate) struct RedoArgs {
    /// The log device
    ldev: PathBuf,
    /// The data device
    ddev: PathBuf,
    /// Discarded blocks become zeros (otherwise they are left as they are)
    #[arg(long)]
    zero_discard: bool,
    /// One JSON document: what was done
    #[arg(long)]
    json: bool,
}

/// The keys are a contract.
#[derive(Debug, Serialize)]
struct Done {
    begin_lsid: u64,
    end_lsid: u64,
    packs: u64,
    writes: u64,
    discards: u64,
    /// Were discards made zeros?
    zero_discard: bool,
    /// Records of a torn pack that were cut off.
    cut_records: usize,
    /// Packs behind the end that were made unreadable.
    stale_packs: usize,
    /// Are logs lost that were not extracted?
    overflow: bool,
}

pub(super) fn run(args: &RedoArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(run_redo(args)).with_context(|| {
        format!("cannot redo log device {} onto {}", args.ldev.display(), args.ddev.display())
    })?;
    let done = Done {
        begin_lsid: report.begin.0,
        end_lsid: report.end.0,
        packs: report.packs,
        writes: report.writes,
        discards: report.discards,
        zero_discard: args.zero_discard,
        cut_records: report.cut_records,
        stale_packs: report.stale_packs,
        overflow: report.overflow,
    };
    print_result(args.json, &done, |out| {
        let (begin, end) = (done.begin_lsid, done.end_lsid);
        let (packs, writes, discards) = (done.packs, done.writes, done.discards);
        writeln!(
            out,
            "lsid {begin} to {end}: {packs} packs, {writes} writes, {discards} discards"
        )?;
        if done.cut_records > 0 {
            writeln!(out, "{} records of a torn pack cut off", done.cut_records)?;
        }
        if done.stale_packs > 0 {
            writeln!(out, "{} stale packs behind the end made unreadable", done.stale_packs)?;
        }
        Ok(())
    })
}

async fn run_redo(args: &RedoArgs) -> anyhow::Result<RedoReport> {
    let log = open_device(&args.ldev, DeviceRole::Log).await?;
    let data = open_device(&args.ddev, DeviceRole::Data).await?;
    check_size(&log, &data).await?;
    let options = RedoOptions { zero_discards: args.zero_discard, stale: StaleSearch::WholeRing };
    let (_, report) = redo(&log, &data, options).await?;
    Ok(report)
}

/// Nothing is changed on devices that do not go together.
async fn check_size(log: &Arc<dyn BlockDevice>, data: &Arc<dyn BlockDevice>) -> anyhow::Result<()> {
    let (super_block, _) = read_super_block(log, &data.path_hint()).await?;
    let (volume, found) = (super_block.device_size.bytes(), data.size_bytes());
    if found < volume {
        bail!("the data device has {found} bytes, the volume {volume}: is it the right one?");
    }
    Ok(())
}
