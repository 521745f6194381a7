//! `walb wdiff verify`.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use wdiff_format::error::WdiffError;
use wdiff_format::open::WdiffReader;
use wdiff_format::redo::decode;
use wdiff_format::stat::DiffStat;

use super::ThreadsArgs;
use super::list::{HeaderView, StatView, kind_name};
use crate::files::print_result;

/// Check everything in a wdiff: headers, order, all checksums, and that all data decompresses.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The wdiff; `-` is a sorted one on stdin
    #[arg(value_name = "WDIFF")]
    path: PathBuf,
    #[command(flatten)]
    threads: ThreadsArgs,
    /// One JSON document: {"sound", "header", "stat", "error"}
    #[arg(long)]
    json: bool,
}

/// `stat` counts what was read up to the damage.
#[derive(Debug, Serialize)]
struct Verdict {
    sound: bool,
    header: HeaderView,
    stat: StatView,
    error: Option<String>,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let mut reader = super::open(&args.path)?;
    let mut stat = DiffStat::default();
    let end = read_all(&mut reader, &mut stat, args.threads.get());
    let error = end.context("cannot read wdiff").err();
    let verdict = Verdict {
        sound: error.is_none(),
        header: reader.header().into(),
        stat: StatView::new(&stat, &reader),
        error: error.as_ref().map(|e| format!("{e:#}")),
    };
    print_result(args.json, &verdict, |out| {
        let word = if verdict.sound { "sound" } else { "DAMAGED" };
        let records = verdict.stat.records();
        writeln!(out, "{word}: {}, {records} records were read", kind_name(reader.header()))?;
        verdict.stat.write(out)
    })?;
    error.map_or(Ok(()), Err)
}

fn read_all(
    reader: &mut WdiffReader,
    stat: &mut DiffStat,
    threads: usize,
) -> Result<(), WdiffError> {
    let counted = reader.inspect(|record| {
        if let Ok(record) = record {
            stat.add(record);
        }
    });
    decode(counted, threads).try_for_each(|record| record.map(|_| ()))
}
