//! Inputs for benchmarks: logs of known I/O size and compressibility, the same in every run.
//!
//! The benches run on small inputs, so that CI can run each once (`cargo bench -p benches --
//! --test`);
//! `BENCH_MIB` makes them larger.
#![forbid(unsafe_code)]

use bytes::Bytes;
use wlog_format::checksum::checksum;
use wlog_format::pack::{Add, PackBuilder};
use wlog_format::ring::Ring;
use wlog_format::stream::{Pack, WlogHeader, WlogWriter};
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid, Pb, Salt};

/// What the payload of a log looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Noise.
    Random,
    /// Half noise, half a pattern, in runs of 64 bytes.
    Semi,
}

/// A log to make.
#[derive(Clone, Copy, Debug)]
pub struct LogShape {
    /// Bytes of each write.
    pub io_bytes: usize,
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

impl LogShape {
    fn payload(&self, noise: &mut Noise) -> Vec<u8> {
        let mut data = Vec::with_capacity(self.io_bytes);
        while data.len() < self.io_bytes {
            let pattern = self.payload == Payload::Semi && (data.len() / 64) % 2 == 1;
            let word = if pattern { 0x2020_2020_0a0d_0000 } else { noise.next() };
            data.extend_from_slice(&word.to_le_bytes());
        }
        data
    }

    /// The wlog as a file. `None` for a shape that no log can have.
    #[must_use]
    pub fn wlog(&self) -> Option<Vec<u8>> {
        let block_size = BlockSize::B512;
        let ring = Ring::new(block_size, Pb(0), Pb(1 << 50))?;
        let (salt, begin, end) = (Salt(4711), Lsid(0), Lsid::INVALID);
        let uuid = LogUuid([1; 16]);
        let header = WlogHeader { block_size, salt, uuid, begin, end };
        let mut writer = WlogWriter::new(Vec::new(), header).ok()?;
        let mut noise = Noise(self.seed | 1);
        let slots = self.device_bytes / self.io_bytes as u64;
        let mut written = 0;
        while written < self.total_bytes {
            let max = Pb(2048);
            let mut builder = PackBuilder::new(writer.next_lsid(), ring, salt, max);
            let mut blocks = Vec::new();
            while written < self.total_bytes {
                let address = noise.next().checked_rem(slots)? * self.io_bytes as u64;
                let data = self.payload(&mut noise);
                let (address, len) = (Lb::from_bytes(address), Lb::from_bytes(data.len() as u64));
                match builder.try_add_write(address, len, checksum(&data, salt)) {
                    Add::Added(_) => blocks.push(Bytes::from(data)),
                    Add::Full | Add::TooLarge => break,
                }
                written += self.io_bytes;
            }
            writer.write_pack(&Pack { header: builder.finish()?, blocks }).ok()?;
        }
        writer.finish().ok()
    }
}
