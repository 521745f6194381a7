//! Writes of a protected device with flushes between them.

use super::devices::{Load, compare};
use crate::bench::{Bench, Row};

pub(super) struct Flushes;

const LOADS: &[Load] = &[
    Load {
        name: "depth 1, a flush after every write",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"],
        at_least: 1.3,
    },
    Load {
        name: "depth 32, a flush after every write",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=1"],
        at_least: 1.3,
    },
    Load {
        name: "4 jobs of depth 32, a flush after every write",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--numjobs=4", "--fsync=1"],
        at_least: 1.3,
    },
    Load {
        name: "depth 1, a flush after 32 writes",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=32"],
        at_least: 1.3,
    },
    Load {
        name: "depth 32, a flush after 32 writes",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32"],
        at_least: 1.3,
    },
    Load {
        name: "4 jobs of depth 32, a flush after 32 writes",
        args: &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--numjobs=4", "--fsync=32"],
        at_least: 1.3,
    },
];

impl Row for Flushes {
    fn id(&self) -> &'static str {
        "P6"
    }

    fn title(&self) -> &'static str {
        "the same, 4 KiB random writes with flushes, against `qemu-nbd --cache=none --aio=io_uring`"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        compare(bench, LOADS)
    }
}
