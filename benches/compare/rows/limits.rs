//! What the machine can do at best of the work of a row: the bytes are read from the same files,
//! worked on and written, by all cores, and nothing else is done. No records are made, merged or
//! put in order: where everything lies was found out beforehand, outside of the time.
//!
//! Each core takes portions in the order of the files, and works on one while it is in its cache.

use std::fs::File;
use std::io::IoSlice;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::{Bytes, BytesMut};
use nix::sys::uio::pwritev;
use wdiff_format::codec::Codec;
use wdiff_format::compression::{Compression, CompressionKind};
use wdiff_format::locate::StoredImage;
use wdiff_format::merge::Pieces;
use wlog_format::checksum::{checksum, unsalted};
use wlog_format::reuse::Reuse;
use wlog_format::units::{Lb, Salt, to_usize};

use super::lying::{Visible, log_writes, visible};
use crate::bench::{Run, Sample};

/// What is read at once, unless one piece is larger.
const PORTION_BYTES: u64 = 256 << 10;
/// The same where the cores write in turns: few long ones cost less than many short ones.
const TURN_BYTES: u64 = 1 << 20;
/// Memory that a core uses again.
const REUSE_BYTES: usize = 4 << 20;
/// Pieces that the kernel writes at once.
const WRITE_PIECES: usize = 1000;

/// Something that lies in a file.
pub(super) struct Placed<T> {
    /// Its number.
    pub(super) file: usize,
    pub(super) bytes: Range<u64>,
    pub(super) what: T,
}

/// A part of a file that is read at once, and what lies in it.
struct Portion<T> {
    file: usize,
    bytes: Range<u64>,
    items: Vec<(Range<usize>, T)>,
}

/// What is `placed`, which ascends, in portions of so many bytes.
fn portions<T>(placed: Vec<Placed<T>>, portion_bytes: u64) -> Vec<Portion<T>> {
    let mut portions: Vec<Portion<T>> = Vec::new();
    for Placed { file, bytes, what } in placed {
        let fits = |last: &&mut Portion<T>| {
            last.file == file && bytes.end <= last.bytes.start + portion_bytes
        };
        match portions.last_mut().filter(fits) {
            Some(last) => {
                let from = to_usize(bytes.start - last.bytes.start);
                let to = to_usize(bytes.end - last.bytes.start);
                last.items.push((from..to, what));
                last.bytes.end = last.bytes.end.max(bytes.end);
            }
            None => {
                let all = 0..to_usize(bytes.end - bytes.start);
                portions.push(Portion { file, bytes, items: vec![(all, what)] });
            }
        }
    }
    portions
}

/// What each core has for itself.
struct Own {
    codec: Codec,
    memory: Reuse,
}

/// Reads all portions, and does `work` on what lies in each, by all cores.
fn each_portion<T: Sync>(
    files: &[File],
    portions: &[Portion<T>],
    compression: Compression,
    work: impl Fn(&mut Own, &[(Bytes, &T)]) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let next = AtomicUsize::new(0);
    let largest = portions.iter().map(|p| to_usize(p.bytes.end - p.bytes.start)).max();
    let largest = largest.unwrap_or_default();
    let run = || {
        let mut own = Own { codec: Codec::new(compression), memory: Reuse::new(REUSE_BYTES) };
        let mut room = BytesMut::zeroed(largest);
        while let Some(portion) = portions.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Portion { file, bytes, items } = portion;
            let (part, _) = room.split_at_mut(to_usize(bytes.end - bytes.start));
            files.get(*file).context("no such file")?.read_exact_at(part, bytes.start)?;
            let data = room.freeze();
            let items: Vec<_> = items.iter().map(|(at, t)| (data.slice(at.clone()), t)).collect();
            work(&mut own, &items)?;
            drop(items);
            room = data.try_into_mut().unwrap_or_else(|_| BytesMut::zeroed(largest));
        }
        Ok(())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..cores).map(|_| scope.spawn(run)).collect();
        running.into_iter().try_for_each(|t| t.join().ok().context("a thread died")?)
    })
}

/// A new file that all cores write to, each where the one before it ends.
struct Output {
    file: File,
    end: AtomicU64,
}

impl Output {
    /// In the place of an older one.
    fn create(path: &Path) -> anyhow::Result<Self> {
        if path.exists() {
            std::fs::remove_file(path)?;
        }
        Ok(Self { file: File::create(path)?, end: AtomicU64::new(0) })
    }

    fn put(&self, pieces: &[Bytes]) -> anyhow::Result<()> {
        let bytes: usize = pieces.iter().map(Bytes::len).sum();
        let mut at = self.end.fetch_add(bytes as u64, Ordering::Relaxed);
        for pieces in pieces.chunks(WRITE_PIECES) {
            let mut slices: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let mut left = slices.as_mut_slice();
            while !left.is_empty() {
                let written = pwritev(&self.file, left, i64::try_from(at)?)?;
                ensure!(written > 0, "nothing is written");
                at += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
        }
        Ok(())
    }
}

/// The writes of a log read, summed, compressed and written to a new file. `bytes` is what the
/// figure is of.
pub(super) fn converted<'a>(
    log: &Path,
    output: PathBuf,
    compression: Compression,
    bytes: u64,
) -> anyhow::Result<Run<'a>> {
    let files = [File::open(log)?];
    let (salt, writes) = log_writes(log)?;
    let portions = portions(writes, PORTION_BYTES);
    Ok(Box::new(move || {
        let output = Output::create(&output)?;
        let start = Instant::now();
        each_portion(&files, &portions, compression, |Own { codec, .. }, writes| {
            let mut pieces = Vec::with_capacity(writes.len());
            for (data, logged) in writes {
                let stored = codec.compress(data)?;
                // Of what does not shrink it is the sum that the log has.
                let sum = match stored.kind {
                    CompressionKind::None => stored.checksum,
                    _ => checksum(data, Salt(0)),
                };
                ensure!(sum == unsalted(**logged, salt), "a write contradicts its checksum");
                pieces.push(stored.bytes);
            }
            output.put(&pieces)
        })?;
        Ok(Sample::throughput(bytes, start))
    }))
}

/// What is visible of wdiffs, oldest first, read, summed and written to a new file. What is whole
/// is seen to be sound before, as a merge has to; what is cut or stored otherwise is decompressed
/// and compressed.
pub(super) fn merged<'a>(
    wdiffs: &[PathBuf],
    pieces: Pieces,
    output: PathBuf,
    compression: Compression,
    bytes: u64,
) -> anyhow::Result<Run<'a>> {
    let files = wdiffs.iter().map(File::open).collect::<Result<Vec<_>, _>>()?;
    let portions = portions(visible(wdiffs, pieces)?, PORTION_BYTES);
    Ok(Box::new(move || {
        let output = Output::create(&output)?;
        let start = Instant::now();
        each_portion(&files, &portions, compression, |Own { codec, .. }, images| {
            let mut pieces = Vec::with_capacity(images.len());
            for (stored, visible) in images {
                check(stored, &visible.image)?;
                let StoredImage { compression: kind, .. } = visible.image;
                if visible.is_whole() && kind == compression.kind() {
                    codec.look(kind, stored, raw_bytes(&visible.image))?;
                    pieces.push(stored.clone());
                    continue;
                }
                let raw = uncompressed(codec, stored, &visible.image)?;
                for cut in &visible.cuts {
                    pieces.push(codec.compress(&raw.slice(cut.bytes()))?.bytes);
                }
            }
            output.put(&pieces)
        })?;
        Ok(Sample::throughput(bytes, start))
    }))
}

/// The records of a wdiff read, summed, decompressed and written onto an image. One core at a time
/// writes a portion: the kernel lets one into a file, and to wait there for each record is slower.
pub(super) fn redone<'a>(wdiff: &Path, image: PathBuf, bytes: u64) -> anyhow::Result<Run<'a>> {
    let files = [File::open(wdiff)?];
    let portions = portions(visible(&[wdiff.to_owned()], Pieces::Joined)?, TURN_BYTES);
    Ok(Box::new(move || {
        let image = Mutex::new(File::options().write(true).open(&image)?);
        let start = Instant::now();
        each_portion(&files, &portions, Compression::NONE, |own, images| {
            redo_portion(own, images, &image)
        })?;
        Ok(Sample::throughput(bytes, start))
    }))
}

fn redo_portion(
    Own { codec, memory }: &mut Own,
    images: &[(Bytes, &Visible)],
    file: &Mutex<File>,
) -> anyhow::Result<()> {
    let all = images.iter().map(|(_, visible)| raw_bytes(&visible.image)).sum();
    let mut room = memory.take(all);
    let mut left = &mut room[..];
    let mut raws = Vec::with_capacity(images.len());
    for (stored, Visible { image, .. }) in images {
        check(stored, image)?;
        if image.compression == CompressionKind::None {
            raws.push(None);
            continue;
        }
        let (raw, behind) = left.split_at_mut(raw_bytes(image));
        codec.decompress_into(image.compression, stored, raw)?;
        left = behind;
        raws.push(Some(&*raw));
    }
    let file = file.lock().ok().context("a thread died")?;
    for ((stored, visible), raw) in images.iter().zip(&raws) {
        for cut in &visible.cuts {
            let data =
                raw.unwrap_or(stored).get(cut.bytes()).context("a cut outside of its data")?;
            file.write_all_at(data, cut.address.bytes())?;
        }
    }
    drop(file);
    memory.put(room.freeze());
    Ok(())
}

fn check(stored: &[u8], image: &StoredImage) -> anyhow::Result<()> {
    ensure!(checksum(stored, Salt(0)) == image.checksum, "data contradicts its checksum");
    Ok(())
}

fn uncompressed(codec: &mut Codec, stored: &Bytes, image: &StoredImage) -> anyhow::Result<Bytes> {
    Ok(codec.decompress(image.compression, stored, raw_bytes(image))?)
}

fn raw_bytes(image: &StoredImage) -> usize {
    to_usize(Lb(image.blocks.into()).bytes())
}
