//! Wlogs in files and pipes.

use std::io::{self, Read, Write};

use bytes::Bytes;

use super::decoder::{DecodeError, Pack, PackDecoder};
use super::header::{HEADER_BYTES, WlogHeader, WlogHeaderError};
use crate::pack::encode_terminator;
use crate::reuse::Reuse;
use crate::units::{LogUuid, Lsid};

/// Why a wlog cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WlogError {
    /// The file cannot be read.
    #[error("the wlog cannot be read on")]
    Io(#[from] io::Error),
    /// The header is missing or damaged.
    #[error("no sound wlog header at byte {at}")]
    Header {
        /// Where the header starts.
        at: u64,
        /// What is wrong with it.
        source: WlogHeaderError,
    },
    /// A pack is damaged or out of order.
    #[error(
        "the log is damaged at byte {at} (all before that is sound; extract the rest again from \
         its log device)"
    )]
    Pack {
        /// Where the pack starts.
        at: u64,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The file ends between two packs, without its end block.
    #[error("the wlog ends at byte {at}, lsid {lsid}, without its end block: it is incomplete")]
    NoEnd {
        /// Its length.
        at: u64,
        /// The lsid behind its last pack.
        lsid: Lsid,
    },
    /// A second wlog in the same file that does not continue the first.
    #[error(
        "the wlog at byte {at} begins at lsid {begin} of log {uuid}, and does not continue the one \
         before it, which ends at lsid {expected} of log {expected_uuid}"
    )]
    Gap {
        /// Where its header starts.
        at: u64,
        /// Its log.
        uuid: LogUuid,
        /// Its first lsid.
        begin: Lsid,
        /// The log before it.
        expected_uuid: LogUuid,
        /// The lsid where that ended.
        expected: Lsid,
    },
}

/// How much is read at once, or more where one pack is larger: what was read last is still in the
/// processor's cache when it is checked.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that wait for their pieces to be dropped.
const REUSE_BYTES: usize = 16 << 20;

/// Bytes read ahead in large chunks, handed out in pieces that share the chunk's memory.
#[derive(Debug)]
struct Source<R> {
    inner: R,
    ahead: Bytes,
    reuse: Reuse,
    /// Bytes handed out so far.
    position: u64,
}

impl<R: Read> Source<R> {
    /// Some bytes, `n` at most; none only at the end. Reads `n` and the `behind` bytes after them
    /// at once, so that large data comes in one piece and nothing of the data after it.
    fn some(&mut self, n: usize, behind: usize) -> io::Result<Bytes> {
        if self.ahead.is_empty() {
            self.read_chunk((n + behind).max(CHUNK_BYTES))?;
        }
        let piece = self.ahead.split_to(n.min(self.ahead.len()));
        self.position += piece.len() as u64;
        Ok(piece)
    }

    /// Reads what there is, `wanted` bytes at most: a pipe may have less for a while.
    fn read_chunk(&mut self, wanted: usize) -> io::Result<()> {
        let mut chunk = self.reuse.take(wanted);
        let (part, _) = chunk.split_at_mut(wanted);
        let got = loop {
            match self.inner.read(part) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                got => break got?,
            }
        };
        let chunk = chunk.freeze();
        let data = chunk.slice(..got);
        // Little data does not keep a whole chunk.
        self.ahead = if got < wanted / 2 { Bytes::copy_from_slice(&data) } else { data };
        self.reuse.put(chunk);
        Ok(())
    }

    /// A wlog header; fewer bytes only at the end.
    fn header(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        while bytes.len() < HEADER_BYTES {
            let piece = self.some(HEADER_BYTES - bytes.len(), 0)?;
            if piece.is_empty() {
                break;
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

/// Reads a wlog, or several ones back to back (`formats.md` §5.3). Reads ahead by itself. Holds one
/// pack and one chunk in memory.
#[derive(Debug)]
pub struct WlogReader<R> {
    source: Source<R>,
    header: WlogHeader,
    decoder: PackDecoder,
    /// Where the current pack starts.
    pack_at: u64,
}

impl<R: Read> WlogReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When there is no sound one.
    pub fn new(inner: R) -> Result<Self, WlogError> {
        let (ahead, reuse) = (Bytes::new(), Reuse::new(REUSE_BYTES));
        let mut source = Source { inner, ahead, reuse, position: 0 };
        let header = WlogHeader::decode(&source.header()?)
            .map_err(|source| WlogError::Header { at: 0, source })?;
        let (decoder, pack_at) = (decoder_for(&header), source.position);
        Ok(Self { source, header, decoder, pack_at })
    }

    /// The header of the wlog that is being read.
    #[must_use]
    pub const fn header(&self) -> &WlogHeader {
        &self.header
    }

    /// The lsid behind the last pack.
    #[must_use]
    pub const fn next_lsid(&self) -> Lsid {
        self.decoder.next_lsid()
    }

    /// The next pack; `None` after the end block.
    ///
    /// # Errors
    /// When the next pack is damaged or incomplete, or the end block is missing. Nothing of that
    /// pack is handed out, nor anything behind it.
    pub fn next_pack(&mut self) -> Result<Option<Pack>, WlogError> {
        self.pack_at = self.source.position - self.decoder.buffered_bytes() as u64;
        loop {
            match self.decoder.next_pack() {
                Ok(None) if self.decoder.is_ended() => return Ok(None),
                Ok(None) => self.fill()?,
                Ok(pack) => return Ok(pack),
                Err(source) => return Err(self.pack_error(source)),
            }
        }
    }

    /// Reads what the decoder needs next, and no more, for another wlog may follow the end block.
    fn fill(&mut self) -> Result<(), WlogError> {
        let block_bytes = self.header.block_size.as_usize();
        let piece = self.source.some(self.decoder.missing_bytes(), block_bytes)?;
        if !piece.is_empty() {
            self.decoder.push(piece);
            return Ok(());
        }
        match self.decoder.finish() {
            Ok(lsid) => Err(WlogError::NoEnd { at: self.source.position, lsid }),
            Err(source) => Err(self.pack_error(source)),
        }
    }

    fn pack_error(&self, source: DecodeError) -> WlogError {
        WlogError::Pack { at: self.pack_at, source }
    }

    /// After the end block: goes on to the wlog that follows in the same file, `false` if none
    /// does.
    ///
    /// # Errors
    /// When what follows is no sound wlog, or not the continuation of this one.
    pub fn next_wlog(&mut self) -> Result<bool, WlogError> {
        let at = self.source.position;
        let bytes = self.source.header()?;
        if bytes.is_empty() {
            return Ok(false);
        }
        let next = WlogHeader::decode(&bytes).map_err(|source| WlogError::Header { at, source })?;
        let (expected, expected_uuid) = (self.next_lsid(), self.header.uuid);
        if next.begin != expected || next.uuid != expected_uuid {
            let (uuid, begin) = (next.uuid, next.begin);
            return Err(WlogError::Gap { at, uuid, begin, expected_uuid, expected });
        }
        self.decoder = decoder_for(&next);
        self.header = next;
        Ok(true)
    }
}

fn decoder_for(header: &WlogHeader) -> PackDecoder {
    PackDecoder::new(header.block_size, header.salt, header.begin)
}

/// Writes a wlog.
#[derive(Debug)]
pub struct WlogWriter<W> {
    target: W,
    header: WlogHeader,
    next: Lsid,
}

impl<W: Write> WlogWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// When the target cannot be written.
    pub fn new(mut target: W, header: WlogHeader) -> io::Result<Self> {
        target.write_all(&header.encode())?;
        let next = header.begin;
        Ok(Self { target, header, next })
    }

    /// The lsid behind the last pack.
    #[must_use]
    pub const fn next_lsid(&self) -> Lsid {
        self.next
    }

    /// Writes the next pack.
    ///
    /// # Errors
    /// When the target cannot be written, or the pack does not follow the one before it in the same
    /// log.
    pub fn write_pack(&mut self, pack: &Pack) -> io::Result<()> {
        let header = &pack.header;
        let follows = header.lsid() == self.next
            && header.salt() == self.header.salt
            && header.block_size() == self.header.block_size;
        if !follows {
            let what = format!("pack {} cannot follow lsid {} of a wlog", header.lsid(), self.next);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.target.write_all(&header.encode())?;
        pack.blocks.iter().try_for_each(|blocks: &Bytes| self.target.write_all(blocks))?;
        self.next = header.next_lsid();
        Ok(())
    }

    /// Writes the end block and gives the target back, flushed.
    ///
    /// # Errors
    /// When the target cannot be written.
    pub fn finish(mut self) -> io::Result<W> {
        self.target.write_all(&encode_terminator(self.header.block_size, self.header.salt))?;
        self.target.flush()?;
        Ok(self.target)
    }
}
