//! Bad input to the controller and the servers: a clear error, the right exit code, no change.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use std::process::Command;

use tests::cluster::{Cluster, Layout};
use tests::process::binary;

/// Words of a command, its exit code, and what stderr must say.
type Case = (&'static str, i32, &'static str);

/// Before there is any volume.
const WITHOUT_VOLUME: &[Case] = &[
    ("state s9 vol0", 2, "no server \"s9\""),
    ("full-backup a0 vol0", 2, "role archive"),
    ("restorable s0 vol0", 2, "role storage"),
    ("state s0 no_underscore", 2, "no_underscore"),
    ("restore a0 vol0", 2, "required"),
    ("restore a0 vol0 1 --at 10m", 2, "cannot be used with"),
    ("restore a0 vol0 --at yesterday", 2, "RFC 3339"),
    ("frobnicate", 2, "frobnicate"),
    ("snapshot s0 vol0", 1, "vol0"),
    ("full-backup s0 vol0", 1, "init-storage"),
    ("start s0 vol0", 1, "vol0"),
    ("stop p0 vol0", 1, "vol0"),
    ("stop a0 vol0", 1, "vol0"),
    ("is-overflow s0 vol0", 1, "list-volumes"),
    ("is-wdiff-send-error p0 vol0 a0", 1, "list-volumes"),
    ("restorable a0 vol0", 1, "vol0"),
    ("restore a0 vol0 7", 1, "vol0"),
    ("apply a0 vol0 7", 1, "vol0"),
    ("diffs a0 vol0", 1, "vol0"),
    ("del-restored a0 vol0 7", 1, "vol0"),
    ("init-storage s0 vol0 --device /nonexistent/control.sock", 4, "/nonexistent/control.sock"),
    ("init-storage s0 volx --device CONTROL#nosuch", 1, "nosuch"),
    ("cancel 12345", 1, "walbc operations"),
    ("wait 12345", 1, "walbc operations"),
    ("kick p0 vol0 a0", 1, "vol0"),
];

/// While a volume is a target.
const WITH_TARGET: &[Case] = &[
    ("init-storage s0 vol0 --device CONTROL#vol0", 1, "vol0"),
    ("full-backup s0 vol0", 1, "walbc"),
    // What is there already is not done again, and no error.
    ("start s0 vol0", 0, ""),
    ("reset s0 vol0", 1, "Target"),
    ("reset a0 vol0", 1, "Archived"),
    ("stop s0 vol0 --mode empty", 1, "graceful or force"),
    ("restore a0 vol0 99999", 1, "99999"),
    ("restore a0 vol0 --at 1971-01-01T00:00:00Z", 1, "vol0"),
    ("apply a0 vol0 99999", 1, "99999"),
    ("del-restored a0 vol0 99999", 1, "99999"),
    ("is-wdiff-send-error p0 vol0 a7", 1, "a7"),
    ("archive-info p0 vol0 delete a7", 0, ""),
    ("archive-info p0 vol0 update a0 --compression shrink:3", 1, "shrink"),
];

fn check(cluster: &Cluster, cases: &[Case]) {
    let control = cluster.path("d0.control.sock").display().to_string();
    for (line, code, part) in cases {
        let line = line.replace("CONTROL", &control);
        let words: Vec<_> = line.split(' ').collect();
        let (got, stdout, stderr) = cluster.walbc(&words).unwrap();
        assert_eq!(got, *code, "walbc {line}\nstdout: {stdout}\nstderr: {stderr}");
        assert!(stderr.contains(part), "walbc {line}: no {part:?} in: {stderr}");
        assert!(!stderr.contains("panicked"), "walbc {line}: {stderr}");
    }
}

#[test]
fn bad_input_gives_a_clear_error_and_changes_nothing() {
    let mut cluster = Cluster::start(Layout::default()).unwrap();
    check(&cluster, WITHOUT_VOLUME);
    let (code, stdout, _) = cluster.walbc(&["status"]).unwrap();
    assert_eq!((code, stdout.as_str()), (0, ""), "a refused command left something behind");

    cluster.full_backup("vol0").unwrap();
    check(&cluster, WITH_TARGET);
    for (name, process) in &mut cluster.roles {
        assert!(process.is_running(), "{name} has ended: {}", process.log());
        assert!(!process.log().contains("panicked"), "{name}: {}", process.log());
    }
    cluster.snapshot("vol0").unwrap();
}

#[test]
fn a_missing_or_wrong_group_file_is_a_usage_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("walb.toml");
    let walbc = || {
        let mut command = Command::new(binary("walbc").unwrap());
        let output = command.arg("--config").arg(&file).arg("status").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, stderr) = walbc();
    assert_eq!(code, Some(2));
    assert!(stderr.contains("walb.toml"), "{stderr}");
    std::fs::write(&file, "[[server]]\nname = 1\n").unwrap();
    let (code, stderr) = walbc();
    assert_eq!(code, Some(2));
    assert!(stderr.contains("walb.toml"), "{stderr}");
}

#[test]
fn an_unreachable_server_is_exit_4_and_named() {
    let mut cluster = Cluster::start(Layout::default()).unwrap();
    cluster.full_backup("vol0").unwrap();
    cluster.role("a0").unwrap().kill().unwrap();
    let (code, _, stderr) = cluster.walbc(&["restorable", "a0", "vol0"]).unwrap();
    assert_eq!(code, 4, "{stderr}");
    assert!(stderr.contains("a0.sock"), "{stderr}");
    let (code, stdout, _) = cluster.walbc(&["status"]).unwrap();
    assert_eq!(code, 4, "{stdout}");
    assert!(stdout.contains("a0"), "{stdout}");
    let (code, stdout, _) = cluster.walbc(&["get-alive"]).unwrap();
    assert_eq!(code, 4, "{stdout}");
}

#[test]
fn answers_no_are_exit_3() {
    let cluster = Cluster::start(Layout { archives: 2, ..Layout::default() }).unwrap();
    cluster.full_backup("vol0").unwrap();
    for (words, code, answer) in [
        (["is-synchronizing", "a0", "vol0"], 0, "true\n"),
        (["is-synchronizing", "a1", "vol0"], 3, "false\n"),
        (["is-overflow", "s0", "vol0"], 3, "false\n"),
    ] {
        let (got, stdout, stderr) = cluster.walbc(&words).unwrap();
        assert_eq!((got, stdout.as_str()), (code, answer), "{words:?}: {stderr}");
    }
    let (code, stdout, _) = cluster.walbc(&["is-wdiff-send-error", "p0", "vol0", "a0"]).unwrap();
    assert_eq!((code, stdout.as_str()), (3, "false\n"));
}
