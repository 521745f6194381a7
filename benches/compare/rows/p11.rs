//! An instant mount: from asking for it to the first block, however many wdiffs lie between the
//! base image and the snapshot.

use super::many::Many;
use crate::bench::{Bench, Case, Figures, Row};
use crate::results::Unit;

pub(super) struct FirstRead;

const COUNTS: &[u64] = &[10, 100, 1_000, 10_000, 100_000];

impl Row for FirstRead {
    fn id(&self) -> &'static str {
        "P11"
    }

    fn title(&self) -> &'static str {
        "first read of an instant mount after a start of the archive, by number of wdiffs"
    }

    fn run(&self, bench: &mut Bench) -> anyhow::Result<()> {
        let most = if bench.quick() { 100 } else { u64::MAX };
        let counts: Vec<u64> = COUNTS.iter().copied().filter(|n| *n <= most).collect();
        let mut many = Many::start(bench, counts.last().copied().unwrap_or_default())?;
        for count in counts {
            first_reads(bench, &mut many, count)?;
        }
        Ok(())
    }
}

fn first_reads(bench: &mut Bench, many: &mut Many, count: u64) -> anyhow::Result<()> {
    eprintln!("  {count} wdiffs");
    many.grow(count)?;
    let unindexed = many.first_read()?;
    many.unmount(&unindexed.mounted)?;
    let mut figures = Vec::new();
    for _ in 0..bench.rounds() {
        many.grow(count)?;
        let read = many.first_read()?;
        many.unmount(&read.mounted)?;
        figures.push(read.ms);
    }
    let case = Case::new(format!("{count} wdiffs"), Unit::Milliseconds).limit(100.0);
    bench.record(case, vec![Figures::ours(figures)])?;
    let case = Case::new(format!("{count} wdiffs, all new to the index"), Unit::Milliseconds);
    bench.record(case, vec![Figures::ours(vec![unindexed.ms])])
}
