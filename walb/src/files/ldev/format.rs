//! `walb ldev format`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use block_io::Kind;
use clap::Args;
use wlog_format::superblock::DeviceName;
use wlog_format::units::BlockSize;

use super::device::LogDevice;
use super::info::{SuperView, print};
use crate::files::wlog::parse_block_size;

/// Make a log device for a data device.
///
/// All logs on the log device are lost. The data device is looked at for its size only, and keeps
/// all that is on it.
#[derive(Debug, Args)]
pub(crate) struct FormatArgs {
    /// The log device: a block device or a file
    #[arg(long, value_name = "LDEV")]
    log: PathBuf,
    /// The data device: a block device or a file
    #[arg(long, value_name = "DDEV")]
    data: PathBuf,
    /// Physical block size, 512 or 4096 (default: the larger one of both devices; 512 for files)
    #[arg(long, value_name = "BYTES", value_parser = parse_block_size)]
    block_size: Option<BlockSize>,
    /// Default name of the volume, at most 25 bytes
    #[arg(long, default_value = "")]
    name: DeviceName,
    /// One JSON document: the super sector, as `walb ldev info --json`
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &FormatArgs) -> anyhow::Result<()> {
    let (log, data) = (std::fs::canonicalize(&args.log), std::fs::canonicalize(&args.data));
    if log.is_ok() && log.ok() == data.ok() {
        bail!("{} cannot be both the log and the data device", args.log.display());
    }
    let block_size = args.block_size.map_or_else(|| default_block_size(args), Ok)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let format = device_server::format_ldev(&args.log, &args.data, block_size, args.name);
    runtime
        .block_on(format)
        .with_context(|| format!("cannot format log device {}", args.log.display()))?;
    print(args.json, &SuperView::of(&LogDevice::open(&args.log)?))
}

/// What both devices write in one piece. A file has no physical block of its own, but a sector.
fn default_block_size(args: &FormatArgs) -> anyhow::Result<BlockSize> {
    let mut found = BlockSize::B512;
    for path in [&args.log, &args.data] {
        let probe = block_io::probe(path).with_context(|| format!("{}", path.display()))?;
        let own = probe.kind == Kind::BlockDevice && probe.physical_block_bytes > 512;
        if own || probe.block_bytes > 512 {
            found = BlockSize::B4096;
        }
    }
    Ok(found)
}
