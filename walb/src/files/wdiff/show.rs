//! `walb wdiff show`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use wdiff_format::stat::DiffStat;

use super::list::{ListWriter, StatView};
use crate::files::stdout;

/// List the records of a wdiff.
///
/// A damaged wdiff is listed up to the damage; then the command fails.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The wdiff; `-` is a sorted one on stdin
    #[arg(value_name = "WDIFF")]
    path: PathBuf,
    /// One JSON document: {"header", "records": [...], "stat", "error"}
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ShowArgs) -> anyhow::Result<()> {
    let mut reader = super::open(&args.path)?;
    let mut list = ListWriter::new(stdout(), args.json, reader.header())?;
    let mut stat = DiffStat::default();
    let mut failure = None;
    while let Some(record) = reader.next() {
        match record {
            Ok(record) => {
                stat.add(&record);
                if let Some(entry) = reader.entry() {
                    list.record(&record, &entry)?;
                }
            }
            Err(error) => failure = Some(error),
        }
    }
    let stat = StatView::new(&stat, &reader);
    match failure.map_or(Ok(()), Err).context("cannot read wdiff") {
        Ok(()) => Ok(list.finish(&stat, None)?),
        Err(error) => {
            list.finish(&stat, Some(&format!("{error:#}")))?;
            Err(error)
        }
    }
}
