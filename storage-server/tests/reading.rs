//! Reading the log and scanning the data device, on simulated disks: what comes out is what lies
//! there, whatever the geometry; reads overlap; memory is what was granted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::sync::Arc;
use std::time::Duration;

use block_io::device::{BlockDevice, Operation};
use block_io::sim::{Fault, SimDisk, When};
use bytes::Bytes;
use futures::TryStreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use server_kit::error::{Reason, RoleError};
use server_kit::packing::{Way, pack};
use server_kit::scan::{self, Content};
use storage_server::budget::Budget;
use storage_server::log::Log;
use storage_server::reader::PackReader;
use tokio::time::Instant;
use wlog_format::checksum::checksum;
use wlog_format::pack::{Add, PackBuilder};
use wlog_format::superblock::{DeviceName, SUPER_OFFSET_BYTES, SuperBlock};
use wlog_format::units::{BlockSize, Lb, Lsid, Pb, to_usize};

const MIB: u64 = 1 << 20;

/// A log device with packs on it, and what a reader must find.
struct Written {
    disk: Arc<SimDisk>,
    log: Arc<Log>,
    begin: Lsid,
    /// The end of each pack.
    ends: Vec<Lsid>,
    bytes: Vec<u8>,
}

/// Packs of up to `max_write` bytes of data in two records, `total` bytes of log from `begin` on.
async fn written(
    block_size: BlockSize,
    sector: u32,
    ring_mib: u64,
    begin: Lsid,
    total: u64,
    max_write: u64,
) -> Written {
    let disk = SimDisk::new("log", to_usize(ring_mib * MIB + (64 << 10)), sector);
    let superblock =
        SuperBlock::for_format(disk.size_bytes(), block_size, Lb(1 << 20), DeviceName::default())
            .unwrap();
    let mut block = superblock.encode();
    block.resize(4096, 0);
    disk.write(SUPER_OFFSET_BYTES, vec![block.into()]).await.unwrap();
    let ring = superblock.ring(disk.size_bytes()).unwrap();
    let mut image = disk.image();
    let mut rng = StdRng::seed_from_u64(7);
    let (mut at, mut ends, mut bytes) = (begin, Vec::new(), Vec::new());
    while (bytes.len() as u64) < total {
        let mut builder = PackBuilder::new(at, ring, superblock.salt, Pb(65535));
        let mut payloads = Vec::new();
        for _ in 0..2 {
            let mut data = vec![0; to_usize(rng.random_range(1..=max_write / 512) * 512)];
            rng.fill(&mut data[..]);
            let sum = checksum(&data, superblock.salt);
            match builder.try_add_write(Lb(0), Lb::from_bytes(data.len() as u64), sum) {
                Add::Added(lsid) => payloads.push((lsid, data)),
                Add::Full => break,
                Add::TooLarge => panic!("the test writes too much at once"),
            }
        }
        let header = builder.finish().unwrap();
        let end = header.next_lsid();
        let mut pack = vec![0x5a; to_usize(block_size.bytes_of(end.distance_from(at)))];
        header.encode_into(&mut pack);
        for (lsid, data) in payloads {
            let offset = to_usize(block_size.bytes_of(lsid.distance_from(at)));
            pack[offset..offset + data.len()].copy_from_slice(&data);
        }
        for segment in ring.segments(at, end.distance_from(at)) {
            let from = to_usize(block_size.bytes_of(segment.lsid.distance_from(at)));
            let len = to_usize(block_size.bytes_of(segment.blocks));
            let to = to_usize(segment.byte_offset);
            image[to..to + len].copy_from_slice(&pack[from..from + len]);
        }
        bytes.extend_from_slice(&pack);
        at = end;
        ends.push(at);
    }
    assert!(bytes.len() as u64 <= ring_mib * MIB, "the ring is written over");
    let disk = SimDisk::from_image("log", image, sector);
    let device: Arc<dyn BlockDevice> = disk.clone();
    let log = Arc::new(Log::open(device, superblock.uuid).await.unwrap());
    Written { disk, log, begin, ends, bytes }
}

async fn read(
    written: &Written,
    limit: Lsid,
    budget: &Budget,
) -> Result<(Vec<u8>, Lsid), RoleError> {
    let (log, volume) = (Arc::clone(&written.log), "v".parse().unwrap());
    let mut reader = PackReader::open(log, volume, budget.clone(), written.begin, limit).await;
    let mut bytes = Vec::new();
    while let Some(piece) = reader.next().await? {
        assert!(!piece.is_empty() && piece.len() <= 1 << 20, "it fits a message");
        bytes.extend_from_slice(&piece);
    }
    Ok((bytes, reader.reached()))
}

#[tokio::test]
async fn what_is_read_is_what_lies_on_the_ring_whatever_its_geometry() {
    for (block_size, sector) in
        [(BlockSize::B512, 512), (BlockSize::B512, 4096), (BlockSize::B4096, 512)]
    {
        // Begins shortly before the ring end, wraps once.
        let ring = 8 * MIB / u64::from(block_size.bytes());
        let begin = Lsid(5 * ring - 100);
        let written = written(block_size, sector, 8, begin, 3 * MIB, 300 << 10).await;
        let end = *written.ends.last().unwrap();
        let budget = Budget::new(64 * MIB);
        let (bytes, reached) = read(&written, end, &budget).await.unwrap();
        assert_eq!(reached, end);
        assert!(bytes == written.bytes, "{block_size:?} {sector}");
    }
}

#[tokio::test]
async fn a_limit_inside_a_pack_ends_before_that_pack() {
    let begin = Lsid(1000);
    let written = written(BlockSize::B4096, 4096, 8, begin, 2 * MIB, 200 << 10).await;
    let budget = Budget::new(64 * MIB);
    for (index, end) in written.ends.iter().enumerate() {
        let limit = Lsid(end.0 - 1);
        let before = if index == 0 { written.begin } else { written.ends[index - 1] };
        let (bytes, reached) = read(&written, limit, &budget).await.unwrap();
        assert_eq!(reached, before);
        let len = BlockSize::B4096.bytes_of(before.distance_from(begin));
        assert!(bytes == written.bytes[..to_usize(len)]);
    }
}

#[tokio::test]
async fn packs_larger_than_all_memory_are_read_alone_and_nobody_waits_for_ever() {
    let written = written(BlockSize::B4096, 4096, 32, Lsid(0), 12 * MIB, 3 * MIB).await;
    let end = *written.ends.last().unwrap();
    let budget = Budget::new(10 * MIB);
    let readers = (0..3).map(|_| read(&written, end, &budget));
    let all = tokio::time::timeout(Duration::from_secs(60), futures::future::join_all(readers));
    for result in all.await.expect("a deadlock") {
        let (bytes, reached) = result.unwrap();
        assert!(reached == end && bytes == written.bytes);
    }
}

#[tokio::test(start_paused = true)]
async fn several_reads_are_in_flight() {
    let written = written(BlockSize::B4096, 4096, 16, Lsid(0), 10 * MIB, 64 << 10).await;
    let latency = Duration::from_millis(10);
    written.disk.set_latency(1, latency..latency + Duration::from_nanos(1));
    let (begin, budget) = (Instant::now(), Budget::new(64 * MIB));
    read(&written, *written.ends.last().unwrap(), &budget).await.unwrap();
    let reads = u32::try_from(written.disk.calls(Operation::Read)).unwrap();
    assert!(reads >= 10, "{reads}");
    assert!(begin.elapsed() <= latency * reads / 2, "{reads} reads took {:?}", begin.elapsed());
}

#[tokio::test]
async fn what_lies_before_an_error_of_the_device_is_given_first() {
    let written = written(BlockSize::B4096, 4096, 8, Lsid(0), 4 * MIB, 64 << 10).await;
    written.disk.inject(Operation::Read, When::Nth(3), Fault::Error(nix::errno::Errno::EIO));
    let (end, budget) = (*written.ends.last().unwrap(), Budget::new(64 * MIB));
    let (log, volume) = (Arc::clone(&written.log), "v".parse().unwrap());
    let mut reader = PackReader::open(log, volume, budget, written.begin, end).await;
    let mut bytes = Vec::new();
    let error = loop {
        match reader.next().await {
            Ok(piece) => bytes.extend_from_slice(&piece.expect("the log goes on")),
            Err(error) => break error,
        }
    };
    assert_eq!(error.reason(), Reason::Io);
    assert!(bytes.len() as u64 >= MIB, "{} of the 2 MiB before the error", bytes.len());
    assert!(written.bytes.starts_with(&bytes));
}

#[tokio::test]
async fn an_error_of_the_device_and_a_broken_pack_are_told_apart() {
    let written = written(BlockSize::B4096, 4096, 8, Lsid(0), 3 * MIB, 200 << 10).await;
    let (end, budget) = (*written.ends.last().unwrap(), Budget::new(64 * MIB));
    let eio = Fault::Error(nix::errno::Errno::EIO);
    written.disk.inject(Operation::Read, When::Nth(2), eio);
    assert_eq!(read(&written, end, &budget).await.unwrap_err().reason(), Reason::Io);
    written.disk.clear_faults();
    // Beyond what was written there is no log.
    let beyond = Lsid(end.0 + 10);
    let error = read(&written, beyond, &budget).await.unwrap_err();
    assert_eq!(error.reason(), Reason::Damaged);
    let text = error.full_message();
    for part in ["volume v", &format!("lsid {end}"), "sim:log"] {
        assert!(text.contains(part), "{text} lacks {part}");
    }
}

#[tokio::test]
async fn the_log_of_another_history_or_volume_is_refused() {
    let written = written(BlockSize::B4096, 4096, 8, Lsid(0), MIB, 64 << 10).await;
    let device: Arc<dyn BlockDevice> = written.disk.clone();
    let other = wlog_format::units::LogUuid::random();
    assert_eq!(Log::open(device, other).await.unwrap_err().reason(), Reason::WrongPeer);
    let blank = SimDisk::new("blank", 1 << 20, 512);
    assert_eq!(Log::open(blank, other).await.unwrap_err().reason(), Reason::Damaged);
}

#[tokio::test]
async fn a_scan_gives_every_byte_once_and_zeroes_as_such() {
    const BULK: usize = 64 << 10;
    let mut image = vec![0; 3 << 20];
    let mut rng = StdRng::seed_from_u64(3);
    // Data of odd sizes at odd places, up to the very end.
    for (from, to) in
        [(0, 1), (100_000, 300_000), (1 << 20, (1 << 20) + BULK), (3_100_000, 3 << 20)]
    {
        rng.fill(&mut image[from..to]);
        image[to - 1] = 1;
    }
    // The volume is smaller than the device and ends inside one of its sectors.
    let size = (3 << 20) - 512;
    for start in [0, 1 << 20] {
        let disk: Arc<dyn BlockDevice> = SimDisk::from_image("data", image.clone(), 4096);
        let bulks: Vec<_> =
            scan::bulks(disk, start, size, BULK as u64).try_collect().await.unwrap();
        let (mut at, mut zeros) = (start, 0);
        for bulk in &bulks {
            assert_eq!(bulk.offset, at);
            let expected = &image[to_usize(at)..to_usize(at + bulk.len())];
            match &bulk.content {
                Content::Data(data) => assert!(**data == *expected && data.len() <= BULK),
                Content::Zeros(_) => assert!(expected.iter().all(|b| *b == 0)),
            }
            zeros += u64::from(matches!(bulk.content, Content::Zeros(_)));
            at += bulk.len();
        }
        assert_eq!(at, size);
        assert!(zeros > 10, "{zeros}");
    }
}

#[tokio::test]
async fn a_chunk_is_what_the_kit_takes_apart() {
    for data in [vec![0; 1 << 20], (0..=255).cycle().take(5000).collect(), vec![7]] {
        let data = Bytes::from(data);
        let chunk = pack(data.clone(), Way::Compressed).chunk().await.unwrap();
        assert!(chunk.data.len() <= data.len());
        assert_eq!(server_kit::chunks::decode(chunk).unwrap(), data);
    }
}
