//! `walb ldev redo` against what the original does, and where the original is wrong.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;
use wlog_format::pack::PackBuilder;
use wlog_format::superblock::SuperBlock;
use wlog_format::units::{Lsid, Pb, to_usize};

use crate::golden::{entries, entry, load, place, place_image, replays, sha256_file};
use crate::walb;

fn redo(ldev: &Path, image: &Path, zero: bool) -> Value {
    let run = if zero {
        walb!["ldev", "redo", ldev, image, "--json", "--zero-discard"]
    } else {
        walb!["ldev", "redo", ldev, image, "--json"]
    };
    assert_eq!(run.code(), 0, "{}", run.stderr());
    run.json()
}

/// Redoes the log devices with this prefix; gives how many stayed as the original leaves them.
fn redo_all(prefix: &str) -> usize {
    let dir = tempdir().unwrap();
    let (ldev, image) = (dir.path().join("ldev"), dir.path().join("image"));
    let mut same_bytes = 0;
    for logged in entries("ldev", prefix) {
        let (expect, id) = (&logged["expect"], &logged["id"]);
        let after = &expect["after_wdev_redo"];
        for (start, zero, hash) in replays(&expect["wdev_redo"]) {
            place(logged, &ldev);
            place_image(start, &image);
            let done = redo(&ldev, &image, zero);
            assert_eq!(sha256_file(&image), hash, "{id} on {start}, zero: {zero}");
            assert_eq!(done["end_lsid"], after["written_lsid"], "{id}");
            let info = walb!["ldev", "info", "--json", &ldev].json();
            assert_eq!(info["written_lsid"], after["written_lsid"], "{id}");
            assert_eq!(info["oldest_lsid"], after["oldest_lsid"], "{id}");
            if done["stale_packs"] == 0 && done["cut_records"] == 0 {
                assert_eq!(after["changed_bytes_outside_super"], false, "{id}");
                assert_eq!(sha256_file(&ldev), after["ldev_sha256"].as_str().unwrap(), "{id}");
                same_bytes += 1;
            }
        }
    }
    same_bytes
}

#[test]
fn redo_gives_the_image_and_the_log_device_of_the_original_at_512() {
    assert!(redo_all("l512") >= 20);
}

#[test]
fn redo_gives_the_image_and_the_log_device_of_the_original_at_4096() {
    assert!(redo_all("l4096") >= 20);
}

#[test]
fn redo_done_twice_does_nothing_the_second_time() {
    let dir = tempdir().unwrap();
    let (ldev, image) = (dir.path().join("ldev"), dir.path().join("image"));
    for id in ["l512-inval-late", "l4096-inval-wrap", "l512-plain"] {
        place(entry(id), &ldev);
        place_image("zero16", &image);
        redo(&ldev, &image, true);
        let hashes = (sha256_file(&ldev), sha256_file(&image));
        let again = redo(&ldev, &image, true);
        assert_eq!(again["packs"], 0, "{id}");
        assert_eq!(again["stale_packs"], 0, "{id}");
        assert_eq!((sha256_file(&ldev), sha256_file(&image)), hashes, "{id}");
    }
}

/// Writes a pack of padding that ends exactly at `target`, as later logs might.
fn grow_log_to(ldev: &Path, target: Lsid) {
    let mut bytes = std::fs::read(ldev).unwrap();
    let super_block = SuperBlock::decode(&bytes[4096..]).unwrap();
    let ring = super_block.ring(bytes.len() as u64).unwrap();
    let begin = super_block.written;
    let mut pack = PackBuilder::new(begin, ring, super_block.salt, Pb(65535));
    let _ = pack.try_add_padding(Pb(target.distance_from(begin).0 - 1));
    let pack = pack.finish().unwrap();
    assert_eq!(pack.next_lsid(), target);
    let at = to_usize(ring.byte_offset(begin));
    let header = pack.encode();
    bytes[at..at + header.len()].copy_from_slice(&header);
    std::fs::write(ldev, bytes).unwrap();
}

#[test]
fn a_stale_pack_is_never_replayed() {
    let dir = tempdir().unwrap();
    let (ldev, image) = (dir.path().join("ldev"), dir.path().join("image"));
    for (id, whole) in [("l512-inval-late", "l512-plain"), ("l4096-inval-late", "l4096-plain")] {
        place(entry(id), &ldev);
        place_image("zero16", &image);
        let end = Lsid(redo(&ldev, &image, true)["end_lsid"].as_u64().unwrap());
        let before = sha256_file(&image);
        // The first pack of the undamaged log that lies wholly behind the cut.
        let list = std::path::PathBuf::from(dir.path()).join("whole");
        std::fs::write(&list, load(entry(whole))).unwrap();
        let list = walb!["ldev", "show", "--json", &list].json();
        let packs = list["wlogs"][0]["packs"].as_array().unwrap();
        let stale = packs.iter().map(|p| Lsid(p["lsid"].as_u64().unwrap()));
        let stale = stale.filter(|lsid| *lsid > end + Pb(1)).min().unwrap();
        grow_log_to(&ldev, stale);
        let done = redo(&ldev, &image, true);
        assert_eq!(done["end_lsid"], stale.0, "{id}: the padding pack is the last one");
        assert_eq!(sha256_file(&image), before, "{id}: nothing was replayed");
    }
}

#[test]
fn a_data_device_that_is_too_small_is_refused_before_anything_changes() {
    let dir = tempdir().unwrap();
    let (ldev, image) = (dir.path().join("ldev"), dir.path().join("image"));
    place(entry("l512-plain"), &ldev);
    std::fs::File::create(&image).unwrap().set_len((16 << 20) - 512).unwrap();
    let before = (sha256_file(&ldev), sha256_file(&image));
    walb!["ldev", "redo", &ldev, &image].failed_on(&image);
    assert_eq!((sha256_file(&ldev), sha256_file(&image)), before);
}
