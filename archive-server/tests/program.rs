//! The program from outside: what it says of a command line that it cannot use.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test may panic")]
#![forbid(unsafe_code)]

use std::process::Command;

fn ended(args: &[&str]) -> (Option<i32>, String) {
    let program = env!("CARGO_BIN_EXE_walb-archive");
    let output = Command::new(program).arg("serve").args(args).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn what_is_missing_is_a_usage_error_that_names_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    let (base, listen) = (dir.path().join("a0"), dir.path().join("a0.sock"));
    let listen = format!("unix:{}", listen.display());
    let given = [("--base", base.to_str().unwrap()), ("--listen", listen.as_str()), ("--id", "a0")];
    for left_out in ["--base", "--listen", "--id"] {
        let flags = given.iter().filter(|(flag, _)| *flag != left_out);
        let args: Vec<_> = flags.flat_map(|(flag, value)| [*flag, *value]).collect();
        let (code, text) = ended(&args);
        assert_eq!(code, Some(2), "{text}");
        assert!(text.contains(left_out), "{text}");
    }
    let (code, text) = ended(&["--config", "/nonexistent/archive.toml"]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("/nonexistent/archive.toml"), "{text}");
}
