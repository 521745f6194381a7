//! `walb wlog show`.

use anyhow::Context as _;
use clap::Args;

use super::WlogInput;
use crate::files::packs::{ListWriter, Stat};
use crate::files::stdout;

/// List the packs and records of a wlog.
///
/// A damaged wlog is listed up to the damage; then the command fails.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    input: WlogInput,
    /// One JSON document: {"wlogs": [{"header", "packs", "stat"}], "error"}
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let mut reader = args.input.open()?;
    let mut list = ListWriter::new(stdout(), args.json)?;
    loop {
        let header = reader.header().clone();
        list.header(&header)?;
        let mut stat = Stat::new(header.begin);
        let error = loop {
            match reader.next_pack() {
                Ok(Some(pack)) => {
                    stat.add(&pack);
                    list.pack(&pack.header)?;
                }
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        list.stat(&stat, header.end)?;
        let more = error.map_or_else(|| reader.next_wlog(), Err);
        match more.with_context(|| args.input.what_failed()) {
            Ok(true) => {}
            Ok(false) => return Ok(list.finish(None)?),
            Err(error) => {
                list.finish(Some(&format!("{error:#}")))?;
                return Err(error);
            }
        }
    }
}
