//! Where servers listen and how they are reached (design.md §9).
//!
//! Invariants: without `--insecure` a server binds a Unix socket or loopback and nothing else; a
//! channel connects lazily and reconnects by itself, every wait for a peer has a limit; a failed
//! accept never ends a server; a forced shutdown cuts every connection, so nothing half-open stays.
use crate::error::RoleError;
use crate::shutdown::Shutdown;
use futures::stream::{self, Stream};
use hyper_util::rt::TokioIo;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::server::{Connected, Server};
use tonic::transport::{Channel, Endpoint as Target, Uri};

mod cuttable;
mod handed;
use cuttable::Cuttable;
pub use handed::{Incoming, Io};

/// HTTP/2 window of one stream: several chunks in flight (measured, see the ecosystem notes).
pub const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 window of one connection.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// Largest HTTP/2 frame; bigger ones are slower.
pub const FRAME_BYTES: u32 = 256 << 10;
/// How long a connection may take to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Silence on a busy connection after which the peer is asked whether it lives. The answer needs
/// neither its disk nor its handlers. Idle client connections are not asked.
pub const KEEPALIVE: Duration = Duration::from_secs(4);
/// How long that answer may take.
pub const KEEPALIVE_ANSWER: Duration = Duration::from_secs(5);
/// The same at the server's side, for clients that vanished in the middle of a transfer.
pub const SERVER_KEEPALIVE: Duration = Duration::from_secs(30);
/// Pause after a failed accept (too many open files): the condition needs time to pass.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The address of a server: `unix:PATH`, `host:port` or `tcp:host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Endpoint {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address; the host may be a name.
    Tcp(String),
}

/// Why a text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address: use unix:PATH or HOST:PORT")]
pub struct BadEndpoint(String);

impl FromStr for Endpoint {
    type Err = BadEndpoint;
    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let bad = || BadEndpoint(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err(bad()) } else { Ok(Self::Unix(path.into())) };
        }
        let address = text.strip_prefix("tcp:").unwrap_or(text);
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        port.parse::<u16>().map_err(|_| bad())?;
        let whole = host.starts_with('[') == host.ends_with(']') && !host.is_empty();
        let uri = format!("http://{address}").parse::<Uri>();
        if !whole || (host.contains(':') && !host.starts_with('[')) || uri.is_err() {
            return Err(bad());
        }
        Ok(Self::Tcp(address.to_owned()))
    }
}

impl TryFrom<String> for Endpoint {
    type Error = BadEndpoint;
    fn try_from(text: String) -> Result<Self, BadEndpoint> {
        text.parse()
    }
}

impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> String {
        endpoint.to_string()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// The seam through which a role reaches others; a simulated network is another implementation.
pub trait Connector: Send + Sync + 'static {
    /// A channel to the server at `to`. Connects at the first request and again after a failure;
    /// [`RoleError::from_status`] turns what fails into `Unreachable`.
    fn channel(&self, to: &Endpoint) -> Channel;
}

/// Connects over Unix sockets and TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealConnector;

impl Connector for RealConnector {
    fn channel(&self, to: &Endpoint) -> Channel {
        match to {
            Endpoint::Unix(path) => {
                let path = path.clone();
                tuned(Target::from_static("http://unix.invalid")).connect_with_connector_lazy(
                    tower::service_fn(move |_: Uri| {
                        let path = path.clone();
                        async move { UnixStream::connect(path).await.map(TokioIo::new) }
                    }),
                )
            }
            Endpoint::Tcp(address) => match Target::from_shared(format!("http://{address}")) {
                Ok(target) => tuned(target.tcp_nodelay(true)).connect_lazy(),
                // An `Endpoint` parses as a URI; were it not so, the first request says so.
                Err(_) => tuned(Target::from_static("http://bad-address.invalid:1")).connect_lazy(),
            },
        }
    }
}

/// The settings of every client connection, for other implementations of [`Connector`] too.
#[must_use]
pub fn tuned(target: Target) -> Target {
    target
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_ANSWER)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
}

/// A bound socket, before anything is served on it.
#[derive(Debug)]
pub struct Listener {
    /// First, so that it goes before the socket closes.
    _name: Option<SocketFile>,
    endpoint: Endpoint,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
    Handed(handed::Queue),
}

/// Removes the socket's name when the server ends, before the socket closes: a successor that finds
/// the name dead may bind it at once.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds. Port 0 picks a free one; the name of a Unix socket that nobody serves is taken over.
    ///
    /// # Errors
    /// `BadRequest` for an address that others can reach without `insecure`, `AlreadyExists` when
    /// somebody serves there, `Io`.
    pub async fn bind(endpoint: &Endpoint, insecure: bool) -> Result<Self, RoleError> {
        match endpoint {
            Endpoint::Unix(path) => Self::bind_unix(path).await,
            Endpoint::Tcp(address) => Self::bind_tcp(address, insecure).await,
        }
    }

    async fn bind_unix(path: &Path) -> Result<Self, RoleError> {
        let is_socket = |m: std::fs::Metadata| m.file_type().is_socket();
        if std::fs::symlink_metadata(path).is_ok_and(is_socket) {
            if UnixStream::connect(path).await.is_ok() {
                let message = format!("cannot listen on {}: a server runs there", path.display());
                return Err(RoleError::already_exists(message).with_next_step("stop it first"));
            }
            std::fs::remove_file(path).map_err(|e| RoleError::io("take over", path, e))?;
        }
        let listener = UnixListener::bind(path).map_err(|e| RoleError::io("listen on", path, e))?;
        Ok(Self {
            _name: Some(SocketFile(path.to_owned())),
            endpoint: Endpoint::Unix(path.to_owned()),
            socket: Socket::Unix(listener),
        })
    }

    async fn bind_tcp(address: &str, insecure: bool) -> Result<Self, RoleError> {
        let failed = |e| RoleError::io("listen on", address, e);
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host(address).await.map_err(failed)?.collect();
        if !insecure && let Some(open) = found.iter().find(|a| !a.ip().is_loopback()) {
            let message = format!("refused to listen on {open} without TLS: others can reach it");
            let step = "listen on loopback or a Unix socket, or say --insecure";
            return Err(RoleError::bad_request(message).with_next_step(step));
        }
        let listener = TcpListener::bind(&*found).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let endpoint = Endpoint::Tcp(bound.to_string());
        Ok(Self { _name: None, endpoint, socket: Socket::Tcp(listener) })
    }

    /// Takes connections that are made elsewhere (simulated networks).
    #[must_use]
    pub fn handed(endpoint: Endpoint, incoming: Incoming) -> Self {
        let socket = Socket::Handed(handed::Queue::new(incoming));
        Self { _name: None, endpoint, socket }
    }

    /// Where clients reach it, with the real port.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

/// Serves until shutdown: asked, it finishes the requests that run; forced, it cuts them off.
/// Handlers that never end by themselves (watches) must end when shutdown is requested.
///
/// # Errors
/// `Io` when the transport itself fails.
pub async fn serve(
    listener: Listener,
    routes: Routes,
    shutdown: &Shutdown,
) -> Result<(), RoleError> {
    match &listener.socket {
        Socket::Unix(socket) => {
            let accept = || async { socket.accept().await.map(|(stream, _)| stream) };
            serve_on(accept, routes, shutdown).await
        }
        Socket::Tcp(socket) => {
            let accept = || async { socket.accept().await.and_then(|(s, _)| without_delay(s)) };
            serve_on(accept, routes, shutdown).await
        }
        Socket::Handed(queue) => serve_on(|| queue.accept(), routes, shutdown).await,
    }
}

fn without_delay(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true).map(|()| stream)
}

async fn serve_on<A, F, IO>(accept: A, routes: Routes, shutdown: &Shutdown) -> Result<(), RoleError>
where
    A: Fn() -> F,
    F: Future<Output = io::Result<IO>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let serving = Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .http2_keepalive_interval(Some(SERVER_KEEPALIVE))
        .http2_keepalive_timeout(Some(SERVER_KEEPALIVE))
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            connections(accept, shutdown.forced()),
            shutdown.requested().cancelled_owned(),
        );
    tokio::select! {
        result = serving => result.map_err(|e| {
            RoleError::new(crate::error::Reason::Io, "the server's transport failed").with_source(e)
        }),
        () = shutdown.forced().cancelled_owned() => Ok(()),
    }
}

fn connections<A, F, IO>(
    accept: A,
    cut: CancellationToken,
) -> impl Stream<Item = io::Result<Cuttable<IO>>>
where
    A: Fn() -> F,
    F: Future<Output = io::Result<IO>>,
{
    stream::unfold((accept, cut), |(accept, cut)| async move {
        loop {
            match accept().await {
                Ok(io) => return Some((Ok(Cuttable::new(io, cut.clone())), (accept, cut))),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}
