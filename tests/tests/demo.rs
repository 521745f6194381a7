//! The README's first command.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use std::process::Command;

use tests::process::binary;

#[test]
fn the_demo_ends_with_an_identical_image_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(binary("walb").unwrap())
        .args(["demo", "--size", "32M", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}\n{stderr}");
    let last = stdout.lines().last().unwrap();
    let sum = last.strip_prefix("restored image is identical: sha256 ").unwrap();
    assert_eq!(sum.len(), 64, "{last}");
    assert!(stdout.contains("SIGKILL"), "{stdout}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_demo_says_what_is_wrong_with_its_arguments() {
    for args in [["demo", "--size", "3"], ["demo", "--dir", "/proc/nowhere"]] {
        let output = Command::new(binary("walb").unwrap()).args(args).output().unwrap();
        assert!(!output.status.success());
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(args[2]), "{stderr}");
    }
}
