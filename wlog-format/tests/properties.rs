//! What must hold for every log, not only for those that somebody thought of.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use bytes::Bytes;
use proptest::prelude::*;
use wlog_format::checksum::checksum;
use wlog_format::pack::{Add, MAX_PACK, PackBuilder, PackHeader, RecordKind, is_header_at};
use wlog_format::ring::Ring;
use wlog_format::stream::{Pack, PackDecoder, WlogHeader, WlogReader, WlogWriter};
use wlog_format::superblock::SuperBlock;
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid, Pb, Salt, to_usize};

/// An I/O that somebody wants to log.
#[derive(Clone, Debug, PartialEq)]
enum Io {
    Write { address: u64, len: u32, fill: u8 },
    Discard { address: u64, len: u32 },
}

impl Io {
    fn payload(&self) -> Vec<u8> {
        match *self {
            Self::Write { len, fill, .. } => vec![fill; len as usize * 512],
            Self::Discard { .. } => Vec::new(),
        }
    }
}

fn io(max_write: u32) -> impl Strategy<Value = Io> {
    prop_oneof![
        4 => (any::<u32>(), 1..=max_write, any::<u8>())
            .prop_map(|(address, len, fill)| Io::Write { address: address.into(), len, fill }),
        1 => (any::<u32>(), 1..=u32::MAX)
            .prop_map(|(address, len)| Io::Discard { address: address.into(), len }),
    ]
}

fn block_size() -> impl Strategy<Value = BlockSize> {
    prop_oneof![Just(BlockSize::B512), Just(BlockSize::B4096)]
}

/// A ring, where the log stands in it, the largest pack, and what is to be logged.
fn scene() -> impl Strategy<Value = (Ring, Lsid, Pb, Vec<Io>)> {
    (block_size(), 16_u64..400, any::<u32>(), 1_u64..500).prop_flat_map(
        |(block_size, size, lsid, max)| {
            let ring = Ring::new(block_size, Pb(10), Pb(size)).unwrap();
            let max_write = u32::try_from(PackBuilder::max_write(&ring).0).unwrap().min(200);
            let ios = prop::collection::vec(io(max_write), 1..60);
            (Just(ring), Just(Lsid(lsid.into())), Just(Pb(max)), ios)
        },
    )
}

const SALT: Salt = Salt(0x1234_5678);

fn offer(builder: &mut PackBuilder, io: &Io) -> Add {
    match *io {
        Io::Write { address, len, .. } => {
            let sum = checksum(&io.payload(), SALT);
            builder.try_add_write(Lb(address), Lb(len.into()), sum)
        }
        Io::Discard { address, len } => builder.try_add_discard(Lb(address), Lb(len.into())),
    }
}

/// Packs as a device makes them.
fn log(ring: Ring, begin: Lsid, max: Pb, ios: &[Io]) -> Vec<Pack> {
    let (mut packs, mut next, mut lsid, mut refused) = (Vec::new(), 0, begin, 0);
    while next < ios.len() {
        let mut builder = PackBuilder::new(lsid, ring, SALT, max);
        let first = next;
        while next < ios.len() {
            match offer(&mut builder, &ios[next]) {
                Add::Added(_) => next += 1,
                Add::Full => break,
                Add::TooLarge => panic!("{:?} is too large for {ring:?}", ios[next]),
            }
        }
        refused = if next == first { refused + 1 } else { 0 };
        assert!(refused < 2, "two packs in a row take nothing");
        let header = builder.finish().expect("a pack that refuses holds something");
        lsid = header.next_lsid();
        packs.push(with_data(header, &ios[first..next]));
    }
    packs
}

fn with_data(header: PackHeader, mut ios: &[Io]) -> Pack {
    let block_size = header.block_size();
    let blocks = header.records().iter().map(|record| {
        let mut data = Vec::new();
        if record.kind != RecordKind::Padding {
            data = ios[0].payload();
            ios = &ios[1..];
        }
        data.resize(to_usize(block_size.bytes_of(record.log_blocks(block_size))), 0xee);
        Bytes::from(data)
    });
    let blocks = blocks.collect();
    Pack { header, blocks }
}

fn ios_of(packs: &[Pack]) -> Vec<Io> {
    let ios = packs.iter().flat_map(|pack| pack.ios().collect::<Vec<_>>());
    ios.map(|(record, payload)| match record.kind {
        RecordKind::Normal => {
            assert!(payload.iter().all(|b| *b == payload[0]));
            Io::Write { address: record.address.0, len: record.blocks, fill: payload[0] }
        }
        _ => Io::Discard { address: record.address.0, len: record.blocks },
    })
    .collect()
}

fn stream_of(packs: &[Pack]) -> Vec<u8> {
    let first = &packs[0].header;
    let header = WlogHeader {
        block_size: first.block_size(),
        salt: SALT,
        uuid: LogUuid([7; 16]),
        begin: first.lsid(),
        end: Lsid::INVALID,
    };
    let mut writer = WlogWriter::new(Vec::new(), header).unwrap();
    packs.iter().for_each(|pack| writer.write_pack(pack).unwrap());
    writer.finish().unwrap()
}

fn read_until_error(bytes: &[u8]) -> (Vec<Pack>, bool) {
    let mut packs = Vec::new();
    let Ok(mut reader) = WlogReader::new(bytes) else { return (packs, false) };
    loop {
        match reader.next_pack() {
            Ok(Some(pack)) => packs.push(pack),
            Ok(None) => return (packs, true),
            Err(_) => return (packs, false),
        }
    }
}

/// The 32 bytes of a record, often zero.
fn raw_record() -> impl Strategy<Value = [u8; 32]> {
    prop::array::uniform32(prop_oneof![Just(0_u8), any::<u8>()])
}

fn config() -> ProptestConfig {
    ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn built_packs_obey_the_ring_rule((ring, begin, max, ios) in scene()) {
        let packs = log(ring, begin, max, &ios);
        prop_assert_eq!(&ios_of(&packs), &ios);
        let mut lsid = begin;
        for Pack { header, .. } in &packs {
            prop_assert_eq!(header.lsid(), lsid);
            lsid = header.next_lsid();
            prop_assert!(header.total_io() < ring.size() && header.total_io() <= MAX_PACK);
            let paddings = header.records().iter().filter(|r| r.kind == RecordKind::Padding);
            prop_assert!(paddings.clone().count() <= 1);
            for padding in paddings {
                let end = padding.lsid + padding.log_blocks(ring.block_size());
                prop_assert_eq!(end.0 % ring.size().0, 0, "padding reaches the ring end");
            }
            for record in header.records().iter().filter(|r| r.kind == RecordKind::Normal) {
                let size = record.log_blocks(ring.block_size());
                prop_assert!(size <= ring.contiguous(record.lsid), "{record:?} crosses the end");
            }
            let writes = header.records().iter().filter(|r| r.kind == RecordKind::Normal).count();
            prop_assert!(header.total_io() <= max || writes <= 1, "larger than asked for");
        }
    }

    #[test]
    fn a_header_decodes_to_itself((ring, begin, max, ios) in scene()) {
        for Pack { header, .. } in log(ring, begin, max, &ios) {
            let block = header.encode();
            let size = ring.block_size();
            let decoded = PackHeader::decode(&block, size, SALT, header.lsid());
            prop_assert_eq!(decoded.as_ref(), Ok(&header));
            prop_assert!(is_header_at(&block, size, SALT, header.lsid()));
            let elsewhere = header.lsid() + Pb(ring.size().0);
            prop_assert!(PackHeader::decode(&block, size, SALT, elsewhere).is_err());
            prop_assert!(!is_header_at(&block, size, SALT, elsewhere));
            prop_assert!(!is_header_at(&block, size, Salt(1), header.lsid()));
        }
    }

    #[test]
    fn a_shrunk_header_is_a_valid_one_with_the_first_records((ring, begin, max, ios) in scene()) {
        for Pack { header, .. } in log(ring, begin, max, &ios) {
            prop_assert!(header.shrink(0).is_none());
            for keep in 1..=header.records().len() {
                let shrunk = header.shrink(keep).unwrap();
                prop_assert_eq!(shrunk.records(), &header.records()[..keep]);
                let decoded =
                    PackHeader::decode(&shrunk.encode(), ring.block_size(), SALT, header.lsid());
                prop_assert_eq!(decoded, Ok(shrunk));
            }
        }
    }

    #[test]
    fn a_moved_pack_keeps_its_records((ring, begin, max, ios) in scene(), to in 0..u64::MAX / 2) {
        for Pack { header, .. } in log(ring, begin, max, &ios) {
            let moved = header.moved_to(Lsid(to)).unwrap();
            let decoded = PackHeader::decode(&moved.encode(), ring.block_size(), SALT, Lsid(to));
            prop_assert_eq!(decoded.as_ref(), Ok(&moved));
            prop_assert_eq!(moved.moved_to(header.lsid()), Some(header));
        }
    }

    #[test]
    fn the_decoder_does_not_depend_on_how_bytes_arrive(
        (ring, begin, max, ios) in scene(),
        cuts in prop::collection::vec(1_usize..20_000, 1..8),
    ) {
        let packs = log(ring, begin, max, &ios);
        let mut rest = Bytes::from(stream_of(&packs)).slice(4096..);
        let mut decoder = PackDecoder::new(ring.block_size(), SALT, begin);
        let (mut found, mut cuts) = (Vec::new(), cuts.into_iter().cycle());
        while !rest.is_empty() {
            prop_assert!(!decoder.is_ended());
            decoder.push(rest.split_to(cuts.next().unwrap().min(rest.len())));
            while let Some(pack) = decoder.next_pack().unwrap() {
                found.push(pack);
            }
        }
        prop_assert!(decoder.is_ended());
        prop_assert_eq!(decoder.finish().unwrap(), packs.last().unwrap().header.next_lsid());
        prop_assert_eq!(ios_of(&found), ios);
    }

    #[test]
    fn payloads_in_one_chunk_are_not_copied((ring, begin, max, ios) in scene()) {
        let stream = Bytes::from(stream_of(&log(ring, begin, max, &ios)));
        let memory = stream.as_ptr_range();
        let mut decoder = PackDecoder::new(ring.block_size(), SALT, begin);
        decoder.push(stream.slice(4096..));
        while let Some(pack) = decoder.next_pack().unwrap() {
            for blocks in pack.blocks.iter().filter(|blocks| !blocks.is_empty()) {
                prop_assert!(memory.contains(&blocks.as_ptr()));
            }
        }
    }

    #[test]
    fn one_flipped_bit_never_changes_what_is_read(
        (ring, begin, max, ios) in scene(),
        place in any::<prop::sample::Index>(),
        bit in 0_u32..8,
    ) {
        let mut stream = stream_of(&log(ring, begin, max, &ios));
        let place = place.index(stream.len());
        stream[place] ^= 1_u8 << bit;
        let (packs, complete) = read_until_error(&stream);
        let found = ios_of(&packs);
        prop_assert!(ios.starts_with(&found));
        // Read to the end, the bit was in padding or behind a payload.
        prop_assert!(!complete || found == ios);
    }

    #[test]
    fn a_cut_stream_is_never_complete(
        (ring, begin, max, ios) in scene(),
        place in any::<prop::sample::Index>(),
    ) {
        let stream = stream_of(&log(ring, begin, max, &ios));
        let (packs, complete) = read_until_error(&stream[..place.index(stream.len())]);
        prop_assert!(!complete);
        prop_assert!(ios.starts_with(&ios_of(&packs)));
    }

    /// Random fields under a right checksum, so that nothing but the checks of the fields is left.
    #[test]
    fn no_header_breaks_the_decoder(
        size in block_size(),
        total in any::<u16>(),
        count in prop_oneof![0_u16..20, any::<u16>()],
        padding in 0_u16..3,
        records in prop::collection::vec(raw_record(), 0..15),
    ) {
        let lsid = Lsid(77);
        let mut block = vec![0; size.as_usize()];
        block[4..6].copy_from_slice(&3_u16.to_le_bytes());
        block[6..8].copy_from_slice(&total.to_le_bytes());
        block[8..16].copy_from_slice(&lsid.0.to_le_bytes());
        block[16..18].copy_from_slice(&count.to_le_bytes());
        block[18..20].copy_from_slice(&padding.to_le_bytes());
        for (n, record) in records.iter().enumerate() {
            block[24 + 32 * n..][..32].copy_from_slice(record);
        }
        let sum = checksum(&block, SALT);
        block[..4].copy_from_slice(&sum.to_le_bytes());
        if let Ok(header) = PackHeader::decode(&block, size, SALT, lsid) {
            prop_assert_eq!(header.next_lsid(), lsid + Pb(1 + u64::from(total)));
            let again = PackHeader::decode(&header.encode(), size, SALT, lsid);
            prop_assert_eq!(again, Ok(header));
        }
    }

    #[test]
    fn a_super_sector_decodes_to_itself(
        size in block_size(),
        log_mib in 1_u64..1_000_000,
        device in 0..u64::from(u32::MAX),
        (oldest, used) in (any::<u32>(), any::<u32>()),
        name in "[a-z0-9]{0,25}",
    ) {
        let (bytes, name) = (log_mib << 20, name.parse().unwrap());
        let mut made = SuperBlock::for_format(bytes, size, Lb(device), name).unwrap();
        made.oldest = Lsid(oldest.into());
        made.written = made.oldest + Pb(used.into());
        let block = made.encode();
        prop_assert_eq!(block.len(), size.as_usize());
        prop_assert_eq!(SuperBlock::decode(&block), Ok(made.clone()));
        let ring = made.ring(bytes).unwrap();
        let unused = bytes.checked_sub(ring.end_bytes());
        prop_assert!(unused.is_some_and(|unused| unused < u64::from(size.bytes())));
        prop_assert!(made.ring(ring.end_bytes() - 1).is_err());
    }

    #[test]
    fn random_bytes_are_no_header(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        prop_assert!(SuperBlock::decode(&bytes).is_err());
        prop_assert!(WlogHeader::decode(&bytes).is_err());
    }
}
