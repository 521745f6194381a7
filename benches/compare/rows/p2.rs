//! Eight wdiffs become one. They lie over each other, whole and in part; what is visible of most
//! records is the whole record.

use benches::{LogShape, Payload};
use wdiff_format::merge::Pieces;

use super::files::{MIB, Stored, ensure_same_meaning, make_wdiffs, name, sparse, text, texts};
use super::limits::merged;
use crate::bench::{Bench, Case, Row, Side, throughput};
use crate::results::Unit;

pub(super) struct Merge;

const INPUTS: u64 = 8;
const INPUT_BYTES: u64 = 256 << 20;
const DEVICE_BYTES: u64 = 4 << 30;

const CASES: &[(Payload, Stored, Pieces, f64)] = &[
    (Payload::Semi, Stored { format: "sorted", compression: "lz4" }, Pieces::Kept, 2.5),
    (Payload::Semi, Stored { format: "sorted", compression: "zstd" }, Pieces::Kept, 4.0),
    (Payload::Semi, Stored { format: "indexed", compression: "lz4" }, Pieces::Kept, 2.5),
    (Payload::Semi, Stored { format: "indexed", compression: "zstd" }, Pieces::Kept, 4.0),
    (Payload::Semi, Stored { format: "indexed", compression: "lz4" }, Pieces::Joined, 2.5),
    (Payload::Semi, Stored { format: "indexed", compression: "zstd" }, Pieces::Joined, 4.0),
    (Payload::Random, Stored { format: "sorted", compression: "lz4" }, Pieces::Kept, 1.2),
    (Payload::Random, Stored { format: "sorted", compression: "zstd" }, Pieces::Kept, 1.2),
];

impl Row for Merge {
    fn id(&self) -> &'static str {
        "P2"
    }

    fn title(&self) -> &'static str {
        "`walb wdiff merge` of 8 wdiffs of 256 MiB log each against `wdiff-merge` with 2 threads"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        CASES.iter().try_for_each(|case| merge(bench, *case))
    }
}

fn merge(
    bench: &mut Bench,
    (payload, stored, pieces, at_least): (Payload, Stored, Pieces, f64),
) -> anyhow::Result<()> {
    let Stored { format, compression } = stored;
    let join = if pieces == Pieces::Joined { ", --join" } else { "" };
    let case = Case {
        name: format!("{format}, {compression} to {compression}, {}{join}", name(payload)),
        unit: Unit::MegabytesPerSecond,
        limit: None,
        peak_limit_bytes: Some(150 * MIB),
    };
    if !bench.wants(&case.name) {
        return Ok(());
    }
    let shape = LogShape {
        io_bytes: (4 << 10, 64 << 10),
        device_bytes: DEVICE_BYTES,
        total_bytes: usize::try_from(bench.sized(INPUT_BYTES))?,
        payload,
        seed: 100,
    };
    let (inputs, bytes) = make_wdiffs(bench, INPUTS, stored, shape)?;
    let (ours, theirs) = (bench.file("ours"), bench.file("theirs"));
    let flags: &[&str] = if pieces == Pieces::Joined { &["--join"] } else { &[] };
    let how = ["wdiff", "merge", "--compression", compression, "-o", text(&ours)?];
    let merge = bench.walb(&[how.as_slice(), flags, &texts(&inputs)?].concat());
    let codec = format!("{compression}:0:2");
    let how = ["-cmpr", &codec, "-o", text(&theirs)?, "-i"];
    let peer = bench.peer("wdiff-merge", &[how.as_slice(), &texts(&inputs)?].concat());
    let peer = peer.map(|command| throughput(command, bytes, &theirs));
    let least = merged(&inputs, pieces, bench.file("least"), compression.parse()?, bytes)?;
    let sides = vec![
        Side::ours(throughput(merge, bytes, &ours)),
        Side::peer("wdiff-merge", at_least, peer),
        Side::limit(
            "read, summed, looked at, recoded where cut and written, nothing else, all cores",
            least,
        ),
    ];
    bench.measure(case, sides)?;
    if theirs.exists() {
        let base = sparse(bench, "base", DEVICE_BYTES)?;
        ensure_same_meaning(bench, &base, &[&ours], &[&theirs])?;
    }
    bench.clear()
}
