//! Many requests in flight, dropped futures, full filesystems, real block devices: on every engine.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use block_io::buffer::AlignedBuf;
use block_io::device::{BlockDevice, os_error};
use block_io::{Engine, Kind, OpenOptions, grow, open, probe};
use bytes::Bytes;
use nix::errno::Errno;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

const ENGINES: [Engine; 4] = [Engine::Auto, Engine::Near, Engine::NearAlone, Engine::Plain];
const TASKS: u64 = 64;
const ROUNDS: usize = 30;
/// What each task owns.
const REGION: u64 = 256 << 10;

fn real_dir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn sparse(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

fn options(engine: Engine, direct: bool) -> OpenOptions {
    OpenOptions { engine, direct, ..OpenOptions::default() }
}

/// A range of whole blocks within a region: offset and length.
fn range(rng: &mut StdRng, block: u64) -> (u64, u64) {
    let blocks = REGION / block;
    let at = rng.random_range(0..blocks);
    let count = rng.random_range(1..=(blocks - at).min(64));
    (at * block, count * block)
}

/// Random bytes cut into random pieces, at random alignment in memory.
fn pieces(rng: &mut StdRng, len: usize) -> (Vec<u8>, Vec<Bytes>) {
    let mut data = vec![0; len];
    rng.fill(&mut data[..]);
    let shift = if rng.random() { 0 } else { rng.random_range(0..600) };
    let mut whole = AlignedBuf::with_capacity(shift + len);
    whole.extend_from_slice(&vec![0; shift]);
    whole.extend_from_slice(&data);
    let mut rest = whole.freeze().slice(shift..);
    let mut bufs = Vec::new();
    while rng.random() && rest.len() > 512 {
        let step = if rng.random() { 512 } else { 1 };
        bufs.push(rest.split_to(rng.random_range(0..rest.len() / step) * step));
    }
    bufs.push(rest);
    (data, bufs)
}

/// Mixed operations in one region, against a model; what the model holds in the end.
async fn worker(device: Arc<dyn BlockDevice>, task: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(task);
    let block = u64::from(device.block_bytes());
    let base = task * REGION;
    let mut model = vec![0_u8; REGION as usize];
    for _ in 0..ROUNDS {
        let (at, len) = range(&mut rng, block);
        let place = at as usize..(at + len) as usize;
        match rng.random_range(0..20) {
            0..=9 => {
                let (data, bufs) = pieces(&mut rng, place.len());
                device.write(base + at, bufs).await.unwrap();
                model[place].copy_from_slice(&data);
            }
            10 => {
                device.write_zeroes(base + at, len).await.unwrap();
                model[place].fill(0);
            }
            11 => {
                device.discard(base + at, len).await.unwrap();
                // What a discarded range holds is not promised: define it again.
                device.write_zeroes(base + at, len).await.unwrap();
                model[place].fill(0);
            }
            12 => device.flush().await.unwrap(),
            _ => {
                let found = device.read(base + at, place.len()).await.unwrap();
                assert!(found == model[place], "task {task} at {at}, {len} bytes");
            }
        }
    }
    model
}

async fn stress(device: Arc<dyn BlockDevice>) {
    let tasks: Vec<_> =
        (0..TASKS).map(|task| tokio::spawn(worker(Arc::clone(&device), task))).collect();
    for (task, worker) in (0..).zip(tasks) {
        let model = worker.await.unwrap();
        let found = device.read(task * REGION, REGION as usize).await.unwrap();
        assert!(found == model, "task {task}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_see_their_own_writes() {
    for engine in ENGINES {
        for direct in [true, false] {
            let dir = real_dir();
            let path = dir.path().join("image");
            sparse(&path, TASKS * REGION);
            stress(open(&path, options(engine, direct)).unwrap()).await;
        }
    }
}

/// Thousands of requests at once: admission makes them wait, none is lost.
#[tokio::test]
async fn more_requests_than_the_engine_admits_all_complete() {
    for engine in ENGINES {
        let dir = real_dir();
        let path = dir.path().join("image");
        sparse(&path, 16 << 20);
        let device = open(&path, options(engine, true)).unwrap();
        let block = |i: u64| Bytes::from(vec![(i % 255) as u8 + 1; 4096]);
        let writes = (0..4096).map(|i| device.write(i * 4096, vec![block(i)]));
        futures::future::try_join_all(writes).await.unwrap();
        device.flush().await.unwrap();
        let reads = (0..4096).map(|i| device.read(i * 4096, 4096));
        let found = futures::future::try_join_all(reads).await.unwrap();
        for (i, found) in (0..).zip(found) {
            assert_eq!(found, block(i));
        }
    }
}

/// Futures dropped after their first poll: the kernel may go on, into memory that is still ours.
/// Their buffers come back with other contents at once, so a use after free would be seen.
#[tokio::test]
async fn dropped_futures_harm_nobody() {
    for engine in ENGINES {
        let dir = real_dir();
        let path = dir.path().join("image");
        sparse(&path, 8 << 20);
        let device = open(&path, options(engine, true)).unwrap();
        let ones = AlignedBuf::copy_of(&[1; 65536]).freeze();
        device.write(0, vec![ones.clone(); 64]).await.unwrap();
        let mut pending = 0;
        for round in 0..60 {
            let mut reads: Vec<_> = (0..16).map(|i| device.read(i * 65536, 65536)).collect();
            let write = AlignedBuf::copy_of(&[1; 65536]).freeze();
            let mut writes: Vec<_> =
                (0..4).map(|i| device.write((4 << 20) + i * 65536, vec![write.clone()])).collect();
            for future in &mut reads {
                pending += usize::from(futures::poll!(future).is_pending());
            }
            for future in &mut writes {
                pending += usize::from(futures::poll!(future).is_pending());
            }
            drop((reads, writes, write));
            // Fresh buffers of the same class; nobody may scribble into them, or take from them.
            let fresh: Vec<_> = (0..32).map(|_| AlignedBuf::copy_of(&[2; 65536])).collect();
            if round % 10 == 0 {
                device.flush().await.unwrap();
            }
            assert!(fresh.iter().all(|buf| buf.iter().all(|b| *b == 2)));
        }
        device.flush().await.unwrap();
        assert!(pending > 300, "too few were in flight when they were dropped: {pending}");
        // Everything dropped was admitted before this, and a full house of requests outlasts it.
        let all = (0..512).map(|_| device.read(0, 4096));
        futures::future::try_join_all(all).await.unwrap();
        let found = device.read(4 << 20, 4 * 65536).await.unwrap();
        assert!(
            found.iter().all(|b| *b == 1 || *b == 0),
            "a write took memory that was not its own"
        );
    }
}

/// Flushes come back by way of other threads, which tell of it while completions are being taken.
#[test]
fn no_end_of_a_request_is_missed_between_writes_and_flushes() {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for engine in [Engine::Near, Engine::NearAlone] {
            runtime.block_on(storm(engine));
        }
        done.send(()).unwrap();
    });
    // A thread that turns in a circle can tell nobody.
    wait.recv_timeout(Duration::from_secs(120)).expect("the thread of the ring hangs");
}

async fn storm(engine: Engine) {
    let dir = real_dir();
    let path = dir.path().join("image");
    sparse(&path, 4 << 20);
    let device = open(&path, options(engine, true)).unwrap();
    let data = AlignedBuf::copy_of(&[5; 4096]).freeze();
    let end = Instant::now() + Duration::from_secs(1);
    // All of a round ends before the next one: the last to end has nobody after it.
    for round in 0.. {
        if Instant::now() > end {
            break;
        }
        let writes = (0..round % 4).map(|i| device.write(i * 4096, vec![data.clone()]));
        let ended = futures::future::join(device.flush(), futures::future::try_join_all(writes));
        let (flushed, written) = ended.await;
        flushed.and(written).unwrap();
    }
}

/// The devices of a test may go away while its requests are in flight.
#[tokio::test]
async fn a_closed_device_is_closed_after_its_last_request() {
    for engine in ENGINES {
        let dir = real_dir();
        let path = dir.path().join("image");
        sparse(&path, 1 << 20);
        let device = open(&path, options(engine, true)).unwrap();
        let data = AlignedBuf::copy_of(&[7; 1 << 20]).freeze();
        {
            let mut write = device.write(0, vec![data.clone()]);
            let _pending = futures::poll!(&mut write);
        }
        drop(device);
        let open_files = || {
            let fds = std::fs::read_dir("/proc/self/fd").unwrap();
            fds.filter(|fd| {
                let target = std::fs::read_link(fd.as_ref().unwrap().path());
                target.is_ok_and(|target| target == path)
            })
            .count()
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while open_files() > 0 {
            assert!(Instant::now() < deadline, "still open");
            tokio::task::yield_now().await;
        }
        assert!(std::fs::read(&path).unwrap().iter().all(|b| *b == 7));
    }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A loop device over a file; detached when dropped.
struct Loop {
    path: PathBuf,
}

impl Loop {
    fn new(file: &Path, sector_bytes: u32) -> Self {
        let size = format!("--sector-size={sector_bytes}");
        let path = run(Command::new("losetup")
            .args(["--find", "--show", "--direct-io=on", &size])
            .arg(file));
        Self { path: path.into() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(detached.unwrap().success() || std::thread::panicking());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_loop_devices_behave_like_files() {
    if !is_root() {
        eprintln!("skipped: root_loop_devices_behave_like_files needs root for losetup");
        return;
    }
    for (engine, sector_bytes) in ENGINES.into_iter().zip([4096, 512, 512]) {
        let dir = real_dir();
        let image = dir.path().join("image");
        sparse(&image, TASKS * REGION);
        let disk = Loop::new(&image, sector_bytes);
        let facts = probe(&disk.path).unwrap();
        assert_eq!((facts.kind, facts.size_bytes), (Kind::BlockDevice, TASKS * REGION));
        assert_eq!(facts.block_bytes, sector_bytes);
        assert!(facts.can_discard && facts.physical_block_bytes >= sector_bytes);

        let device = open(&disk.path, options(engine, true)).unwrap();
        assert_eq!(device.block_bytes(), sector_bytes);
        stress(Arc::clone(&device)).await;
        let end = device.size_bytes();
        let past = device.read(end, 4096).await.unwrap_err();
        assert_eq!(past.kind(), ErrorKind::InvalidInput);
        device.discard(0, end).await.unwrap();

        grow(&image, 2 * TASKS * REGION).unwrap();
        run(Command::new("losetup").arg("--set-capacity").arg(&disk.path));
        assert_eq!(device.refresh_size().await.unwrap(), 2 * TASKS * REGION);
        let data = Bytes::from(vec![9; 4096]);
        device.write(2 * end - 4096, vec![data.clone()]).await.unwrap();
        assert_eq!(device.read(2 * end - 4096, 4096).await.unwrap(), data);

        let exclusive = OpenOptions { exclusive: true, ..options(engine, true) };
        let first = open(&disk.path, exclusive).unwrap();
        open(&disk.path, exclusive).unwrap_err();
        drop(first);
    }
}

/// A tmpfs of a given size, unmounted when dropped.
struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    fn new(bytes: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let size = format!("size={bytes}");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, "walb-test"]).arg(dir.path()));
        Self { dir }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // A kernel thread lets go of the file a moment after its completion.
        let deadline = Instant::now() + Duration::from_secs(10);
        let unmounts = || Command::new("umount").arg(self.dir.path()).status().unwrap().success();
        while !unmounts() && !std::thread::panicking() {
            assert!(Instant::now() < deadline, "still in use");
        }
    }
}

#[tokio::test]
async fn root_a_full_filesystem_is_an_error_that_ends_when_space_returns() {
    if !is_root() {
        eprintln!("skipped: root_a_full_filesystem_... needs root to mount a small tmpfs");
        return;
    }
    for engine in ENGINES {
        let tmpfs = Tmpfs::new(1 << 20);
        let path = tmpfs.dir.path().join("image");
        sparse(&path, 8 << 20);
        let device = open(&path, options(engine, true)).unwrap();
        let data = AlignedBuf::copy_of(&[3; 2 << 20]).freeze();
        let error = device.write(0, vec![data.clone()]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
        assert_eq!(os_error(&error), Some(Errno::ENOSPC as i32));
        assert!(error.to_string().contains("image"), "{error}");
        device.discard(0, 8 << 20).await.unwrap();
        device.write(4 << 20, vec![data.slice(..512 << 10)]).await.unwrap();
        let found = device.read(4 << 20, 512 << 10).await.unwrap();
        assert!(found.iter().all(|b| *b == 3));
    }
}

/// What was in flight is finished, and the file given back, without anybody who waits for it.
#[tokio::test]
async fn a_device_that_is_dropped_with_requests_in_flight_gives_its_file_back() {
    let dir = real_dir();
    for engine in ENGINES {
        let path = dir.path().join(format!("{engine:?}"));
        sparse(&path, 32 << 20);
        let options = OpenOptions { exclusive: true, ..options(engine, true) };
        let device = open(&path, options).unwrap();
        let data = AlignedBuf::copy_of(&[9; 1 << 20]).freeze();
        for n in 0..32 {
            let mut write = device.write(n << 20, vec![data.clone()]);
            // A quick engine on another core may have done it already.
            if let Poll::Ready(done) = futures::poll!(&mut write) {
                done.unwrap();
            }
        }
        drop(device);
        let deadline = Instant::now() + Duration::from_secs(30);
        let device = loop {
            match open(&path, options) {
                Ok(device) => break device,
                Err(error) => assert!(Instant::now() < deadline, "{engine:?}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        assert!(device.read(31 << 20, 4096).await.unwrap().iter().all(|byte| *byte == 9));
    }
}

/// All engines do the same to the same file, for any sequence of operations.
#[tokio::test]
async fn the_engines_are_equivalent() {
    let dir = real_dir();
    let devices: Vec<_> =
        [("uring", Engine::Auto), ("near", Engine::Near), ("plain", Engine::Plain)]
            .map(|(name, engine)| {
                let path = dir.path().join(name);
                sparse(&path, REGION);
                (open(&path, options(engine, true)).unwrap(), path)
            })
            .into();
    for (device, _) in &devices {
        worker(Arc::clone(device), 0).await;
        device.flush().await.unwrap();
    }
    let contents = |i: usize| std::fs::read(&devices[i].1).unwrap();
    assert!(contents(0) == contents(1) && contents(1) == contents(2));
}
