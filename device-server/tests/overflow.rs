//! The ring: it wraps, it is never written over too early (I4), and what happens when it is full.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use block_io::device::{BlockDevice, Operation};
use block_io::sim::{Fault, Gate, SimDisk, Survival, When};
use common::{Bench, SECTOR, bench_with, payload, quiet, read, reopen};
use device_server::{OverflowPolicy, VolumeError, VolumeOptions};
use wlog_format::stream::PackDecoder;
use wlog_format::units::{BlockSize, Lsid};

const BLOCK_SIZES: [BlockSize; 2] = [BlockSize::B512, BlockSize::B4096];

fn with(policy: OverflowPolicy) -> VolumeOptions {
    VolumeOptions { policy, log_flush_interval: Duration::from_millis(1), ..quiet() }
}

/// A ring of some 90 blocks.
async fn small(block_size: BlockSize, policy: OverflowPolicy) -> Bench {
    let log_bytes = 100 * block_size.as_usize() + 4096;
    bench_with(log_bytes, 1 << 20, block_size, with(policy)).await
}

/// The log from `oldest` to `latest`, decoded from the image of the log device: must be whole
/// packs.
fn decode_log(bench: &Bench) -> usize {
    let status = bench.volume.status();
    let (oldest, latest) = (status.positions.oldest, status.positions.latest);
    let image = bench.log.image();
    let mut decoder = PackDecoder::new(status.ring.block_size(), status.salt, oldest);
    for segment in status.ring.segments(oldest, latest.distance_from(oldest)) {
        let len = status.ring.block_size().bytes_of(segment.blocks) as usize;
        let at = segment.byte_offset as usize;
        decoder.push(image[at..at + len].to_vec().into());
    }
    let mut packs = 0;
    while let Some(pack) = decoder.next_pack().expect("the live log is sound") {
        packs += 1;
        assert!(!pack.header.records().is_empty());
    }
    assert_eq!(decoder.finish().unwrap(), latest);
    packs
}

#[tokio::test]
async fn the_log_stays_sound_over_many_laps_of_the_ring() {
    for block_size in BLOCK_SIZES {
        let bench = small(block_size, OverflowPolicy::Stall).await;
        let mut packs = 0;
        for stamp in 0..300_u32 {
            let sectors = 1 + u64::from(stamp * 7 % 19);
            let sector = u64::from(stamp * 31 % 1500);
            let offset = sector * SECTOR as u64;
            bench.volume.write(offset, payload(stamp, sector, sectors), false).await.unwrap();
            packs += decode_log(&bench);
            if stamp % 3 == 0 {
                bench.volume.take_checkpoint().await.unwrap();
                let released = bench.volume.status().positions.prev_written;
                bench.volume.set_oldest(released).await.unwrap();
            }
        }
        let status = bench.volume.status();
        assert!(status.positions.latest.0 > 5 * status.ring.size().0, "several laps");
        assert!(packs > 300 && !status.overflow);
    }
}

/// Writes until the ring is full; returns how many went in.
async fn fill(bench: &Bench) -> u32 {
    for stamp in 0.. {
        let write = bench.volume.write(0, payload(stamp, 0, 8), false);
        match tokio::time::timeout(Duration::from_millis(300), write).await {
            Ok(Ok(())) => {}
            Ok(Err(VolumeError::LogFull)) | Err(_) => return stamp,
            Ok(Err(other)) => panic!("{other}"),
        }
        assert!(stamp < 1000, "the ring never got full");
    }
    unreachable!()
}

#[tokio::test(start_paused = true)]
async fn overwrite_goes_on_and_says_so_until_the_log_is_reset() {
    for block_size in BLOCK_SIZES {
        let bench = small(block_size, OverflowPolicy::Overwrite).await;
        for stamp in 0..200 {
            bench.volume.write(0, payload(stamp, 0, 8), false).await.unwrap();
        }
        assert!(bench.volume.status().overflow);
        assert!(matches!(bench.volume.set_oldest(Lsid(0)).await, Err(VolumeError::Overflow)));
        // A restart does not forget it.
        bench.volume.flush().await.unwrap();
        let (log, data) =
            (bench.log.power_cut(Survival::Nothing), bench.data.power_cut(Survival::Nothing));
        let bench = reopen(log, data, with(OverflowPolicy::Overwrite)).await;
        assert!(bench.volume.status().overflow);
        assert_eq!(read(&bench.volume, 0, 8 * SECTOR).await, payload(199, 0, 8));
        bench.volume.reset_log().await.unwrap();
        let status = bench.volume.status();
        assert!(!status.overflow && status.positions.latest == Lsid(0));
        let bench = reopen(bench.log.image(), bench.data.image(), quiet()).await;
        assert!(!bench.volume.status().overflow);
    }
}

/// The first pack that runs over the oldest logs may be lost in a crash; that it began must not be.
#[tokio::test(start_paused = true)]
async fn an_overflow_is_on_record_before_it_happens() {
    let bench = small(BlockSize::B512, OverflowPolicy::Overwrite).await;
    let mut stamp = 0;
    loop {
        bench.volume.take_checkpoint().await.unwrap();
        bench.volume.write(0, payload(stamp, 0, 8), false).await.unwrap();
        if bench.volume.status().overflow {
            break;
        }
        stamp += 1;
    }
    let (log, data) =
        (bench.log.power_cut(Survival::Nothing), bench.data.power_cut(Survival::Nothing));
    let bench = reopen(log, data, quiet()).await;
    let status = bench.volume.status();
    assert!(status.positions.latest.distance_from(status.positions.oldest) <= status.ring.size());
    assert!(status.overflow, "the log that was lost is not missed");
}

#[tokio::test(start_paused = true)]
async fn stall_waits_until_logs_are_released() {
    for block_size in BLOCK_SIZES {
        let bench = small(block_size, OverflowPolicy::Stall).await;
        fill(&bench).await;
        let volume = Arc::clone(&bench.volume);
        let write = tokio::spawn(async move { volume.write(0, payload(77, 0, 8), false).await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!write.is_finished());
        // Reads, flushes and administration go on meanwhile.
        read(&bench.volume, 0, 4096).await;
        bench.volume.flush().await.unwrap();
        bench.volume.take_checkpoint().await.unwrap();
        let released = bench.volume.status().positions.prev_written;
        bench.volume.set_oldest(released).await.unwrap();
        write.await.unwrap().unwrap();
        assert!(!bench.volume.status().overflow);
        assert_eq!(read(&bench.volume, 0, 4096).await, payload(77, 0, 8));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_volume_can_be_reset_and_closed() {
    let bench = small(BlockSize::B512, OverflowPolicy::Stall).await;
    fill(&bench).await;
    let volume = Arc::clone(&bench.volume);
    let write = tokio::spawn(async move { volume.write(0, payload(77, 0, 8), false).await });
    tokio::task::yield_now().await;
    bench.volume.reset_log().await.unwrap();
    write.await.unwrap().unwrap();
    fill(&bench).await;
    let volume = Arc::clone(&bench.volume);
    let write = tokio::spawn(async move { volume.write(0, payload(78, 0, 8), false).await });
    tokio::task::yield_now().await;
    bench.volume.close().await.unwrap();
    assert!(matches!(write.await.unwrap(), Err(VolumeError::Stopping)));
}

#[tokio::test(start_paused = true)]
async fn error_refuses_writes_until_logs_are_released() {
    for block_size in BLOCK_SIZES {
        let bench = small(block_size, OverflowPolicy::Error).await;
        let stamps = fill(&bench).await;
        let refused = bench.volume.write(4096, payload(500, 8, 8), false).await;
        assert!(matches!(refused, Err(VolumeError::LogFull)));
        assert_eq!(read(&bench.volume, 4096, 4096).await, vec![0; 4096], "it was not done");
        assert_eq!(read(&bench.volume, 0, 4096).await, payload(stamps - 1, 0, 8));
        bench.volume.take_checkpoint().await.unwrap();
        let released = bench.volume.status().positions.prev_written;
        bench.volume.set_oldest(released).await.unwrap();
        bench.volume.write(4096, payload(501, 8, 8), false).await.unwrap();
        assert!(!bench.volume.status().overflow);
    }
}

/// While the data device hangs nothing can be checkpointed, so redo needs every log: whatever the
/// policy, they are not written over.
#[tokio::test(start_paused = true)]
async fn logs_that_redo_needs_are_not_written_over_under_any_policy() {
    for policy in [OverflowPolicy::Overwrite, OverflowPolicy::Stall, OverflowPolicy::Error] {
        let bench = small(BlockSize::B512, policy).await;
        let gate = Gate::new();
        bench.data.inject(Operation::Write, When::From(0), Fault::Hang(gate.clone()));
        let stamps = fill(&bench).await;
        bench.volume.flush().await.unwrap();
        let status = bench.volume.status();
        assert_eq!(status.positions.prev_written, Lsid(0));
        assert!(status.positions.latest.0 <= status.ring.size().0);
        // The power goes: redo finds all of them.
        let (log, data) =
            (bench.log.power_cut(Survival::Nothing), bench.data.power_cut(Survival::Nothing));
        let again = reopen(log, data, quiet()).await;
        assert_eq!(read(&again.volume, 0, 4096).await, payload(stamps - 1, 0, 8));
    }
}

#[tokio::test]
async fn oldest_moves_only_to_pack_boundaries_that_redo_does_not_need() {
    let bench = bench_with(400 << 10, 1 << 20, BlockSize::B512, quiet()).await;
    for stamp in 0..3 {
        bench.volume.write(0, payload(stamp, 0, 8), true).await.unwrap();
    }
    assert_eq!(bench.volume.status().positions.latest, Lsid(27));
    assert!(bench.volume.set_oldest(Lsid(9)).await.is_err(), "redo needs it");
    bench.volume.take_checkpoint().await.unwrap();
    for inside in [1, 8, 10, 26, 28, u64::MAX] {
        assert!(bench.volume.set_oldest(Lsid(inside)).await.is_err(), "{inside}");
    }
    bench.volume.set_oldest(Lsid(9)).await.unwrap();
    assert!(bench.volume.set_oldest(Lsid(0)).await.is_err(), "it does not go back");
    bench.volume.set_oldest(Lsid(27)).await.unwrap();
    let bench = reopen(bench.log.image(), bench.data.image(), quiet()).await;
    assert_eq!(bench.volume.status().positions.oldest, Lsid(27), "it is durable");
}

/// A write longer than a quarter of the ring becomes several records.
#[tokio::test(start_paused = true)]
async fn a_write_larger_than_the_ring_goes_through() {
    for block_size in BLOCK_SIZES {
        let bench = small(block_size, OverflowPolicy::Overwrite).await;
        bench.volume.write(0, payload(1, 0, 2048), false).await.unwrap();
        assert_eq!(read(&bench.volume, 0, 1 << 20).await, payload(1, 0, 2048));
        bench.volume.close().await.unwrap();
        assert_eq!(bench.data.image(), payload(1, 0, 2048));
    }
}

#[tokio::test]
async fn pending_memory_is_bounded() {
    let options = VolumeOptions { max_pending_bytes: device_server::MIN_PENDING_BYTES, ..quiet() };
    let bench = bench_with(64 << 20, 32 << 20, BlockSize::B4096, options).await;
    let gate = Gate::new();
    bench.data.inject(Operation::Write, When::From(0), Fault::Hang(gate.clone()));
    let volume = Arc::clone(&bench.volume);
    let write = tokio::spawn(async move { volume.write(0, payload(1, 0, 32768), false).await });
    let mut status = bench.volume.watch();
    let limit = device_server::MIN_PENDING_BYTES;
    status.wait_for(|s| s.pending_bytes == limit || s.failure.is_some()).await.unwrap();
    assert!(!write.is_finished(), "16 MiB do not fit");
    gate.open();
    write.await.unwrap().unwrap();
    assert!(bench.volume.status().pending_bytes <= limit);
    bench.volume.close().await.unwrap();
    assert_eq!(bench.volume.status().pending_bytes, 0);
    let _: &SimDisk = &bench.data;
    assert_eq!(bench.data.size_bytes(), 32 << 20);
}
