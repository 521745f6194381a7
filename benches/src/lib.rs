//! Inputs for benchmarks: logs of known I/O size and compressibility, the same in every run.
//!
//! The benches run on small inputs, so that CI can run each once (`cargo bench -p benches --
//! --test`);
//! `BENCH_MIB` makes them larger.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use bytes::Bytes;
use wlog_format::checksum::checksum;
use wlog_format::pack::{Add, PackBuilder};
use wlog_format::ring::Ring;
use wlog_format::stream::{Pack, WlogHeader, WlogWriter};
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid, Pb, Salt, to_usize};

/// What the payload of a log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Noise.
    Random,
    /// Of each 4 KiB 1.5 KiB text, 1 KiB zeros, 1.5 KiB noise: about half is left of it.
    Semi,
}

/// A log to make.
#[derive(Clone, Copy, Debug)]
pub struct LogShape {
    /// Bytes of the smallest and the largest write; a power of two each, as all between them.
    pub io_bytes: (usize, usize),
    /// Bytes of the volume, over which the writes are strewn.
    pub device_bytes: u64,
    /// Bytes of all writes together.
    pub total_bytes: usize,
    /// What is written.
    pub payload: Payload,
    /// Other writes for another seed.
    pub seed: u64,
}

/// Bytes that a benchmark works on: `BENCH_MIB`, or 8 MiB.
#[must_use]
pub fn input_bytes() -> usize {
    let mib = std::env::var("BENCH_MIB").ok().and_then(|mib| mib.parse().ok());
    mib.unwrap_or(8_usize) << 20
}

struct Noise(u64);

impl Noise {
    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

const TEXT_BYTES: usize = 1536;
const ZERO_BYTES: usize = 1024;
const BLOCK_BYTES: usize = 4096;

/// Makes payloads.
struct Payloads {
    payload: Payload,
    words: Vec<Vec<u8>>,
}

impl Payloads {
    fn new(payload: Payload) -> Self {
        let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
        let mut word = |_| {
            let letters = noise.next().to_le_bytes().map(|byte| byte % 26 + b'a');
            let len = 3 + usize::from(letters[0] % 6);
            [letters.get(..len).unwrap_or(&letters), b" "].concat()
        };
        Self { payload, words: (0..400).map(&mut word).collect() }
    }

    fn make(&self, noise: &mut Noise, io_bytes: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(io_bytes + BLOCK_BYTES);
        while data.len() < io_bytes {
            let end = data.len() + BLOCK_BYTES.min(io_bytes - data.len());
            if self.payload == Payload::Semi {
                let text_end = data.len() + TEXT_BYTES;
                while data.len() < text_end {
                    let word = to_usize(noise.next() >> 20) % self.words.len().max(1);
                    data.extend_from_slice(self.words.get(word).map_or(b" ", Vec::as_slice));
                }
                data.resize(text_end + ZERO_BYTES, 0);
            }
            while data.len() < end {
                data.extend_from_slice(&noise.next().to_le_bytes());
            }
            data.truncate(end);
        }
        data
    }
}

/// What the writes of a log hold, without the log.
#[must_use]
pub fn payloads(payload: Payload, io_bytes: usize, count: usize) -> Vec<Bytes> {
    let (mut noise, payloads) = (Noise(1), Payloads::new(payload));
    (0..count).map(|_| Bytes::from(payloads.make(&mut noise, io_bytes))).collect()
}

impl LogShape {
    /// The wlog as a file. `None` for a shape that no log can have.
    #[must_use]
    pub fn wlog(&self) -> Option<Vec<u8>> {
        self.write_wlog(Vec::new()).ok()
    }

    /// Writes the wlog into `output`, and gives that back, flushed.
    ///
    /// # Errors
    /// It cannot be written, or no log can have this shape.
    pub fn write_wlog<W: Write>(&self, output: W) -> io::Result<W> {
        let impossible = || io::Error::other("no log can have this shape");
        let block_size = BlockSize::B512;
        let ring = Ring::new(block_size, Pb(0), Pb(1 << 50)).ok_or_else(impossible)?;
        let (salt, begin, end) = (Salt(4711), Lsid(0), Lsid::INVALID);
        let uuid = LogUuid([1; 16]);
        let header = WlogHeader { block_size, salt, uuid, begin, end };
        let mut writer = WlogWriter::new(output, header)?;
        let mut noise = Noise(self.seed | 1);
        let payloads = Payloads::new(self.payload);
        let (smallest, largest) = self.io_bytes;
        let sizes = u64::from(largest.ilog2() - smallest.ilog2()) + 1;
        let mut written = 0;
        while written < self.total_bytes {
            let max = Pb(2048);
            let mut builder = PackBuilder::new(writer.next_lsid(), ring, salt, max);
            let mut blocks = Vec::new();
            while written < self.total_bytes {
                let io_bytes = smallest << ((noise.next() >> 32) % sizes);
                let slots = (self.device_bytes - io_bytes as u64) / smallest as u64 + 1;
                let address = Lb::from_bytes(noise.next() % slots * smallest as u64);
                let data = payloads.make(&mut noise, io_bytes);
                let len = Lb::from_bytes(data.len() as u64);
                match builder.try_add_write(address, len, checksum(&data, salt)) {
                    Add::Added(_) => blocks.push(Bytes::from(data)),
                    Add::Full | Add::TooLarge => break,
                }
                written += io_bytes;
            }
            let header = builder.finish().ok_or_else(impossible)?;
            writer.write_pack(&Pack { header, blocks })?;
        }
        writer.finish()
    }
}
