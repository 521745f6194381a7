//! Reads through a mount, against the same image as a plain file over NBD. Both are in the page
//! cache.

use std::path::PathBuf;

use controller::ops::archive::{RestorePoint, restore};

use super::group::VOLUME;
use super::many::{IMAGE_BYTES, Many};
use super::programs::{NbdServer, fio_over, have, operations};
use crate::bench::{Bench, Case, Row, Side};
use crate::results::Unit;

pub(super) struct MountReads;

const DIFFS: u64 = 1_000;

const LOADS: &[(&str, &[&str])] = &[
    ("4 KiB random read, depth 1", &["--rw=randread", "--bs=4k", "--iodepth=1"]),
    ("4 KiB random read, depth 32", &["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("128 KiB sequential read, depth 8", &["--rw=read", "--bs=128k", "--iodepth=8"]),
];

impl Row for MountReads {
    fn id(&self) -> &'static str {
        "P15"
    }

    fn title(&self) -> &'static str {
        "reads through a mount of 256 MiB and 1,000 wdiffs, against the restored image over \
         `qemu-nbd --cache=writeback --aio=io_uring`"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        if !have("fio") || !have("qemu-nbd") {
            bench.skip("fio and qemu-nbd: not on this machine");
            return Ok(());
        }
        let diffs = if bench.quick() { 10 } else { DIFFS };
        let mut many = Many::start(bench, diffs)?;
        many.grow(diffs)?;
        let mounted = many.first_read()?.mounted;
        let (cluster, point) = (&many.archive.group.cluster, RestorePoint::Gid(diffs));
        let restored =
            cluster.run(restore(cluster.ctl(), "a0", VOLUME, point, None, &mut |_| {}))?;
        let image = PathBuf::from(restored.path);
        let socket = many.archive.group.file("qemu.sock");
        let _qemu = NbdServer::qemu("writeback", &image, &socket)?;
        let plain = format!("nbd+unix:///?socket={}", socket.display());
        let seconds = if bench.quick() { 1 } else { 3 };
        for (name, args) in LOADS {
            let of = |uri: &str| {
                let uri = uri.to_owned();
                operations(move || fio_over(&uri, args), IMAGE_BYTES, seconds)
            };
            let sides = vec![Side::ours(of(&mounted.uri)), Side::limit("qemu-nbd", of(&plain))];
            bench.measure(Case::new(*name, Unit::OperationsPerSecond), sides)?;
        }
        Ok(())
    }
}
