//! The NBD server: listens, greets, and runs each connection in a task of its own, where its export
//! is at home.
//!
//! Invariants:
//! - Connections, requests in flight and payload memory are bounded by [`Limits`].
//! - Nothing that a peer sends or leaves out affects other connections.
//! - A shutdown finishes what was in flight, then closes, within [`Limits::shutdown_grace`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::budget::{Ledger, Pool};
use super::export::Export;
use super::handshake::{Exports, HandshakeError, Negotiated, handshake};
use super::protocol::MAX_STRING_BYTES;
use super::socket::Socket;
use super::transmission::{Transmission, TransmissionError};

/// What a server may use. The defaults suit a host with some hundred clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients at a time; more are disconnected at once.
    pub connections: usize,
    /// Requests of one connection that are not answered yet; more wait in the socket.
    pub connection_requests: usize,
    /// Payloads of one connection in bytes (at least one payload of full length).
    pub connection_bytes: usize,
    /// Payloads of all connections in bytes (at least one payload of full length), not counting
    /// reserves.
    pub server_bytes: usize,
    /// Payload memory that every connection has for itself, in bytes, beyond `server_bytes` (and
    /// beyond 128 KiB of receive buffers).
    pub reserve_bytes: usize,
    /// A client that holds memory others wait for, and does not move for so long, is disconnected.
    pub stall: Duration,
    /// A handshake takes no longer.
    pub handshake: Duration,
    /// What is in flight at shutdown takes no longer.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            connection_requests: 256,
            connection_bytes: 64 << 20,
            server_bytes: 256 << 20,
            reserve_bytes: 512 << 10,
            stall: Duration::from_secs(10),
            handshake: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// Why a server cannot be made, or cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The export cannot be offered under this name.
    #[error("export {name:?}: {why}; choose another name or block size")]
    BadExport {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The address cannot be listened on.
    #[error("listen for NBD clients on {address}: {source}")]
    Listen {
        /// `unix:PATH` or `tcp:ADDRESS`.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A socket that clients connect to. A Unix socket's file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    kind: ListenerKind,
}

#[derive(Debug)]
enum ListenerKind {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

impl Listener {
    /// Listens on a Unix socket. A socket file left behind by a process that is gone is replaced.
    pub async fn unix(path: impl AsRef<Path>) -> Result<Self, ServerError> {
        let path = path.as_ref();
        let listen =
            |source| ServerError::Listen { address: format!("unix:{}", path.display()), source };
        if is_stale_socket(path).await {
            std::fs::remove_file(path).map_err(listen)?;
        }
        let listener = UnixListener::bind(path).map_err(listen)?;
        Ok(Self { kind: ListenerKind::Unix(listener, path.to_owned()) })
    }

    /// Listens on a TCP address. Who may reach it is the caller's decision.
    pub async fn tcp(address: SocketAddr) -> Result<Self, ServerError> {
        let listen = |source| ServerError::Listen { address: format!("tcp:{address}"), source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        Ok(Self { kind: ListenerKind::Tcp(listener) })
    }

    /// The TCP address that clients reach this on; `None` for a Unix socket.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.kind {
            ListenerKind::Unix(..) => None,
            ListenerKind::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    async fn accept(&self) -> io::Result<Stream> {
        match &self.kind {
            ListenerKind::Unix(listener, _) => Ok(Stream::Unix(listener.accept().await?.0)),
            ListenerKind::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::KeepAlive, &true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

/// True for a socket that nobody listens on.
async fn is_stale_socket(path: &Path) -> bool {
    let file_type = std::fs::symlink_metadata(path).map(|metadata| metadata.file_type());
    file_type.is_ok_and(|file_type| file_type.is_socket())
        && matches!(UnixStream::connect(path).await,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let ListenerKind::Unix(_, path) = &self.kind {
            // Best effort: who starts next replaces it.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A connection that was accepted.
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn into_fd(self) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Unix(stream) => stream.into_std()?.into(),
            Self::Tcp(stream) => stream.into_std()?.into(),
        })
    }
}

/// Serves exports. Cheap to clone; clones share all limits.
#[derive(Clone)]
pub struct NbdServer {
    shared: Arc<Shared>,
}

struct Shared {
    exports: Exports,
    limits: Limits,
    pool: Arc<Pool>,
    connections: Arc<Semaphore>,
}

impl NbdServer {
    /// A server of these exports, by name. If there is only one, it is the default export as well.
    pub fn new(
        exports: HashMap<String, Arc<dyn Export>>,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        Self::with_unavailable(exports, HashMap::new(), limits)
    }

    /// The same with exports that should be there and are not: clients that want them are told why.
    pub fn with_unavailable(
        exports: HashMap<String, Arc<dyn Export>>,
        unavailable: HashMap<String, String>,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        for (name, export) in &exports {
            let block_bytes = export.block_bytes();
            let why = if u32::try_from(name.len()).is_ok_and(|len| len <= MAX_STRING_BYTES) {
                (!block_bytes.is_power_of_two() || block_bytes > 65536)
                    .then_some("block size is not a power of two up to 65536")
            } else {
                Some("name is longer than 4096 bytes")
            };
            if let Some(why) = why {
                return Err(ServerError::BadExport { name: name.clone(), why });
            }
        }
        let shared = Shared {
            exports: Exports {
                served: exports.into_iter().collect(),
                unavailable: unavailable.into_iter().collect(),
            },
            limits,
            pool: Pool::new(limits.server_bytes),
            connections: Arc::new(Semaphore::new(limits.connections.min(Semaphore::MAX_PERMITS))),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Serves clients of `listener` until `shutdown`; returns when all connections are closed.
    pub async fn serve(&self, listener: Listener, shutdown: CancellationToken) {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = listener.accept() => match accepted {
                    Ok(stream) => self.welcome(stream, &shutdown, &mut tasks),
                    Err(error) => {
                        // Most likely out of file descriptors: some will be closed.
                        tracing::warn!(%error, "accept an NBD client");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(ended) = tasks.join_next() => report(ended),
            }
        }
        drop(listener);
        while let Some(ended) = tasks.join_next().await {
            report(ended);
        }
    }

    fn welcome(&self, stream: Stream, shutdown: &CancellationToken, tasks: &mut JoinSet<()>) {
        let Ok(place) = Arc::clone(&self.shared.connections).try_acquire_owned() else {
            tracing::warn!(limit = self.shared.limits.connections, "too many NBD clients");
            return;
        };
        let shared = Arc::clone(&self.shared);
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            shared.connection(stream, shutdown).await;
            drop(place);
        });
    }
}

/// A panic of an export ends its connection; it must not pass unnoticed.
fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an NBD connection broke down");
    }
}

impl Shared {
    async fn connection(self: &Arc<Self>, mut stream: Stream, shutdown: CancellationToken) {
        let negotiated = tokio::select! {
            negotiated = self.shake_hands(&mut stream) => negotiated,
            () = shutdown.cancelled() => return,
        };
        let negotiated = match negotiated {
            Ok(Some(negotiated)) => negotiated,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "NBD handshake failed");
                return;
            }
        };
        tracing::debug!(export = negotiated.name, "NBD client connected");
        let home = negotiated.export.home().unwrap_or_else(Handle::current);
        let transmission = home.spawn(Arc::clone(self).transmission(stream, negotiated, shutdown));
        report(AbortOnDropHandle::new(transmission).await);
    }

    /// Everything after the handshake.
    async fn transmission(
        self: Arc<Self>,
        stream: Stream,
        negotiated: Negotiated,
        shutdown: CancellationToken,
    ) {
        match self.transmit(stream, &negotiated, shutdown).await {
            Ok(()) => tracing::debug!(export = negotiated.name, "NBD client disconnected"),
            Err(error) => {
                tracing::warn!(export = negotiated.name, %error, "NBD connection ended");
            }
        }
    }

    async fn shake_hands(&self, stream: &mut Stream) -> Result<Option<Negotiated>, HandshakeError> {
        match stream {
            Stream::Unix(stream) => self.shake_hands_in_time(stream).await,
            Stream::Tcp(stream) => self.shake_hands_in_time(stream).await,
        }
    }

    async fn shake_hands_in_time<S>(
        &self,
        stream: &mut S,
    ) -> Result<Option<Negotiated>, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let limit = self.limits.handshake;
        tokio::time::timeout(limit, handshake(stream, &self.exports))
            .await
            .map_err(|_| HandshakeError::Protocol("handshake took too long"))?
    }

    async fn transmit(
        &self,
        stream: Stream,
        negotiated: &Negotiated,
        shutdown: CancellationToken,
    ) -> Result<(), TransmissionError> {
        let limits = self.limits;
        let socket = Socket::new(stream.into_fd()?)?;
        let pool = Arc::clone(&self.pool);
        let ledger = Ledger::new(pool, limits.connection_bytes, limits.reserve_bytes);
        let mut transmission = Transmission::new(&socket, negotiated, limits, ledger);
        tokio::select! {
            biased;
            result = std::future::poll_fn(|cx| transmission.poll(cx)) => return result,
            () = shutdown.cancelled() => {}
        }
        transmission.stop_receiving();
        let rest = std::future::poll_fn(|cx| transmission.poll(cx));
        tokio::time::timeout(limits.shutdown_grace, rest)
            .await
            .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }
}
