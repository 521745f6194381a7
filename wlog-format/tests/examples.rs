//! The worked examples of `formats.md` §10, typed in from the document.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

use wlog_format::checksum::checksum;
use wlog_format::pack::{Add, PackBuilder, PackError, PackHeader, encode_terminator};
use wlog_format::ring::Ring;
use wlog_format::stream::WlogHeader;
use wlog_format::superblock::SuperBlock;
use wlog_format::units::{BlockSize, Lb, LogUuid, Lsid, Pb, Salt};

/// Hexadecimal digits; spaces and `|` are for the eye.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap()).collect()
}

fn padded(text: &str, len: usize) -> Vec<u8> {
    let mut bytes = hex(text);
    bytes.resize(len, 0);
    bytes
}

const SALT: Salt = Salt(0x8b0e_99f3);
const UUID: &str = "e67f3da66b7838a26b94db431452646b";

#[test]
fn the_super_sector_of_10_1() {
    let block = padded(
        "01 00 | 02 00 | 79 fa f8 5a | 00 02 00 00 | 00 02 00 00
         00 00 00 00 | 43 8c 9a d6 | 5c 83 fa c4 9d f5 e0 9a 89 a2 f0 70 55 2a 31 cd
         76 6f 6c 30 00 00 00 00 00 00 00 00 00 00 00 00
         00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
         f6 3f 00 00 00 00 00 00 | 00 00 00 00 00 00 00 00 | 00 00 00 00 00 00 00 00
         00 80 00 00 00 00 00 00",
        512,
    );
    let found = SuperBlock::decode(&block).unwrap();
    assert_eq!(found.name.to_string(), "vol0");
    assert_eq!((found.ring_size, found.device_size), (Pb(16374), Lb(32768)));
    assert_eq!(found.salt, Salt(0xd69a_8c43));
    assert_eq!(found.ring(8 << 20).unwrap().offset(), Pb(10));
    assert_eq!(found.encode(), block);
    let made = SuperBlock::for_format(8 << 20, BlockSize::B4096, Lb(32768), found.name).unwrap();
    assert_eq!((made.ring_size, made.ring_offset()), (Pb(2045), Pb(3)));
}

#[test]
fn the_wlog_header_of_10_2() {
    let text = format!(
        "04 00 | 02 00 | 00 10 | 00 00 | d7 72 39 7d | f3 99 0e 8b 00 02 00 00 | 00 02 00 00
         {UUID} 64 00 00 00 00 00 00 00 ff ff ff ff ff ff ff ff"
    );
    let header = WlogHeader {
        block_size: BlockSize::B512,
        salt: SALT,
        uuid: LogUuid::from_slice(&hex(UUID)).unwrap(),
        begin: Lsid(100),
        end: Lsid::INVALID,
    };
    assert_eq!(header.encode(), padded(&text, 4096));
    assert_eq!(WlogHeader::decode(&padded(&text, 4096)), Ok(header));
}

const PACK: &str = "42 32 0f 16 | 03 00 | 0d 00 | 64 00 00 00 00 00 00 00
    05 00 | 01 00 | 00 00 00 00
    42 65 f1 74 | 01 00 00 00 | 37 00 00 00 00 00 00 00
      02 00 00 00 | 01 00 | 00 00 | 65 00 00 00 00 00 00 00
    0d 66 f1 74 | 01 00 00 00 | 4a 00 00 00 00 00 00 00
      04 00 00 00 | 03 00 | 00 00 | 67 00 00 00 00 00 00 00
    00 00 00 00 | 05 00 00 00 | 32 00 00 00 00 00 00 00
      0b 00 00 00 | 07 00 | 00 00 | 6b 00 00 00 00 00 00 00
    00 00 00 00 | 03 00 00 00 | 00 00 00 00 00 00 00 00
      04 00 00 00 | 07 00 | 00 00 | 6b 00 00 00 00 00 00 00
    bd 64 f1 74 | 01 00 00 00 | 4f 00 00 00 00 00 00 00
      03 00 00 00 | 0b 00 | 00 00 | 6f 00 00 00 00 00 00 00";

/// The pack of the example comes out of a builder whose ring ends at lsid 111.
#[test]
fn the_pack_of_10_2() {
    let ring = Ring::new(BlockSize::B512, Pb(10), Pb(111)).unwrap();
    let mut pack = PackBuilder::new(Lsid(100), ring, SALT, Pb(100));
    assert_eq!(pack.try_add_write(Lb(55), Lb(2), 0x74f1_6542), Add::Added(Lsid(101)));
    assert_eq!(pack.try_add_write(Lb(74), Lb(4), 0x74f1_660d), Add::Added(Lsid(103)));
    assert_eq!(pack.try_add_discard(Lb(50), Lb(11)), Add::Added(Lsid(107)));
    // Four blocks are left; a write of three would fit, so the example's writer chose to pad.
    assert_eq!(pack.try_add_padding(Pb(4)), Add::Added(Lsid(107)));
    assert_eq!(pack.try_add_write(Lb(79), Lb(3), 0x74f1_64bd), Add::Added(Lsid(111)));
    let pack = pack.finish().unwrap();
    assert_eq!(pack.next_lsid(), Lsid(114));
    assert_eq!(pack.encode(), padded(PACK, 512));
    let decoded = PackHeader::decode(&padded(PACK, 512), BlockSize::B512, SALT, Lsid(100));
    assert_eq!(decoded, Ok(pack));
}

#[test]
fn the_end_block_of_10_2() {
    let end = padded("0c 66 f1 74 | 03 00 | 00 00 | ff ff ff ff ff ff ff ff", 512);
    assert_eq!(encode_terminator(BlockSize::B512, SALT), end);
}

fn lengths(pack: Option<PackHeader>) -> Vec<(u64, u32)> {
    pack.unwrap().records().iter().map(|r| (r.lsid.0, r.blocks)).collect()
}

#[test]
fn a_write_that_would_cross_the_ring_end_is_padded_to_the_start() {
    let ring = Ring::new(BlockSize::B4096, Pb(3), Pb(20)).unwrap();
    // Header at 15, four blocks left behind it: a write of 5 blocks (33 sectors) does not fit.
    let mut pack = PackBuilder::new(Lsid(15), ring, SALT, Pb(100));
    assert_eq!(pack.try_add_write(Lb(0), Lb(33), 1), Add::Added(Lsid(20)));
    assert_eq!(lengths(pack.finish()), [(16, 32), (20, 33)]);
    // With the header on the last block, data starts at the ring start by itself.
    let mut pack = PackBuilder::new(Lsid(19), ring, SALT, Pb(100));
    assert_eq!(pack.try_add_write(Lb(0), Lb(33), 1), Add::Added(Lsid(20)));
    assert_eq!(lengths(pack.finish()), [(20, 33)]);
    // A write that just fits.
    let mut pack = PackBuilder::new(Lsid(14), ring, SALT, Pb(100));
    assert_eq!(pack.try_add_write(Lb(0), Lb(33), 1), Add::Added(Lsid(15)));
    assert_eq!(lengths(pack.finish()), [(15, 33)]);
}

#[test]
fn padding_that_leaves_no_room_for_its_write_is_a_pack_of_its_own() {
    // 60,000 blocks to the ring end, and a write of 65,535: together more than a pack can hold.
    let ring = Ring::new(BlockSize::B512, Pb(10), Pb(200_000)).unwrap();
    let begin = Lsid(200_000 - 60_001);
    let mut pack = PackBuilder::new(begin, ring, SALT, Pb(65_535));
    assert_eq!(pack.try_add_write(Lb(0), Lb(65_535), 1), Add::Full);
    let pack = pack.finish().unwrap();
    assert_eq!(pack.next_lsid(), Lsid(200_000));
    let mut next = PackBuilder::new(pack.next_lsid(), ring, SALT, Pb(65_535));
    assert_eq!(next.try_add_write(Lb(0), Lb(65_535), 1), Add::Added(Lsid(200_001)));
}

#[test]
fn limits_of_a_pack_are_kept() {
    let ring = Ring::new(BlockSize::B512, Pb(10), Pb(1 << 20)).unwrap();
    let mut pack = PackBuilder::new(Lsid(0), ring, SALT, Pb(65_535));
    for len in [0, 65_536] {
        assert_eq!(pack.try_add_write(Lb(0), Lb(len), 0), Add::TooLarge);
    }
    assert_eq!(pack.try_add_discard(Lb(0), Lb(1 << 32)), Add::TooLarge);
    assert_eq!(pack.try_add_write(Lb(u64::MAX), Lb(1), 0), Add::TooLarge);
    assert_eq!(pack.try_add_write(Lb(0), Lb(65_535), 0), Add::Added(Lsid(1)));
    // A discard here would have an lsid_local beyond 16 bits.
    assert_eq!(pack.try_add_discard(Lb(0), Lb(1)), Add::Full);
    assert_eq!(pack.try_add_write(Lb(0), Lb(1), 0), Add::Full);
    let mut pack = PackBuilder::new(Lsid(0), ring, SALT, Pb(65_535));
    for _ in 0..15 {
        assert_eq!(pack.try_add_discard(Lb(0), Lb(1)), Add::Added(Lsid(1)));
    }
    assert_eq!(pack.try_add_discard(Lb(0), Lb(1)), Add::Full);
    assert_eq!(PackBuilder::new(Lsid(0), ring, SALT, Pb(9)).finish(), None);
}

/// The pack of the example with `bytes` at `offset` and the checksum made right again.
fn changed(offset: usize, bytes: &[u8]) -> Result<PackHeader, PackError> {
    let mut block = padded(PACK, 512);
    block[offset..offset + bytes.len()].copy_from_slice(bytes);
    block[..4].fill(0);
    let sum = checksum(&block, SALT);
    block[..4].copy_from_slice(&sum.to_le_bytes());
    PackHeader::decode(&block, BlockSize::B512, SALT, Lsid(100))
}

#[test]
fn every_field_of_a_pack_header_is_checked() {
    let (r0, r2, r3) = (24, 24 + 2 * 32, 24 + 3 * 32);
    let cases: [(&str, usize, &[u8]); 20] = [
        ("sector_type", 4, &[4]),
        ("total_io_size", 6, &[14]),
        ("logpack_lsid", 8, &[101]),
        ("n_records too few", 16, &[4]),
        ("n_records one more", 16, &[6]),
        ("n_records beyond the block", 16, &[16]),
        ("n_records of none", 16, &[0]),
        ("n_padding none", 18, &[0]),
        ("n_padding two", 18, &[2]),
        ("no exist flag", r0 + 4, &[0]),
        ("unknown flag", r0 + 4, &[9]),
        ("padding and discard", r3 + 4, &[7]),
        ("a second padding", r0 + 4, &[3]),
        ("address at the end of all", r0 + 8, &[0xff; 8]),
        ("empty write", r0 + 16, &[0]),
        ("write beyond 65535 sectors", r0 + 18, &[1]),
        ("empty discard", r2 + 16, &[0]),
        ("lsid_local", r0 + 20, &[2]),
        ("lsid_local zero", r0 + 20, &[0]),
        ("record lsid", r0 + 24, &[102]),
    ];
    for (what, offset, bytes) in cases {
        assert!(changed(offset, bytes).is_err(), "{what}");
    }
}

#[test]
fn reserved_bytes_of_a_pack_header_are_ignored() {
    let plain = changed(0, &[]).unwrap();
    for offset in [20, 24 + 22, 24 + 5 * 32, 511] {
        assert_eq!(changed(offset, &[7]).as_ref(), Ok(&plain), "byte {offset}");
    }
}

#[test]
fn an_empty_header_is_an_end_only_as_a_terminator() {
    let decode = |block: &[u8]| PackHeader::decode(block, BlockSize::B512, SALT, Lsid(100));
    let mut end = encode_terminator(BlockSize::B512, SALT);
    assert_eq!(decode(&end), Err(PackError::Terminator));
    end[9] ^= 1;
    assert_eq!(decode(&end), Err(PackError::Checksum));
    assert_eq!(decode(&[0; 512]), Err(PackError::SectorType(0)));
    assert_eq!(decode(&[0; 511]), Err(PackError::Short { want: 512, got: 511 }));
}
