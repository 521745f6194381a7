//! Programs that we did not write, and what they read of a mount.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::process::Command;

/// Whether a program is there; else the test says that it is skipped.
pub fn has(test: &str, program: &str) -> bool {
    let found = Command::new("which").arg(program).output().is_ok_and(|o| o.status.success());
    if !found {
        eprintln!("SKIPPED {test}: {program} is not installed");
    }
    found
}

pub async fn run(program: &str, args: &[&str]) -> String {
    let mut command = tokio::process::Command::new(program);
    let output = command.args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(super::LIMIT, output).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text} {output:?}");
    text
}

/// The whole of an export, read by nbdcopy.
pub async fn copied(dir: &Path, uri: &str) -> Vec<u8> {
    let to = dir.join("copy.img");
    run("nbdcopy", &[uri, to.to_str().unwrap()]).await;
    let copy = std::fs::read(&to).unwrap();
    std::fs::remove_file(&to).unwrap();
    copy
}
