//! A client made of bytes written by hand: it shares no code with the server, and can misbehave.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// No answer takes longer than this.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
}

/// One reply of the transmission phase, or one chunk of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Simple { cookie: u64, error: u32 },
    Chunk { cookie: u64, flags: u16, kind: u16, payload: Vec<u8> },
}

impl Raw {
    /// Connects and takes the greeting; sends `flags`.
    pub(crate) async fn greeted(socket: &Path, flags: u32) -> Self {
        let mut raw = Self { stream: UnixStream::connect(socket).await.unwrap() };
        assert_eq!(raw.take(18).await, b"NBDMAGICIHAVEOPT\x00\x03");
        raw.send(&flags.to_be_bytes()).await;
        raw
    }

    /// Enters transmission with simple replies.
    pub(crate) async fn simple(socket: &Path) -> Self {
        let mut raw = Self::greeted(socket, 3).await;
        raw.send(&option(1, b"vol")).await;
        raw.take(10).await;
        raw
    }

    /// Enters transmission with structured replies and `base:allocation`.
    pub(crate) async fn structured(socket: &Path) -> Self {
        let mut raw = Self::greeted(socket, 3).await;
        raw.send(&option(8, b"")).await;
        assert_eq!(raw.option_reply().await, (8, 1, vec![]));
        let contexts = b"\x00\x00\x00\x03vol\x00\x00\x00\x01\x00\x00\x00\x0fbase:allocation";
        raw.send(&option(10, contexts)).await;
        assert_eq!(raw.option_reply().await, (10, 4, b"\x00\x00\x00\x01base:allocation".to_vec()));
        assert_eq!(raw.option_reply().await, (10, 1, vec![]));
        raw.send(&option(7, b"\x00\x00\x00\x03vol\x00\x00")).await;
        while raw.option_reply().await.1 != 1 {}
        raw
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let read = self.stream.read_exact(&mut bytes);
        tokio::time::timeout(LIMIT, read).await.expect("an answer in time").unwrap();
        bytes
    }

    /// All that comes until the server closes the connection.
    pub(crate) async fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let read = self.stream.read_to_end(&mut bytes);
        // A reset is an end as well: the server closed while we still sent.
        let _ = tokio::time::timeout(LIMIT, read).await.expect("the server closes in time");
        bytes
    }

    /// Option, reply code and data of one option reply.
    pub(crate) async fn option_reply(&mut self) -> (u32, u32, Vec<u8>) {
        let head = self.take(20).await;
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        let data = self.take(be32(&head[16..]) as usize).await;
        (be32(&head[8..]), be32(&head[12..]), data)
    }

    /// One reply; the data of a simple reply to a read is left in the stream.
    pub(crate) async fn reply(&mut self) -> Reply {
        let magic = be32(&self.take(4).await);
        if magic == 0x6744_6698 {
            let rest = self.take(12).await;
            return Reply::Simple { error: be32(&rest), cookie: be64(&rest[4..]) };
        }
        assert_eq!(magic, 0x668e_33ef, "magic of a reply");
        let rest = self.take(16).await;
        let payload = self.take(be32(&rest[12..]) as usize).await;
        let (flags, kind) = (be16(&rest), be16(&rest[2..]));
        Reply::Chunk { flags, kind, cookie: be64(&rest[4..]), payload }
    }
}

pub(crate) fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [b"IHAVEOPT", &code.to_be_bytes()[..], &len, data].concat()
}

pub(crate) fn request(command: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = vec![0x25, 0x60, 0x95, 0x13];
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

pub(crate) fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(*bytes.first_chunk().unwrap())
}

pub(crate) fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(*bytes.first_chunk().unwrap())
}

pub(crate) fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(*bytes.first_chunk().unwrap())
}
