//! A full backup of a volume, with everything that its command does, against a plain copy of the
//! same image. Both end when the image is on the disk.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use benches::Payload;
use tests::cluster::Layout;

use super::files::{MIB, ensure_same_files, name, text};
use super::group::{Group, STRIPE_BYTES, VOLUME, image, one_of_each};
use super::programs::{Measured, NbdServer, have};
use crate::bench::{Bench, Case, Row, Run, Sample, Side, megabytes, throughput};
use crate::results::Unit;

pub(super) struct FullBackup;

const IMAGE_BYTES: u64 = 4 << 30;
const LOG_BYTES: u64 = 256 * MIB;

impl Row for FullBackup {
    fn id(&self) -> &'static str {
        "P8"
    }

    fn title(&self) -> &'static str {
        "full backup of 4 GiB, half of them zero, all roles on this machine, against \
         `nbdcopy --flush` of the same image from `qemu-nbd` to a file"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        for payload in [Payload::Semi, Payload::Random] {
            backup(bench, payload)?;
        }
        Ok(())
    }
}

fn backup(bench: &mut Bench, payload: Payload) -> anyhow::Result<()> {
    let case = Case::new(format!("{} data", name(payload)), Unit::MegabytesPerSecond);
    if !bench.wants(&case.name) {
        return Ok(());
    }
    let bytes = bench.sized(IMAGE_BYTES);
    let layout = Layout {
        data_bytes: bytes,
        log_bytes: bench.sized(LOG_BYTES).max(8 * MIB),
        ..one_of_each()
    };
    let mut group = Group::start(bench, layout, 3 * bytes + LOG_BYTES)?;
    group.adopt(|data| image(data, bytes, payload, true))?;
    let (data, copy) = (group.cluster.data_path(0, VOLUME), group.file("copy"));
    let socket = group.file("qemu.sock");
    let is_there = have("nbdcopy") && have("qemu-nbd");
    let qemu = is_there.then(|| NbdServer::qemu("none", &data, &socket)).transpose()?;
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let nbdcopy = ["nbdcopy", "--flush", &uri, text(&copy)?].map(Into::into);
    let theirs = is_there.then(|| throughput(nbdcopy.into(), bytes, &copy));
    let ours: Run<'_> = Box::new(|| {
        group.forget_backups()?;
        let start = Instant::now();
        group.cluster.full_backup(VOLUME)?;
        Ok(Sample::throughput(bytes, start))
    });
    let mut sides = vec![Side::ours(ours), Side::peer("nbdcopy", 0.9, theirs)];
    if have("fio") {
        let limit = read_and_written(&data, group.file("written"), bytes);
        sides.push(Side::limit("fio: the data read, as much written, at the same time", limit));
    } else {
        bench.skip("fio: not on this machine");
    }
    bench.measure(case, sides)?;
    drop(qemu);
    ensure_same_files(&data, &group.base_image())
}

/// What the disk allows at best: the data of the image is read while as much is written to a new
/// file, by two jobs that know nothing of each other, in requests and at depths like ours.
fn read_and_written(data: &Path, to: PathBuf, bytes: u64) -> Run<'_> {
    Box::new(move || {
        if to.exists() {
            std::fs::remove_file(&to)?;
        }
        let of_both = ["--direct=1", "--ioengine=io_uring", "--bs=1m"];
        let read = ["--name=read", "--rw=read", "--iodepth=8", "--zonemode=strided"];
        let write = ["--name=write", "--rw=write", "--iodepth=32", "--end_fsync=1"];
        let half = bytes / 2;
        let mut fio = Command::new("fio");
        fio.args(of_both).args(read).arg(format!("--filename={}", text(data)?));
        fio.args([format!("--size={bytes}"), format!("--io_size={half}")]);
        fio.args(["zonesize", "zoneskip"].map(|zone| format!("--{zone}={STRIPE_BYTES}")));
        fio.args(write).arg(format!("--filename={}", text(&to)?));
        fio.args(["--fallocate=truncate", &format!("--size={half}")]);
        Ok(Sample::of(megabytes(bytes) / Measured::by(&mut fio)?.seconds()?))
    })
}
