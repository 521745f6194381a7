//! I/O errors: the volume stops taking writes, acknowledges nothing, says why; reads go on, and a
//! restart repairs it.
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

use block_io::device::Operation;
use block_io::nbd::ExportError;
use block_io::sim::{Fault, Gate, Survival, When};
use common::{Bench, SECTOR, bench, payload, quiet, read, reopen};
use device_server::{VolumeError, VolumeOptions};
use nix::errno::Errno;

async fn usual() -> Bench {
    bench(400 << 10, 1 << 20, quiet()).await
}

/// An NBD client of a full device hears ENOSPC, of any other bad one EIO.
fn has_failed(result: &Result<(), VolumeError>, full: bool) {
    let as_expected = match result {
        Err(VolumeError::NoSpace(_)) => full,
        Err(VolumeError::Failed(_)) => !full,
        _ => false,
    };
    assert!(as_expected, "{result:?}");
    let seen = ExportError::from(result.clone().unwrap_err());
    assert!(if full {
        matches!(seen, ExportError::NoSpace(_))
    } else {
        matches!(seen, ExportError::Io(_))
    });
}

async fn must_have_failed(bench: &Bench, what: &str) {
    let status = bench.volume.status();
    let failure = status.failure.expect("the volume has failed");
    assert!(failure.contains(what), "{failure}");
    let full = failure.contains("No space left");
    let refused = bench.volume.write(0, payload(99, 0, 1), false).await;
    has_failed(&refused, full);
    has_failed(&bench.volume.flush().await, full);
    assert!(bench.volume.take_checkpoint().await.is_err());
    assert!(bench.volume.reset_log().await.is_err());
    assert!(bench.volume.freeze().await.is_err());
    assert!(bench.volume.close().await.is_err());
}

#[tokio::test]
async fn a_write_that_the_log_refuses_is_not_acknowledged() {
    for errno in [Errno::EIO, Errno::ENOSPC] {
        let bench = usual().await;
        bench.volume.write(0, payload(1, 0, 8), false).await.unwrap();
        bench.log.inject(Operation::Write, When::Nth(0), Fault::Error(errno));
        let refused = bench.volume.write(0, payload(2, 0, 8), false).await;
        has_failed(&refused, errno == Errno::ENOSPC);
        assert_eq!(read(&bench.volume, 0, 4096).await, payload(1, 0, 8), "reads go on");
        must_have_failed(&bench, "write to the log device failed").await;
        let bench = reopen(bench.log.image(), bench.data.image(), quiet()).await;
        assert_eq!(read(&bench.volume, 0, 4096).await, payload(1, 0, 8));
        bench.volume.write(0, payload(3, 0, 8), true).await.unwrap();
    }
}

/// I2: the pack behind a failed one may be on the log device, but the log has a hole before it.
#[tokio::test]
async fn nothing_is_acknowledged_behind_a_hole_in_the_log() {
    let bench = usual().await;
    let gate = Gate::new();
    bench.log.inject(Operation::Write, When::Nth(0), Fault::Hang(gate.clone()));
    bench.log.inject(Operation::Write, When::Nth(0), Fault::Error(Errno::EIO));
    let write = |stamp: u32| {
        let volume = Arc::clone(&bench.volume);
        let sector = u64::from(stamp) * 8;
        tokio::spawn(async move {
            volume.write(sector * SECTOR as u64, payload(stamp, sector, 8), false).await
        })
    };
    let first = write(1);
    while bench.log.calls(Operation::Write) < 1 {
        tokio::task::yield_now().await;
    }
    let before = bench.log.calls(Operation::Write);
    let second = write(2);
    while bench.log.calls(Operation::Write) == before {
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!second.is_finished(), "acknowledged before the one before it");
    gate.open();
    assert!(first.await.unwrap().is_err());
    assert!(second.await.unwrap().is_err(), "acknowledged behind a hole");
    let bench = reopen(bench.log.image(), bench.data.image(), quiet()).await;
    assert_eq!(read(&bench.volume, 0, 64 << 10).await, vec![0; 64 << 10]);
}

#[tokio::test]
async fn a_failed_flush_of_the_log_acknowledges_neither_fua_nor_flush() {
    for fua in [false, true] {
        let bench = usual().await;
        bench.log.inject(Operation::Flush, When::Nth(0), Fault::Error(Errno::EIO));
        let write = bench.volume.write(0, payload(1, 0, 8), fua).await;
        assert_eq!(write.is_err(), fua);
        assert!(bench.volume.flush().await.is_err());
        assert_eq!(bench.data.calls(Operation::Write), 0, "nothing is permanent, so no data (I1)");
        must_have_failed(&bench, "flush of the log device failed").await;
    }
}

#[tokio::test]
async fn a_failing_data_device_stops_the_volume_and_redo_completes_what_was_acknowledged() {
    for errno in [Errno::EIO, Errno::ENOSPC] {
        let bench = usual().await;
        bench.data.inject(Operation::Write, When::Nth(0), Fault::Error(errno));
        bench.volume.write(0, payload(1, 0, 8), true).await.unwrap();
        let mut watch = bench.volume.watch();
        watch.wait_for(|status| status.failure.is_some()).await.unwrap();
        assert_eq!(read(&bench.volume, 0, 4096).await, payload(1, 0, 8), "from the overlay");
        must_have_failed(&bench, "write to the data device failed").await;
        assert_eq!(bench.volume.status().positions.written.0, 0);
        let (log, data) =
            (bench.log.power_cut(Survival::Nothing), bench.data.power_cut(Survival::Nothing));
        let bench = reopen(log, data, quiet()).await;
        assert_eq!(read(&bench.volume, 0, 4096).await, payload(1, 0, 8));
    }
}

#[tokio::test]
async fn a_failed_flush_of_the_data_device_does_not_move_the_checkpoint() {
    let bench = usual().await;
    bench.volume.write(0, payload(1, 0, 8), true).await.unwrap();
    bench.data.inject(Operation::Flush, When::Nth(0), Fault::Error(Errno::EIO));
    assert!(bench.volume.take_checkpoint().await.is_err());
    assert_eq!(bench.volume.status().positions.prev_written.0, 0);
    must_have_failed(&bench, "flush of the data device failed").await;
    let (log, data) =
        (bench.log.power_cut(Survival::Nothing), bench.data.power_cut(Survival::Nothing));
    let bench = reopen(log, data, quiet()).await;
    assert_eq!(read(&bench.volume, 0, 4096).await, payload(1, 0, 8));
}

#[tokio::test]
async fn a_failed_super_block_write_stops_the_volume() {
    let bench = usual().await;
    bench.volume.write(0, payload(1, 0, 8), true).await.unwrap();
    let mut watch = bench.volume.watch();
    watch.wait_for(|status| status.positions.written.0 == 9).await.unwrap();
    bench.log.inject(Operation::Write, When::Nth(0), Fault::Error(Errno::EIO));
    assert!(bench.volume.take_checkpoint().await.is_err());
    must_have_failed(&bench, "write of the super block failed").await;
}

#[tokio::test]
async fn a_read_error_goes_to_the_reader_and_nobody_else() {
    let bench = usual().await;
    bench.data.inject(Operation::Read, When::Nth(0), Fault::Error(Errno::EIO));
    assert!(matches!(bench.volume.read(0, 512).await, Err(VolumeError::Io(_))));
    bench.volume.write(0, payload(1, 0, 8), true).await.unwrap();
    assert_eq!(read(&bench.volume, 0, 4096).await, payload(1, 0, 8));
}

#[tokio::test(start_paused = true)]
async fn waiting_writers_are_told_when_the_volume_fails() {
    let options = VolumeOptions { max_pending_bytes: device_server::MIN_PENDING_BYTES, ..quiet() };
    let bench = bench(64 << 20, 32 << 20, options).await;
    let gate = Gate::new();
    bench.data.inject(Operation::Write, When::From(0), Fault::Hang(gate.clone()));
    bench.data.inject(Operation::Write, When::Nth(0), Fault::Error(Errno::EIO));
    let volume = Arc::clone(&bench.volume);
    let write = tokio::spawn(async move { volume.write(0, payload(1, 0, 32768), true).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    gate.open();
    assert!(matches!(write.await.unwrap(), Err(VolumeError::Failed(_))));
}
