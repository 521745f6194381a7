//! A whole backup group on the real disk: every role is its own program, driven as its users do.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use benches::{Payload, payloads};
use controller::ops::setup;
use nix::unistd::{SysconfVar, sysconf};
use tempfile::TempDir;
use tests::cluster::{Cluster, Layout};

use super::files::{MIB, text};
use super::programs::fill;
use crate::bench::Bench;

/// The volume of a group of one.
pub(super) const VOLUME: &str = "vol0";

/// Bytes of data, and then as many zeros, in an image that is half zero.
pub(super) const STRIPE_BYTES: usize = 16 << 20;

/// One server of each role.
pub(super) fn one_of_each() -> Layout {
    Layout { proxies: 1, ..Layout::default() }
}

/// The group. Its processes end before its directory goes.
pub(super) struct Group {
    pub(super) cluster: Cluster,
    dir: TempDir,
}

impl Group {
    /// Starts it; `room_bytes` is what all files may take.
    pub(super) fn start(bench: &Bench, layout: Layout, room_bytes: u64) -> anyhow::Result<Self> {
        let dir = bench.disk_with(room_bytes)?;
        let below = Some(dir.path().to_owned());
        let cluster = Cluster::start(Layout { below, ..layout })?;
        Ok(Self { cluster, dir })
    }

    /// A file beside the group's.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The base image at the archive.
    pub(super) fn base_image(&self) -> PathBuf {
        self.cluster.path("a0").join(VOLUME).join("base.img")
    }

    /// Has the device role adopt a data device that `make` writes, and a log device that has been
    /// written once, so that no write pays for allocation.
    pub(super) fn adopt(
        &mut self,
        make: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let (data, log) = (self.cluster.data_path(0, VOLUME), self.cluster.log_path(0, VOLUME));
        self.cluster.kill("d0")?;
        make(&data)?;
        fill(&log, self.cluster.layout().log_bytes)?;
        let devices = ["--log", text(&log)?, "--data", text(&data)?];
        self.cluster.walb(&[&["ldev", "format"], devices.as_slice()].concat())?;
        self.cluster.start_all()
    }

    /// Nobody but the device role knows the volume any more.
    pub(super) fn forget_backups(&self) -> anyhow::Result<()> {
        let ctl = self.cluster.ctl();
        for server in ["s0", "p0", "a0"] {
            self.cluster.run(setup::clear(ctl, server, VOLUME))?;
        }
        Ok(())
    }
}

/// A server's process, as the kernel sees it.
pub(super) struct Process(u32);

impl Process {
    pub(super) fn of(cluster: &mut Cluster, server: &str) -> anyhow::Result<Self> {
        let pid = cluster.role(server)?.pid();
        Ok(Self(pid.with_context(|| format!("{server} does not run"))?))
    }

    /// Bytes in memory.
    pub(super) fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = self.read("status")?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)).context("no VmRSS")?;
        Ok(kib.parse::<u64>()? << 10)
    }

    /// Seconds of all processors since it was started.
    pub(super) fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = self.read("stat")?;
        // The name before may hold anything; user and system time are the 14th and 15th field.
        let (_, rest) = stat.rsplit_once(')').context("no name")?;
        let ticks = rest.split_whitespace().skip(11).take(2);
        let ticks: f64 = ticks.map(str::parse::<f64>).sum::<Result<_, _>>()?;
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock")?;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        Ok(ticks / per_second as f64)
    }

    fn read(&self, file: &str) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(format!("/proc/{}/{file}", self.0))?)
    }
}

/// An image of data alone, or with a hole of the same length after every stripe of data.
pub(super) fn image(
    path: &Path,
    bytes: u64,
    payload: Payload,
    half_zero: bool,
) -> anyhow::Result<()> {
    ensure!(bytes.is_multiple_of(2 * MIB), "an image of whole MiB");
    let stripe = payloads(payload, 1 << 20, STRIPE_BYTES >> 20);
    let mut file = File::create(path)?;
    file.set_len(bytes)?;
    let mut at = 0;
    while at < bytes {
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(at))?;
        for piece in &stripe {
            if at < bytes {
                file.write_all(piece)?;
                at += piece.len() as u64;
            }
        }
        at += if half_zero { STRIPE_BYTES as u64 } else { 0 };
    }
    ensure!(file.metadata()?.len() == bytes, "an image of whole stripes");
    file.sync_all()?;
    Ok(())
}
