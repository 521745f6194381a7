//! `walb wlog` on the golden logs.

use tempfile::tempdir;

use crate::golden::{entries, entry, load, place, place_image, replays, sha256_file};
use crate::walb;

/// Redoes the logs whose id starts with `prefix` onto the start images of the manifest.
fn redo_all(prefix: &str, start_images: &str) {
    let dir = tempdir().unwrap();
    let (wlog, image) = (dir.path().join("log.wlog"), dir.path().join("image"));
    for entry in entries("wlog", prefix) {
        let Some(table) = entry["expect"].get("redo") else { continue };
        place(entry, &wlog);
        let wanted = replays(table).into_iter().filter(|(start, ..)| start.contains(start_images));
        for (start, zero, hash) in wanted {
            place_image(start, &image);
            let run = if zero {
                walb!["wlog", "redo", &wlog, &image, "--zero-discard"]
            } else {
                walb!["wlog", "redo", &wlog, &image]
            };
            run.ok();
            assert_eq!(sha256_file(&image), hash, "{} on {start}, zero: {zero}", entry["id"]);
        }
    }
}

#[test]
fn redo_gives_the_image_of_the_original_at_512() {
    redo_all("w512", "");
}

#[test]
fn redo_gives_the_image_of_the_original_at_4096() {
    redo_all("w4096", "");
}

#[test]
fn redo_gives_the_image_of_the_original_for_extracted_logs() {
    redo_all("cat-", "zero");
}

#[test]
fn logs_redone_one_after_the_other_give_the_image_of_the_chain() {
    let dir = tempdir().unwrap();
    let (wlog, image) = (dir.path().join("log.wlog"), dir.path().join("image"));
    for (start, hash) in [
        ("zero16", "e1b211474709d1ba770a8762ea905cc81d670487529db7b4815cf76df712a4e0"),
        ("base16", "a1ec4435430304712c66acd21dd69bf9db25968b3f8888bc6c8b4abe1b868e5c"),
    ] {
        place_image(start, &image);
        for id in ["m1", "m2", "m3", "m4"] {
            place(entry(id), &wlog);
            walb!["wlog", "redo", &wlog, &image, "--zero-discard"].ok();
        }
        assert_eq!(sha256_file(&image), hash, "{start}");
    }
}

#[test]
fn logs_in_a_row_are_redone_as_one() {
    let dir = tempdir().unwrap();
    let (wlog, image) = (dir.path().join("log.wlogs"), dir.path().join("image"));
    for (id, whole) in [("concat-l512-plain", "w512-mix"), ("concat-l4096-plain", "w4096-mix")] {
        place(entry(id), &wlog);
        place_image("zero16", &image);
        walb!["wlog", "redo", &wlog, &image, "--zero-discard"].ok();
        let hash = entry(whole)["expect"]["redo"]["zero16+z"].as_str().unwrap();
        assert_eq!(sha256_file(&image), hash, "{id}");
        let verdict = walb!["wlog", "verify", &wlog, "--json"].json();
        assert_eq!(verdict["wlogs"], 2);
        assert_eq!(verdict["stat"]["end_lsid"], entry(whole)["expect"]["stat"]["really_end_lsid"]);
    }
}

#[test]
fn what_reaches_beyond_the_image_is_left_out_and_reported() {
    let dir = tempdir().unwrap();
    let (wlog, image) = (dir.path().join("log.wlog"), dir.path().join("image"));
    let entry = entry("w512-mix");
    place(entry, &wlog);
    let table = &entry["expect"]["redo_on_smaller_block_device"];
    for (key, zero) in [("9456128+z", true), ("9456128", false)] {
        std::fs::File::create(&image).unwrap().set_len(9_456_128).unwrap();
        let run = if zero {
            walb!["wlog", "redo", &wlog, &image, "--zero-discard", "--json"]
        } else {
            walb!["wlog", "redo", &wlog, &image, "--json"]
        };
        run.failed_on(&image);
        assert!(run.json()["beyond_end"].as_u64().unwrap() > 0);
        assert_eq!(sha256_file(&image), table[key].as_str().unwrap(), "{key}");
    }
}

#[test]
fn show_prints_the_lines_of_the_original() {
    let dir = tempdir().unwrap();
    let wlog = dir.path().join("log.wlog");
    for logged in entries("wlog", "") {
        let Some(dump) = logged["expect"]["show_dump"].as_str() else { continue };
        place(logged, &wlog);
        let text = walb!["wlog", "show", &wlog].ok();
        assert!(text == load(entry(dump)), "{} is shown differently", logged["id"]);
    }
}

#[test]
fn verify_counts_what_the_manifest_counts() {
    let dir = tempdir().unwrap();
    let wlog = dir.path().join("log.wlog");
    for logged in entries("wlog", "") {
        let (Some(stat), id) = (logged["expect"]["stat"].as_object(), &logged["id"]) else {
            continue;
        };
        place(logged, &wlog);
        let run = walb!["wlog", "verify", "--json", &wlog];
        assert_eq!(run.code(), 0, "{id}: {}", run.stderr());
        let verdict = run.json();
        assert_eq!(verdict["sound"], true, "{id}");
        for (key, value) in stat {
            let key = if key == "really_end_lsid" { "end_lsid" } else { key.as_str() };
            assert_eq!(&verdict["stat"][key], value, "{id}: {key}");
        }
    }
}

#[test]
fn the_json_listing_has_every_record() {
    let dir = tempdir().unwrap();
    let wlog = dir.path().join("log.wlog");
    let entry = entry("w4096-small");
    place(entry, &wlog);
    let list = walb!["wlog", "show", "--json", &wlog].json();
    let packs = list["wlogs"][0]["packs"].as_array().unwrap();
    let records = packs.iter().map(|p| p["records"].as_array().unwrap().len() as u64);
    assert_eq!(packs.len() as u64, entry["expect"]["stat"]["packs"]);
    assert_eq!(records.sum::<u64>(), entry["expect"]["stat"]["records"]);
    assert_eq!(list["error"], serde_json::Value::Null);
}
