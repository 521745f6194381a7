//! `walb wdiff full`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use wdiff_format::full::ImageRecords;
use wdiff_format::record::DATA_BLOCKS_MAX;
use wdiff_format::split::MaxIo;
use wdiff_format::write::write_records;
use wlog_format::units::LogUuid;

use super::{WriteArgs, parse_blocks};
use crate::files::open_input;
use crate::files::output::Output;

/// Make a wdiff of a whole image.
#[derive(Debug, Args)]
pub(crate) struct FullArgs {
    /// The image; `-` is stdin
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    #[command(flatten)]
    write: WriteArgs,
    /// The size of the records, at most 32M
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = parse_io_size)]
    io_size: u32,
}

fn parse_io_size(text: &str) -> Result<u32, String> {
    match parse_blocks(text)? {
        blocks if (1..=DATA_BLOCKS_MAX).contains(&blocks) => Ok(blocks),
        _ => Err("use 512 to 32M".into()),
    }
}

pub(super) fn run(args: &FullArgs) -> anyhow::Result<()> {
    let image = open_input(&args.image)?;
    let output = Output::create(&args.write.output)?;
    let records = ImageRecords::new(image, args.image.display().to_string(), args.io_size);
    let options = args.write.options(MaxIo::default(), LogUuid::ZERO);
    let written =
        write_records(records, output, &options).with_context(|| args.write.what_failed())?;
    args.write.commit(written)
}
