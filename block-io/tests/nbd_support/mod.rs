//! An export in memory that records what it was asked to do and fails on request, and a server of
//! it for programs outside.
#![allow(dead_code, reason = "each test file uses a part of this")]

pub(crate) mod raw;

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use block_io::nbd::{Chunk, Export, ExportError, Extent, Limits, Listener, NbdServer, WriteZeroes};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Unit of allocation of the export in bytes.
pub(crate) const PAGE: usize = 4096;

/// What the export was asked to do, or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    WriteBegin { offset: u64, len: u32, fua: bool },
    WriteEnd { offset: u64 },
    FlushBegin,
    FlushEnd,
    Trim { offset: u64, len: u32, fua: bool },
    Zeroes { offset: u64, len: u32, how: WriteZeroes },
    Read { offset: u64, len: u32 },
}

/// When an operation is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Reads that touch this byte fail with EIO.
    ReadAt(u64),
    /// Writes that touch this byte fail with ENOSPC.
    WriteAt(u64),
    /// Flushes fail with EIO.
    Flush,
    /// Reads return one byte less than they should.
    ShortRead,
    /// Reads at this offset never end.
    HangAt(u64),
    /// Reads at this offset panic.
    PanicAt(u64),
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) data: Vec<u8>,
    /// Pages that are not holes.
    pub(crate) allocated: BTreeSet<usize>,
    pub(crate) events: Vec<Event>,
    pub(crate) faults: Vec<Fault>,
    /// Calls that the server must not make.
    pub(crate) violations: Vec<String>,
}

pub(crate) struct MemoryExport {
    pub(crate) state: Mutex<State>,
    size: u64,
    block: u32,
    read_only: bool,
    /// Operations wait this long, the even ones (by offset) longer, so that replies change order.
    delay: Duration,
    record: bool,
    home: Option<Handle>,
}

impl MemoryExport {
    pub(crate) fn new(size: usize) -> Self {
        let state = State { data: vec![0; size], ..State::default() };
        Self {
            state: Mutex::new(state),
            size: size as u64,
            block: 512,
            read_only: false,
            delay: Duration::ZERO,
            record: true,
            home: None,
        }
    }

    pub(crate) fn at_home(mut self, home: Handle) -> Self {
        self.home = Some(home);
        self
    }

    pub(crate) fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    pub(crate) fn delayed(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    pub(crate) fn block(mut self, block: u32) -> Self {
        self.block = block;
        self
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.state.lock().faults.push(fault);
    }

    pub(crate) fn heal(&self) {
        self.state.lock().faults.clear();
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.state.lock().events.clone()
    }

    /// Fills a range, as if it had been written before.
    pub(crate) fn fill(&self, offset: usize, data: &[u8]) {
        self.state.lock().store(offset, data);
    }

    fn note(&self, event: Event) {
        if self.record {
            self.state.lock().events.push(event);
        }
    }

    /// What the server promises of every range.
    fn check(&self, what: &str, offset: u64, len: u32) {
        if self.home.as_ref().is_some_and(|home| home.id() != Handle::current().id()) {
            self.state.lock().violations.push(format!("{what} away from home"));
        }
        let block = u64::from(self.block);
        let aligned = offset.is_multiple_of(block) && u64::from(len).is_multiple_of(block);
        let inside = offset.checked_add(u64::from(len)).is_some_and(|end| end <= self.size);
        if !aligned || !inside || len == 0 {
            self.state.lock().violations.push(format!("{what} of {len} at {offset}"));
        }
    }

    async fn pause(&self, offset: u64) {
        if !self.delay.is_zero() {
            let slow = (offset / 4096).is_multiple_of(2);
            tokio::time::sleep(if slow { self.delay * 4 } else { self.delay }).await;
        }
    }
}

impl State {
    fn store(&mut self, offset: usize, data: &[u8]) {
        self.data[offset..offset + data.len()].copy_from_slice(data);
        self.allocated.extend(offset / PAGE..(offset + data.len()).div_ceil(PAGE));
    }

    fn faulty(&self, fault: impl Fn(&Fault) -> bool) -> bool {
        self.faults.iter().any(fault)
    }

    fn read(&self, offset: usize, len: usize) -> Vec<Chunk> {
        let (mut at, end) = (offset, offset + len);
        let mut chunks = Vec::new();
        while at < end {
            let stop = end.min((at / PAGE + 1) * PAGE);
            chunks.push(if self.allocated.contains(&(at / PAGE)) {
                Chunk::Data(Bytes::copy_from_slice(&self.data[at..stop]))
            } else {
                Chunk::Zeroes((stop - at) as u32)
            });
            at = stop;
        }
        chunks
    }

    fn punch(&mut self, offset: usize, len: usize) {
        self.data[offset..offset + len].fill(0);
        for page in offset.div_ceil(PAGE)..(offset + len) / PAGE {
            self.allocated.remove(&page);
        }
    }

    fn status(&self, offset: usize, len: usize) -> Vec<Extent> {
        let (mut at, end) = (offset, offset + len);
        let mut extents = Vec::new();
        while at < end {
            let stop = (at / PAGE + 1) * PAGE;
            let hole = !self.allocated.contains(&(at / PAGE));
            extents.push(Extent { len: (stop - at) as u64, hole, zero: hole });
            at = stop;
        }
        extents
    }
}

fn touches(at: u64, offset: u64, len: u32) -> bool {
    (offset..offset + u64::from(len)).contains(&at)
}

fn io_error(kind: std::io::ErrorKind) -> ExportError {
    ExportError::Io(std::io::Error::new(kind, "injected"))
}

impl Export for MemoryExport {
    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn block_bytes(&self) -> u32 {
        self.block
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn home(&self) -> Option<Handle> {
        self.home.clone()
    }

    fn read(&self, offset: u64, len: u32) -> BoxFuture<'_, Result<Vec<Chunk>, ExportError>> {
        Box::pin(async move {
            self.check("read", offset, len);
            self.note(Event::Read { offset, len });
            if self.state.lock().faulty(|fault| *fault == Fault::HangAt(offset)) {
                std::future::pending::<()>().await;
            }
            self.pause(offset).await;
            let panics = self.state.lock().faulty(|fault| *fault == Fault::PanicAt(offset));
            assert!(!panics, "injected");
            let state = self.state.lock();
            if state.faulty(|fault| matches!(fault, Fault::ReadAt(at) if touches(*at, offset, len)))
            {
                return Err(io_error(std::io::ErrorKind::Other));
            }
            let short = usize::from(state.faulty(|fault| *fault == Fault::ShortRead));
            Ok(state.read(offset as usize, len as usize - short))
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            assert!(block_io::buffer::is_aligned(&data, 512), "payloads arrive aligned");
            let len = data.len() as u32;
            self.check("write", offset, len);
            self.note(Event::WriteBegin { offset, len, fua });
            self.pause(offset).await;
            let mut state = self.state.lock();
            if state
                .faulty(|fault| matches!(fault, Fault::WriteAt(at) if touches(*at, offset, len)))
            {
                return Err(io_error(std::io::ErrorKind::StorageFull));
            }
            state.store(offset as usize, &data);
            drop(state);
            self.note(Event::WriteEnd { offset });
            Ok(())
        })
    }

    fn flush(&self) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.note(Event::FlushBegin);
            self.pause(0).await;
            if self.state.lock().faulty(|fault| *fault == Fault::Flush) {
                return Err(io_error(std::io::ErrorKind::Other));
            }
            self.note(Event::FlushEnd);
            Ok(())
        })
    }

    fn trim(&self, offset: u64, len: u32, fua: bool) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.check("trim", offset, len);
            self.note(Event::Trim { offset, len, fua });
            self.state.lock().punch(offset as usize, len as usize);
            Ok(())
        })
    }

    fn write_zeroes(
        &self,
        offset: u64,
        len: u32,
        how: WriteZeroes,
    ) -> BoxFuture<'_, Result<(), ExportError>> {
        Box::pin(async move {
            self.check("write_zeroes", offset, len);
            self.note(Event::Zeroes { offset, len, how });
            let mut state = self.state.lock();
            if how.no_hole {
                state.store(offset as usize, &BytesMut::zeroed(len as usize));
            } else {
                state.punch(offset as usize, len as usize);
            }
            Ok(())
        })
    }

    fn block_status(
        &self,
        offset: u64,
        len: u32,
    ) -> BoxFuture<'_, Result<Vec<Extent>, ExportError>> {
        Box::pin(async move {
            self.check("block_status", offset, len);
            Ok(self.state.lock().status(offset as usize, len as usize))
        })
    }
}

/// A server on a Unix socket in a directory of its own.
pub(crate) struct Served {
    pub(crate) export: Arc<MemoryExport>,
    pub(crate) socket: PathBuf,
    pub(crate) shutdown: CancellationToken,
    pub(crate) task: JoinHandle<()>,
    pub(crate) dir: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn new(export: MemoryExport) -> Self {
        Self::with_limits(export, Limits::default()).await
    }

    pub(crate) async fn with_limits(export: MemoryExport, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("nbd.sock");
        let export = Arc::new(export);
        let server = server_of(&export, limits);
        let listener = Listener::unix(&socket).await.unwrap();
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        let task = tokio::spawn(async move { server.serve(listener, token).await });
        Self { export, socket, shutdown, task, dir }
    }

    /// The URI that libnbd and QEMU understand.
    pub(crate) fn uri(&self) -> String {
        format!("nbd+unix:///vol?socket={}", self.socket.display())
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, self.task).await.expect("shutdown ends").unwrap();
    }
}

pub(crate) fn server_of(export: &Arc<MemoryExport>, limits: Limits) -> NbdServer {
    let export: Arc<dyn Export> = Arc::<MemoryExport>::clone(export);
    NbdServer::new(HashMap::from([("vol".to_owned(), export)]), limits).unwrap()
}

/// The whole path of a program, or a notice that the test is skipped.
pub(crate) fn program(test: &str, name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.exists());
    if found.is_none() {
        skip(test, &format!("{name} is not installed"));
    }
    found
}

/// Says that a test could not be run: on stderr, and in the file that `WALB_SKIP_LOG` names.
pub(crate) fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED: {test}: {why}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("WALB_SKIP_LOG") {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(path);
        log.and_then(|mut log| writeln!(log, "{line}")).expect("write WALB_SKIP_LOG");
    }
}

/// Runs a program to its end, at most two minutes; returns stdout, panics with all it said if it
/// fails.
pub(crate) async fn run(program: &Path, args: &[&str]) -> String {
    let (ok, stdout, stderr) = run_any(program, args).await;
    assert!(ok, "{} {args:?} failed\n{stdout}\n{stderr}", program.display());
    stdout
}

/// Runs a program to its end; returns whether it succeeded, stdout, stderr.
pub(crate) async fn run_any(program: &Path, args: &[&str]) -> (bool, String, String) {
    let child = tokio::process::Command::new(program).args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(120), child);
    let output = output.await.unwrap_or_else(|_| panic!("{} {args:?} hangs", program.display()));
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout), text(&output.stderr))
}

/// Polls until `done` says so, at most thirty seconds.
pub(crate) async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..3000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within thirty seconds");
}

/// Bytes that look random and depend on `seed`.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut data = Vec::with_capacity(len + 8);
    while data.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(len);
    data
}
