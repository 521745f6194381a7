//! What `walbc` says before it asks any server: help, completions, usage errors.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

use std::process::{Command, Output};

fn walbc(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_walbc")).args(args).output().unwrap()
}

/// The verbs of the command line that this product has (`cli.md`).
const VERBS: &[&str] = &[
    "status",
    "state",
    "get-alive",
    "list-volumes",
    "is-overflow",
    "is-wdiff-send-error",
    "is-synchronizing",
    "log-usage",
    "lag",
    "progress",
    "init-storage",
    "clear",
    "reset",
    "start",
    "stop",
    "go-standby",
    "full-backup",
    "hash-backup",
    "snapshot",
    "restorable",
    "restore",
    "restored",
    "del-restored",
    "diffs",
    "apply",
    "mount",
    "mounts",
    "unmount",
    "merge",
    "retention",
    "replication-schedule",
    "freshness",
    "enable-snapshot",
    "disable-snapshot",
    "gc",
    "resize",
    "restore-to-device",
    "replicate",
    "promote",
    "set-peers",
    "start-synchronizing",
    "stop-synchronizing",
    "archive-info",
    "copy-archive-info",
    "kick-all",
    "kick",
    "doctor",
    "shutdown",
    "operations",
    "wait",
    "cancel",
    "completions",
];

#[test]
fn every_verb_is_listed_and_has_help_of_its_own() {
    let help = walbc(&["--help"]);
    let text = String::from_utf8(help.stdout).unwrap();
    for verb in VERBS {
        assert!(text.lines().any(|line| line.split_whitespace().next() == Some(verb)), "{verb}");
        let own = walbc(&[verb, "--help"]);
        assert_eq!(own.status.code(), Some(0), "{verb}");
        assert!(String::from_utf8(own.stdout).unwrap().contains("Usage: walbc"), "{verb}");
    }
    assert!(text.contains("Exit codes"), "{text}");
}

#[test]
fn a_slip_is_exit_2_with_a_usage_on_stderr() {
    for args in [
        &["frobnicate"][..],
        &["state", "s0"],
        &["state", "s0", "not_a_volume"],
        &["restore", "a0", "v", "7", "--at", "10m"],
        &["restore", "a0", "v", "--at", "the day before"],
        &["full-backup", "s0", "v", "--bulk", "many"],
        &["stop", "s0", "v", "--mode", "softly"],
        &["hash-backup", "s0", "v", "--scan-rate", "fast"],
        &["replicate", "a0", "v"],
        &["merge", "a0", "v", "3"],
        &["disable-snapshot", "a0", "v"],
        &["resize", "v", "twice"],
        &["restore-to-device", "a0", "v", "3", "s0"],
        &["promote"],
    ] {
        let output = walbc(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("--help"), "{args:?}");
    }
}

#[test]
fn completions_know_the_verbs() {
    let output = walbc(&["completions", "bash"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(VERBS.iter().all(|verb| text.contains(verb)));
}
