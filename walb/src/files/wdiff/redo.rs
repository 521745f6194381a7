//! `walb wdiff redo`.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use wdiff_format::io_at::ReadObject;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::redo::{BeyondEnd, Discards, RedoOptions, RedoStat, redo, redo_file};
use wdiff_format::split::MaxIo;

use super::{ThreadsArgs, merged, open_all};
use crate::files::image::Image;
use crate::files::{is_std_stream, print_result};

/// Write wdiffs onto an image, merged: what a newer one covers is not written.
///
/// Records that reach beyond the end of the image are left out and counted. When the command fails
/// half-way, doing it again from the start is safe.
#[derive(Debug, Args)]
pub(crate) struct RedoArgs {
    /// The wdiffs of either kind, oldest first; `-` is a sorted one on stdin
    #[arg(value_name = "WDIFF", required = true)]
    inputs: Vec<PathBuf>,
    /// The image: a file or block device, which keeps its size
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// Discarded blocks become zeros (otherwise they are left as they are)
    #[arg(long)]
    zero_discard: bool,
    #[command(flatten)]
    threads: ThreadsArgs,
    /// One JSON document: counts of what was done
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Done {
    writes: u64,
    written_lb: u64,
    zeroed: u64,
    discards: u64,
    /// Were discards made zeros?
    zero_discard: bool,
    /// Records left out because they reach beyond the end of the image.
    beyond_end: u64,
}

pub(super) fn run(args: &RedoArgs) -> anyhow::Result<()> {
    let inputs = Inputs::open(&args.inputs)?;
    let image = Image::open(&args.image)?;
    let options = RedoOptions {
        discards: if args.zero_discard { Discards::Zero } else { Discards::Ignore },
        beyond_end: BeyondEnd::Drop,
        image_blocks: image.size(),
        threads: args.threads.get(),
    };
    let done = match inputs {
        Inputs::One(file, name) => redo_file(file, name, &image, &options),
        Inputs::Merged(records) => redo(records, &image, &options),
    };
    let stat = done.with_context(|| format!("cannot redo onto {}", args.image.display()))?;
    image.sync()?;
    report(args, &stat)
}

/// What is written onto the image.
enum Inputs {
    /// One file and its name, in whatever order is the fastest.
    One(ReadObject, String),
    /// Read by the threads that write, a portion each in turn.
    Merged(Merger),
}

impl Inputs {
    fn open(paths: &[PathBuf]) -> anyhow::Result<Self> {
        match paths {
            [path] if !is_std_stream(path) => {
                let file = File::open(path)
                    .with_context(|| format!("cannot open wdiff {}", path.display()))?;
                Ok(Self::One(Arc::new(file), path.display().to_string()))
            }
            _ => Ok(Self::Merged(merged(open_all(paths)?, MaxIo::NONE, Pieces::Joined)?)),
        }
    }
}

fn report(args: &RedoArgs, stat: &RedoStat) -> anyhow::Result<()> {
    let done = Done {
        writes: stat.written,
        written_lb: stat.written_blocks,
        zeroed: stat.zeroed,
        discards: stat.discards,
        zero_discard: args.zero_discard,
        beyond_end: stat.dropped,
    };
    if done.beyond_end > 0 {
        eprintln!(
            "walb: warning: {} records reach beyond the end of {} and were left out; grow the \
             image to the size of the volume and redo again if they matter",
            done.beyond_end,
            args.image.display()
        );
    }
    print_result(args.json, &done, |out| {
        let (writes, zeroed, discards) = (done.writes, done.zeroed, done.discards);
        let what = if args.zero_discard { "zeroed" } else { "ignored" };
        writeln!(out, "{writes} writes done, {zeroed} all-zero, {discards} discards {what}")
    })
}
