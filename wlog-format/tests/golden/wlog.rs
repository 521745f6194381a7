//! Golden wlogs: read, compared, and written again byte by byte.

use serde_json::json;
use wlog_format::checksum::checksum;
use wlog_format::stream::{Pack, WlogReader, WlogWriter};
use wlog_format::units::Salt;

use crate::data::{Summary, entries, load};

/// All packs of all wlogs in a file, with the number of wlogs.
fn read_all(bytes: &[u8]) -> (WlogReader<&[u8]>, Vec<Pack>, usize) {
    let mut reader = WlogReader::new(bytes).unwrap();
    let (mut packs, mut wlogs) = (Vec::new(), 1);
    loop {
        while let Some(pack) = reader.next_pack().unwrap() {
            packs.push(pack);
        }
        if !reader.next_wlog().unwrap() {
            return (reader, packs, wlogs);
        }
        wlogs += 1;
    }
}

#[test]
fn every_wlog_gives_what_the_manifest_says() {
    for entry in entries("wlog", "") {
        let (bytes, expect) = (load(entry), &entry["expect"]);
        let header = WlogReader::new(bytes.as_slice()).unwrap().header().clone();
        let (reader, packs, wlogs) = read_all(&bytes);
        let found = json!({
            "version": 2,
            "pbs": header.block_size.bytes(),
            "salt": header.salt.0,
            "uuid": header.uuid.to_string(),
            "begin_lsid": header.begin.0,
            "end_lsid": header.end.0,
            "checksum": u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
        });
        assert_eq!(wlogs, entry["params"]["parts"].as_array().map_or(1, Vec::len));
        if wlogs > 1 {
            continue; // the manifest describes only its parts, which are entries of their own
        }
        assert_eq!(found, expect["header"], "{}", entry["id"]);
        assert_eq!(expect["has_end_block"], true, "the reader would have refused it");
        let sum = Summary::of(&packs);
        let stat = sum.stat(reader.next_lsid().0, header.block_size.bytes().into());
        assert_eq!(stat, expect["stat"], "{}", entry["id"]);
        assert_eq!(sum.io_digest(), expect["io_digest"].as_str().unwrap(), "{}", entry["id"]);
    }
}

#[test]
fn a_wlog_written_again_has_the_same_bytes() {
    for entry in entries("wlog", "") {
        let bytes = load(entry);
        let mut reader = WlogReader::new(bytes.as_slice()).unwrap();
        let mut copy = Vec::new();
        loop {
            let mut writer = WlogWriter::new(copy, reader.header().clone()).unwrap();
            while let Some(pack) = reader.next_pack().unwrap() {
                writer.write_pack(&pack).unwrap();
            }
            copy = writer.finish().unwrap();
            if !reader.next_wlog().unwrap() {
                break;
            }
        }
        assert!(copy == bytes, "{} changed", entry["id"]);
    }
}

#[test]
fn the_checksum_of_a_golden_header_is_zero() {
    let bytes = load(entries("wlog", "w512-mix")[0]);
    assert_eq!(checksum(&bytes[..4096], Salt(0)), 0);
}
