//! `walb ldev` on the golden log devices: reading, and making them again.

use tempfile::tempdir;

use crate::golden::{entries, entry, load, place, sha256, sha256_file};
use crate::walb;

#[test]
fn info_prints_the_lines_of_the_original() {
    let dir = tempdir().unwrap();
    let ldev = dir.path().join("ldev");
    for logged in entries("ldev", "") {
        let Some(dump) = logged["expect"]["info_dump"].as_str() else { continue };
        place(logged, &ldev);
        let text = String::from_utf8(walb!["ldev", "info", &ldev].ok()).unwrap();
        let expected = String::from_utf8(load(entry(dump))).unwrap();
        assert_eq!(text, expected, "{}", logged["id"]);
        let json = walb!["ldev", "info", "--json", &ldev].json();
        for (key, value) in logged["expect"]["super"].as_object().unwrap() {
            if key != "checksum_ok" {
                assert_eq!(&json[key], value, "{}: {key}", logged["id"]);
            }
        }
    }
}

#[test]
fn show_prints_the_lines_of_the_original() {
    let dir = tempdir().unwrap();
    let ldev = dir.path().join("ldev");
    for logged in entries("ldev", "") {
        let Some(dump) = logged["expect"]["show_dump"].as_str() else { continue };
        if logged["expect"]["last_pack_shrunk"] == true {
            continue; // the original does not look at the data, and lists packs behind damage
        }
        place(logged, &ldev);
        let text = walb!["ldev", "show", &ldev].ok();
        assert!(text == load(entry(dump)), "{} is shown differently", logged["id"]);
    }
}

#[test]
fn cat_extracts_the_bytes_of_the_original() {
    let dir = tempdir().unwrap();
    let ldev = dir.path().join("ldev");
    for logged in entries("wlog", "cat-") {
        let params = &logged["params"];
        place(entry(params["from"].as_str().unwrap()), &ldev);
        let mut args = vec!["ldev".into(), "cat".into(), ldev.clone().into_os_string()];
        for (option, key) in [("--from", "b"), ("--to", "e")] {
            if let Some(lsid) = params[key].as_u64() {
                args.extend([option.into(), lsid.to_string().into()]);
            }
        }
        let bytes = crate::run::walb(args).ok();
        assert_eq!(sha256(&bytes), logged["sha256"].as_str().unwrap(), "{}", logged["id"]);
    }
}

#[test]
fn cat_that_cannot_reach_its_end_fails() {
    let dir = tempdir().unwrap();
    let (ldev, wlog) = (dir.path().join("ldev"), dir.path().join("wlog"));
    place(entry("l512-plain"), &ldev);
    walb!["ldev", "cat", &ldev, "-o", &wlog, "--to", "4147"].ok();
    walb!["ldev", "cat", &ldev, "-o", &wlog, "--to", "4148"].failed_on(&ldev);
    walb!["wlog", "verify", &wlog].ok();
}

#[test]
fn verify_finds_the_golden_log_devices_sound() {
    let dir = tempdir().unwrap();
    let ldev = dir.path().join("ldev");
    for logged in entries("ldev", "") {
        let (expect, id) = (&logged["expect"], &logged["id"]);
        place(logged, &ldev);
        let run = walb!["ldev", "verify", "--json", &ldev];
        assert_eq!(run.code(), 0, "{id}: {}", run.stderr());
        let verdict = run.json();
        assert_eq!(verdict["torn"], expect["last_pack_shrunk"], "{id}");
        assert_eq!(verdict["stat"]["packs"], expect["stat"]["packs"], "{id}");
        assert_eq!(verdict["stat"]["end_lsid"], expect["stat"]["really_end_lsid"], "{id}");
    }
}

#[test]
fn verify_demands_the_log_up_to_written_lsid() {
    let dir = tempdir().unwrap();
    let ldev = dir.path().join("ldev");
    let mut image = load(entry("l512-plain"));
    let mut super_block = wlog_format::superblock::SuperBlock::decode(&image[4096..]).unwrap();
    for (written, fine) in [(2093, true), (2094, false), (4147, true), (4148, false)] {
        super_block.written = wlog_format::units::Lsid(written);
        image[4096..4608].copy_from_slice(&super_block.encode());
        std::fs::write(&ldev, &image).unwrap();
        let run = walb!["ldev", "verify", &ldev];
        assert_eq!(run.code() == 0, fine, "written_lsid {written}: {}", run.stderr());
    }
}

/// Formats and restores each golden image that was made like that; the bytes must be the same.
fn restore_all(prefix: &str) -> usize {
    let dir = tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (ldev, ddev, wlog) = (path("ldev"), path("ddev"), path("wlog"));
    let mut made = 0;
    for logged in entries("ldev", prefix) {
        let params = &logged["params"];
        let source = logged["source"].as_str().unwrap();
        let Some((_, source)) = source.rsplit_once("< ") else { continue };
        let source = source.split(".wlog").next().unwrap();
        if !params["invalidated_lsid"].is_null() {
            continue;
        }
        for (file, mib) in [(&ldev, &params["ldev_mib"]), (&ddev, &logged["image_mib"])] {
            std::fs::File::create(file).unwrap().set_len(mib.as_u64().unwrap() << 20).unwrap();
        }
        place(entry(source), &wlog);
        let (pbs, name) = (params["pbs"].to_string(), params["name"].as_str().unwrap_or_default());
        let format = ["ldev", "format", "--block-size", &pbs, "--name", name, "--log"];
        let format = format.iter().map(std::ffi::OsString::from);
        let format = format.chain([ldev.clone().into(), "--data".into(), ddev.clone().into()]);
        crate::run::walb(format).ok();
        let diff = params["lsid_diff"].to_string();
        walb!["ldev", "restore", &ldev, &wlog, "--lsid-diff", diff].ok();
        assert_eq!(sha256_file(&ldev), logged["sha256"].as_str().unwrap(), "{}", logged["id"]);
        made += 1;
    }
    made
}

#[test]
fn restore_makes_the_log_devices_of_the_original_at_512() {
    assert!(restore_all("l512") >= 9);
}

#[test]
fn restore_pads_right_at_4096_too() {
    assert!(restore_all("l4096") >= 9);
}

#[test]
fn a_log_longer_than_the_ring_is_refused_and_the_old_log_is_still_described() {
    let dir = tempdir().unwrap();
    let (ldev, wlog) = (dir.path().join("ldev"), dir.path().join("wlog"));
    place(entry("l512-full"), &ldev);
    place(entry("w512-mix"), &wlog); // 4147 blocks for a ring of 4086
    let before = walb!["ldev", "info", &ldev].ok();
    walb!["ldev", "restore", &ldev, &wlog].failed_on(&ldev);
    assert_eq!(walb!["ldev", "info", &ldev].ok(), before);
    place(entry("w4096-mix"), &wlog);
    let run = walb!["ldev", "restore", &ldev, &wlog];
    run.failed_on(&ldev);
    assert!(run.stderr().contains("--block-size 4096"), "{}", run.stderr());
}

#[test]
fn a_shorter_log_restored_over_a_longer_one_ends_where_it_ends() {
    let dir = tempdir().unwrap();
    let (ldev, wlog) = (dir.path().join("ldev"), dir.path().join("wlog"));
    place(entry("l512-plain"), &ldev);
    place(entry("cat-l512-head"), &wlog); // the same log, up to lsid 2093
    walb!["ldev", "restore", &ldev, &wlog].ok();
    let verdict = walb!["ldev", "verify", "--json", &ldev].json();
    assert_eq!(verdict["stat"]["end_lsid"], 2093);
    assert_eq!(verdict["stale_packs"], 0);
}
