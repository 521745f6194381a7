//! A thousand volumes of which none does anything: what they cost, and how long a start takes.

use std::time::{Duration, Instant};

use anyhow::ensure;
use controller::ops::{backup, look, setup};
use futures::stream::{StreamExt as _, TryStreamExt as _};
use tests::cluster::{Cluster, Layout};

use super::files::MIB;
use super::group::{Group, Process, one_of_each};
use crate::bench::{Bench, Case, Figures, Row};
use crate::results::Unit;

pub(super) struct Idle;

const VOLUMES: usize = 1000;
/// Full backups that run at a time while the group is made.
const AT_A_TIME: usize = 16;
/// A start that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(120);

impl Row for Idle {
    fn id(&self) -> &'static str {
        "P12"
    }

    fn title(&self) -> &'static str {
        "1,000 idle volumes, each backed up once and followed: the storage role and the archive"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let count = if bench.quick() { 10 } else { VOLUMES };
        let volumes: Vec<String> = (0..count).map(|n| format!("v{n}")).collect();
        let layout = Layout {
            volumes: volumes.clone(),
            data_bytes: MIB,
            log_bytes: 4 * MIB,
            ..one_of_each()
        };
        let mut group = Group::start(bench, layout, count as u64 * 8 * MIB)?;
        back_up(&group.cluster, &volumes)?;
        let mut costs = [Costs::new("s0", "storage role"), Costs::new("a0", "archive")];
        for _ in 0..bench.rounds() {
            for costs in &mut costs {
                costs.started(&mut group.cluster, count)?;
            }
            let time = Duration::from_secs(if bench.quick() { 1 } else { 10 });
            idle(&mut group.cluster, &mut costs, time, count)?;
        }
        costs.into_iter().try_for_each(|costs| costs.record(bench))
    }
}

fn back_up(cluster: &Cluster, volumes: &[String]) -> anyhow::Result<()> {
    let ctl = cluster.ctl();
    cluster.run(async {
        let backups = volumes.iter().map(|volume| async move {
            setup::init_storage(ctl, "s0", volume, &cluster.device(0, volume)).await?;
            let options = backup::FullBackupOptions::default();
            backup::full_backup(ctl, "s0", volume, options, &mut |_| {}).await.map(drop)
        });
        futures::stream::iter(backups).buffer_unordered(AT_A_TIME).try_collect::<()>().await
    })?;
    Ok(())
}

/// What a server costs, round by round.
struct Costs {
    server: &'static str,
    title: &'static str,
    start_ms: Vec<f64>,
    percent: Vec<f64>,
    mib: Vec<f64>,
}

impl Costs {
    const fn new(server: &'static str, title: &'static str) -> Self {
        Self { server, title, start_ms: Vec::new(), percent: Vec::new(), mib: Vec::new() }
    }

    /// Starts it anew: until it shows all volumes.
    fn started(&mut self, cluster: &mut Cluster, count: usize) -> anyhow::Result<()> {
        cluster.role(self.server)?.terminate()?;
        let start = Instant::now();
        cluster.role(self.server)?.start()?;
        while cluster.run(look::volumes(cluster.ctl(), self.server)).map_or(0, |v| v.len()) < count
        {
            ensure!(start.elapsed() < PATIENCE, "{} does not start", self.server);
            std::thread::sleep(Duration::from_millis(1));
        }
        self.start_ms.push(start.elapsed().as_secs_f64() * 1e3);
        Ok(())
    }

    fn record(self, bench: &mut Bench) -> anyhow::Result<()> {
        let title = self.title;
        for (what, unit, limit, figures) in [
            ("start until it answers", Unit::Milliseconds, 2000.0, self.start_ms),
            ("processor time", Unit::PercentOfCore, 1.0, self.percent),
            ("memory of a volume", Unit::Mebibytes, 1.0, self.mib),
        ] {
            let case = Case::new(format!("{title}, {what}"), unit).limit(limit);
            bench.record(case, vec![Figures::ours(figures)])?;
        }
        Ok(())
    }
}

/// Nothing happens for a while. What a start leaves to do is done before.
fn idle(
    cluster: &mut Cluster,
    costs: &mut [Costs],
    time: Duration,
    count: usize,
) -> anyhow::Result<()> {
    cluster.start_all()?;
    std::thread::sleep(time);
    let mut before = Vec::new();
    for costs in costs.iter() {
        let process = Process::of(cluster, costs.server)?;
        before.push((process.cpu_seconds()?, process));
    }
    std::thread::sleep(time);
    for ((cpu_seconds, process), costs) in before.iter().zip(costs) {
        let used = process.cpu_seconds()? - cpu_seconds;
        costs.percent.push(used / time.as_secs_f64() * 100.0);
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        let mib = process.resident_bytes()? as f64 / MIB as f64;
        #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
        costs.mib.push(mib / count as f64);
    }
    Ok(())
}
