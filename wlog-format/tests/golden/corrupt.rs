//! Damaged wlogs: each is answered as its `must` demands, and nothing unsound ever comes out.

use wlog_format::stream::{WlogError, WlogReader};

use crate::data::{Summary, entries, load};

/// All packs before the first error.
fn read(bytes: &[u8]) -> (u64, String, u64, Option<WlogError>) {
    let mut reader = match WlogReader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (0, String::new(), 0, Some(error)),
    };
    let mut packs = Vec::new();
    let error = loop {
        match reader.next_pack() {
            Ok(Some(pack)) => packs.push(pack),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let sum = Summary::of(&packs);
    (sum.packs(), sum.io_digest(), reader.next_lsid().0, error)
}

#[test]
fn a_damaged_wlog_gives_its_sound_part_and_an_error() {
    for entry in entries("corrupt", "cw") {
        let (packs, digest, end, error) = read(&load(entry));
        let (id, sound) = (&entry["id"], &entry["expect"]["sound_prefix"]);
        let failed = error.is_some();
        match entry["must"].as_str().unwrap() {
            "reject" => {
                assert!(matches!(error, Some(WlogError::Header { at: 0, .. })), "{id}: {error:?}");
                continue;
            }
            "stop" => assert!(failed, "{id} was read to its end"),
            "tolerate" => assert!(!failed, "{id}: {error:?}"),
            "either" => {}
            other => panic!("{id}: unknown demand {other}"),
        }
        assert_eq!(packs, sound["packs"], "{id}");
        assert_eq!(end, sound["end_lsid"], "{id}");
        assert_eq!(digest, sound["io_digest"].as_str().unwrap(), "{id}");
    }
}

#[test]
fn an_error_names_the_byte_where_the_damage_lies() {
    let entry = entries("corrupt", "cw512-data-last")[0];
    let (.., error) = read(&load(entry));
    let error = error.unwrap();
    assert!(error.to_string().contains("at byte 109056"), "{error}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("the pack at lsid 205") && cause.contains("record 1 "), "{cause}");
    let entry = entries("corrupt", "cw512-trunc-noend0")[0];
    let (.., error) = read(&load(entry));
    let text = error.unwrap().to_string();
    assert!(text.contains("ends at byte 4096, lsid 0, without its end block"), "{text}");
}

#[test]
fn garbage_behind_a_wlog_is_not_taken_for_another_one() {
    for entry in entries("corrupt", "cw512-trailing") {
        let bytes = load(entry);
        let mut reader = WlogReader::new(bytes.as_slice()).unwrap();
        while reader.next_pack().unwrap().is_some() {}
        assert!(matches!(reader.next_wlog(), Err(WlogError::Header { .. })));
    }
}
