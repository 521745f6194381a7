//! Conversion, merge, redo and virtual image: uncompressed input bytes per second; and what they
//! rest on: the codec pool, the index of an indexed wdiff.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a benchmark may panic"
)]

use std::io::{Read, Write};
use std::sync::Mutex;

use benches::{LogShape, Payload, input_bytes, payloads};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::convert::{LogRecords, convert};
use wdiff_format::header::FileType;
use wdiff_format::indexed_reader::IndexedReader;
use wdiff_format::indexed_writer::IndexedWriter;
use wdiff_format::io_at::WriteAt;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::open::Records;
use wdiff_format::pool::CodecPool;
use wdiff_format::record::{self, DiffRecord};
use wdiff_format::redo::{BeyondEnd, Discards, RedoOptions, redo};
use wdiff_format::sorted_reader::SortedReader;
use wdiff_format::split::MaxIo;
use wdiff_format::virtual_image::VirtualImage;
use wdiff_format::write::{WriteOptions, write_records};
use wlog_format::stream::WlogReader;
use wlog_format::units::{Lb, LogUuid};

const DEVICE_BYTES: u64 = 256 << 20;

fn options(file_type: FileType, compression: &str, threads: usize) -> WriteOptions {
    WriteOptions {
        file_type,
        uuid: LogUuid::ZERO,
        compression: compression.parse().unwrap(),
        max_io: MaxIo::default(),
        threads,
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn shape(io_bytes: usize, payload: Payload, seed: u64, total_bytes: usize) -> LogShape {
    LogShape {
        io_bytes: (io_bytes, io_bytes),
        device_bytes: DEVICE_BYTES,
        total_bytes,
        payload,
        seed,
    }
}

/// A growing buffer would cost more than the conversion: the benchmarks write to nowhere.
fn to_wdiff<W: Write>(log: &[u8], output: W, options: &WriteOptions) -> W {
    let log = LogRecords::new(WlogReader::new(log).unwrap());
    convert(log, output, options).unwrap()
}

fn conversion(c: &mut Criterion) {
    let mut group = c.benchmark_group("convert");
    for (io_name, io_bytes) in [("4K", 4 << 10), ("256K", 256 << 10)] {
        for payload in [Payload::Random, Payload::Semi] {
            let log = shape(io_bytes, payload, 1, input_bytes()).wlog().unwrap();
            group.throughput(Throughput::Bytes(log.len() as u64));
            for file_type in [FileType::Sorted, FileType::Indexed] {
                let name = format!("{io_name} {payload:?} {file_type}");
                let options = options(file_type, "snappy", threads());
                group
                    .bench_function(name, |b| b.iter(|| to_wdiff(&log, std::io::sink(), &options)));
            }
        }
    }
    group.finish();
}

const INPUTS: u64 = 8;

/// Eight diffs of logs that lie over each other.
fn diffs(payload: Payload, file_type: FileType) -> Vec<Bytes> {
    let each = input_bytes() / 8;
    let log = |seed| shape(16 << 10, payload, seed + 100, each).wlog().unwrap();
    let options = options(file_type, "snappy", threads());
    (0..INPUTS).map(|seed| Bytes::from(to_wdiff(&log(seed), Vec::new(), &options))).collect()
}

fn merger(diffs: &[Bytes], file_type: FileType) -> Merger {
    let open = |bytes: &Bytes| -> Records {
        let bytes = bytes.clone();
        match file_type {
            FileType::Sorted => {
                Box::new(SortedReader::new(std::io::Cursor::new(bytes), "sorted").unwrap())
            }
            FileType::Indexed => Box::new(IndexedReader::new(bytes, "indexed").unwrap()),
        }
    };
    Merger::new(diffs.iter().map(open).collect(), MaxIo::default(), Pieces::Joined).unwrap()
}

fn merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge");
    group.throughput(Throughput::Bytes(input_bytes() as u64));
    for (file_type, payload, compression, threads) in [
        (FileType::Sorted, Payload::Semi, "snappy", 1),
        (FileType::Sorted, Payload::Semi, "snappy", threads()),
        (FileType::Sorted, Payload::Semi, "none", threads()),
        (FileType::Sorted, Payload::Semi, "zstd", threads()),
        (FileType::Sorted, Payload::Random, "snappy", threads()),
        (FileType::Indexed, Payload::Semi, "snappy", threads()),
    ] {
        let diffs = diffs(payload, file_type);
        let options = options(FileType::Sorted, compression, threads);
        let name = format!("8 {file_type} {payload:?} to {compression}, {threads} threads");
        group.bench_function(name, |b| {
            b.iter(|| write_records(merger(&diffs, file_type), std::io::sink(), &options).unwrap());
        });
    }
    group.finish();
}

/// An image of which only the cost of handing over the data is measured.
struct Memory(Mutex<Vec<u8>>);

impl WriteAt for Memory {
    fn write_all_at(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        self.0.lock().unwrap()[from..from + data.len()].copy_from_slice(data);
        Ok(())
    }
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    group.throughput(Throughput::Bytes(input_bytes() as u64));
    let image = Memory(Mutex::new(vec![0; usize::try_from(DEVICE_BYTES).unwrap()]));
    for file_type in [FileType::Sorted, FileType::Indexed] {
        let diffs = diffs(Payload::Semi, file_type);
        let options = RedoOptions {
            discards: Discards::Zero,
            beyond_end: BeyondEnd::Fail,
            image_blocks: Lb::from_bytes(DEVICE_BYTES),
            threads: threads(),
        };
        group.bench_with_input(BenchmarkId::new("8 merged", file_type), &diffs, |b, diffs| {
            b.iter(|| redo(merger(diffs, file_type), &image, &options).unwrap());
        });
    }
    group.finish();
}

/// Records of a log, as they come.
fn records(payload: Payload) -> Vec<DiffRecord> {
    let pieces = payloads(payload, 16 << 10, input_bytes() >> 14);
    let blocks = Lb::from_bytes(DEVICE_BYTES).0 / 32;
    let place = |n: u64| Lb(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks * 32);
    (0..).zip(pieces).map(|(n, piece)| DiffRecord::from_raw(place(n), piece).unwrap()).collect()
}

fn codec_pool(c: &mut Criterion) {
    let mut group = c.benchmark_group("codec pool");
    group.throughput(Throughput::Bytes(input_bytes() as u64));
    let records = records(Payload::Semi);
    for threads in [1, threads()] {
        for compression in ["snappy", "lz4", "zstd"] {
            let compression = compression.parse().unwrap();
            let encode = || {
                let input = records.iter().cloned().map(Ok);
                CodecPool::new(input, |codec, record| record.encode(codec), compression, threads)
            };
            group.bench_function(format!("compress {compression}, {threads} threads"), |b| {
                b.iter(|| encode().for_each(|record| drop(record.unwrap())));
            });
        }
    }
    group.finish();
}

/// Records without data, so that the index alone is measured.
fn index_insert(c: &mut Criterion) {
    const COUNT: u64 = 20_000;
    let mut group = c.benchmark_group("index insert");
    group.throughput(Throughput::Elements(COUNT));
    let mut codec = Codec::new(Compression::NONE);
    let mut encoded = |n: u64, blocks: u32| {
        let slots = Lb::from_bytes(DEVICE_BYTES).0 / 8;
        let address = Lb(n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % slots * 8);
        let record = DiffRecord { address, blocks, payload: record::Payload::AllZero };
        record.encode(&mut codec).unwrap()
    };
    for (name, blocks) in [("4K", 8), ("64K, over each other", 128)] {
        let records: Vec<_> = (0..COUNT).map(|n| encoded(n, blocks)).collect();
        group.bench_function(name, |b| {
            b.iter(|| {
                let max_io = MaxIo::default();
                let mut writer =
                    IndexedWriter::new(std::io::sink(), LogUuid::ZERO, max_io).unwrap();
                records.iter().for_each(|record| writer.add(record).unwrap());
                writer.finish().unwrap()
            });
        });
    }
    group.finish();
}

fn virtual_image(c: &mut Criterion) {
    let mut group = c.benchmark_group("virtual image");
    let size = (4 * input_bytes()) as u64;
    group.throughput(Throughput::Bytes(size));
    let base = Bytes::from(vec![7; 4 * input_bytes()]);
    let mut step = vec![0; 1 << 20];
    let within = LogShape { device_bytes: size, ..shape(16 << 10, Payload::Semi, 3, 0) };
    for n in [0_u64, 4] {
        let options = options(FileType::Sorted, "snappy", threads());
        let log = |seed| {
            let total_bytes = input_bytes() / 8;
            LogShape { seed, total_bytes, ..within }.wlog().unwrap()
        };
        let diffs: Vec<_> = (0..n)
            .map(|seed| Bytes::from(to_wdiff(&log(seed + 1), Vec::new(), &options)))
            .collect();
        group.bench_function(format!("base and {n} diffs"), |b| {
            b.iter(|| {
                let merged = merger(&diffs, FileType::Sorted);
                let fail = BeyondEnd::Fail;
                let mut image = VirtualImage::new(base.clone(), size, merged, fail, threads());
                while image.read(&mut step).unwrap() > 0 {}
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = wdiff;
    config = Criterion::default().sample_size(10);
    targets = codec_pool, index_insert, conversion, merge, apply, virtual_image
}
criterion_main!(wdiff);
