//! The real program with a volume `v0` on files, and programs that we did not write.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use block_io::nbd::Client;
use device_server::format_ldev;
use wlog_format::superblock::DeviceName;
use wlog_format::units::BlockSize;

pub const DEADLINE: Duration = Duration::from_secs(30);

/// A device role with one volume `v0` on files.
pub struct Role {
    pub dir: tempfile::TempDir,
    pub child: Child,
    pub flags: Vec<String>,
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn file(path: &Path, bytes: u64) {
    File::create(path).unwrap().set_len(bytes).unwrap();
}

impl Role {
    pub async fn start(
        log_bytes: u64,
        data_bytes: u64,
        block_size: BlockSize,
        flags: &[&str],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (log, data) = (dir.path().join("log"), dir.path().join("data"));
        file(&log, log_bytes);
        file(&data, data_bytes);
        format_ldev(&log, &data, block_size, DeviceName::EMPTY).await.unwrap();
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let child = spawn(dir.path(), &flags);
        Self { dir, child, flags }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///v0?socket={}", self.path("nbd").display())
    }

    pub async fn connect(&self) -> Client {
        let deadline = Instant::now() + DEADLINE;
        loop {
            match Client::unix(self.path("nbd"), "v0").await {
                Ok(client) => return client,
                Err(error) => assert!(Instant::now() < deadline, "no answer: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn restart(&mut self) {
        self.child = spawn(self.dir.path(), &self.flags);
    }

    /// SIGTERM; the exit must be clean.
    pub fn stop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let deadline = Instant::now() + DEADLINE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(self.child.wait().unwrap().success());
    }
}

pub fn command(dir: &Path, flags: &[String]) -> Command {
    let at = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_walb-device"));
    command
        .args(["serve", "--volume", &format!("v0={},{}", at("data"), at("log"))])
        .args(["--nbd", &format!("unix:{}", at("nbd")), "--control", &at("control")])
        .args(flags)
        .env("RUST_LOG", "info");
    command
}

pub fn spawn(dir: &Path, flags: &[String]) -> Child {
    let log = File::options().create(true).append(true).open(dir.join("log.txt")).unwrap();
    command(dir, flags).stderr(log).stdout(Stdio::null()).spawn().unwrap()
}

/// Runs a program; `None` when it is not installed.
pub fn run(program: &str, args: &[&str]) -> Option<Output> {
    match Command::new(program).args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: {program} is not installed");
            None
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

pub fn must_succeed(output: Option<Output>) {
    let Some(output) = output else { return };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
}

/// A loop device, detached at the end.
pub struct Loop(pub String);

impl Loop {
    /// `None` where that is not possible: needs root.
    pub fn attach(file: &Path, sector: u32) -> Option<Self> {
        let sector = sector.to_string();
        let args = ["--find", "--show", "--direct-io=on", "--sector-size", &sector];
        let file = file.to_str().unwrap();
        let output = run("losetup", &[&args[..], &[file]].concat())?;
        if !output.status.success() {
            println!("skipped: no loop device: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(Self(String::from_utf8(output.stdout).unwrap().trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}
