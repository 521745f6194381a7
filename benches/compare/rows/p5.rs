//! Writes of a protected device: each is on the log device before it is acknowledged.

use super::devices::{Load, compare};
use crate::bench::{Bench, Row};

pub(super) struct Writes;

const LOADS: &[Load] = &[
    Load {
        name: "4 KiB random write, depth 1",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=1"],
        at_least: 0.9,
    },
    Load {
        name: "4 KiB random write, depth 32",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=32"],
        at_least: 1.0,
    },
    Load {
        name: "4 KiB random write, 4 jobs of depth 32",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--numjobs=4"],
        at_least: 1.0,
    },
];

impl Row for Writes {
    fn id(&self) -> &'static str {
        "P5"
    }

    fn title(&self) -> &'static str {
        "protected device over NBD, random writes, against `qemu-nbd --cache=none --aio=io_uring`"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        compare(bench, LOADS)
    }
}
