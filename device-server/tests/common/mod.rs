//! A volume on simulated disks, and the model that it is compared with.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "a test may panic, and uses of this module what it needs"
)]

pub mod role;
pub mod state_dir;

use std::sync::Arc;
use std::time::Duration;

use block_io::buffer::AlignedBuf;
use block_io::device::BlockDevice;
use block_io::sim::{SimDisk, Trace};
use bytes::Bytes;
use device_server::{ReadPiece, Volume, VolumeOptions, format_devices};
use wlog_format::superblock::DeviceName;
use wlog_format::units::BlockSize;

pub const SECTOR: usize = 512;

/// Images of a formatted log device and of an empty data device.
pub async fn formatted(
    log_bytes: usize,
    data_bytes: usize,
    block_size: BlockSize,
) -> (Vec<u8>, Vec<u8>) {
    let log = SimDisk::new("log", log_bytes, 512);
    let data = SimDisk::new("data", data_bytes, 512);
    let (dyn_log, dyn_data): (Arc<dyn BlockDevice>, Arc<dyn BlockDevice>) =
        (log.clone(), data.clone());
    format_devices(&dyn_log, &dyn_data, block_size, DeviceName::EMPTY).await.unwrap();
    (log.image(), data.image())
}

/// A volume on fresh simulated disks.
pub struct Bench {
    pub log: Arc<SimDisk>,
    pub data: Arc<SimDisk>,
    pub volume: Arc<Volume>,
}

pub async fn bench(log_bytes: usize, data_bytes: usize, options: VolumeOptions) -> Bench {
    bench_with(log_bytes, data_bytes, BlockSize::B512, options).await
}

pub async fn bench_with(
    log_bytes: usize,
    data_bytes: usize,
    block_size: BlockSize,
    options: VolumeOptions,
) -> Bench {
    let (log, data) = formatted(log_bytes, data_bytes, block_size).await;
    reopen(log, data, options).await
}

/// The volume of these images.
pub async fn reopen(log: Vec<u8>, data: Vec<u8>, options: VolumeOptions) -> Bench {
    let log = SimDisk::from_image("log", log, 512);
    let data = SimDisk::from_image("data", data, 512);
    let (volume, _) = Volume::open("v", log.clone(), data.clone(), options).await.unwrap();
    Bench { log, data, volume: Arc::new(volume) }
}

/// Options with which nothing happens by itself but what a test asks for.
pub fn quiet() -> VolumeOptions {
    VolumeOptions {
        checkpoint_interval: Duration::from_secs(3600),
        log_flush_interval: Duration::from_secs(3600),
        ..VolumeOptions::default()
    }
}

/// What sector `sector` holds after write `stamp`: never zeros, and no two alike. As good as
/// random, for the checksum of the log is a plain sum: torn writes of similar words would often
/// pass it.
pub fn sector_content(stamp: u32, sector: u64) -> Vec<u8> {
    let mut numbers = Numbers(u64::from(stamp) << 32 | sector);
    (0..SECTOR / 8).flat_map(|_| numbers.below(u64::MAX).to_le_bytes()).collect()
}

/// The payload of write `stamp` to these sectors, in aligned memory.
pub fn payload(stamp: u32, sector: u64, sectors: u64) -> Bytes {
    let mut buf = AlignedBuf::with_capacity(sectors as usize * SECTOR);
    for s in sector..sector + sectors {
        buf.extend_from_slice(&sector_content(stamp, s));
    }
    buf.freeze()
}

/// Reads a whole range into one vector.
pub async fn read(volume: &Volume, offset: u64, len: usize) -> Vec<u8> {
    let pieces = volume.read(offset, len).await.unwrap();
    let mut all = Vec::with_capacity(len);
    for piece in pieces {
        match piece {
            ReadPiece::Data(data) => all.extend_from_slice(&data),
            ReadPiece::Zeros(bytes) => all.resize(all.len() + bytes as usize, 0),
        }
    }
    assert_eq!(all.len(), len);
    all
}

/// A modification of a volume.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    pub stamp: u32,
    pub sector: u64,
    pub sectors: u64,
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Write { fua: bool },
    Trim,
    WriteZeroes,
}

impl Step {
    pub async fn run(self, volume: &Volume) -> Result<(), device_server::VolumeError> {
        let (offset, len) = (self.sector * SECTOR as u64, self.sectors * SECTOR as u64);
        match self.kind {
            Kind::Write { fua } => {
                volume.write(offset, payload(self.stamp, self.sector, self.sectors), fua).await
            }
            Kind::Trim => volume.trim(offset, len, false).await,
            Kind::WriteZeroes => volume.write_zeroes(offset, len, false, true).await,
        }
    }

    pub fn apply(self, image: &mut [u8]) {
        for sector in self.sector..self.sector + self.sectors {
            let at = sector as usize * SECTOR;
            match self.kind {
                Kind::Write { .. } => {
                    image[at..at + SECTOR].copy_from_slice(&sector_content(self.stamp, sector))
                }
                Kind::Trim | Kind::WriteZeroes => image[at..at + SECTOR].fill(0),
            }
        }
    }
}

/// A small generator of numbers, so that a failing test says its seed and nothing else.
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, n: u64) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

/// Random modifications of a volume of `size` sectors.
pub fn random_steps(seed: u64, count: u32, size: u64, longest: u64) -> Vec<Step> {
    let mut numbers = Numbers(seed);
    let mut step = |stamp| {
        let sectors = 1 + numbers.below(longest);
        let sector = numbers.below(size - sectors + 1);
        let kind = match numbers.below(20) {
            0 | 1 => Kind::Trim,
            2 => Kind::WriteZeroes,
            3 | 4 => Kind::Write { fua: true },
            _ => Kind::Write { fua: false },
        };
        Step { stamp, sector, sectors, kind }
    };
    (0..count).map(&mut step).collect()
}

/// Two disks of one recording.
pub struct TracedDisks {
    pub trace: Trace,
    pub log: Arc<SimDisk>,
    pub data: Arc<SimDisk>,
}

pub fn traced(log: Vec<u8>, data: Vec<u8>) -> TracedDisks {
    let trace = Trace::new();
    let log = SimDisk::traced(&trace, "log", log, 512);
    let data = SimDisk::traced(&trace, "data", data, 512);
    TracedDisks { trace, log, data }
}
