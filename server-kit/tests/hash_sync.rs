//! Hash sync between a sender and a small archive that keeps everything in memory: what arrives
//! makes one image of the other, whatever differs; only what differs travels; memory and speed are
//! bounded; a peer that goes away, or lies, is an error.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block_io::device::BlockDevice;
use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::sample::Index;
use proto::v1::archive_client::ArchiveClient;
use proto::v1::archive_server::{Archive, ArchiveServer};
use proto::v1::hash_sync_reply::Step as Told;
use proto::v1::hash_sync_request::Step;
use proto::v1::{
    ByteRange, HashSyncDone, HashSyncReply, HashSyncRequest, HashSyncStart, Snapshot, hash_sync_end,
};
use server_kit::error::{Reason, RoleError};
use server_kit::hash_sync::{self, Seed, Sending, Sent};
use server_kit::net::{Connector, Endpoint, Listener, RealConnector};
use server_kit::operations::Operations;
use server_kit::scan;
use server_kit::shutdown::Shutdown;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wdiff_format::compression::Compression;
use wdiff_format::redo::{BeyondEnd, Discards, RedoOptions, redo};
use wdiff_format::sorted_reader::SortedReader;
use wlog_format::units::{Lb, LogUuid};

/// What goes wrong at the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// It goes away after so many requests.
    Leaves(usize),
    /// It hashes another size.
    OtherSize(i64),
}

/// A wdiff that arrived, and its end.
type Kept = Arc<Mutex<Option<(Vec<u8>, hash_sync_end::Result)>>>;

/// An archive with one image.
struct Fake {
    image: Arc<dyn BlockDevice>,
    trouble: Trouble,
    wdiff: Kept,
}

type Replies = tonic::codegen::BoxStream<HashSyncReply>;

#[tonic::async_trait]
impl Archive for Fake {
    async fn hash_sync(
        &self,
        request: Request<Streaming<HashSyncRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let mut requests = request.into_inner();
        let Some(Step::Start(mut start)) = requests.message().await?.unwrap().step else {
            panic!("no start")
        };
        if let Trouble::OtherSize(by) = self.trouble {
            start.size_lb = start.size_lb.checked_add_signed(by).unwrap();
        }
        let seed = Seed::of(&start).unwrap();
        let spans = hash_sync::spans(&start).unwrap();
        let cells = scan::cells(self.image.clone(), spans, 0);
        let (replies, receiver) = mpsc::channel(8);
        let (refs, asked) = mpsc::channel(hash_sync::QUESTIONS_MAX);
        tokio::spawn(hash_sync::answer(seed, cells, asked, replies.clone()));
        let (wdiff, trouble) = (self.wdiff.clone(), self.trouble);
        tokio::spawn(async move {
            let mut data = Vec::new();
            let mut seen = 0;
            while let Ok(Some(message)) = requests.message().await {
                seen += 1;
                if trouble == Trouble::Leaves(seen) {
                    return;
                }
                match message.step.unwrap() {
                    Step::Start(_) => panic!("a second start"),
                    Step::Wanted(wanted) => refs.try_send(wanted).unwrap(),
                    Step::Data(chunk) => {
                        data.extend_from_slice(&server_kit::chunks::decode(chunk).unwrap());
                    }
                    Step::End(end) => {
                        assert_eq!(end.total_bytes, data.len() as u64);
                        *wdiff.lock() = Some((data, end.result.unwrap()));
                        let done = HashSyncDone { wdiff_bytes: end.total_bytes };
                        let _ =
                            replies.send(Ok(HashSyncReply { step: Some(Told::Done(done)) })).await;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A forwarder that counts what goes both ways.
async fn counted(to: String) -> (Endpoint, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let bytes = Arc::new(AtomicU64::new(0));
    let count = bytes.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&to).await.unwrap();
            let (a, b) = (client.into_split(), server.into_split());
            for (mut from, mut into) in [(a.0, b.1), (b.0, a.1)] {
                let count = count.clone();
                tokio::spawn(async move {
                    let mut buffer = vec![0; 64 << 10];
                    while let Ok(n @ 1..) = from.read(&mut buffer).await {
                        count.fetch_add(n as u64, Ordering::Relaxed);
                        if into.write_all(&buffer[..n]).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (Endpoint::Tcp(address), bytes)
}

fn device(dir: &tempfile::TempDir, name: &str, content: &[u8]) -> Arc<dyn BlockDevice> {
    let path = dir.path().join(name);
    match content.iter().all(|b| *b == 0) {
        true => std::fs::File::create(&path).unwrap().set_len(content.len() as u64).unwrap(),
        false => std::fs::write(&path, content).unwrap(),
    }
    let options = block_io::OpenOptions { direct: false, ..Default::default() };
    block_io::open(&path, options).unwrap()
}

struct Outcome {
    sent: Result<Sent, RoleError>,
    /// The archive's image with what arrived, and the end that it was told.
    result: Option<(Vec<u8>, hash_sync_end::Result)>,
    wire_bytes: u64,
    wdiff: Vec<u8>,
}

async fn sync(theirs: &[u8], own: &[u8], trouble: Trouble, change: HashSyncStart) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    let wdiff = Arc::new(Mutex::new(None));
    let fake = Fake { image: device(&dir, "theirs", theirs), trouble, wdiff: wdiff.clone() };
    let listener = Listener::bind(&Endpoint::Tcp("127.0.0.1:0".into()), false).await.unwrap();
    let Endpoint::Tcp(address) = listener.endpoint().clone() else { panic!("not TCP") };
    let shutdown = Shutdown::new();
    let routes = tonic::service::Routes::new(ArchiveServer::new(fake));
    let stop = shutdown.clone();
    let server = tokio::spawn(async move { server_kit::net::serve(listener, routes, &stop).await });
    let (endpoint, wire) = counted(address).await;
    let start = HashSyncStart {
        volume: "v".into(),
        log_uuid: Bytes::copy_from_slice(&LogUuid([3; 16]).0),
        size_lb: own.len() as u64 / 512,
        ..change
    };
    let spans = hash_sync::spans(&start).unwrap();
    let cells = scan::cells(device(&dir, "own", own), spans, start.scan_bytes_per_s);
    let (started, handle) = tokio::sync::oneshot::channel();
    let operations = Operations::new();
    operations.start("test", "v", |handle| async move {
        let _ = started.send(handle);
        Ok(Default::default())
    });
    let handle = handle.await.unwrap();
    let client = ArchiveClient::new(RealConnector.channel(&endpoint));
    let sending =
        Sending { peer: "a0", start, cells, compression: Compression::NONE, progress: &handle };
    let end = async { Ok(hash_sync_end::Result::Backup(Snapshot { gid_begin: 5, gid_end: 9 })) };
    let sent = hash_sync::send(client, sending, end).await;
    let wire_bytes = wire.load(Ordering::Relaxed);
    shutdown.request(proto::v1::StopMode::Force);
    let _ = server.await;
    let Some((data, end)) = wdiff.lock().take() else {
        return Outcome { sent, result: None, wire_bytes, wdiff: Vec::new() };
    };
    let path = dir.path().join("theirs");
    let image = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let reader = SortedReader::new(&data[..], "sent").unwrap();
    assert_eq!(reader.header().uuid, LogUuid([3; 16]));
    let options = RedoOptions {
        discards: Discards::Zero,
        beyond_end: BeyondEnd::Fail,
        image_blocks: Lb(own.len() as u64 / 512),
        threads: 1,
    };
    redo(reader, &image, &options).unwrap();
    Outcome { sent, result: Some((std::fs::read(path).unwrap(), end)), wire_bytes, wdiff: data }
}

/// Bytes that no compression makes smaller.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn whole() -> HashSyncStart {
    HashSyncStart::default()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn whatever_differs_is_made_equal(
        blocks in 1usize..9000, seed in any::<u64>(),
        changes in prop::collection::vec((any::<Index>(), 1usize..600, 0u8..3), 0..40),
        zero in prop::option::of((any::<Index>(), 1usize..9000)),
    ) {
        let mut theirs = noise(seed, blocks * 512);
        if let Some((at, len)) = zero {
            let at = at.index(blocks);
            theirs[at * 512..(at + len).min(blocks) * 512].fill(0);
        }
        let mut own = theirs.clone();
        let mut differing = std::collections::BTreeSet::new();
        for (at, len, kind) in changes {
            let at = at.index(blocks);
            let end = (at + len).min(blocks);
            match kind {
                0 => own[at * 512..end * 512].fill(0),
                1 => own[at * 512..end * 512].fill(kind),
                _ => own[at * 512] ^= 1,
            }
        }
        for (index, (a, b)) in theirs.chunks(4096).zip(own.chunks(4096)).enumerate() {
            if a != b {
                differing.insert(index);
            }
        }
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { let mut r = runtime; r.worker_threads(2).enable_all().build().unwrap() };
        let outcome = runtime.block_on(sync(&theirs, &own, Trouble::None, whole()));
        let sent = outcome.sent.unwrap();
        let (image, end) = outcome.result.unwrap();
        prop_assert!(image == own);
        let end_sent = hash_sync_end::Result::Backup(Snapshot { gid_begin: 5, gid_end: 9 });
        prop_assert_eq!(end, end_sent);
        prop_assert!(sent.differing_bytes <= differing.len() as u64 * 4096);
        prop_assert_eq!(sent.wdiff_bytes, outcome.wdiff.len() as u64);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn little_more_than_what_differs_travels() {
    let theirs = noise(1, 128 << 20);
    let blocks = theirs.len() / 4096;
    let mut own = theirs.clone();
    let mut at = 12_345;
    let changed = blocks / 100;
    let mut seen = std::collections::BTreeSet::new();
    while seen.len() < changed {
        at = (at * 1_103_515_245 + 12_345) % blocks;
        if seen.insert(at) {
            own[at * 4096] ^= 1;
        }
    }
    let outcome = sync(&theirs, &own, Trouble::None, whole()).await;
    assert!(outcome.result.unwrap().0 == own);
    let ratio = outcome.wire_bytes as f64 / (changed * 4096) as f64;
    println!("1 % scattered: {ratio:.4} of the changed bytes on the wire");
    assert!(ratio <= 1.05, "{ratio}");
    let outcome = sync(&own, &own, Trouble::None, whole()).await;
    println!("equal: {} bytes on the wire", outcome.wire_bytes);
    assert!(outcome.wire_bytes < own.len() as u64 / 8192, "{}", outcome.wire_bytes);
    assert_eq!(outcome.sent.unwrap().differing_bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_of_zeroes_cost_next_to_nothing() {
    let zeros = vec![0; 256 << 20];
    let outcome = sync(&zeros, &zeros, Trouble::None, whole()).await;
    outcome.sent.unwrap();
    assert!(outcome.wire_bytes < 8192, "{}", outcome.wire_bytes);
    let mut full = noise(9, 16 << 20);
    full.resize(64 << 20, 0);
    let outcome = sync(&full, &zeros[..64 << 20], Trouble::None, whole()).await;
    assert!(outcome.result.unwrap().0 == zeros[..64 << 20]);
    assert!(outcome.wire_bytes < 160 << 10, "{}", outcome.wire_bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_ranges_that_were_asked_for_are_compared() {
    let theirs = noise(4, 8 << 20);
    let own = noise(6, 8 << 20);
    let ranges = vec![ByteRange { begin: (5 << 20) + 9, end: (5 << 20) + 10 }];
    let start = HashSyncStart { only_ranges: true, ranges, ..whole() };
    let outcome = sync(&theirs, &own, Trouble::None, start).await;
    let mut expected = theirs.clone();
    expected[5 << 20..][..64 << 10].copy_from_slice(&own[5 << 20..][..64 << 10]);
    assert!(outcome.result.unwrap().0 == expected);
    let start = HashSyncStart { only_ranges: true, ..whole() };
    let outcome = sync(&theirs, &own, Trouble::None, start).await;
    assert_eq!(outcome.sent.unwrap().differing_bytes, 0);
    assert!(outcome.result.unwrap().0 == theirs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scattered_regions_cost_little_more_than_what_differs_in_them() {
    let theirs = noise(1, 64 << 20);
    let mut own = theirs.clone();
    let mut ranges = Vec::new();
    // One block of each seventh region; what is written besides is not looked at.
    for region in (0..1024).step_by(7) {
        let begin = region * (64 << 10);
        own[begin + region % 16 * 4096] ^= 1;
        ranges.push(ByteRange { begin: begin as u64, end: begin as u64 + (64 << 10) });
    }
    let expected = own.clone();
    own[64 << 10] ^= 1;
    let changed = ranges.len() * 4096;
    let start = HashSyncStart { only_ranges: true, ranges, ..whole() };
    let outcome = sync(&theirs, &own, Trouble::None, start).await;
    assert!(outcome.result.unwrap().0 == expected);
    assert_eq!(outcome.sent.unwrap().differing_bytes, changed as u64);
    let ratio = outcome.wire_bytes as f64 / changed as f64;
    println!("1 block of a region each: {ratio:.4} of the changed bytes on the wire");
    assert!(ratio <= 1.05, "{ratio}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_of_another_protocol_is_refused_with_what_to_do() {
    let start = |protocol| HashSyncStart { protocol, seed: vec![7; 32].into(), ..whole() };
    assert!(Seed::of(&start(hash_sync::PROTOCOL)).is_ok());
    for other in [0, hash_sync::PROTOCOL + 1] {
        let error = Seed::of(&start(other)).err().unwrap();
        assert_eq!(error.reason(), Reason::BadRequest);
        assert!(error.full_message().contains(&format!("protocol {other} ")), "{error}");
        assert!(error.detail().next_step.contains("same version"), "{error}");
    }
    let short = HashSyncStart { seed: vec![7; 31].into(), ..start(hash_sync::PROTOCOL) };
    assert_eq!(Seed::of(&short).err().unwrap().reason(), Reason::BadRequest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_that_goes_away_or_hashes_another_size_is_an_error() {
    let (theirs, own) = (noise(4, 32 << 20), noise(6, 32 << 20));
    for after in [1, 2, 5, 20] {
        let outcome = sync(&theirs, &own, Trouble::Leaves(after), whole()).await;
        let error = outcome.sent.unwrap_err();
        assert_eq!(error.reason(), Reason::Unreachable, "after {after}: {}", error.full_message());
        assert!(outcome.result.is_none());
    }
    for by in [-4096, 1, 4096, 40_000] {
        let theirs = noise(4, 64 << 20);
        let outcome = sync(&theirs, &theirs[..32 << 20], Trouble::OtherSize(by), whole()).await;
        let error = outcome.sent.expect_err(&format!("by {by}"));
        assert_eq!(error.reason(), Reason::WrongPeer, "{by}: {}", error.full_message());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limited_scan_takes_its_time() {
    let own = noise(4, 4 << 20);
    let start = HashSyncStart { scan_bytes_per_s: 8 << 20, ..whole() };
    let begun = tokio::time::Instant::now();
    sync(&own, &own, Trouble::None, start).await.sent.unwrap();
    assert!(begun.elapsed().as_millis() >= 375, "{:?}", begun.elapsed());
}
