//! A small NBD client: what `walb demo` writes and reads with where no other client is installed.
//!
//! Any number of requests may be in flight; each future ends when its own reply has come. Dropping
//! a future does not disturb the others: two tasks own the connection.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf,
};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::protocol::{
    Greeting, InfoBlockSize, InfoExport, MAX_PAYLOAD_BYTES, NBD_MAGIC, OPTION_MAGIC,
    OPTION_REPLY_MAGIC, OptionHeader, OptionReplyHeader, REQUEST_MAGIC, RequestHeader,
    SIMPLE_REPLY_MAGIC, SimpleReply, command, command_flags, handshake_flags, info, option,
    option_reply, transmission_flags,
};
use crate::buffer::AlignedBuf;

/// Requests that wait to be sent.
const QUEUE: usize = 64;
/// Longest reply to an option in bytes.
const MAX_REPLY_BYTES: u32 = 64 << 10;

/// Why a client could not do something.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server cannot be reached.
    #[error("connect to the NBD server {address}: {source}; is it running?")]
    Connect {
        /// `unix:PATH` or `tcp:ADDRESS`.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server refused the export.
    #[error("NBD export {export:?}: {message}")]
    Refused {
        /// Name of the export.
        export: String,
        /// What the server said.
        message: String,
    },
    /// The server does not speak the protocol that we need.
    #[error("NBD handshake: {0}")]
    Protocol(&'static str),
    /// The connection broke.
    #[error("NBD connection: {0}")]
    Io(#[from] io::Error),
    /// The server could not do what was asked for.
    #[error("NBD {command} of {len} bytes at {offset}: server answered errno {errno}")]
    Failed {
        /// What was asked for.
        command: &'static str,
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u32,
        /// Error number of the reply.
        errno: u32,
    },
    /// The connection ended before the reply came.
    #[error("NBD connection closed before the reply to a {0}; it may or may not have happened")]
    Closed(&'static str),
    /// A payload longer than the server takes.
    #[error("NBD payload of {0} bytes; split it into requests of at most 32 MiB")]
    TooLong(usize),
}

/// A connection to an export.
#[derive(Debug)]
pub struct Client {
    size_bytes: u64,
    flags: u16,
    block_bytes: u32,
    next_cookie: std::sync::atomic::AtomicU64,
    waiting: Waiting,
    requests: mpsc::Sender<(RequestHeader, Bytes)>,
    reader: JoinHandle<()>,
}

/// Requests without a reply: where it goes, and how much data comes with it. `None` when the
/// connection has ended.
type Waiting = Arc<Mutex<Option<HashMap<u64, Waiter>>>>;

#[derive(Debug)]
struct Waiter {
    data_bytes: usize,
    reply: oneshot::Sender<Result<Bytes, u32>>,
}

/// What the server says of the export.
#[derive(Default)]
struct Facts {
    size_bytes: Option<u64>,
    flags: u16,
    block_bytes: u32,
}

impl Client {
    /// Connects to the export `name` (empty: the default export) over a Unix socket.
    pub async fn unix(path: impl AsRef<Path>, name: &str) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let stream = UnixStream::connect(path).await.map_err(|source| ClientError::Connect {
            address: format!("unix:{}", path.display()),
            source,
        })?;
        Self::start(stream, name).await
    }

    /// Connects to the export `name` (empty: the default export) over TCP.
    pub async fn tcp(address: SocketAddr, name: &str) -> Result<Self, ClientError> {
        let connect = |source| ClientError::Connect { address: format!("tcp:{address}"), source };
        let stream = TcpStream::connect(address).await.map_err(connect)?;
        stream.set_nodelay(true)?;
        Self::start(stream, name).await
    }

    async fn start<S>(mut stream: S, name: &str) -> Result<Self, ClientError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let facts = handshake(&mut stream, name).await?;
        let size_bytes = facts.size_bytes.ok_or(ClientError::Protocol("no size of the export"))?;
        let (input, output) = tokio::io::split(stream);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let (requests, queue) = mpsc::channel(QUEUE);
        tokio::spawn(send_requests(output, queue));
        let reader = tokio::spawn(receive_replies(input, Arc::clone(&waiting)));
        Ok(Self {
            size_bytes,
            flags: facts.flags,
            block_bytes: facts.block_bytes.max(1),
            next_cookie: 0.into(),
            waiting,
            requests,
            reader,
        })
    }

    /// Size of the export in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Unit of offsets and lengths in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// True if the export refuses writes.
    pub fn read_only(&self) -> bool {
        self.flags & transmission_flags::READ_ONLY != 0
    }

    /// Reads `len` bytes at `offset`.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ClientError> {
        if len > MAX_PAYLOAD_BYTES {
            return Err(ClientError::TooLong(usize::try_from(len).unwrap_or(usize::MAX)));
        }
        self.request(command::READ, 0, offset, len, Bytes::new()).await
    }

    /// Writes `data` at `offset`; with `fua` it is on stable storage afterwards.
    pub async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), ClientError> {
        let len = u32::try_from(data.len()).ok().filter(|len| *len <= MAX_PAYLOAD_BYTES);
        let len = len.ok_or(ClientError::TooLong(data.len()))?;
        self.request(command::WRITE, fua_flag(fua), offset, len, data).await.map(drop)
    }

    /// Makes everything that was written before stable.
    pub async fn flush(&self) -> Result<(), ClientError> {
        self.request(command::FLUSH, 0, 0, 0, Bytes::new()).await.map(drop)
    }

    /// Gives up the contents of a range.
    pub async fn trim(&self, offset: u64, len: u32, fua: bool) -> Result<(), ClientError> {
        self.request(command::TRIM, fua_flag(fua), offset, len, Bytes::new()).await.map(drop)
    }

    /// Makes a range read as zeroes.
    pub async fn write_zeroes(&self, offset: u64, len: u32, fua: bool) -> Result<(), ClientError> {
        let flags = fua_flag(fua);
        self.request(command::WRITE_ZEROES, flags, offset, len, Bytes::new()).await.map(drop)
    }

    /// Says goodbye; returns when the server has finished everything and closed the connection.
    pub async fn disconnect(self) {
        let Self { requests, reader, .. } = self;
        drop(requests);
        // The reader only fails by panicking, and then the connection is gone as well.
        let _ = reader.await;
    }

    async fn request(
        &self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        payload: Bytes,
    ) -> Result<Bytes, ClientError> {
        let cookie = self.next_cookie.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let header = header(command, flags, cookie, offset, len);
        let name = command_name(command);
        let data_bytes = if command == command::READ { len } else { 0 };
        let data_bytes = usize::try_from(data_bytes).unwrap_or(usize::MAX);
        let (reply, answer) = oneshot::channel();
        match &mut *self.waiting.lock() {
            Some(waiting) => waiting.insert(cookie, Waiter { data_bytes, reply }),
            None => return Err(ClientError::Closed(name)),
        };
        self.requests.send((header, payload)).await.map_err(|_| ClientError::Closed(name))?;
        let answer = answer.await.map_err(|_| ClientError::Closed(name))?;
        answer.map_err(|errno| ClientError::Failed { command: name, offset, len, errno })
    }
}

fn fua_flag(fua: bool) -> u16 {
    if fua { command_flags::FUA } else { 0 }
}

fn header(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> RequestHeader {
    RequestHeader {
        magic: U32::new(REQUEST_MAGIC),
        flags: U16::new(flags),
        command: U16::new(command),
        cookie: U64::new(cookie),
        offset: U64::new(offset),
        len: U32::new(len),
    }
}

fn command_name(command: u16) -> &'static str {
    match command {
        command::READ => "read",
        command::WRITE => "write",
        command::FLUSH => "flush",
        command::TRIM => "trim",
        _ => "write-zeroes",
    }
}

/// Sends requests as they come, and a disconnect when there will be no more.
async fn send_requests<S: AsyncWrite>(
    output: WriteHalf<S>,
    mut queue: mpsc::Receiver<(RequestHeader, Bytes)>,
) {
    let mut output = BufWriter::new(output);
    let sent: io::Result<()> = async {
        while let Some((header, payload)) = queue.recv().await {
            output.write_all(header.as_bytes()).await?;
            output.write_all(&payload).await?;
            if queue.is_empty() {
                output.flush().await?;
            }
        }
        output.write_all(header(command::DISC, 0, 0, 0, 0).as_bytes()).await?;
        output.flush().await
    }
    .await;
    if let Err(error) = sent {
        // Whoever waits for a reply learns it from the other task, which sees the same end.
        tracing::debug!(%error, "NBD connection lost while sending");
    }
}

/// Hands replies to who waits for them, until the connection ends.
async fn receive_replies<S: AsyncRead>(input: ReadHalf<S>, waiting: Waiting) {
    let mut input = BufReader::new(input);
    loop {
        if let Err(error) = receive_reply(&mut input, &waiting).await {
            tracing::debug!(%error, "NBD connection ended");
            break;
        }
    }
    // Nobody will answer: drops the senders, which tells those who wait.
    *waiting.lock() = None;
}

async fn receive_reply(
    input: &mut (impl AsyncRead + Unpin),
    waiting: &Waiting,
) -> Result<(), ClientError> {
    let mut head = [0; size_of::<SimpleReply>()];
    input.read_exact(&mut head).await?;
    let head: SimpleReply = zerocopy::transmute!(head);
    if head.magic != SIMPLE_REPLY_MAGIC {
        return Err(ClientError::Protocol("bad reply magic"));
    }
    let waiter = waiting.lock().as_mut().and_then(|map| map.remove(&head.cookie.get()));
    let waiter = waiter.ok_or(ClientError::Protocol("reply to no request"))?;
    let result = match head.error.get() {
        0 => {
            let mut data = AlignedBuf::recycled(waiter.data_bytes);
            input.read_exact(&mut data).await?;
            Ok(data.freeze())
        }
        errno => Err(errno),
    };
    // The one who asked may have lost interest.
    let _ = waiter.reply.send(result);
    Ok(())
}

/// Chooses an export with `GO`.
async fn handshake<S>(stream: &mut S, name: &str) -> Result<Facts, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut greeting = [0; size_of::<Greeting>()];
    stream.read_exact(&mut greeting).await?;
    let greeting: Greeting = zerocopy::transmute!(greeting);
    let fixed = greeting.flags.get() & handshake_flags::FIXED_NEWSTYLE != 0;
    if greeting.magic != NBD_MAGIC || greeting.option_magic != OPTION_MAGIC || !fixed {
        return Err(ClientError::Protocol("not a fixed newstyle NBD server"));
    }
    let name_len = u32::try_from(name.len()).map_err(|_| ClientError::Protocol("name too long"))?;
    let head = OptionHeader {
        magic: U64::new(OPTION_MAGIC),
        option: U32::new(option::GO),
        len: U32::new(name_len.saturating_add(8)),
    };
    let mut hello = Vec::new();
    hello.extend_from_slice(U32::new(u32::from(handshake_flags::FIXED_NEWSTYLE)).as_bytes());
    hello.extend_from_slice(head.as_bytes());
    hello.extend_from_slice(U32::new(name_len).as_bytes());
    hello.extend_from_slice(name.as_bytes());
    hello.extend_from_slice(U16::new(1).as_bytes());
    hello.extend_from_slice(U16::new(info::BLOCK_SIZE).as_bytes());
    stream.write_all(&hello).await?;
    let mut facts = Facts::default();
    loop {
        let (reply, data) = option_reply(stream).await?;
        match reply {
            option_reply::ACK => return Ok(facts),
            option_reply::INFO => facts.learn(&data),
            error if error & option_reply::ERROR_BIT != 0 => {
                let message = String::from_utf8_lossy(&data).into_owned();
                return Err(ClientError::Refused { export: name.to_owned(), message });
            }
            _ => {}
        }
    }
}

async fn option_reply(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<(u32, Vec<u8>), ClientError> {
    let mut head = [0; size_of::<OptionReplyHeader>()];
    stream.read_exact(&mut head).await?;
    let head: OptionReplyHeader = zerocopy::transmute!(head);
    if head.magic != OPTION_REPLY_MAGIC || head.len.get() > MAX_REPLY_BYTES {
        return Err(ClientError::Protocol("bad option reply"));
    }
    let mut data = vec![0; usize::try_from(head.len.get()).unwrap_or(usize::MAX)];
    stream.read_exact(&mut data).await?;
    Ok((head.reply.get(), data))
}

impl Facts {
    fn learn(&mut self, data: &[u8]) {
        if let Ok(fact) = InfoExport::read_from_bytes(data)
            && fact.kind == info::EXPORT
        {
            self.size_bytes = Some(fact.size_bytes.get());
            self.flags = fact.flags.get();
        }
        if let Ok(fact) = InfoBlockSize::read_from_bytes(data)
            && fact.kind == info::BLOCK_SIZE
        {
            self.block_bytes = fact.minimum.get();
        }
    }
}
