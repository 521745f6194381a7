//! A log becomes an indexed, snappy-compressed wdiff.

use benches::{LogShape, Payload};
use wdiff_format::compression::Compression;

use super::files::{MIB, ensure_same_meaning, make_wlog, name, sparse, text};
use super::limits::converted;
use crate::bench::{Bench, Case, Row, Side, throughput};
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
    let least = converted(&log, bench.file("least"), Compression::SNAPPY, bytes)?;
    let sides = vec![
        Side::ours(throughput(to_wdiff, bytes, &ours)),
        Side::peer(
            "wlog-to-wdiff",
            at_least,
            peer.map(|command| throughput(command, bytes, &theirs)),
        ),
        Side::limit("read, summed, compressed and written, nothing else, all cores", least),
    ];
    bench.measure(case, sides)?;
    if theirs.exists() {
        let base = sparse(bench, "base", DEVICE_BYTES)?;
        ensure_same_meaning(bench, &base, &[&ours], &[&theirs])?;
    }
    bench.clear()
}
