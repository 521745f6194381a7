//! A hash backup: what differs between a volume and its archive travels, when it is not known what
//! has changed. Both sides read past the page cache, here from one disk: who compares all of it has
//! half of that disk for each image. Of what the device says was written, little has to be read.

use std::path::Path;
use std::time::Instant;

use benches::Payload;
use controller::ops::{hash, setup};
use proto::v1::StopMode;
use tests::cluster::Layout;

use super::files::MIB;
use super::group::{Group, VOLUME, image, one_of_each};
use super::programs::{Measured, fio_on, fio_over, have};
use crate::bench::{Bench, Case, Figures, Row, Run, Sample, Side, megabytes};
use crate::results::Unit;

pub(super) struct HashBackup;

const IMAGE_BYTES: u64 = 4 << 30;
const LOG_BYTES: u64 = 256 * MIB;
/// One block of so many is written anew.
const ONE_OF: u64 = 100;

impl Row for HashBackup {
    fn id(&self) -> &'static str {
        "P9"
    }

    fn title(&self) -> &'static str {
        "hash backup of 4 GiB with 1 % of the 4 KiB blocks changed at random, against `fio` \
         reading the device once"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        if !have("fio") {
            bench.skip("fio: not on this machine");
            return Ok(());
        }
        let bytes = bench.sized(IMAGE_BYTES);
        let layout = Layout {
            data_bytes: bytes,
            log_bytes: bench.sized(LOG_BYTES).max(8 * MIB),
            fronts: vec!["a0".to_owned()],
            ..one_of_each()
        };
        let mut group = Group::start(bench, layout, 3 * bytes + LOG_BYTES)?;
        group.adopt(|data| image(data, bytes, Payload::Random, false))?;
        group.cluster.full_backup(VOLUME)?;
        for everything in [true, false] {
            compare(bench, &group, bytes, everything)?;
        }
        Ok(())
    }
}

fn compare(bench: &mut Bench, group: &Group, bytes: u64, everything: bool) -> anyhow::Result<()> {
    let changed = bytes / 4096 / ONE_OF * 4096;
    let what =
        if everything { "all of it compared" } else { "what the device says was written compared" };
    let case = Case::new(what, Unit::MegabytesPerSecond);
    if !bench.wants(&case.name) {
        return Ok(());
    }
    let mut wire = Vec::new();
    let ours: Run<'_> = Box::new(|| {
        change(group, changed)?;
        let carried = group.cluster.front("a0")?.carried();
        let sample = backup(group, bytes, everything)?;
        wire.push(megabytes(group.cluster.front("a0")?.carried() - carried));
        Ok(sample)
    });
    let data = group.cluster.data_path(0, VOLUME);
    let both = [data.as_path(), &group.base_image()].map(|path| path.to_string_lossy()).join(":");
    let read = |files: &Path| {
        let how = ["--rw=read", "--readonly", "--bs=1m", "--iodepth=8"];
        Measured::by(&mut fio_on(files, &how))?.megabytes_per_second()
    };
    let theirs: Run<'_> = Box::new(|| Ok(Sample::of(read(&data)?)));
    let limit: Run<'_> = Box::new(|| Ok(Sample::of(read(Path::new(&both))? / 2.0)));
    let mut sides = vec![Side::ours(ours), Side::peer("fio", 0.8, Some(theirs))];
    if everything {
        sides.push(Side::limit("fio on both images, for each", limit));
    }
    bench.measure(case, sides)?;
    let case = Case::new(format!("{what}, bytes between storage and archive"), Unit::Megabytes);
    let theirs = vec![megabytes(changed); wire.len()];
    let sides = vec![Figures::ours(wire), Figures::peer("what has changed", 1.0 / 1.05, theirs)];
    bench.record(case, sides)
}

/// Writes noise, while nobody ships it.
fn change(group: &Group, bytes: u64) -> anyhow::Result<()> {
    let cluster = &group.cluster;
    cluster.run(setup::stop(cluster.ctl(), "s0", VOLUME, StopMode::Graceful))?;
    let io_size = format!("--io_size={bytes}");
    // Other blocks, and other content, in each round.
    let how = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--refill_buffers=1", &io_size];
    let mut fio = fio_over(&cluster.nbd_uri(VOLUME), &how);
    Measured::by(fio.arg("--randrepeat=0").arg("--fsync_on_close=1")).map(drop)
}

fn backup(group: &Group, bytes: u64, everything: bool) -> anyhow::Result<Sample> {
    let cluster = &group.cluster;
    let options = hash::HashBackupOptions { everything, ..hash::HashBackupOptions::default() };
    let start = Instant::now();
    cluster.run(hash::hash_backup(cluster.ctl(), "s0", VOLUME, options, &mut |_| {}))?;
    Ok(Sample::throughput(bytes, start))
}
