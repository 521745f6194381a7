//! Tests that need root or a program say so, by name, instead of passing silently.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Reports that `test` is skipped: on stderr, and in the file that `WALB_SKIP_LOG` names.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED: {test}: {why}");
    if let Some(path) = std::env::var_os("WALB_SKIP_LOG")
        && let Ok(mut log) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = writeln!(log, "{test}: {why}");
    }
}

/// Whether all of these programs are there; else reports `test` as skipped.
#[must_use]
pub fn have_programs(test: &str, programs: &[&str]) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs: Vec<_> =
        std::env::split_paths(&path).chain([Path::new("/usr/sbin").into()]).collect();
    let missing: Vec<_> =
        programs.iter().filter(|name| !dirs.iter().any(|dir| dir.join(name).is_file())).collect();
    if missing.is_empty() {
        return true;
    }
    skip(test, &format!("needs the programs {missing:?}"));
    false
}

/// Whether we are root and the kernel has loop devices; else reports `test` as skipped.
#[must_use]
pub fn have_loop_devices(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    let loops = root
        && Command::new("losetup").arg("-f").output().is_ok_and(|output| output.status.success());
    if !loops {
        skip(test, "needs root and loop devices");
    }
    loops
}
