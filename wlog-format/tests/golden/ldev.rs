//! Golden log device images: super sector, the packs in the ring, and what redo makes of them.

use bytes::Bytes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wlog_format::pack::is_header_at;
use wlog_format::redo::{Step, stale_span, step};
use wlog_format::ring::Ring;
use wlog_format::stream::{DecodeError, Pack, PackDecoder, WlogHeader, WlogWriter};
use wlog_format::superblock::{SUPER_OFFSET_BYTES, SuperBlock};
use wlog_format::units::{Lsid, Pb, to_usize};

use crate::data::{Summary, entries, hex, load, load_id};

/// A log as redo sees it.
struct Log {
    packs: Vec<Pack>,
    /// It ends at damaged data, not at a missing header.
    torn: bool,
    /// Something of the pack with the damaged data stays.
    shrunk: bool,
    end: Lsid,
}

fn super_block(image: &[u8]) -> (SuperBlock, Ring) {
    let found = SuperBlock::decode(&image[to_usize(SUPER_OFFSET_BYTES)..]).unwrap();
    let ring = found.ring(image.len() as u64).unwrap();
    (found, ring)
}

/// Reads the packs from `begin` on, in pushes of `push` bytes.
fn read_log(image: &Bytes, begin: Lsid, push: usize) -> Log {
    let (super_block, ring) = super_block(image);
    let mut decoder = PackDecoder::new(super_block.block_size, super_block.salt, begin);
    let chunks = ring.segments(begin, ring.size()).flat_map(|segment| {
        let start = to_usize(segment.byte_offset);
        let end = start + to_usize(ring.block_size().bytes_of(segment.blocks));
        let cuts: Vec<_> = (start..end).step_by(push).collect();
        cuts.into_iter().map(move |at| image.slice(at..end.min(at + push)))
    });
    let mut packs = Vec::new();
    for chunk in chunks {
        decoder.push(chunk);
        loop {
            match step(&mut decoder) {
                None => break,
                Some(Step::Whole(pack)) => packs.push(pack),
                Some(Step::Shrunk { pack, lost }) => {
                    assert!(lost > 0);
                    let end = pack.header.next_lsid();
                    packs.push(pack);
                    return Log { packs, torn: true, shrunk: true, end };
                }
                Some(Step::End { lsid, reason }) => {
                    let torn = matches!(reason, DecodeError::Data(_));
                    return Log { packs, torn, shrunk: false, end: lsid };
                }
            }
        }
    }
    panic!("the log has no end");
}

fn super_json(image: &[u8]) -> Value {
    let (found, ring) = super_block(image);
    json!({
        "sector_type": 1,
        "version": 2,
        "checksum": u32::from_le_bytes(image[4100..4104].try_into().unwrap()),
        "checksum_ok": true,
        "lbs": 512,
        "pbs": found.block_size.bytes(),
        "metadata_size": found.metadata_blocks,
        "salt": found.salt.0,
        "uuid": found.uuid.to_string(),
        "name": found.name.to_string(),
        "ring_buffer_size": found.ring_size.0,
        "ring_buffer_offset": ring.offset().0,
        "oldest_lsid": found.oldest.0,
        "written_lsid": found.written.0,
        "device_size_lb": found.device_size.0,
    })
}

#[test]
fn every_log_device_gives_what_the_manifest_says() {
    for entry in entries("ldev", "") {
        let (image, expect, id) = (Bytes::from(load(entry)), &entry["expect"], &entry["id"]);
        assert_eq!(super_json(&image), expect["super"], "{id}");
        let (super_block, _) = super_block(&image);
        let log = read_log(&image, super_block.oldest, 100_000);
        let pbs = super_block.block_size.bytes().into();
        assert_eq!(Summary::of(&log.packs).stat(log.end.0, pbs), expect["stat"], "{id}");
        assert_eq!(log.torn, expect["last_pack_shrunk"], "{id}");
    }
}

#[test]
fn a_super_sector_written_again_has_the_same_bytes() {
    for entry in entries("ldev", "") {
        let image = load(entry);
        let block = super_block(&image).0.encode();
        assert!(image[4096..].starts_with(&block), "{}", entry["id"]);
    }
}

#[test]
fn the_wlog_cut_from_a_log_device_has_the_bytes_of_the_original() {
    for entry in entries("ldev", "") {
        let image = Bytes::from(load(entry));
        let (found, _) = super_block(&image);
        let log = read_log(&image, found.oldest, 1 << 20);
        let header = WlogHeader {
            block_size: found.block_size,
            salt: found.salt,
            uuid: found.uuid,
            begin: found.oldest,
            end: Lsid::INVALID,
        };
        let mut writer = WlogWriter::new(Vec::new(), header).unwrap();
        log.packs.iter().for_each(|pack| writer.write_pack(pack).unwrap());
        let wlog = load_id(entry["expect"]["wlog_cat"].as_str().unwrap());
        assert!(writer.finish().unwrap() == wlog, "{}", entry["id"]);
    }
}

#[test]
fn redo_ends_where_the_original_ends_it() {
    for entry in entries("ldev", "") {
        let image = Bytes::from(load(entry));
        let (mut found, _) = super_block(&image);
        let log = read_log(&image, found.written, 65_536);
        let after = &entry["expect"]["after_wdev_redo"];
        assert_eq!(log.end.0, after["written_lsid"], "{}", entry["id"]);
        if after["changed_bytes_outside_super"] == false {
            found.written = log.end;
            let mut image = image.to_vec();
            let block = found.encode();
            image[4096..4096 + block.len()].copy_from_slice(&block);
            assert_eq!(hex(&Sha256::digest(&image)), after["ldev_sha256"].as_str().unwrap());
        }
    }
}

#[test]
fn a_shrunk_header_has_the_bytes_that_the_original_writes() {
    let mut shrunk = 0;
    for entry in entries("ldev", "") {
        let image = Bytes::from(load(entry));
        let (mut found, ring) = super_block(&image);
        let log = read_log(&image, found.written, 65_536);
        if !log.shrunk {
            continue;
        }
        found.written = log.end;
        let last = &log.packs.last().unwrap().header;
        let mut image = image.to_vec();
        for (at, block) in
            [(4096, found.encode()), (to_usize(ring.byte_offset(last.lsid())), last.encode())]
        {
            image[at..at + block.len()].copy_from_slice(&block);
        }
        let after = entry["expect"]["after_wdev_redo"]["ldev_sha256"].as_str().unwrap();
        assert_eq!(hex(&Sha256::digest(&image)), after, "{}", entry["id"]);
        shrunk += 1;
    }
    assert!(shrunk >= 2, "the set has images with a torn pack");
}

#[test]
fn the_stale_span_covers_every_header_behind_the_cut() {
    for (id, plain) in [("l512-inval-early", "l512-plain"), ("l4096-inval-early", "l4096-plain")] {
        let image = Bytes::from(load(entries("ldev", id)[0]));
        let (found, ring) = super_block(&image);
        let log = read_log(&image, found.written, 65_536);
        let span = stale_span(&ring, found.written, log.end);
        assert_eq!(span, Pb(ring.size().0 - log.end.distance_from(found.written).0));
        let stale = (0..span.0).filter(|n| {
            let lsid = log.end + Pb(*n);
            let at = to_usize(ring.byte_offset(lsid));
            is_header_at(&image[at..], found.block_size, found.salt, lsid)
        });
        let whole = entries("ldev", plain)[0]["expect"]["stat"]["packs"].as_u64().unwrap();
        // The zeroed block was a header or damaged one pack: all behind it are still there.
        let left = stale.count() as u64 + log.packs.len() as u64;
        assert!(left == whole || left + 1 == whole, "{id}: {left} of {whole}");
    }
}

#[test]
fn a_damaged_log_device_is_answered_as_demanded() {
    for entry in entries("corrupt", "cl") {
        let (image, id) = (Bytes::from(load(entry)), &entry["id"]);
        let must = entry["must"].as_str().unwrap();
        let decoded = SuperBlock::decode(&image[4096..]);
        if must == "reject" {
            assert!(decoded.is_err(), "{id}");
            continue;
        }
        let log = read_log(&image, decoded.unwrap().oldest, 65_536);
        let (sum, expect) = (Summary::of(&log.packs), &entry["expect"]["log"]);
        assert_eq!(log.torn, must == "shrink", "{id}");
        assert_eq!(log.torn, expect["last_pack_shrunk"], "{id}");
        assert_eq!(sum.packs(), expect["packs"], "{id}");
        assert_eq!(log.end.0, expect["end_lsid"], "{id}");
        assert_eq!(sum.io_digest(), expect["io_digest"].as_str().unwrap(), "{id}");
    }
}
