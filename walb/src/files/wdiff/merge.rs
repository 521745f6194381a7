//! `walb wdiff merge`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use wdiff_format::merge::Pieces;
use wdiff_format::write::write_records;
use wlog_format::units::LogUuid;

use super::{MaxIoArgs, WriteArgs, open_merged};
use crate::files::output::Output;

/// Make one wdiff of several, oldest first: where they overlap the newest wins.
///
/// Data that stays whole and has the wanted compression already is copied as it is.
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The wdiffs of either kind, oldest first; `-` is a sorted one on stdin
    #[arg(value_name = "WDIFF", required = true)]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    max_io: MaxIoArgs,
    /// Make one record again of an I/O that an index cut into pieces, which the original does not:
    /// faster, and the result is smaller
    #[arg(long)]
    join: bool,
}

pub(super) fn run(args: &MergeArgs) -> anyhow::Result<()> {
    let max_io = args.max_io.get();
    let pieces = if args.join { Pieces::Joined } else { Pieces::Kept };
    let merged = open_merged(&args.inputs, max_io, pieces)?;
    let output = Output::create(&args.write.output)?;
    // As the original: the data may come from several logs.
    let options = args.write.options(max_io, LogUuid::ZERO);
    let written =
        write_records(merged, output, &options).with_context(|| args.write.what_failed())?;
    args.write.commit(written)
}
