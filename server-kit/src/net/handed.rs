//! Connections that somebody else makes and hands over: a simulated network.
use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Mutex, mpsc};
use tonic::transport::server::Connected;

/// A connection that was made elsewhere.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

/// A connection as the server's transport wants it.
pub(crate) struct Handed(Box<dyn Io>);

impl Connected for Handed {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Handed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Handed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Connections to a server; when the other end is gone no more will come.
pub type Incoming = mpsc::UnboundedReceiver<Box<dyn Io>>;

/// The accepting end.
pub(crate) struct Queue(Mutex<Incoming>);

impl Queue {
    pub(crate) fn new(incoming: Incoming) -> Self {
        Self(Mutex::new(incoming))
    }

    pub(crate) async fn accept(&self) -> io::Result<Handed> {
        match self.0.lock().await.recv().await {
            Some(connection) => Ok(Handed(connection)),
            None => std::future::pending().await,
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Queue")
    }
}
