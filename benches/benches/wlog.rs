//! What every write passes: the checksum of its data, the header of its pack, and the check of the
//! pack when it is read back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a benchmark may panic"
)]

use benches::{LogShape, Payload, input_bytes, payloads};
use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wlog_format::checksum::checksum;
use wlog_format::pack::{Add, PackBuilder, PackHeader};
use wlog_format::ring::Ring;
use wlog_format::stream::WlogReader;
use wlog_format::units::{BlockSize, Lb, Lsid, Pb, Salt};

const SALT: Salt = Salt(4711);
const BLOCK_SIZE: BlockSize = BlockSize::B4096;

fn checksums(c: &mut Criterion) {
    let mut group = c.benchmark_group("checksum");
    for (name, bytes) in [("512", 512), ("4K", 4 << 10), ("256K", 256 << 10)] {
        let data = payloads(Payload::Random, bytes, 1).remove(0);
        group.throughput(Throughput::Bytes(bytes as u64));
        group.bench_function(name, |b| b.iter(|| checksum(&data, SALT)));
    }
    group.finish();
}

/// A pack of as many writes of 4 KiB as go into one.
fn full_header(ring: Ring) -> PackHeader {
    let mut builder = PackBuilder::new(Lsid(7), ring, SALT, Pb(4096));
    let mut address = Lb(0);
    while let Add::Added(_) = builder.try_add_write(address, Lb(8), 0x1234_5678) {
        address += Lb(16);
    }
    builder.finish().unwrap()
}

fn headers(c: &mut Criterion) {
    let mut group = c.benchmark_group("logpack header");
    let ring = Ring::new(BLOCK_SIZE, Pb(2), Pb(1 << 30)).unwrap();
    let header = full_header(ring);
    group.throughput(Throughput::Elements(header.records().len() as u64));
    group.bench_function("build", |b| b.iter(|| full_header(ring)));
    let mut block = header.encode();
    group.bench_function("encode", |b| b.iter(|| header.encode_into(&mut block)));
    group.bench_function("decode", |b| {
        b.iter(|| PackHeader::decode(&block, BLOCK_SIZE, SALT, Lsid(7)).unwrap());
    });
    group.finish();
}

fn packs(c: &mut Criterion) {
    let mut group = c.benchmark_group("logpack decode and check");
    for (name, io_bytes) in [("4K", 4 << 10), ("256K", 256 << 10)] {
        let shape = LogShape {
            io_bytes: (io_bytes, io_bytes),
            device_bytes: 256 << 20,
            total_bytes: input_bytes(),
            payload: Payload::Random,
            seed: 1,
        };
        let log = Bytes::from(shape.wlog().unwrap());
        group.throughput(Throughput::Bytes(log.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut reader = WlogReader::new(&*log).unwrap();
                while reader.next_pack().unwrap().is_some() {}
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = wlog;
    config = Criterion::default().sample_size(10);
    targets = checksums, headers, packs
}
criterion_main!(wlog);
