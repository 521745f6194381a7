//! The whole pipeline: from the first byte that an application writes until all can be restored at
//! the archive, against each stage alone on the same bytes.
//!
//! The stages: the device role while nobody ships; the storage role's shipping with the proxy's
//! converting, of that backlog, while the archive takes nothing; the proxy's sending with the
//! archive's keeping, of what has gathered then.

use std::time::{Duration, Instant};

use anyhow::ensure;
use controller::ops::{backup, look, recover, setup, sync};
use proto::v1::{ArchiveInfo, StopMode};
use tests::cluster::Layout;

use super::group::{Group, VOLUME, one_of_each};
use super::load::sequential;
use super::programs::{fill, have};
use crate::bench::{Bench, Case, Figures, Row, megabytes};
use crate::machine::busy_seconds;
use crate::results::Unit;

pub(super) struct Pipeline;

const VOLUME_BYTES: u64 = 1 << 30;
const LOG_BYTES: u64 = 3 << 30;
/// A stage that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(300);

impl Row for Pipeline {
    fn id(&self) -> &'static str {
        "P14"
    }

    fn title(&self) -> &'static str {
        "device to restorable point, 1 GiB of 256 KiB sequential writes, half-compressible, all \
         roles on this machine, against its stages alone"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        if !have("fio") {
            bench.skip("fio, which fills the devices: not on this machine");
            return Ok(());
        }
        ["zstd:1", "lz4"].iter().try_for_each(|compression| pipeline(bench, compression))
    }
}

fn pipeline(bench: &mut Bench, compression: &str) -> anyhow::Result<()> {
    let case = Case::new(format!("sent as {compression}"), Unit::MegabytesPerSecond);
    if !bench.wants(&case.name) {
        return Ok(());
    }
    eprintln!("  {}", case.name);
    let bytes = bench.sized(VOLUME_BYTES);
    let layout = Layout { data_bytes: bytes, log_bytes: bench.sized(LOG_BYTES), ..one_of_each() };
    let rounds = bench.rounds() as u64 + 1;
    let mut group = Group::start(bench, layout, LOG_BYTES + (2 + 2 * rounds) * VOLUME_BYTES)?;
    group.adopt(|data| fill(data, bytes))?;
    group.cluster.full_backup(VOLUME)?;
    let flow = Flow { group, bytes };
    flow.send_as(compression)?;
    let (mut whole, mut stages) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
    let mut work = Vec::new();
    let cores = f64::from(u32::try_from(std::thread::available_parallelism()?.get())?);
    for round in 0..rounds {
        let took = (flow.whole()?, flow.stages()?);
        if round > 0 || bench.quick() {
            let busy: f64 = took.1.iter().map(|stage| stage.busy_seconds).sum();
            work.push(megabytes(bytes) / (busy / cores));
            whole.push(took.0);
            stages.iter_mut().zip(took.1).for_each(|(stage, took)| stage.push(took.rate));
        }
    }
    let [device, ship, send] = stages;
    let slowest = device.iter().zip(&ship).zip(&send);
    let slowest = slowest.map(|((device, ship), send)| device.min(*ship).min(*send)).collect();
    let sides = vec![
        Figures::ours(whole),
        Figures::peer("the slowest stage alone", 0.8, slowest),
        Figures::limit("stage: device", device),
        Figures::limit("stage: log to proxy", ship),
        Figures::limit("stage: proxy to archive", send),
        Figures::limit("the processors' work in the stages, spread over all", work),
    ];
    bench.record(case, sides)
}

/// What a stage took.
struct Took {
    /// MB/s.
    rate: f64,
    /// Of all processors, whoever they worked for.
    busy_seconds: f64,
}

/// The group, and how much it moves.
struct Flow {
    group: Group,
    bytes: u64,
}

impl Flow {
    fn send_as(&self, compression: &str) -> anyhow::Result<()> {
        let cluster = &self.group.cluster;
        let address = cluster.ctl().group().server("a0")?.address.to_string();
        let (name, compression) = ("a0".to_owned(), compression.to_owned());
        let info = ArchiveInfo { name, address, compression, send_delay_ms: 0 };
        Ok(cluster.run(sync::put_archive_info(cluster.ctl(), "p0", VOLUME, &info))?)
    }

    fn measured<T>(&self, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Took)> {
        let (start, busy) = (Instant::now(), busy_seconds());
        let done = work()?;
        let rate = megabytes(self.bytes) / start.elapsed().as_secs_f64();
        Ok((done, Took { rate, busy_seconds: busy_seconds() - busy }))
    }

    /// All stages at a time.
    fn whole(&self) -> anyhow::Result<f64> {
        let cluster = &self.group.cluster;
        let all = || {
            self.write()?;
            let gid = cluster.run(backup::snapshot(cluster.ctl(), "s0", VOLUME))?.gid;
            self.until_restorable(gid)
        };
        Ok(self.measured(all)?.1.rate)
    }

    /// One after the other.
    fn stages(&self) -> anyhow::Result<[Took; 3]> {
        let cluster = &self.group.cluster;
        let ctl = cluster.ctl();
        cluster.run(setup::stop(ctl, "s0", VOLUME, StopMode::Graceful))?;
        cluster.run(setup::stop(ctl, "a0", VOLUME, StopMode::Graceful))?;
        let ((), device) = self.measured(|| self.write())?;
        let (gid, ship) = self.measured(|| {
            cluster.run(setup::start(ctl, "s0", VOLUME))?;
            self.until_shipped()
        })?;
        let ((), send) = self.measured(|| {
            cluster.run(setup::start(ctl, "a0", VOLUME))?;
            cluster.run(recover::kick_proxy(ctl, "p0", VOLUME, ""))?;
            self.until_restorable(gid)
        })?;
        Ok([device, ship, send])
    }

    fn write(&self) -> anyhow::Result<()> {
        sequential(&self.group.cluster, self.bytes)
    }

    /// The gid up to which the proxy has all.
    fn until_shipped(&self) -> anyhow::Result<u64> {
        let cluster = &self.group.cluster;
        poll("the log is at the proxy", || {
            let leg = cluster.run(look::storage_volume(cluster.ctl(), "s0", VOLUME))?;
            Ok((leg.done_lsid == leg.latest_lsid).then_some(leg.done_gid))
        })
    }

    fn until_restorable(&self, gid: u64) -> anyhow::Result<()> {
        let cluster = &self.group.cluster;
        poll("the archive has it", || {
            let volume = cluster.run(look::archive_volume(cluster.ctl(), "a0", VOLUME))?;
            Ok((volume.newest_restorable_gid >= gid).then_some(()))
        })
    }
}

/// Looks often: what is measured is not rounded up by much.
fn poll<T>(what: &str, look: impl Fn() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}
