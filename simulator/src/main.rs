//! `simulator SEED [STORY] [CANARY]`: runs one seed and tells its fingerprint, or what is wrong.
//! `WALB_SIM_VERBOSE=1` shows what is done, `WALB_SIM_LOG=info` the logs of the roles.
#![forbid(unsafe_code)]

use rand::SeedableRng;
use rand::rngs::StdRng;
use simulator::{Case, FAILED, FINGERPRINT, LOG};
use std::process::ExitCode;

fn main() -> ExitCode {
    let case = match Case::parse(std::env::args().skip(1)) {
        Ok(case) => case,
        Err(why) => {
            eprintln!("{why}\nusage: simulator SEED [STORY] [CANARY]");
            return ExitCode::from(2);
        }
    };
    if let Ok(filter) = std::env::var(LOG) {
        let log = tracing_subscriber::fmt().with_env_filter(filter).without_time();
        log.with_writer(std::io::stderr).init();
    }
    // From here on getrandom answers from the seed, in the whole process.
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(case.seed));
    match simulator::run(case) {
        Ok(fingerprint) => {
            eprintln!("{FINGERPRINT}{fingerprint:016x}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("{FAILED}{why}");
            ExitCode::FAILURE
        }
    }
}
