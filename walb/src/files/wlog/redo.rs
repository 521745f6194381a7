//! `walb wlog redo`.

use std::io::Read;
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, sync_channel};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;
use wlog_format::pack::RecordKind;
use wlog_format::stream::{Pack, WlogError, WlogReader};

use super::WlogInput;
use crate::files::image::Image;
use crate::files::print_result;

/// Verified packs that wait to be written: they bound the memory.
const PACKS_AHEAD: usize = 2;

/// Write a log onto an image.
///
/// A damaged wlog is written up to the pack before the damage; then the command fails. Writes and
/// discards that reach beyond the end of the image are left out, all others are written, and then
/// the command fails too: nothing is lost silently.
#[derive(Debug, Args)]
pub(crate) struct RedoArgs {
    #[command(flatten)]
    input: WlogInput,
    /// The image: a file or block device, which keeps its size
    image: PathBuf,
    /// Discarded blocks become zeros (otherwise they are left as they are)
    #[arg(long)]
    zero_discard: bool,
    /// One JSON document: counts of what was done, and "error"
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, Serialize)]
struct Done {
    packs: u64,
    writes: u64,
    written_lb: u64,
    discards: u64,
    discarded_lb: u64,
    /// Were discards made zeros?
    zero_discard: bool,
    /// I/Os left out because they reach beyond the end of the image.
    beyond_end: u64,
    end_lsid: u64,
    error: Option<String>,
}

pub(super) fn run(args: &RedoArgs) -> anyhow::Result<()> {
    let mut reader = args.input.open()?;
    let image = Image::open(&args.image)?;
    let mut done = Done { zero_discard: args.zero_discard, ..Done::default() };
    let redone = redo(args, &mut reader, &image, &mut done);
    done.end_lsid = reader.next_lsid().0;
    let result = redone.and(image.sync()).and_then(|()| all_fitted(args, done.beyond_end));
    done.error = result.as_ref().err().map(|e| format!("{e:#}"));
    print_result(args.json, &done, |out| {
        let (packs, writes, discards) = (done.packs, done.writes, done.discards);
        let what = if args.zero_discard { "zeroed" } else { "ignored" };
        writeln!(out, "{packs} packs: {writes} writes done, {discards} discards {what}")?;
        writeln!(out, "log end: lsid {}", done.end_lsid)
    })?;
    result
}

/// One thread reads and verifies, this one writes.
fn redo(
    args: &RedoArgs,
    reader: &mut WlogReader<Box<dyn Read + Send>>,
    image: &Image,
    done: &mut Done,
) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let (sender, packs) = sync_channel(PACKS_AHEAD);
        let reading = scope.spawn(move || read(reader, &sender));
        // Ends when the reader has ended; an error here ends the reader at its next pack.
        let written = packs.into_iter().try_for_each(|pack| apply(&pack, image, done));
        let Ok(read) = reading.join() else { bail!("the thread that reads the wlog has crashed") };
        written?;
        read.with_context(|| args.input.what_failed())
    })
}

fn read<R: Read>(reader: &mut WlogReader<R>, packs: &SyncSender<Pack>) -> Result<(), WlogError> {
    loop {
        while let Some(pack) = reader.next_pack()? {
            if packs.send(pack).is_err() {
                return Ok(());
            }
        }
        if !reader.next_wlog()? {
            return Ok(());
        }
    }
}

fn apply(pack: &Pack, image: &Image, done: &mut Done) -> anyhow::Result<()> {
    for (record, payload) in pack.ios() {
        if !image.holds(record) {
            done.beyond_end += 1;
        } else if record.kind == RecordKind::Normal {
            image.write(record.address, &payload)?;
            done.writes += 1;
            done.written_lb += record.len().0;
        } else {
            if done.zero_discard {
                image.zero(record.address, record.len())?;
            }
            done.discards += 1;
            done.discarded_lb += record.len().0;
        }
    }
    done.packs += 1;
    Ok(())
}

fn all_fitted(args: &RedoArgs, beyond_end: u64) -> anyhow::Result<()> {
    if beyond_end > 0 {
        bail!(
            "{beyond_end} I/Os of the log reach beyond the end of {} and were left out; \
             grow the image to the size of the volume and redo again",
            args.image.display()
        );
    }
    Ok(())
}
