//! Every golden wdiff is read as the original reads it, and every damaged one is refused.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use common::{all, blockmap_digest, content, entries, file, open, records_digest};
use wdiff_format::error::{InputError, Problem, WdiffError};
use wdiff_format::header::FileType;
use wdiff_format::open::WdiffReader;

#[test]
fn records_and_blocks_are_those_of_the_original() {
    let dir = tempfile::tempdir().unwrap();
    for entry in entries("wdiff") {
        let id = entry["id"].as_str().unwrap();
        let expect = &entry["expect"];
        let reader = open(dir.path(), id);
        let header = reader.header();
        let (file_type, name) = match reader {
            WdiffReader::Sorted(_) => (FileType::Sorted, "sorted"),
            WdiffReader::Indexed(_) => (FileType::Indexed, "indexed"),
        };
        assert_eq!(header.file_type, file_type, "{id}");
        assert_eq!(name, expect["header"]["type"], "{id}");
        assert_eq!(header.uuid.to_string(), expect["header"]["uuid"], "{id}");
        assert_eq!(header.encode()[..], content(id)[..32], "{id}: the header is written as read");
        let records = all(reader).unwrap();
        assert_eq!(records_digest(&records), expect["records_digest"], "{id}");
        assert_eq!(blockmap_digest(&records), expect["blockmap_digest"], "{id}");
    }
}

fn read(path: &std::path::Path) -> Result<usize, WdiffError> {
    Ok(all(WdiffReader::open(path)?)?.len())
}

#[test]
fn damage_is_refused_as_the_verbs_of_the_set_say() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = 0;
    for entry in entries("corrupt") {
        let id = entry["id"].as_str().unwrap();
        if !id.starts_with("cs") && !id.starts_with("ci") {
            continue;
        }
        seen += 1;
        let result = read(&file(dir.path(), id));
        match (entry["must"].as_str().unwrap(), result) {
            ("tolerate" | "either", Ok(_)) => {
                let sound = all(open(dir.path(), entry["of"].as_str().unwrap())).unwrap();
                assert_eq!(all(open(dir.path(), id)).unwrap(), sound, "{id}");
            }
            ("reject", Err(WdiffError::Input(error))) => {
                assert!(error.to_string().contains(id), "{id}: {error}");
                assert!(!matches!(error.problem, Problem::Truncated), "{id}: {error}");
            }
            ("truncated", Err(WdiffError::Input(InputError { problem, .. }))) => {
                assert!(matches!(problem, Problem::Truncated), "{id}: {problem}");
            }
            (must, result) => panic!("{id}: must {must}, but {result:?}"),
        }
    }
    assert!(seen > 150, "only {seen} damaged files were tried");
}

#[test]
fn a_file_without_its_end_pack_gives_all_its_records_first() {
    let dir = tempfile::tempdir().unwrap();
    let sound = all(open(dir.path(), "d-w512-small-s")).unwrap();
    let mut cut = open(dir.path(), "cs512-trunc-noend");
    let whole = all(cut.by_ref().take(sound.len())).unwrap();
    assert_eq!(whole, sound);
    assert!(cut.next().unwrap().is_err());
    assert!(cut.next().is_none(), "nothing follows an error");
}
