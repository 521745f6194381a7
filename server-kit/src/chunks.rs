//! Byte streams over gRPC: cut into [`Chunk`]s of at most 1 MiB, each with its CRC32 (I8), and
//! bridged to threads that block.
//!
//! Invariants: a chunk that fails its check is an error, never data; a stream that breaks off reads
//! as an error, never as its end; nothing is allocated by a length that was not checked; at most
//! [`IN_FLIGHT`] chunks wait between the network and a worker thread.
use crate::blocking;
use crate::error::RoleError;
use bytes::{Bytes, BytesMut};
use proto::v1::Chunk;
use std::io::{self, Read, Write};
use tokio::sync::mpsc;

/// Most bytes of one chunk, before and after compression.
pub const MAX_CHUNK: usize = 1 << 20;
/// Chunks that may wait in one bridge.
pub const IN_FLIGHT: usize = 4;

/// Why a chunk was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Longer than [`MAX_CHUNK`].
    #[error("a chunk of {0} bytes, at most {MAX_CHUNK} are allowed")]
    TooLong(usize),
    /// The data is not what was sent.
    #[error("a chunk's checksum is {found:08x}, sent was {sent:08x}")]
    Checksum {
        /// CRC32 of what arrived.
        found: u32,
        /// CRC32 that it came with.
        sent: u32,
    },
    /// It does not decompress to the length that it says.
    #[error("a chunk does not decompress to the {0} bytes that it says")]
    Compression(usize),
}

impl From<ChunkError> for RoleError {
    fn from(error: ChunkError) -> Self {
        RoleError::damaged(error.to_string())
    }
}

/// `data` as a chunk, as it is. `data` is at most [`MAX_CHUNK`] long, or the peer refuses it.
#[must_use]
pub fn encode(data: Bytes) -> Chunk {
    debug_assert!(data.len() <= MAX_CHUNK, "the peer will refuse this chunk");
    Chunk { crc32: crc32fast::hash(&data), data, raw_bytes: 0 }
}

/// Makes chunks compressed with zstd where that makes them smaller. Keeps its context.
pub struct ChunkCompressor(zstd::bulk::Compressor<'static>);

impl ChunkCompressor {
    /// With this zstd level.
    ///
    /// # Errors
    /// When the codec cannot be set up.
    pub fn new(level: i32) -> io::Result<Self> {
        zstd::bulk::Compressor::new(level).map(Self)
    }

    /// `data` as a chunk.
    #[must_use]
    pub fn encode(&mut self, data: Bytes) -> Chunk {
        let raw_bytes = u32::try_from(data.len()).unwrap_or_default();
        match self.0.compress(&data) {
            Ok(small) if small.len() < data.len() && raw_bytes > 0 => {
                Chunk { crc32: crc32fast::hash(&small), data: small.into(), raw_bytes }
            }
            _ => encode(data),
        }
    }
}

/// The data of a chunk, checked and decompressed.
///
/// # Errors
/// [`ChunkError`].
pub fn decode(chunk: Chunk) -> Result<Bytes, ChunkError> {
    let raw_bytes = usize::try_from(chunk.raw_bytes).unwrap_or(usize::MAX);
    let longest = raw_bytes.max(chunk.data.len());
    if longest > MAX_CHUNK {
        return Err(ChunkError::TooLong(longest));
    }
    let found = crc32fast::hash(&chunk.data);
    if found != chunk.crc32 {
        return Err(ChunkError::Checksum { found, sent: chunk.crc32 });
    }
    if raw_bytes == 0 {
        return Ok(chunk.data);
    }
    match zstd::bulk::decompress(&chunk.data, raw_bytes) {
        Ok(data) if data.len() == raw_bytes => Ok(data.into()),
        _ => Err(ChunkError::Compression(raw_bytes)),
    }
}

/// Writes of a blocking thread become messages of a request stream: `wrap` puts each chunk into
/// one. Flush sends what is left; dropped without flush, the rest is lost.
pub struct ChunkSender<T> {
    stream: mpsc::Sender<T>,
    wrap: fn(Chunk) -> T,
    buffer: BytesMut,
    sent_bytes: u64,
}

impl<T> ChunkSender<T> {
    /// Sends into `stream`, the sending half of a bounded channel.
    #[must_use]
    pub fn new(stream: mpsc::Sender<T>, wrap: fn(Chunk) -> T) -> Self {
        Self { stream, wrap, buffer: BytesMut::new(), sent_bytes: 0 }
    }

    /// Bytes sent so far, without those that wait for a flush.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    fn send(&mut self) -> io::Result<()> {
        let data = self.buffer.split().freeze();
        let length = data.len() as u64;
        // The receiver is gone: the peer has answered, or the connection broke.
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        blocking::wait(self.stream.send((self.wrap)(encode(data)))).map_err(gone)?;
        self.sent_bytes += length;
        Ok(())
    }
}

impl<T> Write for ChunkSender<T> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve(MAX_CHUNK);
        }
        let room = MAX_CHUNK - self.buffer.len();
        let (now, _) = data.split_at(room.min(data.len()));
        self.buffer.extend_from_slice(now);
        if self.buffer.len() == MAX_CHUNK {
            self.send()?;
        }
        Ok(now.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

enum Piece {
    Data(Bytes),
    End,
}

/// The async half of a bridge to a blocking reader. Dropped before [`ChunkFeeder::end`], the
/// reader gets an error.
pub struct ChunkFeeder(mpsc::Sender<Piece>);

/// The blocking half: reads what was fed.
pub struct ChunkReceiver {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

/// A bridge for the chunks of one stream.
#[must_use]
pub fn bridge() -> (ChunkFeeder, ChunkReceiver) {
    let (sender, pieces) = mpsc::channel(IN_FLIGHT);
    (ChunkFeeder(sender), ChunkReceiver { pieces, current: Bytes::new(), ended: false })
}

impl ChunkFeeder {
    /// Checks a chunk and hands its data on; waits while the reader is behind.
    ///
    /// # Errors
    /// `Damaged` for a bad chunk; `Cancelled` when the reader is gone (its own error says why).
    pub async fn feed(&self, chunk: Chunk) -> Result<(), RoleError> {
        self.hand_on(Piece::Data(decode(chunk)?)).await
    }

    /// The stream ended as it should.
    ///
    /// # Errors
    /// `Cancelled` when the reader is gone.
    pub async fn end(self) -> Result<(), RoleError> {
        self.hand_on(Piece::End).await
    }

    async fn hand_on(&self, piece: Piece) -> Result<(), RoleError> {
        let gone = |_| RoleError::cancelled("the reader of the stream has given up");
        self.0.send(piece).await.map_err(gone)
    }
}

impl ChunkReceiver {
    /// The next piece without a copy; `None` at the end.
    ///
    /// # Errors
    /// `UnexpectedEof` when the stream broke off.
    pub fn next_bytes(&mut self) -> io::Result<Option<Bytes>> {
        if !self.current.is_empty() {
            return Ok(Some(std::mem::take(&mut self.current)));
        }
        if self.ended {
            return Ok(None);
        }
        match blocking::wait(self.pieces.recv()) {
            Some(Piece::Data(data)) => Ok(Some(data)),
            Some(Piece::End) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the stream broke off")),
        }
    }
}

impl Read for ChunkReceiver {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.next_bytes()? {
                Some(data) => self.current = data,
                None => return Ok(0),
            }
        }
        let part = self.current.split_to(buf.len().min(self.current.len()));
        let (target, _) = buf.split_at_mut(part.len());
        target.copy_from_slice(&part);
        Ok(part.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_survive_the_wire_and_no_flipped_bit_does(
            data in prop::collection::vec(any::<u8>(), 0..5000), level in prop::option::of(1..4i32),
            at in any::<prop::sample::Index>(), bit in 0..8u8,
        ) {
            let data = Bytes::from(data.repeat(2));
            let chunk = match level {
                Some(level) => ChunkCompressor::new(level).unwrap().encode(data.clone()),
                None => encode(data.clone()),
            };
            prop_assert_eq!(&decode(chunk.clone()).unwrap(), &data);
            let mut bad = chunk.data.to_vec();
            if !bad.is_empty() {
                bad[at.index(chunk.data.len())] ^= 1 << bit;
                let bad = Chunk { data: bad.into(), ..chunk };
                prop_assert!(decode(bad).is_err());
            }
        }
    }

    #[test]
    fn lengths_are_checked_before_anything_is_allocated() {
        let bomb = zstd::bulk::compress(&vec![0; 2 * MAX_CHUNK], 3).unwrap();
        let mut chunk = encode(bomb.into());
        chunk.raw_bytes = u32::MAX;
        assert_eq!(decode(chunk.clone()), Err(ChunkError::TooLong(u32::MAX as usize)));
        chunk.raw_bytes = 4096;
        assert_eq!(decode(chunk), Err(ChunkError::Compression(4096)));
        let long = Chunk { data: vec![0; MAX_CHUNK + 1].into(), crc32: 0, raw_bytes: 0 };
        assert_eq!(decode(long), Err(ChunkError::TooLong(MAX_CHUNK + 1)));
    }

    #[tokio::test]
    async fn what_a_thread_writes_another_reads_however_it_is_cut() {
        let (sender, mut messages) = mpsc::channel(IN_FLIGHT);
        let data: Vec<u8> = (0..3_000_001u32).map(|i| (i % 251) as u8).collect();
        let written = data.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let mut sender = ChunkSender::new(sender, |c| c);
            written.chunks(70_001).for_each(|part| sender.write_all(part).unwrap());
            sender.flush().unwrap();
            sender.sent_bytes()
        });
        let (feeder, mut receiver) = bridge();
        let reader = tokio::task::spawn_blocking(move || {
            let mut read = Vec::new();
            receiver.read_to_end(&mut read).map(|_| read)
        });
        while let Some(chunk) = messages.recv().await {
            feeder.feed(chunk).await.unwrap();
        }
        feeder.end().await.unwrap();
        assert_eq!(writer.await.unwrap(), data.len() as u64);
        assert!(reader.await.unwrap().unwrap() == data);
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_an_error_and_not_an_end() {
        let (feeder, mut receiver) = bridge();
        feeder.feed(encode(Bytes::from_static(b"abc"))).await.unwrap();
        drop(feeder);
        let result = tokio::task::spawn_blocking(move || receiver.read_to_end(&mut Vec::new()));
        assert_eq!(result.await.unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let (feeder, receiver) = bridge();
        drop(receiver);
        assert!(feeder.end().await.is_err());
    }
}
