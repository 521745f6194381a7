//! A forwarder in front of a server that breaks the connection in every way a network can.
//!
//! ```text
//!  client --> [ FaultProxy ] --> server          both sides: unix:PATH or HOST:PORT
//! ```
//!
//! The test switches the fault while it runs ([`FaultProxy::set`]). Invariants: a connection of
//! which bytes were swallowed never carries bytes again (it is reset when the fault ends), so the
//! peers see a broken network and never a damaged stream; what was let through arrived unchanged.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use server_kit::net::Endpoint;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::poll::{DEADLINE, until};

/// What is wrong with the network now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Every piece of at most 16 KiB arrives so much later, in both directions.
    Delay(Duration),
    /// So many bytes a second towards the server.
    Rate(u64),
    /// Connections stay, new ones are accepted, and nothing arrives any more on either side.
    HalfOpen,
    /// The server gets everything, what it answers is swallowed.
    LostReplies,
    /// So many more bytes (over all connections) reach the server, then [`Fault::Cut`].
    CutAfter(u64),
    /// Connections are reset and nobody listens.
    Cut,
}

impl Fault {
    fn swallows(self) -> bool {
        matches!(self, Self::HalfOpen | Self::LostReplies)
    }
}

/// A running forwarder; dropped, it resets everything and no longer listens.
#[derive(Debug)]
pub struct FaultProxy {
    shared: Arc<Shared>,
    listen: Endpoint,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    to: Endpoint,
    fault: watch::Sender<Fault>,
    /// Bytes that [`Fault::CutAfter`] still lets through.
    left: AtomicU64,
    /// Bytes that have arrived on either side.
    carried: AtomicU64,
}

impl FaultProxy {
    /// Listens at `listen` and forwards to `to`. Port 0 picks a free one.
    ///
    /// # Errors
    /// The address cannot be had.
    pub fn start(runtime: &Handle, listen: &Endpoint, to: &Endpoint) -> Result<Self> {
        let (socket, listen) = runtime.block_on(Socket::bind(listen))?;
        let (fault, seen) = watch::channel(Fault::None);
        let shared = Arc::new(Shared { to: to.clone(), fault, left: 0.into(), carried: 0.into() });
        let accepting = accept(socket, listen.clone(), seen, Arc::clone(&shared));
        let task = runtime.spawn(accepting);
        Ok(Self { shared, listen, task })
    }

    /// Where clients connect to.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.listen
    }

    /// From now on the network is like this.
    pub fn set(&self, fault: Fault) {
        if let Fault::CutAfter(bytes) = fault {
            self.shared.left.store(bytes, Ordering::SeqCst);
        }
        self.shared.fault.send_replace(fault);
    }

    /// How the network is now: [`Fault::CutAfter`] becomes [`Fault::Cut`] by itself.
    #[must_use]
    pub fn fault(&self) -> Fault {
        *self.shared.fault.borrow()
    }

    /// Bytes that it has carried until now, both ways together.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::SeqCst)
    }

    /// Waits until [`Fault::CutAfter`] has cut.
    ///
    /// # Errors
    /// It has not, within the usual deadline: too little was sent.
    pub fn wait_cut(&self) -> Result<()> {
        let cut = || Ok((self.fault() == Fault::Cut).then_some(()));
        until("the connection is cut in the middle", DEADLINE, cut)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.set(Fault::Cut);
        self.task.abort();
        if let Endpoint::Unix(path) = &self.listen {
            let _ = std::fs::remove_file(path);
        }
    }
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Socket {
    async fn bind(at: &Endpoint) -> Result<(Self, Endpoint)> {
        Ok(match at {
            Endpoint::Tcp(address) => {
                let listener = TcpListener::bind(address).await.context(address.clone())?;
                let bound = Endpoint::Tcp(listener.local_addr()?.to_string());
                (Self::Tcp(listener), bound)
            }
            Endpoint::Unix(path) => {
                let name = path.display().to_string();
                (Self::Unix(UnixListener::bind(path).context(name)?), at.clone())
            }
        })
    }

    async fn accept(&self) -> std::io::Result<Box<dyn Link>> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

trait Link: AsyncRead + AsyncWrite + Unpin + Send {
    /// Closing it tells the peer that the connection broke, not that it ended.
    fn break_on_close(&self) {}
}

impl Link for TcpStream {
    fn break_on_close(&self) {
        let _ = self.set_zero_linger();
    }
}
impl Link for UnixStream {}

async fn connect(to: &Endpoint) -> std::io::Result<Box<dyn Link>> {
    Ok(match to {
        Endpoint::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Endpoint::Unix(path) => Box::new(UnixStream::connect(path).await?),
    })
}

/// Accepts while the network is not cut; does not listen while it is.
async fn accept(
    first: Socket,
    at: Endpoint,
    mut seen: watch::Receiver<Fault>,
    shared: Arc<Shared>,
) {
    let mut socket = Some(first);
    loop {
        let Some(listening) = &socket else {
            if seen.wait_for(|fault| *fault != Fault::Cut).await.is_err() {
                return;
            }
            socket = Socket::bind(&at).await.ok().map(|(socket, _)| socket);
            if socket.is_none() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            continue;
        };
        tokio::select! {
            cut = seen.wait_for(|fault| *fault == Fault::Cut) => {
                if cut.is_err() {
                    return;
                }
                drop(cut);
                socket = None;
                if let Endpoint::Unix(path) = &at {
                    remove(path);
                }
            }
            accepted = listening.accept() => if let Ok(client) = accepted {
                tokio::spawn(forward(client, Arc::clone(&shared)));
            },
        }
    }
}

fn remove(path: &Path) {
    let _ = std::fs::remove_file(path);
}

/// One connection, until a peer closes it or a fault breaks it.
async fn forward(mut client: Box<dyn Link>, shared: Arc<Shared>) {
    let mut seen = shared.fault.subscribe();
    let Ok(mut server) = connect(&shared.to).await else { return client.break_on_close() };
    let broken = {
        let (from_client, to_client) = tokio::io::split(&mut client);
        let (from_server, to_server) = tokio::io::split(&mut server);
        tokio::select! {
            () = requests(from_client, to_server, &shared) => false,
            () = replies(from_server, to_client, &shared) => false,
            () = broken(&mut seen) => true,
        }
    };
    if broken || shared.fault.borrow().eq(&Fault::Cut) {
        client.break_on_close();
        server.break_on_close();
    }
}

/// Returns when the connection cannot go on: cut, or the end of a fault that swallowed bytes.
async fn broken(seen: &mut watch::Receiver<Fault>) {
    let mut before = *seen.borrow_and_update();
    while before != Fault::Cut {
        if seen.changed().await.is_err() {
            return;
        }
        let now = *seen.borrow_and_update();
        if before.swallows() && now != before {
            return;
        }
        before = now;
    }
}

const PIECE: usize = 16 << 10;

async fn requests(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, s: &Shared) {
    let mut buffer = vec![0; PIECE];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let mut piece = buffer.get(..read).unwrap_or_default();
        let fault = *s.fault.borrow();
        match fault {
            Fault::None | Fault::LostReplies => {}
            Fault::HalfOpen => continue,
            Fault::Cut => return,
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::Rate(bytes) => {
                let seconds = f64::from(u32::try_from(read).unwrap_or(u32::MAX)) / bytes as f64;
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            }
            Fault::CutAfter(_) => {
                let wanted = piece.len() as u64;
                let take = |left: u64| Some(left.saturating_sub(wanted));
                let left = s.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
                let left = left.unwrap_or_default();
                if left <= wanted {
                    let last = usize::try_from(left).unwrap_or(read);
                    piece = piece.get(..last).unwrap_or_default();
                    let _ = to.write_all(piece).await;
                    let _ = to.flush().await;
                    s.fault.send_replace(Fault::Cut);
                    return;
                }
            }
        }
        if to.write_all(piece).await.is_err() {
            return;
        }
        s.carried.fetch_add(piece.len() as u64, Ordering::SeqCst);
    }
}

async fn replies(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, s: &Shared) {
    let mut buffer = vec![0; PIECE];
    loop {
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        let fault = *s.fault.borrow();
        match fault {
            Fault::HalfOpen | Fault::LostReplies => continue,
            Fault::Cut => return,
            Fault::Delay(time) => tokio::time::sleep(time).await,
            Fault::None | Fault::Rate(_) | Fault::CutAfter(_) => {}
        }
        if to.write_all(buffer.get(..read).unwrap_or_default()).await.is_err() {
            return;
        }
        s.carried.fetch_add(read as u64, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// A server that sends back what it gets, one connection after the other.
    fn echo() -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut copy = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut copy, &mut stream);
                });
            }
        });
        Endpoint::Tcp(address)
    }

    fn client(proxy: &FaultProxy) -> std::io::Result<TcpStream> {
        let Endpoint::Tcp(address) = proxy.endpoint() else { unreachable!("it is TCP") };
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_millis(300)))?;
        Ok(stream)
    }

    fn ask(stream: &mut TcpStream, bytes: usize) -> std::io::Result<usize> {
        stream.write_all(&vec![7; bytes])?;
        let mut back = vec![0; bytes];
        stream.read_exact(&mut back)?;
        Ok(back.iter().filter(|byte| **byte == 7).count())
    }

    #[test]
    fn every_fault_does_what_it_says_and_ends() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let any = Endpoint::Tcp("127.0.0.1:0".to_owned());
        let proxy = FaultProxy::start(runtime.handle(), &any, &echo()).unwrap();
        let mut stream = client(&proxy).unwrap();
        assert_eq!(ask(&mut stream, 40_000).unwrap(), 40_000);
        let carried = || Ok((proxy.carried() == 80_000).then_some(()));
        until("all of it is counted", DEADLINE, carried).unwrap();

        for silent in [Fault::HalfOpen, Fault::LostReplies] {
            proxy.set(silent);
            let mut hanging = client(&proxy).unwrap();
            let error = ask(&mut hanging, 10).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{silent:?}");
            proxy.set(Fault::None);
            hanging.set_read_timeout(None).unwrap();
            // It ends, without ever carrying a byte again.
            assert!(ask(&mut hanging, 10).is_err(), "{silent:?}");
        }

        proxy.set(Fault::CutAfter(50_000));
        let mut stream = client(&proxy).unwrap();
        assert_eq!(ask(&mut stream, 30_000).unwrap(), 30_000);
        assert!(ask(&mut stream, 30_000).is_err());
        proxy.wait_cut().unwrap();
        let refused = || Ok(client(&proxy).is_err().then_some(()));
        until("nobody listens", DEADLINE, refused).unwrap();

        proxy.set(Fault::Rate(100_000));
        let mut stream = until("it listens again", DEADLINE, || Ok(client(&proxy).ok())).unwrap();
        stream.set_read_timeout(None).unwrap();
        let start = std::time::Instant::now();
        ask(&mut stream, 50_000).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
    }
}
