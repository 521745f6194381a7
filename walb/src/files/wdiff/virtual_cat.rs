//! `walb wdiff virtual-cat`.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use wdiff_format::io_at::ReadAt;
use wdiff_format::redo::BeyondEnd;
use wdiff_format::split::MaxIo;
use wdiff_format::virtual_image::VirtualImage;

use super::{ThreadsArgs, open_merged};
use crate::files::output::Output;

/// Read a base image and wdiffs as the image that they make together. Discarded blocks are zeros.
#[derive(Debug, Args)]
pub(crate) struct VirtualCatArgs {
    /// The base image, a file or block device
    #[arg(long, value_name = "IMAGE")]
    base: PathBuf,
    /// The wdiffs of either kind, oldest first; `-` is a sorted one on stdin
    #[arg(value_name = "WDIFF")]
    inputs: Vec<PathBuf>,
    /// Where the image goes; `-` is stdout
    #[arg(short, long, value_name = "IMAGE", default_value = "-")]
    output: PathBuf,
    #[command(flatten)]
    threads: ThreadsArgs,
}

/// Bytes that are copied at once.
const STEP_BYTES: usize = 1 << 20;

pub(super) fn run(args: &VirtualCatArgs) -> anyhow::Result<()> {
    let open_base = || {
        let base = File::open(&args.base)?;
        let size = base.size_bytes()?;
        Ok::<_, std::io::Error>((base, size))
    };
    let (base, size) =
        open_base().with_context(|| format!("cannot open base image {}", args.base.display()))?;
    let merged = open_merged(&args.inputs, MaxIo::NONE)?;
    let mut image = VirtualImage::new(base, size, merged, BeyondEnd::Fail, args.threads.get());
    let mut output = Output::create(&args.output)?;
    let mut step = vec![0; STEP_BYTES];
    loop {
        let read = image.read(&mut step).with_context(|| {
            format!("cannot read the image of {} and its wdiffs", args.base.display())
        })?;
        let (data, _) = step.split_at(read);
        if data.is_empty() {
            return output.commit().map(|_| ());
        }
        let cannot_write = || format!("cannot write {}", args.output.display());
        output.write_all(data).with_context(cannot_write)?;
    }
}
