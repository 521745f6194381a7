//! The storage role reads a log device: every pack is checked before a byte of it goes further. On
//! a loop device in memory that costs what it costs; on the disk the swings of the disk are larger.
//!
//! The reader runs in this process, for what a program ships is measured with all that comes after
//! it (P14).

use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use benches::{LogShape, Payload};
use block_io::{OpenOptions, open};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use storage_server::budget::Budget;
use storage_server::log::Log;
use storage_server::reader::{DEPTH, PackReader, READ_BYTES};
use tests::outside::LoopDevice;
use tokio::runtime::Runtime;
use wlog_format::checksum::checksum;
use wlog_format::stream::WlogReader;
use wlog_format::units::{BlockSize, LogUuid, Lsid, Salt, to_usize};

use super::files::{make_wlog, name, text};
use super::programs::{Measured, fill, fio_on, have};
use crate::bench::{Bench, Case, Row, Run, Sample, Side};
use crate::results::Unit;

pub(super) struct ReadLog;

const LOG_BYTES: u64 = 2 << 30;
/// What the ring has beyond the log: super sectors, headers of packs.
const SLACK_BYTES: u64 = 64 << 20;
/// Of the logs that this crate makes.
const BLOCK_SIZE: BlockSize = BlockSize::B512;
/// Memory of the storage role, by default.
const BUDGET_BYTES: u64 = 256 << 20;

impl Row for ReadLog {
    fn id(&self) -> &'static str {
        "P4"
    }

    fn title(&self) -> &'static str {
        "storage role reading 2 GiB of log on a loop device, against `fio` sequential read with \
         io_uring, same block size and depth"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        if !have("fio") {
            bench.skip("fio: not on this machine");
            return Ok(());
        }
        for place in [Place::Memory, Place::Disk] {
            for (size, io_bytes) in [("4 KiB", 4 << 10), ("256 KiB", 256 << 10)] {
                read(bench, place, size, io_bytes)?;
            }
            bench.clear()?;
        }
        Ok(())
    }
}

/// Where the loop device's file is.
#[derive(Clone, Copy)]
enum Place {
    Memory,
    Disk,
}

fn read(bench: &mut Bench, place: Place, size: &str, io_bytes: usize) -> anyhow::Result<()> {
    let at = match place {
        Place::Memory => "in memory",
        Place::Disk => "on the disk",
    };
    let what = format!("{size} writes, {}, {at}", name(Payload::Random));
    let case = Case::new(what, Unit::MegabytesPerSecond);
    if !bench.wants(&case.name) {
        return Ok(());
    }
    let total = bench.sized(LOG_BYTES);
    let disk = match place {
        Place::Memory => None,
        Place::Disk => Some(bench.disk_with(3 * total + SLACK_BYTES)?),
    };
    let at = |name: &str| disk.as_ref().map_or_else(|| bench.file(name), |d| d.path().join(name));
    let (file, wlog, data) = (at("log.image"), at("wlog"), at("data"));
    // 4 KiB writes have a header for each few of them.
    fill(&file, total + total / 8 + SLACK_BYTES)?;
    let device = match LoopDevice::attach_direct(&file) {
        Ok(device) => device,
        Err(error) => {
            bench.skip(&format!("a loop device: {error:#}"));
            return Ok(());
        }
    };
    let path = Path::new(device.path());
    let written = write_log(bench, [&wlog, &data], path, io_bytes, total)?;
    let bytes = format!("--size={}", written.bytes());
    let (bs, depth) = (format!("--bs={READ_BYTES}"), format!("--iodepth={DEPTH}"));
    let theirs: Run<'_> = Box::new(move || {
        let mut fio = fio_on(path, &["--rw=read", "--readonly", &bs, &depth, &bytes]);
        Ok(Sample::of(Measured::by(&mut fio)?.megabytes_per_second()?))
    });
    let runtime = Runtime::new()?;
    let ours: Run<'_> = Box::new(|| runtime.block_on(written.read(path)));
    let least: Run<'_> = Box::new(|| runtime.block_on(summed(path, written.bytes())));
    let sides = vec![
        Side::ours(ours),
        Side::peer("fio", 0.95, Some(theirs)),
        Side::limit("read through io_uring and summed, nothing else", least),
    ];
    bench.measure(case, sides)
}

/// The log that is on the device.
struct Written {
    uuid: LogUuid,
    begin: Lsid,
    end: Lsid,
}

/// Puts a log into the ring, as if the device role had just written it; by way of two files.
fn write_log(
    bench: &Bench,
    [wlog, data]: [&Path; 2],
    device: &Path,
    io_bytes: usize,
    total: u64,
) -> anyhow::Result<Written> {
    let shape = LogShape {
        io_bytes: (io_bytes, io_bytes),
        device_bytes: 2 << 30,
        total_bytes: usize::try_from(total)?,
        payload: Payload::Random,
        seed: 400,
    };
    make_wlog(wlog, &shape)?;
    File::create(data)?.set_len(shape.device_bytes)?;
    let block_size = BLOCK_SIZE.bytes().to_string();
    let devices = ["--log", text(device)?, "--data", text(data)?, "--block-size", &block_size];
    bench.output(&[&["ldev", "format"], devices.as_slice()].concat())?;
    let restore = ["ldev", "restore", "--json", text(device)?, text(wlog)?];
    let said: serde_json::Value = serde_json::from_str(&bench.output(&restore)?)?;
    let lsid = |key: &str| said.get(key).and_then(serde_json::Value::as_u64).map(Lsid);
    let begin = lsid("begin_lsid").context("no begin_lsid")?;
    let end = lsid("end_lsid").context("no end_lsid")?;
    let uuid = WlogReader::new(File::open(wlog)?)?.header().uuid;
    std::fs::remove_file(wlog)?;
    Ok(Written { uuid, begin, end })
}

/// Reads and sums the start of the device without asking what it is.
async fn summed(device: &Path, bytes: u64) -> anyhow::Result<Sample> {
    let start = Instant::now();
    let device = open(device, OpenOptions::read_only())?;
    let offsets = (0..bytes / READ_BYTES).map(|number| number * READ_BYTES);
    let reads = offsets.map(|offset| device.read(offset, to_usize(READ_BYTES)));
    let mut reads = stream::iter(reads).buffered(DEPTH);
    let mut read = 0;
    while let Some(piece) = reads.try_next().await? {
        black_box(checksum(&piece, Salt(0)));
        read += piece.len() as u64;
    }
    Ok(Sample::throughput(read, start))
}

impl Written {
    fn bytes(&self) -> u64 {
        BLOCK_SIZE.bytes_of(self.end.distance_from(self.begin))
    }

    /// Reads and checks all of it, as a follower does that ships it.
    async fn read(&self, device: &Path) -> anyhow::Result<Sample> {
        let start = Instant::now();
        let log = Log::open(open(device, OpenOptions::read_only())?, self.uuid).await;
        let log = Arc::new(log.context("the log device")?);
        let (name, budget) = ("v".parse()?, Budget::new(BUDGET_BYTES));
        let mut reader = PackReader::open(log, name, budget, self.begin, self.end).await;
        let mut read = 0;
        while let Some(piece) = reader.next().await? {
            read += piece.len() as u64;
        }
        ensure!(read == self.bytes(), "{read} bytes of log were read");
        Ok(Sample::throughput(read, start))
    }
}
