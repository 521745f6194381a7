//! A protected volume and a plain file over NBD, and fio on them.
//!
//! Durability is alike: a write is acknowledged when it is on the device (O_DIRECT), a flush
//! reaches the disk. All files lie on the same disk and are written once before, so that nobody
//! pays for allocation.

use std::path::Path;

use device_server::{ServeArgs, VolumeSpec, format_ldev, serve};
use proto::v1::StopMode;
use server_kit::shutdown::Shutdown;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use wlog_format::superblock::DeviceName;
use wlog_format::units::BlockSize;

use super::files::text;
use super::programs::{NbdServer, fill, fio_on, fio_over, have, operations, wait_for};
use crate::bench::{Bench, Case, Run, Sample, Side};
use crate::results::Unit;

/// Bytes of a volume.
const DATA_BYTES: u64 = 1 << 30;
/// Bytes of its log.
const LOG_BYTES: u64 = 2 << 30;

/// What fio does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) args: &'static [&'static str],
    /// How many times as fast as qemu-nbd ours has to be.
    pub(super) at_least: f64,
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
    _qemu: Option<NbdServer>,
    /// What does nothing shows what the way of a request costs.
    null: Option<NbdServer>,
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
        let qemu = if peer {
            Some(NbdServer::qemu("none", &at("theirs"), &at("theirs.sock"))?)
        } else {
            None
        };
        let null = have("nbdkit").then(|| NbdServer::null(bytes, &at("null.sock"))).transpose()?;
        Ok(Self { _ours: ours, _qemu: qemu, null, bytes, dir })
    }

    fn fio(&self, name: &str, load: Load, seconds: u64) -> Run<'_> {
        let uri = format!("nbd+unix:///?socket={}", self.dir.path().join(name).display());
        operations(move || fio_over(&uri, load.args), self.bytes, seconds)
    }

    /// The file that qemu-nbd serves, without anybody in between.
    fn bare(&self, load: Load, seconds: u64) -> Run<'_> {
        let file = self.dir.path().join("theirs");
        let fio = move || {
            let mut fio = fio_on(&file, load.args);
            fio.arg("--group_reporting=1");
            fio
        };
        operations(fio, self.bytes, seconds)
    }

    /// One request after the other pays for the disk and then for the way there and back.
    fn bare_and_way(&self, load: Load, seconds: u64) -> Run<'_> {
        let mut disk = self.bare(load, seconds);
        let mut way = self.fio("null.sock", load, seconds);
        Box::new(move || Ok(Sample::of(1.0 / (1.0 / disk()?.figure + 1.0 / way()?.figure))))
    }
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
        let case = Case::new(load.name, Unit::OperationsPerSecond);
        let theirs = peer.then(|| servers.fio("theirs.sock", *load, seconds));
        let mut sides = vec![
            Side::ours(servers.fio("ours.sock", *load, seconds)),
            Side::peer("qemu-nbd", load.at_least, theirs),
            Side::limit("fio on the file, nobody in between", servers.bare(*load, seconds)),
        ];
        if servers.null.is_some() && load.args.contains(&"--iodepth=1") {
            let name = "that, and fio over NBD with nbdkit's null for the way";
            sides.push(Side::limit(name, servers.bare_and_way(*load, seconds)));
        }
        bench.measure(case, sides)?;
    }
    Ok(())
}
