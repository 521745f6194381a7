//! Inputs of the file tools, and whether two results mean the same.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use benches::{LogShape, Payload};

use crate::bench::Bench;
use crate::child;

pub(super) const MIB: u64 = 1 << 20;

pub(super) const fn name(payload: Payload) -> &'static str {
    match payload {
        Payload::Random => "random",
        Payload::Semi => "half-compressible",
    }
}

/// A path as an argument.
pub(super) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{} is no text", path.display()))
}

/// Makes a wlog; its size comes back.
pub(super) fn make_wlog(path: &Path, shape: &LogShape) -> anyhow::Result<u64> {
    let what = || format!("cannot make {}", path.display());
    let output = BufWriter::with_capacity(1 << 20, File::create(path).with_context(what)?);
    let written = shape.write_wlog(output).with_context(what)?;
    Ok(written.get_ref().metadata()?.len())
}

/// How a wdiff is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) format: &'static str,
    pub(super) compression: &'static str,
}

/// Makes wdiffs, each of a log of its own; their paths and bytes together come back.
pub(super) fn make_wdiffs(
    bench: &Bench,
    count: u64,
    stored: Stored,
    shape: LogShape,
) -> anyhow::Result<(Vec<PathBuf>, u64)> {
    let log = bench.file("log");
    let (mut paths, mut bytes) = (Vec::new(), 0);
    for number in 0..count {
        make_wlog(&log, &LogShape { seed: shape.seed + number * 1000, ..shape })?;
        let path = bench.file(&format!("{number}.{}.wdiff", stored.format));
        let Stored { format, compression } = stored;
        let how = ["--format", format, "--compression", compression, "-o", text(&path)?];
        let to_wdiff = [&["wlog", "to-wdiff"], how.as_slice(), &[text(&log)?]].concat();
        child::measure(&bench.walb(&to_wdiff))?;
        bytes += path.metadata()?.len();
        paths.push(path);
    }
    std::fs::remove_file(log)?;
    Ok((paths, bytes))
}

pub(super) fn texts(paths: &[PathBuf]) -> anyhow::Result<Vec<&str>> {
    paths.iter().map(|path| text(path)).collect()
}

/// An image of zeros that takes no room.
pub(super) fn sparse(bench: &Bench, name: &str, bytes: u64) -> anyhow::Result<PathBuf> {
    let path = bench.file(name);
    File::create(&path)?.set_len(bytes)?;
    Ok(path)
}

/// The image that wdiffs make of a base, as a stream.
struct Image {
    child: Child,
    bytes: Box<dyn Read>,
}

impl Image {
    fn open(bench: &Bench, base: &Path, wdiffs: &[&Path]) -> anyhow::Result<Self> {
        let mut args = vec!["wdiff", "virtual-cat", "--base", text(base)?];
        for wdiff in wdiffs {
            args.push(text(wdiff)?);
        }
        let command = bench.walb(&args);
        let (program, args) = command.split_first().context("no command")?;
        let mut child = Command::new(program).args(args).stdout(Stdio::piped()).spawn()?;
        let bytes = Box::new(BufReader::new(child.stdout.take().context("no output")?));
        Ok(Self { child, bytes })
    }
}

/// Do both sets of wdiffs make the same of the same base?
pub(super) fn ensure_same_meaning(
    bench: &Bench,
    base: &Path,
    ours: &[&Path],
    theirs: &[&Path],
) -> anyhow::Result<()> {
    let mut ours = Image::open(bench, base, ours)?;
    let mut theirs = Image::open(bench, base, theirs)?;
    ensure_same_bytes(&mut ours.bytes, &mut theirs.bytes)?;
    for mut image in [ours, theirs] {
        ensure!(image.child.wait()?.success(), "an image cannot be read");
    }
    Ok(())
}

/// Are the files equal, byte by byte?
pub(super) fn ensure_same_files(ours: &Path, theirs: &Path) -> anyhow::Result<()> {
    let open =
        |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    ensure_same_bytes(open(ours)?, open(theirs)?)
}

/// An image of noise.
pub(super) fn random_image(path: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut noise = File::open("/dev/urandom")?.take(bytes);
    std::io::copy(&mut noise, &mut File::create(path)?)?;
    Ok(())
}

fn ensure_same_bytes(mut ours: impl Read, mut theirs: impl Read) -> anyhow::Result<()> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut at = 0_u64;
    loop {
        a.clear();
        b.clear();
        ours.by_ref().take(MIB).read_to_end(&mut a)?;
        theirs.by_ref().take(MIB).read_to_end(&mut b)?;
        ensure!(a == b, "the results differ in the MiB at byte {at}");
        if a.is_empty() {
            return Ok(());
        }
        at += a.len() as u64;
    }
}
