//! Files of the host as block devices: what is written is read, on every engine, direct and
//! buffered.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::io::ErrorKind;
use std::sync::Arc;

use block_io::buffer::AlignedBuf;
use block_io::device::{BlockDevice, Extent, MAX_REQUEST_BYTES};
use block_io::{Engine, Kind, OpenOptions, grow, open, probe};
use bytes::Bytes;
use tempfile::TempDir;

const ENGINES: [Engine; 4] = [Engine::Auto, Engine::Near, Engine::NearAlone, Engine::Plain];

/// A sparse file of `bytes` in the build directory (a real filesystem, where /tmp may be a tmpfs).
fn file(bytes: u64) -> (TempDir, std::path::PathBuf) {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("image");
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    (dir, path)
}

fn options(engine: Engine, direct: bool) -> OpenOptions {
    OpenOptions { engine, direct, ..OpenOptions::default() }
}

/// Every way to open a fresh file of `bytes`.
fn devices(bytes: u64) -> Vec<(TempDir, Arc<dyn BlockDevice>)> {
    let mut all = Vec::new();
    for engine in ENGINES {
        for direct in [true, false] {
            let (dir, path) = file(bytes);
            all.push((dir, open(path, options(engine, direct)).unwrap()));
        }
    }
    all
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..=250).map(|i: u8| i ^ seed).cycle().take(len).collect()
}

#[tokio::test]
async fn what_is_written_is_read_and_is_in_the_file() {
    for (dir, device) in devices(1 << 20) {
        let block = device.block_bytes() as usize;
        let data = pattern(8 * block, 1);
        let buf = AlignedBuf::copy_of(&data).freeze();
        let parts = vec![buf.slice(..block), Bytes::new(), buf.slice(block..)];
        device.write(4096, parts).await.unwrap();
        device.flush().await.unwrap();
        assert_eq!(device.read(4096, data.len()).await.unwrap(), data);
        let raw = std::fs::read(dir.path().join("image")).unwrap();
        assert_eq!(raw.len(), 1 << 20);
        assert_eq!(&raw[4096..4096 + data.len()], data);
        assert!(raw[..4096].iter().all(|b| *b == 0));
    }
}

#[tokio::test]
async fn unaligned_memory_and_odd_pieces_are_written_right() {
    for (_dir, device) in devices(1 << 20) {
        let data = pattern(65536, 2);
        let bytes = Bytes::from([&[0u8; 3][..], &data].concat()).slice(3..);
        let parts = vec![bytes.slice(..100), bytes.slice(100..40001), bytes.slice(40001..)];
        device.write(8192, parts).await.unwrap();
        assert_eq!(device.read(8192, data.len()).await.unwrap(), data);
    }
}

#[tokio::test]
async fn more_pieces_than_one_system_call_takes() {
    for (_dir, device) in devices(4 << 20) {
        let block = device.block_bytes() as usize;
        let pieces = 2500.min((4 << 20) / block);
        let buf = AlignedBuf::copy_of(&pattern(pieces * block, 3)).freeze();
        let parts = (0..pieces).map(|i| buf.slice(i * block..(i + 1) * block)).collect();
        device.write(0, parts).await.unwrap();
        assert_eq!(device.read(0, buf.len()).await.unwrap(), buf);
    }
}

#[tokio::test]
async fn zero_length_does_nothing_and_bad_ranges_touch_nothing() {
    for (_dir, device) in devices(1 << 20) {
        let end = device.size_bytes();
        assert_eq!(device.read(end, 0).await.unwrap().len(), 0);
        device.write(end, vec![Bytes::new()]).await.unwrap();
        device.discard(end, 0).await.unwrap();
        device.write_zeroes(0, 0).await.unwrap();
        assert_eq!(device.extents(0, 0).await.unwrap(), []);

        let invalid = |result: std::io::Result<()>| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            assert!(error.to_string().contains("image"), "{error}");
        };
        let block = Bytes::from(vec![9; device.block_bytes() as usize]);
        invalid(device.read(1, block.len()).await.map(drop));
        invalid(device.read(end, block.len()).await.map(drop));
        invalid(device.read(0, MAX_REQUEST_BYTES + 4096).await.map(drop));
        invalid(device.write(0, vec![block.slice(1..)]).await);
        invalid(device.write(end, vec![block.clone()]).await);
        invalid(device.write(u64::MAX - 511, vec![block.clone()]).await);
        invalid(device.discard(0, end + 4096).await);
        invalid(device.write_zeroes(100, 4096).await);
        invalid(device.extents(0, u64::MAX).await.map(drop));
        let all = device.read(0, 1 << 20).await.unwrap();
        assert!(all.iter().all(|b| *b == 0));
    }
}

#[tokio::test]
async fn offsets_beyond_four_gibibytes() {
    for (_dir, device) in devices(5 << 30) {
        let data = AlignedBuf::copy_of(&pattern(4096, 4)).freeze();
        for at in [2 << 30, (4 << 30) - 4096, 4 << 30, (5 << 30) - 4096] {
            device.write(at, vec![data.clone()]).await.unwrap();
            assert_eq!(device.read(at, 4096).await.unwrap(), data);
        }
        assert!(device.read(0, 4096).await.unwrap().iter().all(|b| *b == 0));
    }
}

#[tokio::test]
async fn discard_makes_holes_and_zeroes_read_as_zeros() {
    for (_dir, device) in devices(1 << 20) {
        let data = AlignedBuf::copy_of(&pattern(1 << 20, 5)).freeze();
        device.write(0, vec![data.clone()]).await.unwrap();
        device.write_zeroes(4096, 8192).await.unwrap();
        device.discard(256 << 10, 512 << 10).await.unwrap();
        let now = device.read(0, 1 << 20).await.unwrap();
        let mut expected = data.to_vec();
        expected[4096..12288].fill(0);
        expected[256 << 10..768 << 10].fill(0);
        assert_eq!(now, expected);
        let tail = device.extents(128 << 10, (1 << 20) - (128 << 10)).await.unwrap();
        let extent = |len, hole| Extent { len, hole };
        let expected =
            [extent(128 << 10, false), extent(512 << 10, true), extent(256 << 10, false)];
        assert_eq!(tail, expected);
        assert_eq!(device.extents(300 << 10, 4096).await.unwrap(), [extent(4096, true)]);
    }
}

#[tokio::test]
async fn a_file_grows_and_the_open_device_sees_it_when_asked() {
    for (dir, device) in devices(1 << 20) {
        let path = dir.path().join("image");
        grow(&path, 2 << 20).unwrap();
        assert_eq!(device.size_bytes(), 1 << 20);
        assert_eq!(device.refresh_size().await.unwrap(), 2 << 20);
        let data = Bytes::from(pattern(4096, 6));
        device.write((2 << 20) - 4096, vec![data.clone()]).await.unwrap();
        assert_eq!(device.read((2 << 20) - 4096, 4096).await.unwrap(), data);
        assert_eq!(grow(&path, 1 << 20).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn a_file_that_was_cut_under_us_is_an_error_not_a_hang() {
    for (dir, device) in devices(1 << 20) {
        let path = dir.path().join("image");
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(8192).unwrap();
        let error = device.read(4096, 16384).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{error}");
    }
}

#[test]
fn what_is_no_device_is_refused_with_its_name() {
    let (dir, path) = file(1000);
    for engine in ENGINES {
        let refuse = |path: &std::path::Path| {
            let error = open(path, options(engine, true)).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            error.kind()
        };
        assert_eq!(refuse(&path), ErrorKind::InvalidInput);
        assert_eq!(refuse(dir.path()), ErrorKind::InvalidInput);
        assert_eq!(refuse(&dir.path().join("missing")), ErrorKind::NotFound);
        assert_eq!(refuse("/dev/null".as_ref()), ErrorKind::InvalidInput);
    }
}

#[tokio::test]
async fn read_only_refuses_writes_and_exclusive_refuses_a_second() {
    let (_dir, path) = file(1 << 20);
    let device = open(&path, OpenOptions::read_only()).unwrap();
    device.read(0, 4096).await.unwrap();
    device.write(0, vec![Bytes::from(vec![1; 4096])]).await.unwrap_err();

    let exclusive = OpenOptions { exclusive: true, ..OpenOptions::default() };
    let first = open(&path, exclusive).unwrap();
    assert_eq!(open(&path, exclusive).unwrap_err().kind(), ErrorKind::WouldBlock);
    open(&path, OpenOptions::default()).unwrap();
    drop(first);
    open(&path, exclusive).unwrap();
}

#[test]
fn probing_tells_what_opening_gives() {
    let (_dir, path) = file(1 << 20);
    let facts = probe(&path).unwrap();
    let device = open(&path, OpenOptions::default()).unwrap();
    assert_eq!((facts.kind, facts.size_bytes), (Kind::File, 1 << 20));
    assert_eq!(facts.block_bytes, device.block_bytes());
    assert!(facts.physical_block_bytes >= 512 && facts.can_discard);
}

#[tokio::test]
async fn a_buffered_read_is_whole_though_only_its_beginning_is_in_the_page_cache() {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    use std::os::unix::fs::FileExt;
    for engine in ENGINES {
        let (_dir, path) = file(1 << 20);
        let content = pattern(1 << 20, 9);
        std::fs::write(&path, &content).unwrap();
        let cached = std::fs::File::open(&path).unwrap();
        cached.sync_all().unwrap();
        for advice in
            [PosixFadviseAdvice::POSIX_FADV_DONTNEED, PosixFadviseAdvice::POSIX_FADV_RANDOM]
        {
            posix_fadvise(&cached, 0, 0, advice).unwrap();
        }
        cached.read_exact_at(&mut [0; 4096], 0).unwrap();
        let device = open(&path, options(engine, false)).unwrap();
        for (at, len) in [(0, 1 << 20), (0, 4096), (512, 1 << 16), (1 << 19, 1 << 19)] {
            let read = device.read(at as u64, len).await.unwrap();
            assert!(read == content[at..at + len], "{engine:?}: {len} bytes at {at}");
        }
    }
}
