//! `archive-model --operations N [--seed SEED]`: so many random operations on an archive, compared
//! with a model after each, on all cores. `archive-model SEED OPERATIONS [CANARY]`: one portion.
//! `WALB_SIM_VERBOSE=1` shows what is done, `WALB_SIM_LOG=info` the log of the archive.
#![forbid(unsafe_code)]

use rand::SeedableRng;
use rand::rngs::StdRng;
use simulator::{LOG, Portion, Portions};
use std::process::ExitCode;

/// Operations of one process.
const PORTION: u64 = 10_000;

const USAGE: &str = "usage: archive-model --operations N [--seed SEED]
       archive-model SEED OPERATIONS [CANARY]";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| args.get(at).and_then(|text| text.parse::<u64>().ok());
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let well = match words.as_slice() {
        ["--operations", _] => number(1).map(|operations| many(operations, 0)),
        ["--operations", _, "--seed", _] => {
            number(1).zip(number(3)).map(|(operations, seed)| many(operations, seed))
        }
        _ => Portion::parse(args.iter().cloned()).ok().map(one),
    };
    match well {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn one(portion: Portion) -> bool {
    if let Ok(filter) = std::env::var(LOG) {
        let log = tracing_subscriber::fmt().with_env_filter(filter).without_time();
        log.with_writer(std::io::stderr).init();
    }
    // From here on getrandom answers from the seed, in the whole process.
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(portion.seed));
    portion.tell()
}

fn many(operations: u64, seed: u64) -> bool {
    let Ok(program) = std::env::current_exe() else { return false };
    let portion = |number: u64| {
        let rest = operations - number * PORTION;
        Portion { seed: seed + number, operations: rest.min(PORTION), canary: None }
    };
    let portions: Vec<Portion> = (0..operations.div_ceil(PORTION)).map(portion).collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let done = Portions { program }.run_all(&portions, cores);
    match done {
        Ok(counts) => {
            for (what, count) in counts {
                eprintln!("{count:>10} {what}");
            }
            eprintln!("{operations} operations, all well");
            true
        }
        Err(why) => {
            eprintln!("{why}");
            false
        }
    }
}
