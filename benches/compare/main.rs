//! The product against what a user would take instead, side by side in one run.
//!
//! Each row is a file of `rows` (a new one is added to `rows::all`) and has several cases. A case
//! runs its sides in rounds A B A B on the same files, devices and settings, after one round that
//! is not counted; the ratio is taken round by round. The results go into a JSON file, in which
//! rows that were not run stay as they are, and from that into a table. A side whose program is
//! missing is skipped, by name.
//!
//! `cargo build --release --bins && target/release/compare --help`
#![forbid(unsafe_code)]

mod bench;
mod child;
mod machine;
mod report;
mod results;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

/// As in the programs: the device role and the reader of a log run in this one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure walb against other programs, row by row.
#[derive(Debug, Parser)]
#[command(name = "compare", version)]
struct Args {
    /// Directory with the file tools of the original (wlog-to-wdiff, wdiff-merge, ...)
    #[arg(long, value_name = "DIR")]
    peer_tools: Option<PathBuf>,
    /// Rows to run, such as P1,P3 (default: all)
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    rows: Vec<String>,
    /// Only cases whose name contains this
    #[arg(long, value_name = "TEXT")]
    case: Option<String>,
    /// One round on tiny inputs, to see that everything runs; writes no result without --out
    #[arg(long)]
    quick: bool,
    /// Counted rounds of each case
    #[arg(long, value_name = "N", default_value = "5")]
    rounds: usize,
    /// Where inputs and outputs of the file tools lie: a tmpfs, so that no disk is measured
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    scratch: PathBuf,
    /// Where devices lie: a real disk
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    disk: PathBuf,
    /// The table; the results behind it go into the JSON file beside it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Args {
    fn wants(&self, id: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|row| row.eq_ignore_ascii_case(id))
    }

    fn out(&self) -> Option<PathBuf> {
        let default = (!self.quick).then(|| PathBuf::from("benches/RESULTS.md"));
        self.out.clone().or(default)
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let rows = rows::all();
    for id in &args.rows {
        let known = rows.iter().any(|row| row.id().eq_ignore_ascii_case(id));
        let all: Vec<_> = rows.iter().map(|row| row.id()).collect();
        anyhow::ensure!(known, "there is no row {id}; there are {}", all.join(", "));
    }
    for row in rows.iter().filter(|row| args.wants(row.id())) {
        eprintln!("{}: {}", row.id(), row.title());
        let mut bench = bench::Bench::new(args)?;
        row.run(&mut bench).with_context(|| format!("row {}", row.id()))?;
        let result = bench.finish(row.id(), row.title());
        eprintln!("{}", report::row(&result));
        if let Some(out) = args.out() {
            report::save(&out, result)?;
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    // A measured command is started by a process of its own: see `child`.
    if let Some(code) = child::run_if_asked() {
        return code;
    }
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::FAILURE
        }
    }
}
