//! Where io_uring is forbidden, or not wanted, the same I/O goes through threads; said once.
//!
//! The choice is made once per process: each case runs in a child, which is this test again with
//! a variable set.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::process::Command;

use block_io::{OpenOptions, open};
use bytes::Bytes;
use tempfile::TempDir;

const CHILD: &str = "BLOCK_IO_TEST_CHILD";

/// Opens two devices and uses them; prints whether a ring exists.
async fn do_some_io() {
    let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for name in ["a", "b"] {
        let path = dir.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let device = open(&path, OpenOptions::default()).unwrap();
        let data = Bytes::from(vec![5; 8192]);
        device.write(4096, vec![data.clone()]).await.unwrap();
        device.flush().await.unwrap();
        assert_eq!(device.read(4096, 8192).await.unwrap(), data);
    }
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let is_ring = |fd: std::io::Result<std::fs::DirEntry>| {
        let target = std::fs::read_link(fd.unwrap().path());
        target.is_ok_and(|target| target.to_string_lossy().contains("io_uring"))
    };
    eprintln!("ring: {}", fds.into_iter().any(is_ring));
}

/// Makes `io_uring_setup` fail with EPERM from now on, as a container's seccomp filter does.
#[allow(unsafe_code, reason = "prctl and seccomp have no safe wrapper here")]
fn forbid_io_uring() {
    use nix::libc::{self, sock_filter, sock_fprog};
    let code = |bits: u32| u16::try_from(bits).unwrap();
    let io_uring_setup = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let eperm = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap();
    let statement = |bits, k| sock_filter { code: code(bits), jt: 0, jf: 0, k };
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        sock_filter {
            code: code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K),
            jt: 0,
            jf: 1,
            k: io_uring_setup,
        },
        statement(libc::BPF_RET | libc::BPF_K, eperm),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes plain numbers; PR_SET_SECCOMP reads `program`, which points
    // to four instructions that outlive the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program), 0);
    }
}

fn child(case: &str) {
    if case == "forbidden" {
        forbid_io_uring();
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(do_some_io());
}

/// What the child says on standard error.
fn run(test: &str, case: &str) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(CHILD, case).env_remove("WALB_IO");
    if case == "plain" {
        command.env("WALB_IO", "plain");
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn io_uring_is_used_where_it_can_be() {
    if let Ok(case) = std::env::var(CHILD) {
        return child(&case);
    }
    let said = run("io_uring_is_used_where_it_can_be", "free");
    if said.contains("no io_uring here") {
        eprintln!("skipped: io_uring_is_used_where_it_can_be: io_uring is forbidden here");
        return;
    }
    assert!(said.contains("ring: true"), "{said}");
}

#[test]
fn forbidden_io_uring_is_said_once_and_replaced() {
    if let Ok(case) = std::env::var(CHILD) {
        return child(&case);
    }
    let said = run("forbidden_io_uring_is_said_once_and_replaced", "forbidden");
    assert_eq!(said.matches("no io_uring here").count(), 1, "{said}");
    assert!(said.contains("ring: false"), "{said}");
}

#[test]
fn walb_io_plain_is_said_once_and_obeyed() {
    if let Ok(case) = std::env::var(CHILD) {
        return child(&case);
    }
    let said = run("walb_io_plain_is_said_once_and_obeyed", "plain");
    assert_eq!(said.matches("WALB_IO=plain").count(), 1, "{said}");
    assert!(said.contains("ring: false"), "{said}");
}
