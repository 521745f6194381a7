//! Damaged files: every command answers as their `must` demands, and none ever crashes.

use std::path::Path;

use tempfile::tempdir;
use wlog_format::checksum::checksum;
use wlog_format::units::Salt;

use crate::golden::{entries, entry, load, place, place_image, sha256, sha256_file};
use crate::walb;

const ZERO16: &str = "080acf35a507ac9849cfcba47dc2ad83e01b75663a516279c8b9d243b719643e";

#[test]
fn a_damaged_wlog_is_reported_by_every_command() {
    let dir = tempdir().unwrap();
    let wlog = dir.path().join("log.wlog");
    for damaged in entries("corrupt", "cw") {
        let (must, id) = (damaged["must"].as_str().unwrap(), &damaged["id"]);
        place(damaged, &wlog);
        let show = walb!["wlog", "show", &wlog];
        let verify = walb!["wlog", "verify", &wlog];
        let json = walb!["wlog", "show", "--json", &wlog];
        match must {
            "reject" | "stop" => [&show, &verify, &json].iter().for_each(|r| r.failed_on(&wlog)),
            "tolerate" => [show, verify, json].into_iter().for_each(|r| drop(r.ok())),
            "either" => {}
            other => panic!("{id}: unknown demand {other}"),
        }
        if must == "stop" {
            let list = walb!["wlog", "show", "--json", &wlog].json();
            let packs = list["wlogs"][0]["packs"].as_array().unwrap().len() as u64;
            assert_eq!(packs, damaged["expect"]["sound_prefix"]["packs"], "{id}");
            assert!(list["error"].is_string(), "{id}");
        }
    }
}

#[test]
fn only_the_sound_part_of_a_damaged_wlog_reaches_the_image() {
    let dir = tempdir().unwrap();
    let (wlog, image) = (dir.path().join("log.wlog"), dir.path().join("image"));
    for damaged in entries("corrupt", "cw") {
        let (must, id) = (damaged["must"].as_str().unwrap(), &damaged["id"]);
        place(damaged, &wlog);
        place_image("zero16", &image);
        let run = walb!["wlog", "redo", &wlog, &image, "--zero-discard"];
        match must {
            "reject" | "stop" => run.failed_on(&wlog),
            "tolerate" => drop(run.ok()),
            _ => {}
        }
        let sound = damaged["expect"]["sound_prefix"]["redo_zero16+z"].as_str().unwrap_or(ZERO16);
        assert_eq!(sha256_file(&image), sound, "{id}");
    }
}

#[test]
fn a_damaged_wlog_does_not_become_the_log_of_a_device() {
    let dir = tempdir().unwrap();
    let (wlog, ldev) = (dir.path().join("log.wlog"), dir.path().join("ldev"));
    place(entry("l512-plain"), &ldev);
    let before = walb!["ldev", "info", &ldev].ok();
    for id in ["cw512-data-last", "cw512-trunc-noend", "cw512-pack-swapped", "cw512-head-salt"] {
        place(entry(id), &wlog);
        walb!["ldev", "restore", &ldev, &wlog].failed_on(&wlog);
        assert_eq!(walb!["ldev", "info", &ldev].ok(), before, "{id}");
    }
}

fn only_reading_commands_fail(ldev: &Path) {
    for command in ["info", "show", "verify", "cat"] {
        walb!["ldev", command, ldev].failed_on(ldev);
    }
}

#[test]
fn a_damaged_log_device_is_answered_as_demanded() {
    let dir = tempdir().unwrap();
    let (ldev, image) = (dir.path().join("ldev"), dir.path().join("image"));
    for damaged in entries("corrupt", "cl") {
        let (must, id) = (damaged["must"].as_str().unwrap(), &damaged["id"]);
        place(damaged, &ldev);
        place_image("zero16", &image);
        if must == "reject" {
            only_reading_commands_fail(&ldev);
            walb!["ldev", "redo", &ldev, &image, "--zero-discard"].failed_on(&ldev);
            assert_eq!(sha256_file(&image), ZERO16, "{id}");
            assert_eq!(sha256_file(&ldev), damaged["sha256"].as_str().unwrap(), "{id}");
            continue;
        }
        for command in ["info", "show", "verify"] {
            walb!["ldev", command, &ldev].ok();
        }
        let cat = &damaged["reference_behaviour"]["wlog-cat"];
        let bytes = walb!["ldev", "cat", &ldev].ok();
        assert_eq!(cat["sound"], true, "{id}: the original extracts the sound part");
        assert_eq!(sha256(&bytes), cat["sha256"].as_str().unwrap(), "{id}");
        walb!["ldev", "redo", &ldev, &image, "--zero-discard"].ok();
        let hash = damaged["expect"]["log"]["redo_zero16+z"].as_str().unwrap();
        assert_eq!(sha256_file(&image), hash, "{id}");
    }
}

/// Values of fields that a checksum does not forbid.
const EXTREMES: [u64; 8] = [0, 1, 7, 4086, 1 << 31, (1 << 32) - 1, u64::MAX - 1, u64::MAX];

#[test]
fn no_super_sector_makes_a_command_crash() {
    let dir = tempdir().unwrap();
    let (ldev, image) = (dir.path().join("ldev"), dir.path().join("image"));
    let sound = load(entry("l512-small"));
    place_image("zero16", &image);
    // metadata_size, salt, ring_buffer_size, oldest_lsid, written_lsid, both, device_size
    let fields = [(16, 4), (20, 4), (72, 8), (80, 8), (88, 8), (80, 16), (96, 8)];
    for (offset, len) in fields {
        for value in EXTREMES {
            let mut bytes = sound.clone();
            let block = &mut bytes[4096..4608];
            let twice = [value.to_le_bytes(), value.to_le_bytes()].concat();
            block[offset..offset + len].copy_from_slice(&twice[..len]);
            block[4..8].fill(0);
            let sum = checksum(block, Salt(0));
            block[4..8].copy_from_slice(&sum.to_le_bytes());
            std::fs::write(&ldev, bytes).unwrap();
            for command in ["info", "show", "verify", "cat"] {
                walb!["ldev", command, &ldev];
            }
            walb!["ldev", "redo", &ldev, &image];
        }
    }
}

#[test]
fn missing_files_and_wrong_usage_have_their_exit_codes() {
    let dir = tempdir().unwrap();
    let nothing = dir.path().join("nothing");
    for command in ["show", "verify"] {
        walb!["wlog", command, &nothing].failed_on(&nothing);
        walb!["ldev", command, &nothing].failed_on(&nothing);
    }
    assert_eq!(walb!["wlog", "show"].code(), 2);
    assert_eq!(walb!["wlog", "gen", "-o", &nothing, "--log-size", "1X"].code(), 2);
    assert_eq!(walb!["frobnicate"].code(), 2);
    for help in [["ldev", "--help"], ["wlog", "--help"]] {
        assert_eq!(walb!(help[0], help[1]).code(), 0);
    }
}
