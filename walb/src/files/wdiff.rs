//! `walb wdiff`: tools for diffs.

mod full;
mod list;
mod merge;
mod redo;
mod show;
mod verify;
mod virtual_cat;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use wdiff_format::ahead::Ahead;
use wdiff_format::compression::Compression;
use wdiff_format::error::WdiffError;
use wdiff_format::header::FileType;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::open::{Records, WdiffReader};
use wdiff_format::record::DiffRecord;
use wdiff_format::split::MaxIo;
use wdiff_format::write::WriteOptions;
use wlog_format::units::{LOGICAL_BLOCK_BYTES, LogUuid};

use super::output::Output;

/// `walb wdiff ...`
#[derive(Debug, Subcommand)]
pub(crate) enum WdiffCommand {
    /// List the records of a wdiff
    Show(show::ShowArgs),
    /// Check everything in a wdiff
    Verify(verify::VerifyArgs),
    /// Make one wdiff of several
    Merge(merge::MergeArgs),
    /// Write wdiffs onto an image
    Redo(redo::RedoArgs),
    /// Make a wdiff of a whole image
    Full(full::FullArgs),
    /// Read a base image and wdiffs as one image
    VirtualCat(virtual_cat::VirtualCatArgs),
}

impl WdiffCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Show(args) => show::run(&args),
            Self::Verify(args) => verify::run(&args),
            Self::Merge(args) => merge::run(&args),
            Self::Redo(args) => redo::run(&args),
            Self::Full(args) => full::run(&args),
            Self::VirtualCat(args) => virtual_cat::run(&args),
        }
    }
}

/// The kinds of wdiff file, as people type them.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Records by address: can be read as a stream
    Sorted,
    /// Data in the order of the log, the index last
    Indexed,
}

/// How a wdiff is written.
#[derive(Debug, Args)]
pub(super) struct WriteArgs {
    /// The wdiff to write; `-` is stdout
    #[arg(short, long, value_name = "WDIFF")]
    pub(super) output: PathBuf,
    /// The kind of file
    #[arg(long, value_enum, default_value = "sorted")]
    format: Format,
    /// none, gzip, snappy, lzma, lz4 or zstd, with :LEVEL where it has levels
    #[arg(long, value_name = "C", default_value_t)]
    compression: Compression,
    #[command(flatten)]
    threads: ThreadsArgs,
    /// Say what was written as one JSON document: {"wdiff", "bytes"}
    #[arg(long)]
    json: bool,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Written<'a> {
    wdiff: &'a Path,
    bytes: u64,
}

impl WriteArgs {
    /// Gives the complete wdiff its name, and reports it when that was asked for.
    pub(super) fn commit(&self, output: Output) -> anyhow::Result<()> {
        let bytes = output.commit()?;
        let written = Written { wdiff: &self.output, bytes };
        if !self.json {
            return Ok(());
        }
        if super::is_std_stream(&self.output) {
            // The data is on stdout.
            eprintln!("{}", serde_json::to_string_pretty(&written)?);
            return Ok(());
        }
        super::print_result(true, &written, |_| Ok(()))
    }

    pub(super) fn options(&self, max_io: MaxIo, uuid: LogUuid) -> WriteOptions {
        WriteOptions {
            file_type: match self.format {
                Format::Sorted => FileType::Sorted,
                Format::Indexed => FileType::Indexed,
            },
            uuid,
            compression: self.compression,
            max_io,
            threads: self.threads.get(),
        }
    }

    /// The first half of an error message.
    pub(super) fn what_failed(&self) -> String {
        format!("cannot make wdiff {}", self.output.display())
    }
}

/// How long records are.
#[derive(Debug, Args)]
pub(super) struct MaxIoArgs {
    /// Longer I/Os are cut into records of this size, 0 for no limit
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = parse_blocks)]
    max_io: u32,
}

impl MaxIoArgs {
    pub(super) const fn get(&self) -> MaxIo {
        MaxIo::from_blocks(self.max_io)
    }
}

#[derive(Debug, Args)]
pub(super) struct ThreadsArgs {
    /// Threads that compress and decompress; the result does not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl ThreadsArgs {
    pub(super) fn get(&self) -> usize {
        /// More never help, and each costs memory.
        const MAX: usize = 256;
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.unwrap_or_else(all).min(MAX)
    }
}

/// A size in bytes as logical blocks.
fn parse_blocks(text: &str) -> Result<u32, String> {
    let bytes = server_kit::units::parse_size(text)?;
    if !bytes.is_multiple_of(LOGICAL_BLOCK_BYTES) {
        return Err(format!("{text} is no multiple of {LOGICAL_BLOCK_BYTES} bytes"));
    }
    u32::try_from(bytes / LOGICAL_BLOCK_BYTES).map_err(|_| format!("{text} is too large"))
}

/// Opens a wdiff of either kind; `-` is a sorted one on stdin.
fn open(path: &Path) -> anyhow::Result<WdiffReader> {
    let opened = if super::is_std_stream(path) {
        WdiffReader::from_stream(super::open_input(path)?, "stdin")
    } else {
        WdiffReader::open(path)
    };
    opened.context("cannot read wdiff")
}

/// Opens wdiffs, oldest first, as one that is read ahead.
fn open_merged(paths: &[PathBuf], max_io: MaxIo, pieces: Pieces) -> anyhow::Result<Ahead> {
    read_ahead(merged(open_all(paths)?, max_io, pieces)?)
}

fn open_all(paths: &[PathBuf]) -> anyhow::Result<Vec<WdiffReader>> {
    paths.iter().map(|path| open(path)).collect()
}

/// Wdiffs, oldest first, as one.
fn merged(wdiffs: Vec<WdiffReader>, max_io: MaxIo, pieces: Pieces) -> anyhow::Result<Merger> {
    let inputs = wdiffs.into_iter().map(|wdiff| Box::new(wdiff) as Records).collect();
    Merger::new(inputs, max_io, pieces).context("cannot read wdiff")
}

/// Reads and checks records beside what is done with them.
pub(super) fn read_ahead(
    records: impl Iterator<Item = Result<DiffRecord, WdiffError>> + Send + 'static,
) -> anyhow::Result<Ahead> {
    Ahead::new(records).context("cannot start a thread that reads ahead")
}
