//! Bytes in, verified packs out.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::pack::{PackError, PackHeader, Record, RecordKind};
use crate::units::{BlockSize, Lsid, Salt, to_usize};

/// A pack with the data of its records.
#[derive(Clone, Debug)]
pub struct Pack {
    /// The header.
    pub header: PackHeader,
    /// One for each record: the whole log blocks that hold its data; empty for a discard. What lies
    /// behind a write's payload, and in padding, has no meaning.
    pub blocks: Vec<Bytes>,
}

impl Pack {
    /// The writes (with their payload) and discards (with an empty one) in order, without padding.
    pub fn ios(&self) -> impl Iterator<Item = (&Record, Bytes)> {
        let records = self.header.records().iter().zip(&self.blocks);
        records
            .filter(|(record, _)| record.kind != RecordKind::Padding)
            .map(|(record, blocks)| (record, blocks.slice(..record.payload_bytes())))
    }

    /// The first record whose data does not fit its checksum.
    fn first_bad(&self) -> Option<usize> {
        let mut records = self.header.records().iter().zip(&self.blocks);
        records.position(|(record, data)| !self.header.verify_data(record, data))
    }
}

/// A pack with a valid header, but with damaged data.
#[derive(Clone, Debug)]
pub struct TornPack {
    pack: Pack,
    first_bad: usize,
}

impl TornPack {
    /// The place of the first record whose data is damaged.
    #[must_use]
    pub const fn first_bad(&self) -> usize {
        self.first_bad
    }

    /// The header, as it was read.
    #[must_use]
    pub const fn header(&self) -> &PackHeader {
        &self.pack.header
    }

    /// The pack as redo leaves it (`formats.md` §4.6): cut before the first damaged record; `None`
    /// when that is the very first one, and so the log ends before this pack.
    #[must_use]
    pub fn shrink(self) -> Option<Pack> {
        let header = self.pack.header.shrink(self.first_bad)?;
        let mut blocks = self.pack.blocks;
        blocks.truncate(self.first_bad);
        Some(Pack { header, blocks })
    }
}

/// Why no further pack comes out.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No valid pack header where one should be.
    #[error("no valid pack at lsid {lsid}")]
    Header {
        /// Where the header should be.
        lsid: Lsid,
        /// What is wrong with it.
        source: PackError,
    },
    /// The data of a record does not fit its checksum.
    #[error(
        "the pack at lsid {} is damaged: the data of its record {} does not fit the checksum",
        .0.header().lsid(),
        .0.first_bad
    )]
    Data(Box<TornPack>),
    /// The bytes end inside a pack.
    #[error("the log ends inside the pack of lsid {lsid}: {got} of {want} bytes")]
    Cut {
        /// Of the pack.
        lsid: Lsid,
        /// Bytes that the pack (or its header) has.
        want: usize,
        /// Bytes that were there.
        got: usize,
    },
    /// Asked again after one of the errors above.
    #[error("the log was found damaged at lsid {0}; nothing behind that can be read")]
    Stopped(Lsid),
}

/// Cuts a stream of bytes into packs and verifies them. Does no I/O.
///
/// Payloads are not copied: the blocks of a record that came in one [`push`](Self::push) share its
/// memory. At most one pack (and what was pushed ahead) is held in memory.
///
/// After an error nothing more comes out: what follows damage cannot be trusted.
#[derive(Debug)]
pub struct PackDecoder {
    block_size: BlockSize,
    salt: Salt,
    next: Lsid,
    chunks: VecDeque<Bytes>,
    buffered: usize,
    header: Option<PackHeader>,
    ended: bool,
    failed: bool,
}

impl PackDecoder {
    /// Expects the header of the pack `begin` first.
    #[must_use]
    pub const fn new(block_size: BlockSize, salt: Salt, begin: Lsid) -> Self {
        Self {
            block_size,
            salt,
            next: begin,
            chunks: VecDeque::new(),
            buffered: 0,
            header: None,
            ended: false,
            failed: false,
        }
    }

    /// Takes the next bytes of the stream.
    pub fn push(&mut self, chunk: Bytes) {
        self.buffered += chunk.len();
        if !chunk.is_empty() {
            self.chunks.push_back(chunk);
        }
    }

    /// How many bytes are missing before [`next_pack`](Self::next_pack) can get on; 0 when it can
    /// now.
    #[must_use]
    pub fn missing_bytes(&self) -> usize {
        let want = self.header.as_ref().map_or(self.block_size.as_usize(), PackHeader::data_bytes);
        if self.ended { 0 } else { want.saturating_sub(self.buffered) }
    }

    /// The lsid behind the last pack: where the next one must begin.
    #[must_use]
    pub const fn next_lsid(&self) -> Lsid {
        self.next
    }

    /// Was the end block read? Then no pack follows.
    #[must_use]
    pub const fn is_ended(&self) -> bool {
        self.ended
    }

    /// Bytes that were pushed, but belong to no pack yet.
    #[must_use]
    pub const fn buffered_bytes(&self) -> usize {
        self.buffered
    }

    /// The next pack; `None` when more bytes are needed, or after the end block.
    ///
    /// # Errors
    /// When what comes next is no sound pack.
    pub fn next_pack(&mut self) -> Result<Option<Pack>, DecodeError> {
        if self.failed {
            return Err(DecodeError::Stopped(self.next));
        }
        if self.ended || !self.read_header()? {
            return Ok(None);
        }
        let complete = self.header.take_if(|header| header.data_bytes() <= self.buffered);
        let Some(header) = complete else { return Ok(None) };
        let mut blocks = Vec::with_capacity(header.records().len());
        for record in header.records() {
            let size = self.block_size.bytes_of(record.log_blocks(self.block_size));
            blocks.push(self.take(to_usize(size)));
        }
        let pack = Pack { header, blocks };
        match pack.first_bad() {
            None => {
                self.next = pack.header.next_lsid();
                Ok(Some(pack))
            }
            Some(first_bad) => {
                self.failed = true;
                Err(DecodeError::Data(Box::new(TornPack { pack, first_bad })))
            }
        }
    }

    /// Is there a header now? If not, the stream has ended or more bytes are needed.
    fn read_header(&mut self) -> Result<bool, DecodeError> {
        if self.header.is_some() {
            return Ok(true);
        }
        if self.buffered < self.block_size.as_usize() {
            return Ok(false);
        }
        let block = self.take(self.block_size.as_usize());
        match PackHeader::decode(&block, self.block_size, self.salt, self.next) {
            Ok(header) => self.header = Some(header),
            Err(PackError::Terminator) => self.ended = true,
            Err(source) => {
                self.failed = true;
                return Err(DecodeError::Header { lsid: self.next, source });
            }
        }
        Ok(!self.ended)
    }

    /// The next `n` buffered bytes; the caller knows that they are there.
    fn take(&mut self, n: usize) -> Bytes {
        debug_assert!(n <= self.buffered, "only what was pushed can be taken");
        self.buffered = self.buffered.saturating_sub(n);
        if let Some(first) = self.chunks.front_mut() {
            if first.len() > n {
                return first.split_to(n);
            }
            if first.len() == n {
                return self.chunks.pop_front().unwrap_or_default();
            }
        }
        self.take_scattered(n)
    }

    fn take_scattered(&mut self, n: usize) -> Bytes {
        let mut joined = BytesMut::with_capacity(n);
        while joined.len() < n {
            let Some(mut chunk) = self.chunks.pop_front() else { break };
            let part = chunk.split_to(chunk.len().min(n - joined.len()));
            joined.extend_from_slice(&part);
            if !chunk.is_empty() {
                self.chunks.push_front(chunk);
            }
        }
        joined.freeze()
    }

    /// The stream has no more bytes: gives the lsid of its end.
    ///
    /// # Errors
    /// When it ends inside a pack.
    pub fn finish(&self) -> Result<Lsid, DecodeError> {
        let in_pack = self.header.is_some() || (self.buffered > 0 && !self.ended);
        if in_pack {
            let (lsid, got) = (self.next, self.buffered);
            return Err(DecodeError::Cut { lsid, want: got + self.missing_bytes(), got });
        }
        Ok(self.next)
    }
}
