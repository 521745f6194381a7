//! A protected volume and a plain file over NBD, and fio on them.
//!
//! Durability is alike: a write is acknowledged when it is on the device (O_DIRECT), a flush
//! reaches the disk. All files lie on the same disk and are written once before, so that nobody
//! pays for allocation.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use device_server::{ServeArgs, VolumeSpec, format_ldev, serve};
use proto::v1::StopMode;
use server_kit::shutdown::Shutdown;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use wlog_format::superblock::DeviceName;
use wlog_format::units::BlockSize;

use super::files::text;
use crate::bench::{Bench, Case, Run, Sample, Side};
use crate::results::Unit;

/// Bytes of a volume.
const DATA_BYTES: u64 = 1 << 30;
/// Bytes of its log.
const LOG_BYTES: u64 = 2 << 30;
/// How long a server may take to come up.
const START: Duration = Duration::from_secs(60);

/// What fio does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) args: &'static [&'static str],
    /// How many times as fast as qemu-nbd ours has to be.
    pub(super) at_least: f64,
}

/// Killed when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The device role, in a runtime of this process.
struct Ours {
    runtime: Runtime,
    role: Option<JoinHandle<anyhow::Result<()>>>,
    shutdown: Shutdown,
}

impl Ours {
    fn start(volume: VolumeSpec, socket: &Path) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let name = DeviceName::EMPTY;
        let format = format_ldev(&volume.log, &volume.data, BlockSize::B4096, name);
        runtime.block_on(format)?;
        let nbd = format!("unix:{}", text(socket)?).parse()?;
        let args = ServeArgs { volume: vec![volume], nbd: vec![nbd], ..ServeArgs::default() };
        let shutdown = Shutdown::new();
        let role = Some(runtime.spawn(serve(args, shutdown.clone())));
        Ok(Self { runtime, role, shutdown })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.shutdown.request(StopMode::Graceful);
        if let Some(role) = self.role.take() {
            // The rounds are over, and nobody needs the volume any more.
            let _ = self.runtime.block_on(role);
        }
    }
}

/// Both servers. They end before their files go.
struct Servers {
    _ours: Ours,
    _qemu: Option<Qemu>,
    bytes: u64,
    dir: TempDir,
}

impl Servers {
    fn start(bench: &Bench, peer: bool) -> anyhow::Result<Self> {
        let dir = bench.disk()?;
        let (bytes, log_bytes) = (bench.sized(DATA_BYTES), bench.sized(LOG_BYTES));
        let at = |name: &str| dir.path().join(name);
        for (name, bytes) in [("ours", bytes), ("theirs", bytes), ("log", log_bytes)] {
            fill(&at(name), bytes)?;
        }
        let name = "v".parse()?;
        let volume = VolumeSpec { name, data: at("ours"), log: at("log"), overflow: None };
        let ours = Ours::start(volume, &at("ours.sock"))?;
        wait_for(&at("ours.sock"))?;
        let qemu = if peer { Some(start_qemu(&at("theirs"), &at("theirs.sock"))?) } else { None };
        Ok(Self { _ours: ours, _qemu: qemu, bytes, dir })
    }

    fn fio(&self, name: &str, load: Load, seconds: u64) -> Run<'_> {
        let uri = format!("--uri=nbd+unix:///?socket={}", self.dir.path().join(name).display());
        let all = ["--name=row", "--ioengine=nbd", "--time_based=1", "--group_reporting=1"];
        let mut command = Command::new("fio");
        command.args(all).args(load.args).arg(uri).arg("--output-format=json");
        command.arg(format!("--size={}", self.bytes)).arg(format!("--runtime={seconds}"));
        Box::new(move || Ok(Sample { figure: operations_per_second(&mut command)?, usage: None }))
    }
}

fn start_qemu(data: &Path, socket: &Path) -> anyhow::Result<Qemu> {
    let mut command = Command::new("qemu-nbd");
    command.args(["--cache=none", "--aio=io_uring", "-f", "raw", "-t", "-e", "8", "-k"]);
    let qemu = Qemu(command.args([socket, data]).spawn().context("qemu-nbd")?);
    wait_for(socket)?;
    Ok(qemu)
}

fn operations_per_second(fio: &mut Command) -> anyhow::Result<f64> {
    let output = fio.output()?;
    ensure!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let json = text.find('{').and_then(|at| text.get(at..)).context("fio says nothing")?;
    let result: serde_json::Value = serde_json::from_str(json)?;
    let of = |side: &str| result.pointer(&format!("/jobs/0/{side}/iops"))?.as_f64();
    Ok(of("read").context("no reads")? + of("write").context("no writes")?)
}

/// Each load on both servers, in turns.
pub(super) fn compare(bench: &mut Bench, loads: &[Load]) -> anyhow::Result<()> {
    if !have("fio") {
        bench.skip("fio: not on this machine");
        return Ok(());
    }
    let peer = have("qemu-nbd");
    let servers = Servers::start(bench, peer)?;
    let seconds = if bench.quick() { 1 } else { 3 };
    for load in loads {
        let case = Case {
            name: load.name.to_owned(),
            unit: Unit::OperationsPerSecond,
            limit: None,
            peak_limit_bytes: None,
        };
        let theirs = peer.then(|| servers.fio("theirs.sock", *load, seconds));
        let sides = vec![
            Side::ours(servers.fio("ours.sock", *load, seconds)),
            Side::peer("qemu-nbd", load.at_least, theirs),
        ];
        bench.measure(case, sides)?;
    }
    Ok(())
}

fn have(program: &str) -> bool {
    let tried = Command::new(program).arg("--version").stdout(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Every block is written once.
fn fill(path: &Path, bytes: u64) -> anyhow::Result<()> {
    File::create(path)?.set_len(bytes)?;
    let (file, size) = (format!("--filename={}", path.display()), format!("--size={bytes}"));
    let how = ["--name=fill", "--rw=write", "--bs=1m", "--direct=1", "--ioengine=psync"];
    let filled = Command::new("fio").args(how).args([file, size]).output()?;
    ensure!(filled.status.success(), "fio: {}", String::from_utf8_lossy(&filled.stderr));
    Ok(())
}

fn wait_for(socket: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + START;
    while UnixStream::connect(socket).is_err() {
        ensure!(Instant::now() < deadline, "{} is not served", socket.display());
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
