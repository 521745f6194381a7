//! `walb wlog verify`.

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use wlog_format::stream::WlogError;

use super::WlogInput;
use crate::files::packs::{HeaderView, Stat};
use crate::files::print_result;

/// Check everything in a wlog: headers, order, all checksums, the end block.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    input: WlogInput,
    /// One JSON document: {"sound", "header", "wlogs", "stat", "error"}
    #[arg(long)]
    json: bool,
}

/// `stat` counts the sound packs of all wlogs of the file.
#[derive(Debug, Serialize)]
struct Verdict {
    sound: bool,
    header: HeaderView,
    wlogs: u64,
    stat: Stat,
    error: Option<String>,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let mut reader = args.input.open()?;
    let header = reader.header().clone();
    let (mut stat, mut wlogs) = (Stat::new(header.begin), 1);
    let end = read_all(&mut reader, &mut stat, &mut wlogs);
    let error = end.with_context(|| args.input.what_failed()).err();
    let verdict = Verdict {
        sound: error.is_none(),
        header: HeaderView::from(&header),
        wlogs,
        stat,
        error: error.as_ref().map(|e| format!("{e:#}")),
    };
    print_result(args.json, &verdict, |out| {
        let word = if verdict.sound { "sound" } else { "DAMAGED" };
        let stat = &verdict.stat;
        let (packs, records) = (stat.packs, stat.records);
        writeln!(out, "{word}: {packs} packs, {records} records are good")?;
        writeln!(out, "lsid {} to {}", stat.begin_lsid, stat.end_lsid)
    })?;
    error.map_or(Ok(()), Err)
}

fn read_all<R: std::io::Read>(
    reader: &mut wlog_format::stream::WlogReader<R>,
    stat: &mut Stat,
    wlogs: &mut u64,
) -> Result<(), WlogError> {
    loop {
        while let Some(pack) = reader.next_pack()? {
            stat.add(&pack);
        }
        if !reader.next_wlog()? {
            return Ok(());
        }
        *wlogs += 1;
    }
}
