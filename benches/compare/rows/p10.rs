//! How long an acknowledged write takes until it can be restored at the archive, under load.
//!
//! Every write carries its number, so afterwards the wdiffs at the archive say which of its
//! snapshots has it first; when that became restorable was seen by asking the archive all the
//! time. A write that another one has replaced before it was sent is not counted.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use controller::ops::{archive, backup, look};
use tests::cluster::{Cluster, Layout};
use tokio::sync::watch;
use wdiff_format::open::WdiffReader;
use wdiff_format::redo::{Content, decode};

use super::files::MIB;
use super::group::{Group, VOLUME, one_of_each};
use super::load::{BLOCK_BYTES, Steady, number_of};
use super::programs::{fill, have};
use crate::bench::{Bench, Case, Figures, Row, megabytes};
use crate::results::Unit;

pub(super) struct Lag;

const VOLUME_BYTES: u64 = 2 << 30;
const LOG_BYTES: u64 = 2 << 30;
/// 50 MB/s.
const WRITES_PER_S: u32 = 12_207;
/// The archive is asked so often.
const ASK: Duration = Duration::from_millis(2);

/// A setting of the storage role: a snapshot is taken at most so often.
struct Setting {
    name: &'static str,
    flags: &'static [&'static str],
    time: Duration,
    /// The median and the 99th percentile may be so many ms.
    limits: Option<(f64, f64)>,
}

const SETTINGS: &[Setting] = &[
    Setting {
        name: "--snapshot-interval 20ms",
        flags: &["--snapshot-interval", "20ms"],
        time: Duration::from_secs(60),
        limits: Some((60.0, 250.0)),
    },
    Setting { name: "as it comes (1s)", flags: &[], time: Duration::from_secs(20), limits: None },
];

impl Row for Lag {
    fn id(&self) -> &'static str {
        "P10"
    }

    fn title(&self) -> &'static str {
        "from the acknowledgement of a write to a restorable point at the archive that has it, all \
         roles on this machine, 50 MB/s of 4 KiB random writes"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        if !have("fio") {
            bench.skip("fio, which fills the devices: not on this machine");
            return Ok(());
        }
        SETTINGS.iter().try_for_each(|setting| lag(bench, setting))
    }
}

fn lag(bench: &mut Bench, setting: &Setting) -> anyhow::Result<()> {
    if !bench.wants(setting.name) {
        return Ok(());
    }
    eprintln!("  {}", setting.name);
    // Room for a second of writes at least.
    let sized = |full| bench.sized(full).max(128 * MIB);
    let (volume_bytes, log_bytes) = (sized(VOLUME_BYTES), sized(LOG_BYTES));
    let layout = Layout { data_bytes: volume_bytes, log_bytes, ..one_of_each() };
    let layout = layout.with_flags("s0", setting.flags);
    let mut group = Group::start(bench, layout, 3 * VOLUME_BYTES + LOG_BYTES)?;
    group.adopt(|data| fill(data, volume_bytes))?;
    let begin = group.cluster.full_backup(VOLUME)?;
    let time = if bench.quick() { Duration::from_secs(1) } else { setting.time };
    let load = Steady { per_second: WRITES_PER_S, time, volume_bytes };
    let start = Instant::now();
    let (acknowledged, restorable) = under_load(&group.cluster, load)?;
    let took = acknowledged.iter().max().context("no writes")?.duration_since(start);
    let written = megabytes((acknowledged.len() * BLOCK_BYTES) as u64);
    let lags = lags(&group.cluster, begin, &acknowledged, restorable)?;
    record(bench, setting, &lags, written / took.as_secs_f64())
}

/// Which gid could be restored since when.
type Restorable = VecDeque<(u64, Instant)>;

/// Writes, and watches the archive until it has all.
fn under_load(cluster: &Cluster, load: Steady) -> anyhow::Result<(Vec<Instant>, Restorable)> {
    let (last, wanted) = watch::channel(None);
    let ctl = cluster.ctl();
    cluster.run(async {
        let watched = look_on(cluster, wanted);
        let written = async {
            let acknowledged = load.run(cluster).await?;
            let gid = backup::snapshot(ctl, "s0", VOLUME).await?.gid;
            last.send_replace(Some(gid));
            anyhow::Ok(acknowledged)
        };
        tokio::try_join!(written, watched)
    })
}

/// Asks the archive what it can restore, until that is the last snapshot.
async fn look_on(
    cluster: &Cluster,
    wanted: watch::Receiver<Option<u64>>,
) -> anyhow::Result<Restorable> {
    let mut restorable = Restorable::new();
    loop {
        let volume = look::archive_volume(cluster.ctl(), "a0", VOLUME).await?;
        let gid = volume.newest_restorable_gid;
        if restorable.back().is_none_or(|(newest, _)| *newest < gid) {
            restorable.push_back((gid, Instant::now()));
        }
        if wanted.borrow().is_some_and(|last| gid >= last) {
            return Ok(restorable);
        }
        tokio::time::sleep(ASK).await;
    }
}

/// Milliseconds from acknowledgement to restorable, by number of the write.
fn lags(
    cluster: &Cluster,
    begin: u64,
    acknowledged: &[Instant],
    mut restorable: Restorable,
) -> anyhow::Result<Vec<(usize, f64)>> {
    let mut lags = Vec::new();
    for entry in cluster.run(archive::diffs(cluster.ctl(), "a0", VOLUME))? {
        let end = entry.diff.and_then(|diff| diff.end).context("a diff without end")?.gid_begin;
        if end <= begin {
            continue;
        }
        while restorable.front().is_some_and(|(gid, _)| *gid < end) {
            restorable.pop_front();
        }
        let (_, since) = *restorable.front().context("a diff that was never restorable")?;
        let path = cluster.path("a0").join(VOLUME).join(entry.file);
        for record in decode(WdiffReader::open(&path)?, 1) {
            let Content::Data(data) = record?.content else { continue };
            for number in data.chunks(BLOCK_BYTES).filter_map(number_of) {
                let at = acknowledged.get(number).context("a write that nobody made")?;
                lags.push((number, since.saturating_duration_since(*at).as_secs_f64() * 1e3));
            }
        }
    }
    ensure!(lags.len() * 2 > acknowledged.len(), "of {} writes", lags.len());
    lags.sort_unstable_by_key(|(number, _)| *number);
    Ok(lags)
}

/// The run in as many parts as there are rounds.
fn record(
    bench: &mut Bench,
    setting: &Setting,
    lags: &[(usize, f64)],
    rate: f64,
) -> anyhow::Result<()> {
    let part = lags.len().div_ceil(bench.rounds());
    for (what, percent, limit) in [
        ("half of the writes within", 50, setting.limits.map(|limits| limits.0)),
        ("99 % of the writes within", 99, setting.limits.map(|limits| limits.1)),
    ] {
        let within = |part: &[(usize, f64)]| {
            let mut part: Vec<f64> = part.iter().map(|(_, lag)| *lag).collect();
            part.sort_by(f64::total_cmp);
            part.get(part.len() * percent / 100).copied()
        };
        let figures = lags.chunks(part).filter_map(within).collect();
        let case =
            Case { limit, ..Case::new(format!("{}, {what}", setting.name), Unit::Milliseconds) };
        bench.record(case, vec![Figures::ours(figures)])?;
    }
    let case = Case::new(format!("{}, acknowledged", setting.name), Unit::MegabytesPerSecond);
    bench.record(case.limit(49.0), vec![Figures::ours(vec![rate])])
}
