//! What we make of the golden logs, diffs and images is what the original makes of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use common::{
    MemoryImage, all, blockmap_digest, content, entries, entry, hex, manifest, max_io, open,
    options, read_back, records_digest,
};
use serde_json::Value;
use wdiff_format::convert::{LogRecords, convert};
use wdiff_format::full::ImageRecords;
use wdiff_format::header::FileType;
use wdiff_format::merge::{Merger, Pieces};
use wdiff_format::open::{Records, WdiffReader};
use wdiff_format::redo::{BeyondEnd, Discards, RedoOptions, redo, redo_file};
use wdiff_format::split::MaxIo;
use wdiff_format::stat::DiffStat;
use wdiff_format::virtual_image::VirtualImage;
use wdiff_format::write::write_records;
use wlog_format::stream::WlogReader;
use wlog_format::units::Lb;

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// The golden wdiffs whose parameters have this key.
fn made_from(key: &str) -> Vec<&'static Value> {
    let mut found = entries("wdiff");
    found.retain(|e| !e["params"][key].is_null());
    assert!(!found.is_empty());
    found
}

#[test]
fn every_log_becomes_the_diff_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    for entry in made_from("from") {
        let (id, params) = (text(&entry["id"]), &entry["params"]);
        let file_type = match text(&params["format"]) {
            "sorted" => FileType::Sorted,
            _ => FileType::Indexed,
        };
        let log = content(text(&params["from"]));
        let log = LogRecords::new(WlogReader::new(&log[..]).unwrap());
        assert_eq!(log.uuid().to_string(), entry["expect"]["header"]["uuid"], "{id}");
        let options = options(file_type, max_io(&params["max_io_size"]), "snappy");
        let ours = convert(log, Vec::new(), &options).unwrap();
        let reader = read_back(dir.path(), &ours);
        if let WdiffReader::Indexed(reader) = &reader {
            assert_eq!(reader.index().n_data, entry["expect"]["stat"]["n_data"], "{id}");
        }
        let records = all(reader).unwrap();
        assert_eq!(records_digest(&records), entry["expect"]["records_digest"], "{id}");
    }
}

fn merger(dir: &std::path::Path, inputs: &Value, max_io: MaxIo, pieces: Pieces) -> Merger {
    let inputs = inputs.as_array().unwrap().iter();
    let open = |id: &Value| -> Records { Box::new(open(dir, text(id))) };
    Merger::new(inputs.map(open).collect(), max_io, pieces).unwrap()
}

#[test]
fn every_merge_gives_the_records_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    for entry in made_from("inputs") {
        let (id, params) = (text(&entry["id"]), &entry["params"]);
        let max_io = max_io(&params["max_io_size"]);
        let compression = text(&params["compression"]).rsplit_once(':').unwrap().0;
        // The original writes presets above 6; we do not, and no reader can see the difference.
        let compression = if compression == "lzma:9" { "lzma" } else { compression };
        let merge = |file_type, pieces| {
            let options = options(file_type, max_io, compression);
            let merged = merger(dir.path(), &params["inputs"], max_io, pieces);
            let ours = write_records(merged, Vec::new(), &options).unwrap();
            let records = all(read_back(dir.path(), &ours)).unwrap();
            let digest = blockmap_digest(&records);
            assert_eq!(digest, entry["expect"]["blockmap_digest"], "{id} as {file_type}");
            records
        };
        merge(FileType::Indexed, Pieces::Kept);
        let kept = merge(FileType::Sorted, Pieces::Kept);
        assert_eq!(records_digest(&kept), entry["expect"]["records_digest"], "{id}");
        let joined = merge(FileType::Sorted, Pieces::Joined);
        let Some(of_sorted) = same_merge_of_sorted(entry) else {
            assert_eq!(records_digest(&joined), entry["expect"]["records_digest"], "{id}");
            continue;
        };
        // I/Os that are joined again are whole in the sorted diffs of the same logs. What has no
        // data stays cut.
        let original = |id| all(open(dir.path(), id)).unwrap().into_iter();
        let (data, other): (Vec<_>, Vec<_>) = joined.into_iter().partition(|r| r.kind == 0);
        let original_data = original(of_sorted).filter(|r| r.kind == 0);
        assert!(data.into_iter().eq(original_data), "{id}, data");
        let original_other = original(id).filter(|r| r.kind != 0);
        assert!(other.into_iter().eq(original_other), "{id}, zeros and discards");
    }
}

/// The golden merge of the sorted diffs of the same logs, for one that has indexed inputs.
fn same_merge_of_sorted(entry: &Value) -> Option<&'static str> {
    let sorted = |input: &Value| match text(input).strip_suffix("-i") {
        Some(log) => format!("{log}-s").into(),
        None => input.clone(),
    };
    let inputs = &entry["params"]["inputs"];
    let of_sorted: Value = inputs.as_array().unwrap().iter().map(sorted).collect();
    let same = |other: &&Value| {
        other["params"]["inputs"] == of_sorted
            && other["params"]["max_io_size"] == entry["params"]["max_io_size"]
    };
    let found = (*inputs != of_sorted).then(|| made_from("inputs").into_iter().find(same))??;
    Some(text(&found["id"]))
}

fn redo_options(image: &[u8], discards: Discards) -> RedoOptions {
    RedoOptions {
        discards,
        beyond_end: BeyondEnd::Drop,
        image_blocks: Lb::from_bytes(image.len() as u64),
        threads: 2,
    }
}

/// Replays a diff onto the image that a key like `base16+z` names.
fn redo_key(dir: &std::path::Path, id: &str, key: &str) -> String {
    let (base, discards) = match key.strip_suffix("+z") {
        Some(base) => (base, Discards::Zero),
        None => (key, Discards::Ignore),
    };
    let image = match base.parse() {
        Ok(bytes) => vec![0; bytes],
        Err(_) => content(base),
    };
    let options = redo_options(&image, discards);
    let other = MemoryImage::new(image.clone());
    let image = MemoryImage::new(image);
    let records = Merger::new(vec![Box::new(open(dir, id))], MaxIo::NONE, Pieces::Joined).unwrap();
    let stat = redo(records, &image, &options).unwrap();
    let image = image.into_content();
    let file = Arc::new(File::open(common::file(dir, id)).unwrap());
    assert_eq!(redo_file(file, id, &other, &options).unwrap(), stat, "{id} onto {key}");
    assert!(other.into_content() == image, "{id} onto {key}");
    hex(&image)
}

/// Replays all diffs onto the images whose names begin so.
fn every_replay_onto(images: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut replayed = 0;
    for entry in entries("wdiff") {
        let id = text(&entry["id"]);
        for (key, hash) in entry["expect"]["redo"].as_object().into_iter().flatten() {
            // What `bhash` prints is another hash of the same image.
            if key.starts_with(images) && !key.ends_with(".bhash") {
                assert_eq!(redo_key(dir.path(), id, key), *hash, "{id} onto {key}");
                replayed += 1;
            }
        }
    }
    assert!(replayed > 300, "only {replayed} replays");
}

#[test]
fn every_replay_onto_zeros_gives_the_image_of_the_original() {
    every_replay_onto("zero");
}

#[test]
fn every_replay_onto_data_gives_the_image_of_the_original() {
    every_replay_onto("base");
}

#[test]
fn a_replay_onto_a_smaller_device_leaves_out_what_the_original_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut clipped = 0;
    for entry in entries("wdiff") {
        let id = text(&entry["id"]);
        let smaller = &entry["expect"]["redo_on_smaller_block_device"];
        for (key, hash) in smaller.as_object().into_iter().flatten() {
            assert_eq!(redo_key(dir.path(), id, key), *hash, "{id} onto {key} bytes");
            clipped += 1;
        }
    }
    assert!(clipped > 0);
}

/// Reads a virtual image to its end, in odd steps.
fn virtual_image(base: &str, records: impl Iterator<Item = Item>) -> Vec<u8> {
    let base = Bytes::from(content(base));
    let size = base.len() as u64;
    let mut image = VirtualImage::new(base, size, records, BeyondEnd::Fail, 2);
    let (mut whole, mut step) = (Vec::new(), vec![0; 70_001]);
    loop {
        match image.read(&mut step).unwrap() {
            0 => return whole,
            n => whole.extend_from_slice(&step[..n]),
        }
    }
}
type Item = Result<wdiff_format::record::DiffRecord, wdiff_format::error::WdiffError>;

#[test]
fn every_virtual_image_is_that_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    for entry in entries("wdiff") {
        let id = text(&entry["id"]);
        for (base, hash) in entry["expect"]["virt_full_cat"].as_object().into_iter().flatten() {
            let image = virtual_image(base, open(dir.path(), id));
            assert_eq!(hex(&image), *hash, "{id} over {base}");
        }
    }
}

#[test]
fn a_chain_of_diffs_gives_what_the_logs_give() {
    let dir = tempfile::tempdir().unwrap();
    let chain = &manifest()["chain"];
    let ids = |kind| Value::from_iter((1..=4).map(|n| format!("d-m{n}-{kind}")));
    for inputs in [ids("s"), ids("i")] {
        let merged = merger(dir.path(), &inputs, MaxIo::default(), Pieces::Joined);
        let image = virtual_image("base16", merged);
        assert_eq!(hex(&image), chain["virt_full_cat_base16"]);
        for (key, hash) in chain["redo_in_order"].as_object().unwrap() {
            let base = key.strip_suffix("+z").unwrap();
            let options = redo_options(&content(base), Discards::Zero);
            let image = MemoryImage::new(content(base));
            for id in inputs.as_array().unwrap() {
                redo(open(dir.path(), text(id)), &image, &options).unwrap();
            }
            assert_eq!(hex(&image.into_content()), *hash, "one after the other onto {key}");
            let image = MemoryImage::new(content(base));
            redo(merger(dir.path(), &inputs, MaxIo::NONE, Pieces::Joined), &image, &options)
                .unwrap();
            assert_eq!(hex(&image.into_content()), *hash, "merged onto {key}");
        }
    }
}

#[test]
fn an_image_becomes_the_diff_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    for entry in made_from("io_size") {
        let (id, params) = (text(&entry["id"]), &entry["params"]);
        let io_blocks = match text(&params["io_size"]) {
            "4K" => 8,
            "64K" => 128,
            _ => 2048,
        };
        let file_type =
            if params["format"] == "sorted" { FileType::Sorted } else { FileType::Indexed };
        let image = content(text(&params["image"]));
        let records = ImageRecords::new(&image[..], "image", io_blocks);
        let options = options(file_type, MaxIo::default(), "snappy");
        let ours = write_records(records, Vec::new(), &options).unwrap();
        let records = all(read_back(dir.path(), &ours)).unwrap();
        assert_eq!(records_digest(&records), entry["expect"]["records_digest"], "{id}");
    }
}

#[test]
fn counts_are_those_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    for entry in entries("wdiff") {
        let (id, expect) = (text(&entry["id"]), &entry["expect"]["stat"]);
        let mut stat = DiffStat::default();
        let mut reader = open(dir.path(), id);
        for record in reader.by_ref() {
            stat.add(&record.unwrap());
        }
        let equal = |name: &str, ours: u64| assert_eq!(ours, expect[name], "{id}: {name}");
        equal("records", stat.records);
        equal("normal", stat.normal.0);
        equal("normal_lb", stat.normal.1);
        equal("allzero", stat.all_zero.0);
        equal("allzero_lb", stat.all_zero.1);
        equal("discard", stat.discard.0);
        equal("discard_lb", stat.discard.1);
        equal("max_end_address", stat.max_end_address);
        equal("max_io_lb", stat.max_io_blocks.into());
        let kinds = wdiff_format::compression::CompressionKind::ALL;
        for (kind, ours) in kinds.iter().zip(stat.compression) {
            let theirs = expect["compression"][kind.name()].as_u64().unwrap_or(0);
            assert_eq!(ours, theirs, "{id}: {kind}");
        }
        match &reader {
            WdiffReader::Sorted(reader) => {
                equal("packs", reader.packs());
                equal("data_size", stat.stored_bytes);
            }
            WdiffReader::Indexed(reader) => {
                equal("n_data", reader.index().n_data.into());
                equal("index_offset", reader.index().index_offset);
            }
        }
    }
}

#[test]
fn a_log_that_is_not_whole_gives_no_diff() {
    let mut refused = 0;
    for damaged in entries("corrupt") {
        let id = text(&damaged["id"]);
        if !id.starts_with("cw") || !matches!(text(&damaged["must"]), "reject" | "stop") {
            continue;
        }
        let log = content(id);
        let result = match WlogReader::new(&log[..]) {
            Err(_) => continue,
            Ok(reader) => {
                let options = options(FileType::Indexed, MaxIo::default(), "snappy");
                convert(LogRecords::new(reader), Vec::new(), &options)
            }
        };
        assert!(result.is_err(), "{id} was converted");
        refused += 1;
    }
    assert!(refused > 20, "only {refused} damaged logs were tried");
    assert_eq!(entry("w512-mix")["kind"], "wlog");
}
