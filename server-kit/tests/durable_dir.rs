//! The real directory: what is half-made goes away, what is linked stays, names cannot leave it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
use server_kit::durable::{DurableDir, DurableError, RealDir};
use std::fs;
use std::io::Write;

#[test]
fn a_dropped_tmp_file_leaves_nothing_and_a_committed_one_only_its_name() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = RealDir::create(tmp.path().join("a/b/c")).unwrap();
    let mut file = dir.create_tmp().unwrap();
    file.write_all(b"half").unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    drop(file);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    let mut file = dir.create_tmp().unwrap();
    file.write_all(b"whole").unwrap();
    dir.commit(file, "name").unwrap();
    assert_eq!(dir.list().unwrap(), ["name"]);
    assert_eq!(dir.read("name").unwrap().unwrap(), b"whole");
}

#[test]
fn leftovers_of_a_killed_process_are_removed_by_name() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = RealDir::create(tmp.path()).unwrap();
    fs::write(tmp.path().join("12-3.tmp"), b"x").unwrap();
    fs::write(tmp.path().join("kept"), b"x").unwrap();
    fs::create_dir_all(tmp.path().join("vol.tmp/deep")).unwrap();
    assert_eq!(dir.list().unwrap(), ["kept"], "half-made files are never listed");
    dir.remove_tmp_dirs().unwrap();
    dir.remove_tmp_files().unwrap();
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
}

#[test]
fn a_linked_file_survives_removal_at_its_first_place_and_linking_twice_is_fine() {
    let tmp = tempfile::tempdir().unwrap();
    let from = RealDir::create(tmp.path().join("received")).unwrap();
    let to = RealDir::create(tmp.path().join("sendto")).unwrap();
    from.write_atomic("w", b"data").unwrap();
    from.link("w", &to).unwrap();
    from.link("w", &to).unwrap();
    from.remove("w").unwrap();
    from.remove("w").unwrap();
    assert_eq!(to.read("w").unwrap().unwrap(), b"data");
    assert_eq!(from.read("w").unwrap(), None);
}

#[test]
fn names_that_lead_out_of_the_directory_are_errors() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = RealDir::create(tmp.path()).unwrap();
    for name in ["", ".", "..", "../x", "a/b", "a\0"] {
        let error = dir.write_atomic(name, b"x").unwrap_err();
        assert!(matches!(error, DurableError::BadName { .. }), "{name:?}: {error}");
        assert!(dir.read(name).is_err());
        assert!(dir.remove(name).is_err());
    }
}

#[test]
fn a_directory_is_removed_as_a_whole_and_free_space_is_known() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = RealDir::create(tmp.path()).unwrap();
    let inner = RealDir::create(tmp.path().join("vol/queue")).unwrap();
    inner.write_atomic("w", b"x").unwrap();
    dir.remove_dir("vol").unwrap();
    dir.remove_dir("vol").unwrap();
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
    assert!(dir.free_bytes().unwrap() > 0);
    assert!(RealDir::open(tmp.path().join("vol")).is_err());
}
