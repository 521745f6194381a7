//! The network between the hosts: bytes arrive after a delay, connections are cut or fall silent.
//!
//! Time is that of the simulator: what was written in one tick arrives in a later one. Invariant: a
//! dead process sends nothing, and its peers see the connection end.

use crate::life::Life;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use server_kit::net::{Connector, Endpoint, Io, Listener, tuned};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint as Target, Uri};

/// Bytes that may be under way in one direction of a connection.
const WINDOW_BYTES: usize = 1 << 20;

/// One direction.
#[derive(Default)]
struct Half {
    /// Arrival time and bytes; `None` is the end.
    under_way: VecDeque<(u64, Option<Vec<u8>>)>,
    arrived: VecDeque<u8>,
    ended: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Half {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    fn bytes(&self) -> usize {
        let under_way = self.under_way.iter().flat_map(|(_, data)| data).map(Vec::len);
        self.arrived.len() + under_way.sum::<usize>()
    }
}

struct Connection {
    hosts: [String; 2],
    halves: [Half; 2],
    cut: bool,
    /// Nothing arrives any more, and nobody is told.
    silent: bool,
}

struct Server {
    host: String,
    incoming: mpsc::UnboundedSender<Box<dyn Io>>,
    life: Life,
}

struct State {
    rng: StdRng,
    now_ms: u64,
    delay_ms: u64,
    servers: BTreeMap<String, Server>,
    connections: Vec<Arc<Mutex<Connection>>>,
    /// Pairs of hosts that cannot connect.
    apart: Vec<[String; 2]>,
    /// Who says something else than he means: who, what, and what arrives of it.
    liars: Vec<(String, Vec<u8>, Vec<u8>)>,
    moved: u64,
}

/// The network. Clones are the same.
#[derive(Clone)]
pub(crate) struct Net(Arc<Mutex<State>>);

fn is_between(hosts: &[String; 2], a: &str, b: &str) -> bool {
    (hosts[0] == a && hosts[1] == b) || (hosts[0] == b && hosts[1] == a)
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            now_ms: 0,
            delay_ms: 2,
            servers: BTreeMap::new(),
            connections: Vec::new(),
            apart: Vec::new(),
            liars: Vec::new(),
            moved: 0,
        })))
    }

    /// A server of `host` at `endpoint`.
    pub(crate) fn listen(&self, host: &str, endpoint: &Endpoint, life: &Life) -> Listener {
        let (incoming, queue) = mpsc::unbounded_channel();
        let server = Server { host: host.to_owned(), incoming, life: life.clone() };
        self.0.lock().servers.insert(endpoint.to_string(), server);
        Listener::handed(endpoint.clone(), queue)
    }

    pub(crate) fn connector(&self, host: &str, life: &Life) -> Arc<dyn Connector> {
        Arc::new(SimConnector { net: self.clone(), host: host.to_owned(), life: life.clone() })
    }

    fn connect(&self, host: &str, life: &Life, to: &Endpoint) -> io::Result<SimStream> {
        let mut state = self.0.lock();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let server = state.servers.get(&to.to_string()).ok_or_else(refused)?;
        let other = server.host.clone();
        if server.life.is_over() || state.apart.iter().any(|pair| is_between(pair, host, &other)) {
            return Err(refused());
        }
        let connection = Arc::new(Mutex::new(Connection {
            hosts: [host.to_owned(), other],
            halves: Default::default(),
            cut: false,
            silent: false,
        }));
        let end = |side, life: &Life| SimStream {
            net: self.clone(),
            connection: connection.clone(),
            side,
            life: life.clone(),
        };
        server.incoming.send(Box::new(end(1, &server.life))).map_err(|_| refused())?;
        let here = end(0, life);
        state.connections.push(connection);
        Ok(here)
    }

    /// Lets time pass; whether anything is under way.
    pub(crate) fn deliver(&self, now_ms: u64) -> bool {
        let mut state = self.0.lock();
        state.now_ms = now_ms;
        state.connections.retain(|c| Arc::strong_count(c) > 1);
        let (mut busy, mut moved) = (false, 0);
        for connection in &state.connections {
            let connection = &mut *connection.lock();
            for half in &mut connection.halves {
                while half.under_way.front().is_some_and(|(at, _)| *at <= now_ms) {
                    let Some((_, data)) = half.under_way.pop_front() else { break };
                    if connection.silent {
                        continue;
                    }
                    moved += 1;
                    match data {
                        Some(data) => half.arrived.extend(data),
                        None => half.ended = true,
                    }
                    half.wake();
                }
                busy |= !half.under_way.is_empty();
            }
        }
        state.moved += moved;
        busy || moved > 0
    }

    /// What arrived so far: a part of the run's fingerprint.
    pub(crate) fn moved(&self) -> u64 {
        self.0.lock().moved
    }

    pub(crate) fn set_delay_ms(&self, delay_ms: u64) {
        self.0.lock().delay_ms = delay_ms;
    }

    fn each(&self, a: &str, b: &str, mut hurt: impl FnMut(&mut Connection)) {
        for connection in &self.0.lock().connections {
            let connection = &mut *connection.lock();
            if is_between(&connection.hosts, a, b) {
                hurt(connection);
                connection.halves.iter_mut().for_each(Half::wake);
            }
        }
    }

    /// Cuts all connections between two hosts.
    pub(crate) fn cut(&self, a: &str, b: &str) {
        self.each(a, b, |connection| connection.cut = true);
    }

    /// All connections between two hosts fall silent.
    pub(crate) fn silence(&self, a: &str, b: &str) {
        self.each(a, b, |connection| connection.silent = true);
    }

    /// Two hosts cannot reach each other, until [`Net::heal`].
    pub(crate) fn part(&self, a: &str, b: &str) {
        self.0.lock().apart.push([a.to_owned(), b.to_owned()]);
        self.cut(a, b);
    }

    /// From now on these bytes of a host arrive as others, of the same number.
    pub(crate) fn replace(&self, host: &str, said: &[u8], heard: &[u8]) {
        let lie = (host.to_owned(), said.to_vec(), heard.to_vec());
        self.0.lock().liars.push(lie);
    }

    pub(crate) fn heal(&self) {
        self.0.lock().apart.clear();
        self.set_delay_ms(2);
    }

    /// A process is gone: all of its connections end.
    pub(crate) fn forget(&self, host: &str) {
        for connection in &self.0.lock().connections {
            let connection = &mut *connection.lock();
            if connection.hosts.iter().any(|h| h == host) {
                connection.cut = true;
                connection.halves.iter_mut().for_each(Half::wake);
            }
        }
    }
}

fn replace(data: &mut [u8], said: &[u8], heard: &[u8]) {
    let mut at = 0;
    while let Some(found) = data.get_mut(at..at + said.len()) {
        if found == said {
            found.copy_from_slice(heard);
        }
        at += 1;
    }
}

struct SimConnector {
    net: Net,
    host: String,
    life: Life,
}

impl Connector for SimConnector {
    fn channel(&self, to: &Endpoint) -> Channel {
        let (net, host, life, to) =
            (self.net.clone(), self.host.clone(), self.life.clone(), to.clone());
        let connect = move |_: Uri| {
            let connected = net.connect(&host, &life, &to).map(TokioIo::new);
            async move { connected }
        };
        tuned(Target::from_static("http://simulated.invalid"))
            .connect_with_connector_lazy(tower::service_fn(connect))
    }
}

/// One end of a connection.
struct SimStream {
    net: Net,
    connection: Arc<Mutex<Connection>>,
    side: usize,
    life: Life,
}

impl SimStream {
    fn send(&self, data: Option<Vec<u8>>) {
        let mut data = data;
        let at = {
            let mut state = self.net.0.lock();
            if !state.liars.is_empty()
                && let Some(data) = &mut data
            {
                let host = self.connection.lock().hosts[self.side].clone();
                let ours = state.liars.iter().filter(|(liar, ..)| *liar == host);
                ours.for_each(|(_, said, heard)| replace(data, said, heard));
            }
            let most = state.delay_ms;
            state.now_ms + 1 + state.rng.random_range(0..most.max(1))
        };
        let mut connection = self.connection.lock();
        let half = &mut connection.halves[self.side];
        // In order.
        let at = half.under_way.back().map_or(at, |(last, _)| at.max(*last));
        half.under_way.push_back((at, data));
    }
}

impl AsyncRead for SimStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut connection = self.connection.lock();
        let cut = connection.cut;
        let half = &mut connection.halves[1 - self.side];
        if !half.arrived.is_empty() {
            let n = half.arrived.len().min(buf.remaining());
            let data: Vec<u8> = half.arrived.drain(..n).collect();
            buf.put_slice(&data);
            if let Some(writer) = half.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(()));
        }
        if cut {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if half.ended {
            return Poll::Ready(Ok(()));
        }
        half.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for SimStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        {
            let mut connection = self.connection.lock();
            if connection.cut {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let half = &mut connection.halves[self.side];
            if half.bytes() >= WINDOW_BYTES {
                half.writer = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        if !self.life.is_over() {
            self.send(Some(data.to_vec()));
        }
        Poll::Ready(Ok(data.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send(None);
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.send(None);
    }
}
