//! A protected volume over NBD against `qemu-nbd --cache=none --aio=io_uring` on a file of the same
//! size in the same directory: fio, pairs A B A B, medians and the ratio ours / theirs.
//!
//! `cargo bench -p benches --bench nbd` runs it; `-- --test` runs each row once for a second.
//! Durability is alike: a write is acknowledged when it is on the device (O_DIRECT), a flush
//! reaches the disk. Each byte of ours is written twice, to the log and to the data device. Without
//! fio or qemu-nbd the bench is skipped by name.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark may panic, and prints its result"
)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use device_server::{ServeArgs, VolumeSpec, format_ldev, serve};
use server_kit::shutdown::Shutdown;
use wlog_format::superblock::DeviceName;
use wlog_format::units::BlockSize;

const DATA_BYTES: u64 = 1 << 30;
const LOG_BYTES: u64 = 2 << 30;

/// Name of the row, and what fio does.
const ROWS: &[(&str, &[&str])] = &[
    ("4k random write, depth 1", &["--rw=randwrite", "--bs=4k", "--iodepth=1"]),
    ("4k random write, depth 32", &["--rw=randwrite", "--bs=4k", "--iodepth=32"]),
    (
        "4k random write, flush each 32",
        &["--rw=randwrite", "--bs=4k", "--iodepth=32", "--fsync=32"],
    ),
    ("4k random read, depth 32", &["--rw=randread", "--bs=4k", "--iodepth=32"]),
    ("128k sequential write, depth 8", &["--rw=write", "--bs=128k", "--iodepth=8"]),
];

/// Killed when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sparse(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

/// Every block written once, so that neither side pays for allocation.
fn fill(path: &Path, bytes: u64) {
    let (file, size) = (format!("--filename={}", path.display()), format!("--size={bytes}"));
    let args =
        ["--name=fill", "--rw=write", "--bs=1m", "--direct=1", "--ioengine=psync", "--minimal"];
    let filled = Command::new("fio").args(args).args([file, size]).output().unwrap();
    assert!(filled.status.success(), "{filled:?}");
}

fn wait_for_socket(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::os::unix::net::UnixStream::connect(path).is_err() {
        assert!(Instant::now() < deadline, "{} is not served", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Operations per second that fio reaches.
fn fio(uri: &str, args: &[&str], seconds: u64) -> f64 {
    let output = Command::new("fio")
        .args(["--name=row", "--ioengine=nbd", "--time_based=1", "--output-format=json"])
        .args([format!("--uri={uri}"), format!("--size={DATA_BYTES}")])
        .arg(format!("--runtime={seconds}"))
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let result: serde_json::Value = serde_json::from_str(&text[text.find('{').unwrap()..]).unwrap();
    let iops = |side: &str| result["jobs"][0][side]["iops"].as_f64().unwrap();
    iops("read") + iops("write")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn have(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
}

async fn format(volume: &VolumeSpec) {
    let name = DeviceName::EMPTY;
    format_ldev(&volume.log, &volume.data, BlockSize::B4096, name).await.unwrap();
}

fn main() {
    let once = std::env::args().any(|arg| arg == "--test");
    if !have("fio") || !have("qemu-nbd") {
        println!("SKIPPED: nbd: needs fio and qemu-nbd");
        return;
    }
    let (rounds, seconds) = if once { (1, 1) } else { (5, 5) };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| dir.path().join(name);
    for data in ["ours.data", "theirs.data"] {
        sparse(&at(data), DATA_BYTES);
        fill(&at(data), DATA_BYTES);
    }
    sparse(&at("ours.log"), LOG_BYTES);
    fill(&at("ours.log"), LOG_BYTES);
    let spec = VolumeSpec {
        name: "v".parse().unwrap(),
        data: at("ours.data"),
        log: at("ours.log"),
        overflow: None,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(format(&spec));
    let shutdown = Shutdown::new();
    let args = ServeArgs {
        volume: vec![spec],
        nbd: vec![format!("unix:{}", at("ours.sock").display()).parse().unwrap()],
        control: Some(at("control.sock")),
        ..ServeArgs::default()
    };
    let device = runtime.spawn(serve(args, shutdown.clone()));
    let qemu = Command::new("qemu-nbd")
        .args(["--cache=none", "--aio=io_uring", "-f", "raw", "-t", "-e", "8", "-k"])
        .args([at("theirs.sock"), at("theirs.data")])
        .spawn()
        .unwrap();
    let qemu = Qemu(qemu);
    wait_for_socket(&at("ours.sock"));
    wait_for_socket(&at("theirs.sock"));
    let uri = |socket: &str| format!("nbd+unix:///?socket={}", at(socket).display());
    println!("{:<32} {:>10} {:>10} {:>7}", "IOPS, medians", "walb", "qemu-nbd", "ratio");
    for (name, args) in ROWS {
        let pair =
            |_| (fio(&uri("ours.sock"), args, seconds), fio(&uri("theirs.sock"), args, seconds));
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..rounds).map(pair).unzip();
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{name:<32} {ours:>10.0} {theirs:>10.0} {:>7.2}", ours / theirs);
    }
    drop(qemu);
    shutdown.request(proto::v1::StopMode::Graceful);
    runtime.block_on(device).unwrap().unwrap();
}
