//! Runs the built program.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// How a run ended.
pub(crate) struct Run(Output);

/// Runs `walb` with these arguments. A crash fails the test.
pub(crate) fn walb<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    let output = Command::new(env!("CARGO_BIN_EXE_walb")).args(args).output().unwrap();
    let run = Run(output);
    let code = run.0.status.code();
    assert!(matches!(code, Some(0..=2)), "crashed: {code:?} {}", run.stderr());
    run
}

impl Run {
    pub(crate) fn code(&self) -> i32 {
        self.0.status.code().unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// Standard output of a run that must have succeeded.
    pub(crate) fn ok(self) -> Vec<u8> {
        assert_eq!(self.code(), 0, "{}", self.stderr());
        self.0.stdout
    }

    /// The JSON on standard output, whatever the exit code.
    pub(crate) fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.0.stdout);
        let error = self.stderr();
        serde_json::from_slice(&self.0.stdout).unwrap_or_else(|e| panic!("{e}: {text} {error}"))
    }

    /// Must have failed with exit code 1 and an error that names `file`.
    pub(crate) fn failed_on(&self, file: &Path) {
        assert_eq!(self.code(), 1, "{}", self.stderr());
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(self.stderr().lines().any(|line| line.starts_with("walb: ")), "{}", self.stderr());
        assert!(self.stderr().contains(name), "{} does not name {name}", self.stderr());
    }
}

/// `["wlog", "redo", a, b]` and the like, of texts and paths.
#[macro_export]
macro_rules! walb {
    ($($arg:expr),+ $(,)?) => {
        $crate::run::walb([$(std::ffi::OsString::from($arg)),+])
    };
}
