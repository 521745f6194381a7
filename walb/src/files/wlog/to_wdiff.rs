//! `walb wlog to-wdiff`.

use anyhow::Context as _;
use clap::Args;
use wdiff_format::convert::{LogRecords, convert};

use super::WlogInput;
use crate::files::output::Output;
use crate::files::wdiff::{MaxIoArgs, WriteArgs, read_ahead};

/// Convert a wlog, or several ones in a row, into a wdiff.
///
/// An indexed wdiff is made in little memory; for a sorted one all data waits there that the log
/// does not overwrite later.
#[derive(Debug, Args)]
pub(crate) struct ToWdiffArgs {
    #[command(flatten)]
    input: WlogInput,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    max_io: MaxIoArgs,
}

pub(super) fn run(args: &ToWdiffArgs) -> anyhow::Result<()> {
    let log = LogRecords::new(args.input.open()?);
    let options = args.write.options(args.max_io.get(), log.uuid());
    let log = read_ahead(log)?;
    let output = Output::create(&args.write.output)?;
    let written = convert(log, output, &options)
        .with_context(|| args.input.what_failed())
        .with_context(|| args.write.what_failed())?;
    args.write.commit(written)
}
