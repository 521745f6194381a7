//! Reads of a protected device, and large writes. Each byte is written twice, to the log and to the
//! data device: the limit is half of the disk's.

use super::devices::{Load, compare};
use crate::bench::{Bench, Row};

pub(super) struct Reads;

const LOADS: &[Load] = &[
    Load {
        name: "4 KiB random read, depth 32",
        args: &["--rw=randread", "--bs=4k", "--iodepth=32"],
        at_least: 0.95,
    },
    Load {
        name: "128 KiB sequential read, depth 8",
        args: &["--rw=read", "--bs=128k", "--iodepth=8"],
        at_least: 0.95,
    },
    Load {
        name: "128 KiB sequential write, depth 8",
        args: &["--rw=write", "--bs=128k", "--iodepth=8"],
        at_least: 0.7,
    },
];

impl Row for Reads {
    fn id(&self) -> &'static str {
        "P7"
    }

    fn title(&self) -> &'static str {
        "the same, reads and large writes, against `qemu-nbd --cache=none --aio=io_uring`"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        compare(bench, LOADS)
    }
}
