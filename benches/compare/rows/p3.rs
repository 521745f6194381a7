//! A wdiff is written onto an image; a base image and wdiffs are read as one image.

use std::ffi::OsString;

use anyhow::Context as _;
use benches::{LogShape, Payload};

use super::files::{
    MIB, Stored, ensure_same_files, make_wdiffs, name, random_image, sparse, text, texts,
};
use super::limits::redone;
use crate::bench::{Bench, Case, Row, Side, in_place, throughput};
use crate::results::Unit;

pub(super) struct Redo;

const IMAGE_BYTES: u64 = 1 << 30;
const REDO_LOG_BYTES: u64 = 512 << 20;
const CAT_LOG_BYTES: u64 = 1 << 30;

impl Row for Redo {
    fn id(&self) -> &'static str {
        "P3"
    }

    fn title(&self) -> &'static str {
        "`walb wdiff redo` and `virtual-cat` against `wdiff-redo`, `virt-full-cat` and `cp`"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        for format in ["sorted", "indexed"] {
            for payload in [Payload::Semi, Payload::Random] {
                redo(bench, format, payload)?;
            }
        }
        for wdiffs in [4, 100] {
            virtual_cat(bench, wdiffs)?;
        }
        Ok(())
    }
}

fn case(name: String) -> Case {
    let peak_limit_bytes = Some(150 * MIB);
    Case { name, unit: Unit::MegabytesPerSecond, limit: None, peak_limit_bytes }
}

/// 4 KiB writes, strewn over the image.
fn redo(bench: &mut Bench, format: &'static str, payload: Payload) -> anyhow::Result<()> {
    let case = case(format!("redo, {format}, snappy, {}", name(payload)));
    if !bench.wants(&case.name) {
        return Ok(());
    }
    let shape = LogShape {
        io_bytes: (4 << 10, 4 << 10),
        device_bytes: bench.sized(IMAGE_BYTES),
        total_bytes: usize::try_from(bench.sized(REDO_LOG_BYTES))?,
        payload,
        seed: 200,
    };
    let (wdiffs, bytes) = make_wdiffs(bench, 1, Stored { format, compression: "snappy" }, shape)?;
    let ours = sparse(bench, "ours", shape.device_bytes)?;
    let theirs = sparse(bench, "theirs", shape.device_bytes)?;
    let wdiff = texts(&wdiffs)?;
    let redo = [&["wdiff", "redo", "--zero-discard"], wdiff.as_slice(), &[text(&ours)?]].concat();
    let peer = [&["-z", "-i"], wdiff.as_slice(), &[text(&theirs)?]].concat();
    let peer = bench.peer("wdiff-redo", &peer);
    let is_compared = peer.is_some();
    let image = sparse(bench, "least", shape.device_bytes)?;
    let least = redone(wdiffs.first().context("no wdiff")?, image, bytes)?;
    let sides = vec![
        Side::ours(in_place(bench.walb(&redo), bytes)),
        Side::peer("wdiff-redo", 2.5, peer.map(|command| in_place(command, bytes))),
        Side::limit(
            "read, summed, decompressed and written in turns, nothing else, all cores",
            least,
        ),
    ];
    bench.measure(case, sides)?;
    if is_compared {
        ensure_same_files(&ours, &theirs)?;
    }
    bench.clear()
}

fn virtual_cat(bench: &mut Bench, count: u64) -> anyhow::Result<()> {
    let case = case(format!("virtual-cat, base and {count} sorted wdiffs, half-compressible"));
    if !bench.wants(&case.name) {
        return Ok(());
    }
    let bytes = bench.sized(IMAGE_BYTES);
    let base = bench.file("base");
    random_image(&base, bytes)?;
    let shape = LogShape {
        io_bytes: (4 << 10, 64 << 10),
        device_bytes: bytes,
        total_bytes: usize::try_from(bench.sized(CAT_LOG_BYTES) / count)?,
        payload: Payload::Semi,
        seed: 300,
    };
    let stored = Stored { format: "sorted", compression: "snappy" };
    let (wdiffs, _) = make_wdiffs(bench, count, stored, shape)?;
    let wdiffs = texts(&wdiffs)?;
    let (ours, theirs, copy) = (bench.file("ours"), bench.file("theirs"), bench.file("copy"));
    let how = ["wdiff", "virtual-cat", "--base", text(&base)?, "-o", text(&ours)?];
    let cat = bench.walb(&[how.as_slice(), &wdiffs].concat());
    let how = ["-i", text(&base)?, "-o", text(&theirs)?, "-d"];
    let peer = bench.peer("virt-full-cat", &[how.as_slice(), &wdiffs].concat());
    let cp: Vec<OsString> = vec!["cp".into(), (&base).into(), (&copy).into()];
    let sides = vec![
        Side::ours(throughput(cat, bytes, &ours)),
        Side::peer("virt-full-cat", 6.0, peer.map(|command| throughput(command, bytes, &theirs))),
        Side::peer("cp", 0.6, Some(throughput(cp, bytes, &copy))),
    ];
    bench.measure(case, sides)?;
    if theirs.exists() {
        ensure_same_files(&ours, &theirs)?;
    }
    bench.clear()
}
