//! `walb ldev verify`.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use serde::Serialize;
use wlog_format::pack::PackHeader;
use wlog_format::redo::{Step, stale_span};
use wlog_format::stream::{DecodeError, Pack};
use wlog_format::units::Lsid;

use super::device::LogDevice;
use super::info::SuperView;
use crate::files::packs::Stat;
use crate::files::print_result;

/// Check everything on a log device.
///
/// The super sector, the packs from oldest_lsid on with all checksums, their order, their
/// addresses, and the rule that no data crosses the end of the ring. A torn or missing pack is the
/// normal end of a log after a crash; it is a problem only before written_lsid.
#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// The log device
    ldev: PathBuf,
    /// One JSON document: {"sound", "super", "stat", "torn", "log_end", "overflow", "stale_packs",
    /// "problems"}
    #[arg(long)]
    json: bool,
}

/// The keys are a contract.
#[derive(Debug, Serialize)]
struct Verdict {
    sound: bool,
    #[serde(rename = "super")]
    super_block: SuperView,
    stat: Stat,
    /// Does the log end inside a pack?
    torn: bool,
    /// What was found behind the last pack.
    log_end: String,
    /// Are logs from oldest_lsid on overwritten already?
    overflow: bool,
    /// Valid headers behind the end; a redo makes them unreadable.
    stale_packs: usize,
    problems: Vec<String>,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let device = LogDevice::open(&args.ldev)?;
    let verdict = verify(&device)?;
    print_result(args.json, &verdict, |out| {
        let (packs, records) = (verdict.stat.packs, verdict.stat.records);
        let word = if verdict.sound { "sound" } else { "DAMAGED" };
        writeln!(out, "{word}: {packs} packs, {records} records are good")?;
        writeln!(out, "lsid {} to {}", verdict.stat.begin_lsid, verdict.stat.end_lsid)?;
        writeln!(out, "end: {}", verdict.log_end)?;
        if verdict.stale_packs > 0 {
            writeln!(out, "{} stale packs behind the end", verdict.stale_packs)?;
        }
        verdict.problems.iter().try_for_each(|problem| writeln!(out, "problem: {problem}"))
    })?;
    if let Some(first) = verdict.problems.first() {
        let count = verdict.problems.len();
        bail!("log device {} has {count} problems, the first: {first}", device.path());
    }
    Ok(())
}

fn verify(device: &LogDevice) -> anyhow::Result<Verdict> {
    let super_block = device.super_block();
    let kept = super_block.written.distance_from(super_block.oldest) <= device.ring().size();
    let begin = if kept { super_block.oldest } else { super_block.written };
    let mut check = Check::new(device, begin);
    let mut packs = device.packs(begin);
    let (torn, log_end) = loop {
        match packs.next()? {
            Step::Whole(pack) => check.pack(&pack),
            Step::Shrunk { pack, lost } => {
                check.pack(&pack);
                break (true, format!("the last pack is torn: {lost} records are cut off"));
            }
            Step::End { reason, .. } => {
                let torn = matches!(reason, DecodeError::Data(_));
                break (torn, format!("{:#}", anyhow::Error::new(reason)));
            }
        }
    };
    check.end();
    let end = Lsid(check.stat.end_lsid);
    let stale = device.stale_headers(end, stale_span(device.ring(), begin, end))?;
    Ok(Verdict {
        sound: check.problems.is_empty(),
        super_block: SuperView::of(device),
        stat: check.stat,
        torn,
        log_end,
        overflow: !kept,
        stale_packs: stale.len(),
        problems: check.problems,
    })
}

/// The most problems that are listed one by one.
const MAX_PROBLEMS: usize = 100;

struct Check<'a> {
    device: &'a LogDevice,
    stat: Stat,
    /// Was written_lsid the start or end of a pack?
    written_met: bool,
    problems: Vec<String>,
}

impl<'a> Check<'a> {
    fn new(device: &'a LogDevice, begin: Lsid) -> Self {
        let written_met = begin == device.super_block().written;
        Self { device, stat: Stat::new(begin), written_met, problems: Vec::new() }
    }

    fn pack(&mut self, pack: &Pack) {
        self.stat.add(pack);
        self.written_met |= pack.header.next_lsid() == self.device.super_block().written;
        self.records(&pack.header);
    }

    fn records(&mut self, header: &PackHeader) {
        let (ring, size) = (self.device.ring(), self.device.super_block().device_size);
        for (index, record) in header.records().iter().enumerate() {
            let place = format!("record {index} of the pack at lsid {}", header.lsid());
            if record.log_blocks(ring.block_size()) > ring.contiguous(record.lsid) {
                self.problem(format!("{place}: its data crosses the end of the ring"));
            }
            if record.end() > size {
                let end = record.end();
                self.problem(format!("{place}: sector {end} is beyond the volume of {size}"));
            }
        }
    }

    /// The log must at least reach written_lsid: that it did is recorded.
    fn end(&mut self) {
        let (written, end) = (self.device.super_block().written, self.stat.end_lsid);
        if end < written.0 {
            self.problem(format!("the log ends at lsid {end}, before written_lsid {written}"));
        } else if !self.written_met {
            self.problem(format!("written_lsid {written} lies inside a pack"));
        }
    }

    fn problem(&mut self, problem: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }
}
