//! A log becomes an indexed, snappy-compressed wdiff.

use std::ffi::OsString;
use std::time::Instant;

use anyhow::Context as _;
use benches::{LogShape, Payload, payloads};
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;

use super::files::{MIB, ensure_same_meaning, make_wlog, name, sparse, text};
use crate::bench::{Bench, Case, Row, Run, Sample, Side, throughput};
use crate::results::Unit;

pub(super) struct ToWdiff;

const LOG_BYTES: u64 = 1 << 30;
const DEVICE_BYTES: u64 = 2 << 30;

impl Row for ToWdiff {
    fn id(&self) -> &'static str {
        "P1"
    }

    fn title(&self) -> &'static str {
        "`walb wlog to-wdiff` (indexed, snappy) of a 1 GiB log against `wlog-to-wdiff -indexed`"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        for (size, io_bytes) in [("4 KiB", 4 << 10), ("256 KiB", 256 << 10)] {
            for (payload, at_least) in [(Payload::Semi, 2.0), (Payload::Random, 3.0)] {
                convert(bench, size, io_bytes, payload, at_least)?;
            }
        }
        Ok(())
    }
}

fn convert(
    bench: &mut Bench,
    size: &str,
    io_bytes: usize,
    payload: Payload,
    at_least: f64,
) -> anyhow::Result<()> {
    let case = Case {
        name: format!("{size} writes, {}", name(payload)),
        unit: Unit::MegabytesPerSecond,
        limit: None,
        peak_limit_bytes: Some(100 * MIB),
    };
    if !bench.wants(&case.name) {
        return Ok(());
    }
    let (log, ours, theirs) = (bench.file("log"), bench.file("ours"), bench.file("theirs"));
    let copy = bench.file("copy");
    let total_bytes = usize::try_from(bench.sized(LOG_BYTES))?;
    let shape = LogShape {
        io_bytes: (io_bytes, io_bytes),
        device_bytes: DEVICE_BYTES,
        total_bytes,
        payload,
        seed: 1,
    };
    let bytes = make_wlog(&log, &shape)?;
    let to_wdiff = bench.walb(&[
        "wlog",
        "to-wdiff",
        "--format",
        "indexed",
        "--compression",
        "snappy",
        "-o",
        text(&ours)?,
        text(&log)?,
    ]);
    let peer = bench.peer("wlog-to-wdiff", &["-indexed", "-i", text(&log)?, "-o", text(&theirs)?]);
    let cp: Vec<OsString> = vec!["cp".into(), (&log).into(), (&copy).into()];
    let sides = vec![
        Side::ours(throughput(to_wdiff, bytes, &ours)),
        Side::peer(
            "wlog-to-wdiff",
            at_least,
            peer.map(|command| throughput(command, bytes, &theirs)),
        ),
        Side::limit("snappy alone, all cores", codec_alone(payload, io_bytes)),
        Side::limit("cp", throughput(cp, bytes, &copy)),
    ];
    bench.measure(case, sides)?;
    if theirs.exists() {
        let base = sparse(bench, "base", DEVICE_BYTES)?;
        ensure_same_meaning(bench, &base, &[&ours], &[&theirs])?;
    }
    bench.clear()
}

/// The codec on data that stays in the caches, with no file around it.
fn codec_alone<'a>(payload: Payload, io_bytes: usize) -> Run<'a> {
    const BYTES_PER_THREAD: usize = 64 << 20;
    let pieces = payloads(payload, io_bytes, (1 << 20) / io_bytes);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let work = move |pieces: &[bytes::Bytes]| -> anyhow::Result<()> {
        let mut codec = Codec::new(Compression::SNAPPY);
        for _ in 0..BYTES_PER_THREAD >> 20 {
            for piece in pieces {
                std::hint::black_box(codec.compress(piece)?);
            }
        }
        Ok(())
    };
    Box::new(move || {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&pieces))).collect();
            running.into_iter().try_for_each(|t| t.join().ok().context("a thread died")?)
        })?;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let bytes = (threads * BYTES_PER_THREAD) as f64;
        Ok(Sample { figure: bytes / start.elapsed().as_secs_f64() / 1e6, usage: None })
    })
}
