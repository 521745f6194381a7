//! An archive with very many small wdiffs: start, plan of a restore, a wdiff more, the first read
//! of a mount, and reads through it against the raw image.
//!
//! `BENCH_DIFFS=100000 cargo bench -p benches --bench mount` goes on to that many wdiffs (default
//! 100; about 16 KiB of disk each, below `TMPDIR`). The wdiffs are laid out by the library, each
//! with 8 writes of 4 KiB strewn over an image of 256 MiB. Caches are warm: files were written a
//! moment ago. Times of requests are those of a client on a Unix socket.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark may panic, and prints its result"
)]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use archive_server::{BackendChoice, Server, Settings, World};
use bytes::Bytes;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::full_sync_request::Step as Full;
use proto::v1::wdiff_transfer_request::Step as Wdiff;
use proto::v1::{
    Chunk, DiffMeta, FullSyncBulk, FullSyncEnd, FullSyncRequest, FullSyncStart, MountRequest,
    PrepareFullSyncRequest, RestoreRequest, Snapshot, StopMode, UnmountRequest, VolumeRef,
    WdiffEnd, WdiffStart, WdiffTransferRequest, mount_request, restore_request,
};
use server_kit::net::{Connector, Endpoint, Listener, RealConnector};
use server_kit::shutdown::Shutdown;
use tonic::transport::Channel;
use wdiff_format::codec::Codec;
use wdiff_format::compression::Compression;
use wdiff_format::diff_set::DiffSet;
use wdiff_format::gid::{BaseState, Gid, Snapshot as At};
use wdiff_format::record::DiffRecord;
use wdiff_format::sorted_writer::SortedWriter;
use wlog_format::units::{Lb, LogUuid};

const VOLUME: &str = "vol";
const IMAGE_BYTES: u64 = 256 << 20;
const SLOTS: u64 = IMAGE_BYTES / 4096;
const WRITES: u64 = 8;
const UUID: LogUuid = LogUuid([9; 16]);

fn most() -> u64 {
    std::env::var("BENCH_DIFFS").ok().and_then(|n| n.parse().ok()).unwrap_or(100)
}

fn slot(gid: u64, write: u64) -> u64 {
    (gid * 7919 + write * (SLOTS / WRITES) + gid * gid % 1013) % SLOTS
}

/// What a write to a slot leaves there.
fn content(gid: u64) -> Vec<u8> {
    (0..512_u64).flat_map(|n| (gid * 4096 + n / 8).to_le_bytes()).collect()
}

fn name(gid: u64) -> String {
    format!("20260101000000-M--{}-{gid}.wdiff", gid - 1)
}

fn wdiff(gid: u64) -> Vec<u8> {
    let mut codec = Codec::new(Compression::SNAPPY);
    let mut slots: Vec<u64> = (0..WRITES).map(|write| slot(gid, write)).collect();
    slots.sort_unstable();
    slots.dedup();
    let mut writer = SortedWriter::new(Vec::new(), UUID).unwrap();
    for slot in slots {
        let data = Bytes::from(content(gid));
        let record = DiffRecord::from_raw(Lb(slot * 8), data).unwrap();
        writer.write(&record.encode(&mut codec).unwrap()).unwrap();
    }
    writer.finish().unwrap()
}

/// An archive that serves until it is dropped.
struct Served {
    shutdown: Shutdown,
    thread: Option<std::thread::JoinHandle<()>>,
    client: ArchiveClient<Channel>,
}

impl Served {
    fn start(dir: &Path, runtime: &tokio::runtime::Runtime) -> Self {
        let endpoint = Endpoint::Unix(dir.join("a.sock"));
        let (shutdown, base) = (Shutdown::new(), dir.join("a"));
        let (asked, at) = (shutdown.clone(), endpoint.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let listener = Listener::bind(&at, false).await.unwrap();
                let (id, settings) = ("a0".parse().unwrap(), Settings::default());
                let (backend, retention, world) = (BackendChoice::File, None, World::real());
                let server = Server { base, id, settings, backend, retention, world };
                server.run(listener, asked).await.unwrap();
            });
        });
        let _guard = runtime.enter();
        let client = ArchiveClient::new(RealConnector.channel(&endpoint));
        Self { shutdown, thread: Some(thread), client }
    }

    /// Waits for its first answer.
    async fn answers(&mut self) -> u64 {
        loop {
            let reference = VolumeRef { volume: VOLUME.into() };
            match self.client.get(reference).await {
                Ok(volume) => return volume.into_inner().diffs,
                Err(status) if status.code() == tonic::Code::NotFound => return 0,
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.shutdown.request(StopMode::Graceful);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A volume with a full backup, whose image is not zero.
async fn full_backup(client: &mut ArchiveClient<Channel>) {
    client.init(VolumeRef { volume: VOLUME.into() }).await.unwrap();
    let request = PrepareFullSyncRequest {
        volume: VOLUME.into(),
        size_lb: IMAGE_BYTES / 512,
        started_s: 0,
        resume_uuid: Bytes::new(),
    };
    let session = client.prepare_full_sync(request).await.unwrap().into_inner().session;
    let log_uuid = Bytes::copy_from_slice(&UUID.0);
    let start =
        FullSyncStart { volume: VOLUME.into(), session, log_uuid, ..FullSyncStart::default() };
    let mut steps = vec![Full::Start(start)];
    let data = Bytes::from(vec![0x5a; 1 << 20]);
    for at in (0..IMAGE_BYTES).step_by(1 << 20) {
        let chunk = Some(chunk(&data));
        steps.push(Full::Bulk(FullSyncBulk { offset_bytes: at, chunk, ..FullSyncBulk::default() }));
    }
    let base = Some(Snapshot { gid_begin: 0, gid_end: 0 });
    steps.push(Full::End(FullSyncEnd { base, timestamp_s: 0 }));
    let steps = steps.into_iter().map(|step| FullSyncRequest { step: Some(step) });
    client.full_sync(tokio_stream::iter(steps.collect::<Vec<_>>())).await.unwrap();
}

fn chunk(data: &Bytes) -> Chunk {
    Chunk { data: data.clone(), crc32: crc32fast::hash(data), raw_bytes: 0 }
}

/// A wdiff arrives.
async fn send(client: &mut ArchiveClient<Channel>, gid: u64) {
    let bytes = Bytes::from(wdiff(gid));
    let clean = |gid| Some(Snapshot { gid_begin: gid, gid_end: gid });
    let diff = DiffMeta {
        begin: clean(gid - 1),
        end: clean(gid),
        timestamp_s: 1_767_225_600,
        mergeable: true,
        size_bytes: bytes.len() as u64,
        ..DiffMeta::default()
    };
    let start = WdiffStart {
        volume: VOLUME.into(),
        diff: Some(diff),
        size_lb: IMAGE_BYTES / 512,
        log_uuid: Bytes::copy_from_slice(&UUID.0),
        ..WdiffStart::default()
    };
    let end = Wdiff::End(WdiffEnd { total_bytes: bytes.len() as u64 });
    let steps = [Wdiff::Start(start), Wdiff::Chunk(chunk(&bytes)), end];
    let steps = steps.map(|step| WdiffTransferRequest { step: Some(step) });
    let reply = client.wdiff_transfer(tokio_stream::iter(steps)).await.unwrap().into_inner();
    assert_eq!(reply.result(), proto::v1::WdiffResult::Stored, "{reply:?}");
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

/// Mounts a snapshot and reads 4 KiB of it that it has of a wdiff; the time of both.
async fn first_read(client: &mut ArchiveClient<Channel>, gid: u64) -> (f64, String, PathBuf) {
    let start = Instant::now();
    let point = Some(mount_request::Point::Gid(gid));
    let request = MountRequest { volume: VOLUME.into(), point, ..MountRequest::default() };
    let mounted = client.mount(request).await.unwrap().into_inner();
    let (_, socket) = mounted.uri.split_once("socket=").unwrap();
    let nbd = block_io::nbd::Client::unix(socket, VOLUME).await.unwrap();
    assert_eq!(nbd.read(slot(gid, 0) * 4096, 4096).await.unwrap(), content(gid));
    (ms(start), mounted.id, PathBuf::from(socket))
}

/// 4 KiB random reads a second, and MiB/s of 128 KiB sequential reads; one at a time.
async fn through_nbd(socket: &Path) -> (f64, f64) {
    let nbd = block_io::nbd::Client::unix(socket, VOLUME).await.unwrap();
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < Duration::from_millis(500) {
        let at = u64::from(count) * 48_271 % SLOTS;
        nbd.read(at * 4096, 4096).await.unwrap();
        count += 1;
    }
    let random = f64::from(count) / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for at in (0..IMAGE_BYTES / 4).step_by(128 << 10) {
        nbd.read(at, 128 << 10).await.unwrap();
    }
    (random, 64.0 / start.elapsed().as_secs_f64())
}

/// The same of the file itself.
fn raw(image: &Path) -> (f64, f64) {
    let file = std::fs::File::open(image).unwrap();
    let mut buffer = vec![0; 128 << 10];
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < Duration::from_millis(500) {
        let at = u64::from(count) * 48_271 % SLOTS;
        file.read_exact_at(&mut buffer[..4096], at * 4096).unwrap();
        count += 1;
    }
    let random = f64::from(count) / start.elapsed().as_secs_f64();
    let start = Instant::now();
    for at in (0..IMAGE_BYTES / 4).step_by(128 << 10) {
        file.read_exact_at(&mut buffer, at).unwrap();
    }
    (random, 64.0 / start.elapsed().as_secs_f64())
}

/// Planning alone, and adding one diff to the catalogue, without server: medians.
fn catalogue(diffs: u64) -> (f64, f64) {
    let mut set = DiffSet::new();
    for gid in 1..=diffs {
        set.insert(wdiff_format::name::parse(&name(gid)).unwrap()).unwrap();
    }
    let base = BaseState::at(At::clean(Gid(0)), 0);
    let plan = |_| {
        let start = Instant::now();
        assert_eq!(set.restore_list(&base, Gid(diffs)).unwrap().len() as u64, diffs);
        ms(start)
    };
    let plan = median((0..9).map(plan).collect());
    let add = |n| {
        let diff = wdiff_format::name::parse(&name(diffs + n)).unwrap();
        let start = Instant::now();
        set.insert(diff).unwrap();
        ms(start)
    };
    (plan, median((1..100).map(add).collect()))
}

async fn row(dir: &Path, diffs: u64, runtime: &tokio::runtime::Runtime) {
    let volume = dir.join("a").join(VOLUME);
    let mut served = Served::start(dir, runtime);
    let there = served.answers().await;
    if there == 0 && !volume.exists() {
        full_backup(&mut served.client).await;
    }
    drop(served);
    for gid in there + 1..=diffs {
        std::fs::write(volume.join(name(gid)), wdiff(gid)).unwrap();
    }
    let start = Instant::now();
    let mut served = Served::start(dir, runtime);
    assert_eq!(served.answers().await, diffs);
    let started = ms(start);
    let (unindexed, id, _) = first_read(&mut served.client, diffs).await;
    let end = |id| UnmountRequest { volume: VOLUME.into(), id };
    served.client.unmount(end(id)).await.unwrap();
    drop(served);
    let mut served = Served::start(dir, runtime);
    served.answers().await;
    let before = resident_mib();
    let (first, id, socket) = first_read(&mut served.client, diffs).await;
    let more = resident_mib().saturating_sub(before);
    let (random, sequential) = through_nbd(&socket).await;
    served.client.unmount(end(id)).await.unwrap();
    let start = Instant::now();
    let point = Some(restore_request::Point::Gid(diffs));
    let request =
        RestoreRequest { volume: VOLUME.into(), point, dry_run: true, ..RestoreRequest::default() };
    served.client.restore(request).await.unwrap();
    let asked = ms(start);
    let mut adds = Vec::new();
    for gid in diffs + 1..=diffs + 9 {
        let start = Instant::now();
        send(&mut served.client, gid).await;
        adds.push(ms(start));
    }
    drop(served);
    for gid in diffs + 1..=diffs + 9 {
        let sent = volume.join(name(gid));
        std::fs::remove_file(sent).unwrap();
    }
    let (plan, add) = catalogue(diffs);
    println!(
        "{diffs:>7} | {started:>8.1} | {plan:>7.2} {asked:>8.1} | {add:>7.4} {:>8.1} | \
         {first:>8.1} {unindexed:>9.0} | {more:>6} | {random:>8.0} {sequential:>7.0}",
        median(adds)
    );
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    println!(
        "  wdiffs | start ms | plan ms: alone, asked | add ms: alone, sent | first read ms, \
         without index | MiB more | 4k reads/s, MiB/s"
    );
    for diffs in [10, 100, 1_000, 10_000, 100_000].into_iter().filter(|n| *n <= most()) {
        runtime.block_on(row(dir.path(), diffs, &runtime));
    }
    let (random, sequential) = raw(&dir.path().join("a").join(VOLUME).join("base.img"));
    println!("the raw image, its pages in memory: {random:.0} 4k reads/s, {sequential:.0} MiB/s");
}
