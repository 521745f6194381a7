//! The independent checker of the formats, written in Python from the specification alone.

use std::path::Path;
use std::process::Command;

/// `check.py COMMAND FILE OPTIONS`; the test passes without it where there is no Python, and says
/// so.
pub(crate) fn check(command: &str, file: &Path, options: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/spec/check.py");
    let mut python = Command::new("python3");
    let Ok(output) = python.arg(script).arg(command).arg(file).args(options).output() else {
        eprintln!("skipped: the independent checker, because there is no python3");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.starts_with("OK"), "{text}{errors}");
}
