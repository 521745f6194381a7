//! What the machine can do at best of the work of a row: the same bytes with nothing but what no
//! program can leave out. All of it from memory to memory or through the kernel, by all cores.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use benches::{Payload, payloads};
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::locate::locate;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::open::{Records, WdiffReader};
use wdiff_format::record::{DiffRecord, RecordKind};
use wdiff_format::split::MaxIo;
use wlog_format::units::{Lb, to_usize};

use super::files::MIB;
use crate::bench::{Run, Sample, megabytes};

/// What is copied, or worked on, by one core at a time: what its cache holds.
const PORTION_BYTES: usize = 128 << 10;

/// `work` on each core; it gets the number of its core.
fn on_all_cores(work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let (cores, work) = (cores(), &work);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..cores).map(|core| scope.spawn(move || work(core))).collect();
        running.into_iter().try_for_each(|t| t.join().ok().context("a thread died")?)
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A file read and written to a new one, and nothing else.
pub(super) fn copied<'a>(from: &'a Path, to: PathBuf) -> Run<'a> {
    Box::new(move || {
        if to.exists() {
            std::fs::remove_file(&to)?;
        }
        let (input, output) = (File::open(from)?, File::create(&to)?);
        let bytes = input.metadata()?.len();
        let next = AtomicU64::new(0);
        let start = Instant::now();
        on_all_cores(|_| {
            let mut buffer = vec![0; PORTION_BYTES];
            loop {
                let at = next.fetch_add(PORTION_BYTES as u64, Ordering::Relaxed);
                if at >= bytes {
                    return Ok(());
                }
                let len = to_usize(bytes - at).min(PORTION_BYTES);
                let (portion, _) = buffer.split_at_mut(len);
                input.read_exact_at(portion, at)?;
                output.write_all_at(portion, at)?;
            }
        })?;
        Ok(Sample::throughput(bytes, start))
    })
}

/// The data of a wdiff's records written onto an image, one by one and in their order, from one
/// buffer: the kernel lets one thread at a time into a file. `bytes` is what the figure is of.
pub(super) fn written<'a>(wdiff: &Path, image: &'a Path, bytes: u64) -> anyhow::Result<Run<'a>> {
    let found = locate(File::open(wdiff)?, "the wdiff")?;
    let mut writes = Vec::new();
    for record in found {
        let record = record?;
        if record.kind == RecordKind::Normal {
            let len = to_usize(Lb(record.blocks.into()).bytes());
            writes.push((record.address.bytes(), len));
        }
    }
    let largest = writes.iter().map(|(_, len)| *len).max().unwrap_or_default();
    let data = vec![7; largest];
    Ok(Box::new(move || {
        let image = File::options().write(true).open(image)?;
        let start = Instant::now();
        for (offset, len) in &writes {
            image.write_all_at(data.split_at(*len).0, *offset)?;
        }
        Ok(Sample::throughput(bytes, start))
    }))
}

/// What the codec has to do in a merge: each visible record is decompressed, and what was cut is
/// compressed again. The records are in memory.
pub(super) fn recoded(
    wdiffs: &[PathBuf],
    pieces: Pieces,
    compression: Compression,
    bytes: u64,
) -> Run<'_> {
    Box::new(move || {
        let inputs: Result<Vec<Records>, _> = wdiffs
            .iter()
            .map(|path| WdiffReader::open(path).map(|wdiff| Box::new(wdiff) as Records))
            .collect();
        let records: Vec<DiffRecord> =
            Merger::new(inputs?, MaxIo::NONE, pieces)?.collect::<Result<_, _>>()?;
        let start = Instant::now();
        let share = records.len().div_ceil(cores());
        on_all_cores(|core| {
            let mut codec = Codec::new(compression);
            for record in records.iter().skip(core * share).take(share) {
                std::hint::black_box(record.encode(&mut codec)?);
            }
            Ok(())
        })?;
        Ok(Sample::throughput(bytes, start))
    })
}

/// A codec on data that stays in the caches.
pub(super) fn compressed<'a>(
    payload: Payload,
    io_bytes: usize,
    compression: Compression,
) -> Run<'a> {
    const BYTES_PER_CORE: u64 = 64 * MIB;
    let pieces = payloads(payload, io_bytes, to_usize(MIB) / io_bytes);
    Box::new(move || {
        let start = Instant::now();
        on_all_cores(|_| {
            let mut codec = Codec::new(compression);
            for piece in pieces.iter().cycle().take(to_usize(BYTES_PER_CORE) / io_bytes) {
                std::hint::black_box(codec.compress(piece)?);
            }
            Ok(())
        })?;
        let bytes = BYTES_PER_CORE * cores() as u64;
        Ok(Sample::of(megabytes(bytes) / start.elapsed().as_secs_f64()))
    })
}
