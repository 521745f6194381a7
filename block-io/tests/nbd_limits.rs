//! What an NBD server allows itself and its clients: memory, time, connections, and their end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]

mod nbd_support;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use block_io::nbd::{Client, ClientError, Limits, Listener, ServerError};
use bytes::Bytes;
use nbd_support::raw::{Raw, Reply, request};
use nbd_support::{Event, Fault, MemoryExport, PAGE, Served, noise, until};
use parking_lot::Mutex;
use tokio::net::UnixStream;
use tokio::runtime::Handle;

const MIB: usize = 1 << 20;
const READ: u16 = 0;
const WRITE: u16 = 1;

/// The least memory that a server can be given: one payload of full length, 64 KiB of reserve.
fn tight() -> Limits {
    Limits { connection_bytes: 0, server_bytes: 0, reserve_bytes: 64 << 10, ..Limits::default() }
}

/// Collects what is logged at WARN and above on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl tracing::Subscriber for Log {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
                self.0.push_str(&format!(" {field}={value:?}"));
            }
        }
        let mut text = Text(event.metadata().level().to_string());
        event.record(&mut text);
        self.0.lock().push(text.0);
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::Id {
        tracing::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::Id, _: &tracing::Id) {}
    fn enter(&self, _: &tracing::Id) {}
    fn exit(&self, _: &tracing::Id) {}
}

#[tokio::test]
async fn a_dying_disk_is_logged_once_with_the_name_of_the_export() {
    let log = Log::default();
    let _guard = tracing::subscriber::set_default(log.clone());
    let served = Served::new(MemoryExport::new(MIB)).await;
    served.export.fail(Fault::ReadAt(4096));
    let client = Client::unix(&served.socket, "vol").await.unwrap();
    for _ in 0..50 {
        let failed = client.read(0, 8192).await.unwrap_err();
        assert!(matches!(failed, ClientError::Failed { errno: 5, .. }), "{failed}");
        client.read(4 * MIB as u64, 512).await.unwrap_err();
    }
    let lines = log.0.lock().clone();
    assert_eq!(lines.len(), 1, "{lines:?}");
    for fact in ["ERROR", "export=\"vol\"", "Read", "offset=0", "len=8192", "injected"] {
        assert!(lines[0].contains(fact), "no {fact} in {lines:?}");
    }
    client.disconnect().await;
    served.stop().await;
    let lines = log.0.lock().clone();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].contains("failed_requests=50"), "{lines:?}");
}

fn reads(served: &Served) -> usize {
    served.export.events().iter().filter(|event| matches!(event, Event::Read { .. })).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_blocks_no_other() {
    let served = Served::with_limits(MemoryExport::new(64 * MIB), tight()).await;
    served.export.fill(0, &noise(1, 64 * MIB));
    let mut idle = Raw::simple(&served.socket).await;
    idle.send(&request(READ, 0, 1, 0, 32 * MIB as u32)).await;
    until("the read begins", || reads(&served) == 1).await;
    let client = Client::unix(&served.socket, "vol").await.unwrap();
    for page in 0..100 {
        let read = client.read(page * PAGE as u64, PAGE as u32);
        let data = tokio::time::timeout(Duration::from_secs(20), read).await.expect("not blocked");
        assert_eq!(data.unwrap().len(), PAGE);
    }
    // Once it goes on, it gets everything.
    assert_eq!(idle.reply().await, Reply::Simple { cookie: 1, error: 0 });
    assert!(idle.take(32 * MIB).await == noise(1, 64 * MIB)[..32 * MIB]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_in_the_way_is_disconnected_and_only_then() {
    let limits = Limits { stall: Duration::from_millis(100), ..tight() };
    let served = Served::with_limits(MemoryExport::new(64 * MIB), limits).await;
    served.export.fill(0, &noise(1, 64 * MIB));
    let mut reader = Raw::simple(&served.socket).await;
    reader.send(&request(READ, 0, 1, 0, 32 * MIB as u32)).await;
    until("the read begins", || reads(&served) == 1).await;
    // Many stall times pass, but nobody waits for the memory: small reads have their reserve.
    let client = Client::unix(&served.socket, "vol").await.unwrap();
    let start = std::time::Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        client.read(0, 512).await.unwrap();
    }
    assert_eq!(reader.reply().await, Reply::Simple { cookie: 1, error: 0 });
    reader.take(MIB).await;
    // Now somebody does.
    let read = client.read(0, 2 * MIB as u32);
    let data = tokio::time::timeout(Duration::from_secs(20), read).await.expect("not blocked");
    assert_eq!(data.unwrap().len(), 2 * MIB);
    assert!(reader.rest().await.len() < 31 * MIB, "was not disconnected");
    // The same holds for a payload that was announced and does not come.
    let mut writer = Raw::simple(&served.socket).await;
    writer.send(&request(WRITE, 0, 1, 0, 32 * MIB as u32)).await;
    writer.send(&[1; 100]).await;
    let read = client.read(0, 2 * MIB as u32);
    let data = tokio::time::timeout(Duration::from_secs(20), read).await.expect("not blocked");
    assert_eq!(data.unwrap().len(), 2 * MIB);
    assert_eq!(served.export.events().iter().filter(|e| is_write(e)).count(), 0);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_client_leaves_the_queue_for_memory() {
    let export = MemoryExport::new(64 * MIB).delayed(Duration::from_millis(30));
    export.fill(0, &noise(1, 64 * MIB));
    export.fail(Fault::HangAt(512));
    let served = Served::with_limits(export, tight()).await;
    let mut holder = Raw::simple(&served.socket).await;
    holder.send(&request(READ, 0, 1, 0, 32 * MIB as u32)).await;
    until("the read begins", || reads(&served) == 1).await;
    let mut lost = Raw::simple(&served.socket).await;
    // One request that never ends, one whose reply finds nobody, and one that waits for memory.
    let hanging = request(READ, 0, 1, 512, 512);
    let unread = request(READ, 0, 2, 4096, 512);
    let waiting = request(READ, 0, 3, 0, 16 * MIB as u32);
    lost.send(&[hanging, unread, waiting].concat()).await;
    until("the reads begin", || reads(&served) == 3).await;
    drop(lost);
    // When these have been read, so has the one that nobody reads.
    let client = Client::unix(&served.socket, "vol").await.unwrap();
    for _ in 0..5 {
        client.read(4096, 512).await.unwrap();
    }
    assert_eq!(holder.reply().await, Reply::Simple { cookie: 1, error: 0 });
    holder.take(32 * MIB).await;
    let read = tokio::time::timeout(Duration::from_secs(20), client.read(0, 32 * MIB as u32)).await;
    assert_eq!(read.expect("nobody is in the way").unwrap().len(), 32 * MIB);
}

fn is_write(event: &Event) -> bool {
    matches!(event, Event::WriteBegin { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_while_replies_are_not_taken() {
    let served = Served::with_limits(MemoryExport::new(64 * MIB), tight()).await;
    served.export.fill(0, &noise(1, 64 * MIB));
    let mut raw = Raw::simple(&served.socket).await;
    for cookie in 0..100 {
        raw.send(&request(READ, 0, cookie, 0, MIB as u32)).await;
    }
    until("reads begin", || reads(&served) >= 32).await;
    // A round trip on another connection gives the first one time to overdo it.
    let client = Client::unix(&served.socket, "vol").await.unwrap();
    for _ in 0..50 {
        client.read(0, 512).await.unwrap();
    }
    // 32 MiB in hand, and what the socket holds.
    assert!(reads(&served) - 50 <= 34, "{} reads begun", reads(&served) - 50);
    for cookie in 0..100 {
        assert_eq!(raw.reply().await, Reply::Simple { cookie, error: 0 });
        raw.take(MIB).await;
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_are_limited() {
    let limits = Limits { connection_requests: 4, ..Limits::default() };
    let export = MemoryExport::new(MIB);
    export.fail(Fault::HangAt(0));
    let served = Served::with_limits(export, limits).await;
    let mut raw = Raw::simple(&served.socket).await;
    for cookie in 0..20 {
        raw.send(&request(READ, 0, cookie, 0, 512)).await;
    }
    until("reads begin", || reads(&served) == 4).await;
    let client = Client::unix(&served.socket, "vol").await.unwrap();
    for _ in 0..50 {
        client.read(4096, 512).await.unwrap();
    }
    assert_eq!(reads(&served) - 50, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_clients_are_turned_away() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let served = Served::with_limits(MemoryExport::new(MIB), limits).await;
    let first = Client::unix(&served.socket, "vol").await.unwrap();
    let _second = Client::unix(&served.socket, "vol").await.unwrap();
    assert!(Client::unix(&served.socket, "vol").await.is_err());
    first.disconnect().await;
    for _ in 0..100 {
        if Client::unix(&served.socket, "vol").await.is_ok() {
            return served.stop().await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the place was not given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handshake_that_does_not_go_on_is_ended() {
    let limits = Limits { handshake: Duration::from_millis(100), ..Limits::default() };
    let served = Served::with_limits(MemoryExport::new(MIB), limits).await;
    let mut raw = Raw::greeted(&served.socket, 3).await;
    assert_eq!(raw.rest().await, b"");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_finishes_what_is_in_flight() {
    let export = MemoryExport::new(MIB).delayed(Duration::from_millis(100));
    let served = Served::new(export).await;
    let mut raw = Raw::simple(&served.socket).await;
    let _in_handshake = Raw::greeted(&served.socket, 3).await;
    raw.send(&[request(WRITE, 0, 7, 0, 512), vec![1; 512]].concat()).await;
    // Half a request more, which will not be finished.
    raw.send(&request(WRITE, 0, 8, 4096, 512)).await;
    let export = Arc::clone(&served.export);
    until("the write begins", || export.events().iter().any(is_write)).await;
    let socket = served.socket.clone();
    served.stop().await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 7, error: 0 });
    assert_eq!(raw.rest().await, b"");
    assert!(export.events().contains(&Event::WriteEnd { offset: 0 }));
    assert!(!socket.exists(), "the socket is left behind");
}

/// Runs on a thread of its own until the sender is dropped.
fn another_runtime() -> (Handle, tokio::sync::oneshot::Sender<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let (alive, ended) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(runtime.block_on(ended)));
    (handle, alive)
}

#[tokio::test]
async fn an_export_is_served_where_it_is_at_home() {
    let (home, alive) = another_runtime();
    let export = MemoryExport::new(MIB).at_home(home).delayed(Duration::from_millis(1));
    let served = Served::new(export).await;
    let mut raw = Raw::simple(&served.socket).await;
    raw.send(&[request(WRITE, 0, 1, 0, 512), vec![3; 512]].concat()).await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 1, error: 0 });
    raw.send(&request(READ, 0, 2, 0, 512)).await;
    assert_eq!(raw.reply().await, Reply::Simple { cookie: 2, error: 0 });
    assert_eq!(raw.take(512).await, [3; 512]);
    assert_eq!(served.export.state.lock().violations, Vec::<String>::new());
    // Its clients are cut off with it, and the server ends in order.
    drop(alive);
    assert!(raw.rest().await.is_empty());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_does_not_wait_for_ever() {
    let limits = Limits { shutdown_grace: Duration::from_millis(100), ..Limits::default() };
    let export = MemoryExport::new(MIB);
    export.fail(Fault::HangAt(0));
    let served = Served::with_limits(export, limits).await;
    let mut raw = Raw::simple(&served.socket).await;
    raw.send(&request(READ, 0, 7, 0, 512)).await;
    until("the read begins", || reads(&served) == 1).await;
    served.stop().await;
    assert_eq!(raw.rest().await, b"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operations_of_a_client_that_went_away_run_to_their_end() {
    let export = MemoryExport::new(MIB).delayed(Duration::from_millis(50));
    let served = Served::new(export).await;
    let mut raw = Raw::simple(&served.socket).await;
    for cookie in 0..10 {
        let offset = cookie * 4096;
        raw.send(&[request(WRITE, 0, cookie, offset, 4096), vec![1; 4096]].concat()).await;
    }
    until("writes begin", || served.export.events().iter().any(is_write)).await;
    drop(raw);
    let events =
        |wanted: fn(&Event) -> bool| served.export.events().iter().filter(|e| wanted(e)).count();
    until("writes end", || {
        let ended = events(|event| matches!(event, Event::WriteEnd { .. }));
        ended > 0 && ended == events(is_write)
    })
    .await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_panics_ends_one_connection() {
    let served = Served::new(MemoryExport::new(MIB)).await;
    served.export.fail(Fault::PanicAt(4096));
    let other = Client::unix(&served.socket, "vol").await.unwrap();
    let client = Client::unix(&served.socket, "vol").await.unwrap();
    let lost = client.read(4096, 512).await;
    assert!(matches!(lost, Err(ClientError::Closed("read"))), "{lost:?}");
    other.read(0, 512).await.unwrap();
    Client::unix(&served.socket, "vol").await.unwrap().read(0, 512).await.unwrap();
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nbd.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::unix(&path).await.unwrap();
    assert!(matches!(Listener::unix(&path).await, Err(ServerError::Listen { .. })));
    UnixStream::connect(&path).await.unwrap();
    drop(listener);
    assert!(!path.exists());
    // What is not a socket is not removed.
    std::fs::write(&path, "precious").unwrap();
    assert!(Listener::unix(&path).await.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_does_everything_with_many_requests_in_flight() {
    let export = MemoryExport::new(4 * MIB).delayed(Duration::from_millis(1));
    let served = Served::new(export).await;
    let client = Client::unix(&served.socket, "").await.unwrap();
    assert_eq!((client.size_bytes(), client.block_bytes()), (4 * MIB as u64, 512));
    assert!(!client.read_only());
    let image = Bytes::from(noise(1, 4 * MIB));
    let writes = (0..256).map(|at| {
        let start = at * 16384;
        client.write(start as u64, image.slice(start..start + 16384), at % 2 == 0)
    });
    futures::future::try_join_all(writes).await.unwrap();
    client.flush().await.unwrap();
    assert!(served.export.state.lock().data == image);
    let reads = (0..256_u64).rev().map(|at| client.read(at * 16384, 16384));
    let mut pieces = futures::future::try_join_all(reads).await.unwrap();
    pieces.reverse();
    assert!(pieces.concat() == image);
    client.write_zeroes(0, 8192, true).await.unwrap();
    client.trim(8192, 8192, false).await.unwrap();
    assert!(client.read(0, 16384).await.unwrap().iter().all(|byte| *byte == 0));
    let past = client.read(4 * MIB as u64, 512).await.unwrap_err();
    assert!(matches!(past, ClientError::Failed { errno: 22, .. }), "{past}");
    client.disconnect().await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_learns_that_the_server_is_gone() {
    let served = Served::new(MemoryExport::new(MIB)).await;
    let refused = Client::unix(&served.socket, "other").await.unwrap_err();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
    served.export.fail(Fault::HangAt(0));
    let client = Client::unix(&served.socket, "vol").await.unwrap();
    served.task.abort();
    let limit = Duration::from_secs(20);
    let lost = tokio::time::timeout(limit, client.read(0, 512)).await.expect("told in time");
    assert!(matches!(lost, Err(ClientError::Closed("read"))), "{lost:?}");
    let again = tokio::time::timeout(limit, client.flush()).await.expect("told in time");
    assert!(matches!(again, Err(ClientError::Closed("flush"))), "{again:?}");
    let nobody = Client::unix(served.dir.path().join("none"), "vol").await.unwrap_err();
    assert!(matches!(nobody, ClientError::Connect { .. }), "{nobody}");
}
