//! The results as a table, and the files that keep them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use crate::results::{CaseResult, RowResult, SideResult, Spread};

/// Puts `row` into the JSON file beside `out`, in the place of an older run of it, and makes the
/// table anew.
pub(crate) fn save(out: &Path, row: RowResult) -> anyhow::Result<()> {
    let json = out.with_extension("json");
    let what = || format!("cannot keep the results in {}", json.display());
    let mut rows: Vec<RowResult> = match std::fs::read(&json) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(what)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(what),
    };
    rows.retain(|old| old.id != row.id);
    rows.push(row);
    rows.sort_by_key(|row| number(&row.id));
    let mut text = serde_json::to_string_pretty(&rows)?;
    text.push('\n');
    std::fs::write(&json, text).with_context(what)?;
    std::fs::write(out, table(&rows)).with_context(|| format!("cannot write {}", out.display()))
}

fn number(id: &str) -> u32 {
    id.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(u32::MAX)
}

const HEAD: &str = "# Side by side

Made by `compare` (README, For developers). Each case runs its sides in turns A B A B on the same
files, devices and settings, after one round that is not counted. *ratio* is ours against the side
of its line, round by round: median (lowest - highest), and 2.00 is twice as good. *others* is how
many processors the rest of the machine used meanwhile. MB are 10^6 bytes, MiB are 2^20.

A side of which nothing is demanded shows a limit: what this machine does when everything is left
out that can be. *at best* beside a missed figure is the ratio that the narrowest limit allows.
";

fn table(rows: &[RowResult]) -> String {
    let mut text = HEAD.to_owned();
    for result in rows {
        text.push('\n');
        text.push_str(&row(result));
    }
    text
}

/// One row as Markdown.
pub(crate) fn row(row: &RowResult) -> String {
    let machine = &row.machine;
    let mut text = format!("## {}: {}\n\n", row.id, row.title);
    let _ = writeln!(
        text,
        "{} UTC, commit {}, {} x {}, {}, load {}.\n",
        machine.date, machine.commit, machine.cores, machine.cpu, machine.kernel, machine.load
    );
    text.push_str(
        "| case | side | median (min - max) | ratio | at least | | peak | cpu s | others |\n",
    );
    text.push_str("|---|---|---|---|---|---|---|---|---|\n");
    for case in &row.cases {
        for side in &case.sides {
            line(&mut text, case, side);
        }
    }
    for skipped in &row.skipped {
        let _ = write!(text, "\n- SKIPPED: {skipped}");
    }
    if !row.skipped.is_empty() {
        text.push('\n');
    }
    text
}

fn line(text: &mut String, case: &CaseResult, side: &SideResult) {
    let is_ours = side.ratio.is_none();
    let number = |value: Option<f64>, digits| {
        value.map_or_else(String::new, |value| format!("{value:.digits$}"))
    };
    let figure = spread(&side.figure, digits(side.figure.median), case.unit.name());
    let ratio = side.ratio.as_ref().map_or_else(String::new, |ratio| spread(ratio, 2, ""));
    let mut wanted = number(side.at_least, 2);
    if let (true, Some(limit)) = (is_ours, case.limit) {
        wanted = format!("{limit} {}", case.unit.name());
    }
    let verdict = match verdict(case, side) {
        None => String::new(),
        Some(true) => "met".to_owned(),
        Some(false) => match allowed(case, side) {
            Some(best) => format!("**missed**, {best:.2} at best"),
            None => "**missed**".to_owned(),
        },
    };
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut peak = side.peak_bytes.map_or_else(String::new, |b| format!("{:.0} MiB", mib(b)));
    if let (true, Some(limit)) = (is_ours, case.peak_limit_bytes) {
        let _ = write!(peak, " of {:.0}", mib(limit));
        if side.peak_bytes.is_some_and(|peak| peak > limit) {
            peak.push_str(" **missed**");
        }
    }
    let (name, cpu, others) = (&side.name, number(side.cpu_seconds, 2), number(side.others, 1));
    let title = if is_ours { case.name.as_str() } else { "" };
    let _ = writeln!(
        text,
        "| {title} | {name} | {figure} | {ratio} | {wanted} | {verdict} | {peak} | {cpu} \
         | {others} |"
    );
}

/// Three figures say enough.
fn digits(figure: f64) -> usize {
    match figure.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    }
}

/// Was the figure reached that was wanted?
fn verdict(case: &CaseResult, side: &SideResult) -> Option<bool> {
    if let Some(ratio) = &side.ratio {
        return Some(ratio.median >= side.at_least?);
    }
    let (limit, median) = (case.limit?, side.figure.median);
    Some(if case.unit.higher_is_better() { median >= limit } else { median <= limit })
}

/// The ratio that the narrowest limit of the case allows, when the wanted one is beyond it.
fn allowed(case: &CaseResult, peer: &SideResult) -> Option<f64> {
    // What ours is ahead of was no limit.
    let is_limit = |side: &&SideResult| {
        side.at_least.is_none() && side.ratio.as_ref().is_some_and(|ratio| ratio.median <= 1.0)
    };
    let limits = case.sides.iter().filter(is_limit);
    let best = limits.map(|limit| match case.unit.higher_is_better() {
        true => limit.figure.median / peer.figure.median,
        false => peer.figure.median / limit.figure.median,
    });
    let best = best.min_by(f64::total_cmp)?;
    (best < peer.at_least?).then_some(best)
}

fn spread(spread: &Spread, digits: usize, unit: &str) -> String {
    let Spread { median, min, max } = spread;
    let space = if unit.is_empty() { "" } else { " " };
    format!("{median:.digits$}{space}{unit} ({min:.digits$} - {max:.digits$})")
}
