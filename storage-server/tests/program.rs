//! The program from outside: settings from flags and file, errors that say what to do, SIGTERM.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_walb-storage"));
    command.arg("serve").stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

fn flags(dir: &Path) -> Vec<(String, String)> {
    let socket = |name: &str| format!("unix:{}", dir.join(name).display());
    [
        ("base", dir.join("s0").display().to_string()),
        ("listen", socket("s0.sock")),
        ("id", "s0".into()),
        ("archive", socket("a0.sock")),
        ("proxy", format!("{},{}", socket("p0.sock"), socket("p1.sock"))),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

/// Starts the program, waits until it listens, stops it, and tells how it ended.
fn serve_and_stop(mut command: Command, socket: &Path) -> Output {
    let child: Child = command.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "it does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn flags_are_enough_and_sigterm_ends_it_well() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = program();
    for (key, value) in flags(dir.path()) {
        command.arg(format!("--{key}")).arg(value);
    }
    command.args(["--max-wlog-send", "64M", "--snapshot-interval", "500ms"]);
    let output = serve_and_stop(command, &dir.path().join("s0.sock"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty());
    assert!(!dir.path().join("s0.sock").exists(), "the socket is gone");
}

#[test]
fn a_file_is_enough_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::from("max-wlog-send = '64M'\nretry-max = '5s'\nlog-json = true\n");
    for (key, value) in flags(dir.path()) {
        match value.split_once(',') {
            Some((a, b)) => text.push_str(&format!("{key} = ['{a}', '{b}']\n")),
            None => text.push_str(&format!("{key} = '{value}'\n")),
        }
    }
    let file = dir.path().join("storage.toml");
    std::fs::write(&file, text).unwrap();
    let mut command = program();
    command.arg("--config").arg(file);
    let output = serve_and_stop(command, &dir.path().join("s0.sock"));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(log.lines().count() > 0 && log.lines().all(|line| line.starts_with('{')), "{log}");
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for left_out in ["base", "listen", "id", "archive", "proxy"] {
        let mut command = program();
        for (key, value) in flags(dir.path()).iter().filter(|(key, _)| key != left_out) {
            command.arg(format!("--{key}")).arg(value);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "usage");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(&format!("--{left_out}")), "{text}");
    }
    for (key, value) in [
        ("max-wlog-send", "4K"),
        ("buffer-memory", "1M"),
        ("snapshot-interval", "0s"),
        ("retry-min", "0s"),
        ("listen", "0.0.0.0:0"),
    ] {
        let mut command = program();
        for (known, value) in flags(dir.path()).iter().filter(|(known, _)| known != key) {
            command.arg(format!("--{known}")).arg(value);
        }
        let output = command.arg(format!("--{key}")).arg(value).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{key}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(text.contains(key) || text.contains("--insecure"), "{text}");
    }
    let output = program().args(["--retry-max", "soon"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "usage");
}
