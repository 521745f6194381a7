//! Packs that a power cut left behind the torn end of the log are never replayed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use block_io::device::BlockDevice;
use block_io::sim::Survival;
use common::{SECTOR, bench_with, payload, quiet, read, reopen};
use device_server::{RedoOptions, StaleSearch, redo};
use wlog_format::superblock::SuperBlock;
use wlog_format::units::{BlockSize, Lsid};

/// Three writes of one pack each, of which only the last reached the log device in a power cut: the
/// image of the log device, the lsids of the packs, and the image of the data device.
async fn log_with_a_stale_pack(block_size: BlockSize) -> (Vec<u8>, Vec<Lsid>, Vec<u8>) {
    let bench = bench_with(400 << 10, 1 << 20, block_size, quiet()).await;
    let mut begins = Vec::new();
    for stamp in 0..3 {
        begins.push(bench.volume.status().positions.latest);
        let sector = u64::from(stamp) * 100;
        bench.volume.write(sector * SECTOR as u64, payload(stamp, sector, 8), false).await.unwrap();
    }
    let durable = bench.log.power_cut(Survival::Nothing);
    let written = bench.log.image();
    let data = bench.data.power_cut(Survival::Nothing);
    let ring = bench.volume.status().ring;
    let third = ring.byte_offset(begins[2]) as usize;
    let mut log = durable;
    log[third..].copy_from_slice(&written[third..]);
    (log, begins, data)
}

async fn stale_pack_is_not_replayed(block_size: BlockSize) {
    let (log, begins, data) = log_with_a_stale_pack(block_size).await;
    let bench = reopen(log, data, quiet()).await;
    assert_eq!(bench.volume.status().positions.latest, begins[0], "nothing sound survived");
    // Two writes that end exactly where the stale pack begins.
    for stamp in [7, 8] {
        bench.volume.write(0, payload(stamp, 0, 8), false).await.unwrap();
    }
    bench.volume.flush().await.unwrap();
    assert_eq!(bench.volume.status().positions.latest, begins[2]);
    let (log, data) =
        (bench.log.power_cut(Survival::Nothing), bench.data.power_cut(Survival::Nothing));
    let bench = reopen(log, data, quiet()).await;
    assert_eq!(
        bench.volume.status().positions.latest,
        begins[2],
        "the stale pack is no part of it"
    );
    assert_eq!(read(&bench.volume, 0, 8 * SECTOR).await, payload(8, 0, 8));
    let stale = read(&bench.volume, 200 * SECTOR as u64, 8 * SECTOR).await;
    assert!(stale.iter().all(|byte| *byte == 0), "a write came back that redo had given up");
}

#[tokio::test]
async fn a_stale_pack_is_not_replayed_by_a_later_redo() {
    stale_pack_is_not_replayed(BlockSize::B512).await;
}

#[tokio::test]
async fn a_stale_pack_is_not_replayed_by_a_later_redo_with_blocks_of_4096() {
    stale_pack_is_not_replayed(BlockSize::B4096).await;
}

#[tokio::test]
async fn redo_reports_stale_packs_and_leaves_nothing_for_a_second_one() {
    for stale in [StaleSearch::Window, StaleSearch::WholeRing] {
        let (log, _, data) = log_with_a_stale_pack(BlockSize::B512).await;
        let log: std::sync::Arc<dyn BlockDevice> =
            block_io::sim::SimDisk::from_image("log", log, 512);
        let data: std::sync::Arc<dyn BlockDevice> =
            block_io::sim::SimDisk::from_image("data", data, 512);
        let options = RedoOptions { stale, ..RedoOptions::default() };
        assert_eq!(redo(&log, &data, options).await.unwrap().1.stale_packs, 1);
        assert_eq!(redo(&log, &data, options).await.unwrap().1.stale_packs, 0);
    }
}

/// The first record of the torn pack is damaged (formats.md §4.6, case i = 0): its own sound header
/// must go too, or it would be stale itself.
#[tokio::test]
async fn the_header_of_a_pack_without_sound_record_does_not_stay() {
    let bench = bench_with(400 << 10, 1 << 20, BlockSize::B512, quiet()).await;
    bench.volume.write(0, payload(1, 0, 8), true).await.unwrap();
    let ring = bench.volume.status().ring;
    let (mut log, data) = (bench.log.power_cut(Survival::Nothing), bench.data.image());
    let super_block = SuperBlock::decode(&log[4096..]).unwrap();
    let at = ring.byte_offset(super_block.written) as usize;
    log[at + 512 + 100] ^= 1;
    let bench = reopen(log, data, quiet()).await;
    assert_eq!(bench.volume.status().positions.latest, Lsid(0));
    let log = bench.log.image();
    assert!(log[at..at + 512] != payload(1, 0, 1)[..]);
    let decoded = wlog_format::pack::PackHeader::decode(
        &log[at..],
        BlockSize::B512,
        super_block.salt,
        Lsid(0),
    );
    assert!(decoded.is_err(), "the header is still there");
}
