//! One volume with 100,000 wdiffs: what has to stay quick.

use std::time::Instant;

use anyhow::ensure;
use bytes::Bytes;
use controller::ops::archive::{RestorePoint, plan_restore};
use wdiff_format::diff_set::DiffSet;
use wdiff_format::gid::{BaseState, Gid, Snapshot};

use super::archive::named;
use super::group::VOLUME;
use super::many::{IMAGE_BYTES, Many, wdiff};
use crate::bench::{Bench, Case, Figures, Row};
use crate::results::Unit;

pub(super) struct LongHistory;

const DIFFS: u64 = 100_000;
/// So many names a plan tells at most.
const NAMES: usize = 1000;

impl Row for LongHistory {
    fn id(&self) -> &'static str {
        "P13"
    }

    fn title(&self) -> &'static str {
        "an archive of one volume with 100,000 wdiffs: start, plan of a restore, a wdiff more"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let diffs = if bench.quick() { 100 } else { DIFFS };
        let mut many = Many::start(bench, diffs)?;
        many.grow(diffs)?;
        // Until the index has them all nothing else is measured.
        let read = many.first_read()?;
        many.unmount(&read.mounted)?;
        let rounds = bench.rounds();
        let starts = (0..rounds).map(|_| Ok(many.grow(diffs)? * 1e3));
        keep(
            bench,
            "start until it answers",
            Some(2000.0),
            starts.collect::<anyhow::Result<_>>()?,
        )?;
        catalogue(bench, diffs)?;
        let plans = (0..rounds).map(|_| planned(&many));
        let plans = plans.collect::<anyhow::Result<_>>()?;
        keep(bench, "plan of a restore, asked for by a client", None, plans)?;
        let sent = (1..=rounds as u64).map(|more| sent(&many, diffs + more));
        let sent = sent.collect::<anyhow::Result<_>>()?;
        keep(bench, "a wdiff more, sent by a client and durable", None, sent)
    }
}

fn keep(
    bench: &mut Bench,
    what: &str,
    limit: Option<f64>,
    figures: Vec<f64>,
) -> anyhow::Result<()> {
    let case = Case { limit, ..Case::new(what, Unit::Milliseconds) };
    bench.record(case, vec![Figures::ours(figures)])
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// The catalogue alone, without disk and connection.
fn catalogue(bench: &mut Bench, diffs: u64) -> anyhow::Result<()> {
    let mut set = DiffSet::new();
    for gid in 1..=diffs {
        set.insert(named(gid)?)?;
    }
    let base = BaseState::at(Snapshot::clean(Gid(0)), 0);
    let (mut plans, mut lists, mut adds) = (Vec::new(), Vec::new(), Vec::new());
    for more in 1..=bench.rounds() as u64 {
        let start = Instant::now();
        let plan = set.restore_summary(&base, Gid(diffs), NAMES)?;
        plans.push(ms(start));
        ensure!(plan.count as u64 == diffs, "a plan of {} wdiffs", plan.count);
        let start = Instant::now();
        let list = set.restore_list(&base, Gid(diffs))?;
        lists.push(ms(start));
        ensure!(list.len() as u64 == diffs, "a list of {} wdiffs", list.len());
        let diff = named(diffs + more)?;
        let start = Instant::now();
        set.insert(diff)?;
        adds.push(ms(start));
    }
    keep(bench, "plan of a restore", Some(5.0), plans)?;
    keep(bench, "the list that a restore works through", None, lists)?;
    keep(bench, "a wdiff more in the catalogue", Some(1.0), adds)
}

fn planned(many: &Many) -> anyhow::Result<f64> {
    let cluster = &many.archive.group.cluster;
    let start = Instant::now();
    let point = RestorePoint::Gid(many.diffs);
    let plan = cluster.run(plan_restore(cluster.ctl(), "a0", VOLUME, point, None))?;
    let ms = ms(start);
    ensure!(plan.wdiff_count == many.diffs, "a plan of {} wdiffs", plan.wdiff_count);
    Ok(ms)
}

fn sent(many: &Many, gid: u64) -> anyhow::Result<f64> {
    let wdiff = Bytes::from(wdiff(gid)?);
    let start = Instant::now();
    many.archive.send(gid, IMAGE_BYTES, &wdiff)?;
    Ok(ms(start))
}
