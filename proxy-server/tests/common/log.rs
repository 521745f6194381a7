//! A storage server's side: logs with real packs, and the image that they make.
use bytes::Bytes;
use proto::v1::wlog_transfer_request::Step;
use proto::v1::{DiffMeta, Snapshot, WlogEnd, WlogStart, WlogTransferRequest};
use server_kit::chunks;
use wlog_format::checksum::checksum;
use wlog_format::pack::{Add, PackBuilder};
use wlog_format::ring::Ring;
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid, Pb, Salt};

pub(crate) const SIZE_LB: u64 = 4096;
const SALT: Salt = Salt(0x5eed);

/// A write: address in logical blocks, and data.
pub(crate) type Io = (u64, Vec<u8>);

/// A device that is written to, and its log.
pub(crate) struct Device {
    pub(crate) uuid: LogUuid,
    pub(crate) image: Vec<u8>,
    pub(crate) gid: u64,
    pub(crate) lsid: u64,
    pub(crate) now: u64,
    pub(crate) block: BlockSize,
    seed: u64,
}

/// One range of the log, ready to be shipped.
#[derive(Clone)]
pub(crate) struct Piece {
    pub(crate) start: WlogStart,
    pub(crate) data: Vec<u8>,
    pub(crate) end: WlogEnd,
}

impl Device {
    pub(crate) fn new() -> Self {
        let image = vec![0; (SIZE_LB * 512) as usize];
        let (uuid, block) = (LogUuid([7; 16]), BlockSize::B512);
        Self { uuid, image, gid: 0, lsid: 0, now: 1_700_000_000, block, seed: 1 }
    }

    fn random(&mut self) -> u64 {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.seed >> 33
    }

    /// Writes at random places, with data that no codec can shrink.
    pub(crate) fn random_ios(&mut self, count: usize, max_lb: u64) -> Vec<Io> {
        let mut io = || {
            let blocks = 1 + self.random() % max_lb;
            let address = self.random() % (SIZE_LB - blocks);
            let data = (0..blocks * 512).map(|_| self.random() as u8).collect();
            (address, data)
        };
        (0..count).map(|_| io()).collect()
    }

    /// Does `ios`, and gives their log with the gids that follow.
    pub(crate) fn write(&mut self, ios: &[Io]) -> Piece {
        self.write_as(ios, true)
    }

    pub(crate) fn write_as(&mut self, ios: &[Io], mergeable: bool) -> Piece {
        let begin = self.lsid;
        let mut data = Vec::new();
        for chunk in ios.chunks(3) {
            data.extend(self.pack(chunk));
        }
        self.gid += 1;
        self.now += 1;
        let clean = |gid| Some(Snapshot { gid_begin: gid, gid_end: gid });
        let diff = DiffMeta {
            begin: clean(self.gid - 1),
            end: clean(self.gid),
            mergeable,
            timestamp_s: self.now,
            ..DiffMeta::default()
        };
        let start = WlogStart {
            volume: super::VOLUME.into(),
            storage_id: "s0".into(),
            log_uuid: Bytes::copy_from_slice(&self.uuid.0),
            physical_block_bytes: self.block.bytes(),
            salt: SALT.0,
            device_size_lb: SIZE_LB,
            begin_lsid: begin,
            max_log_pb: self.lsid - begin,
        };
        Piece { start, data, end: WlogEnd { end_lsid: self.lsid, diff: Some(diff) } }
    }

    fn pack(&mut self, ios: &[Io]) -> Vec<u8> {
        let ring = Ring::new(self.block, Pb(100), Pb(1 << 30)).unwrap();
        let mut builder = PackBuilder::new(Lsid(self.lsid), ring, SALT, Pb(60_000));
        let mut payload = Vec::new();
        for (address, data) in ios {
            let blocks = data.len() as u64 / 512;
            let added = builder.try_add_write(Lb(*address), Lb(blocks), checksum(data, SALT));
            assert!(matches!(added, Add::Added(_)));
            payload.extend_from_slice(data);
            // What lies behind the data in its last block has no meaning.
            payload.resize(payload.len().next_multiple_of(self.block.as_usize()), 0xee);
            let at = (*address * 512) as usize;
            self.image[at..at + data.len()].copy_from_slice(data);
        }
        let header = builder.finish().unwrap();
        self.lsid = header.next_lsid().0;
        [header.encode(), payload].concat()
    }
}

impl Piece {
    pub(crate) fn start_message(&self) -> WlogTransferRequest {
        WlogTransferRequest { step: Some(Step::Start(self.start.clone())) }
    }

    pub(crate) fn end_message(&self) -> WlogTransferRequest {
        WlogTransferRequest { step: Some(Step::End(self.end)) }
    }

    pub(crate) fn chunk_messages(&self) -> Vec<WlogTransferRequest> {
        // Cut where no pack ends.
        let chunk = |part: &[u8]| chunks::encode(Bytes::copy_from_slice(part));
        let parts = self.data.chunks(100_001);
        parts.map(|p| WlogTransferRequest { step: Some(Step::Chunk(chunk(p))) }).collect()
    }

    pub(crate) fn messages(&self) -> Vec<WlogTransferRequest> {
        let start = std::iter::once(self.start_message());
        start.chain(self.chunk_messages()).chain([self.end_message()]).collect()
    }
}
