//! Seeds that always run, in portions.
#![allow(missing_docs, reason = "the names say it")]

use simulator::Seeds;

fn seeds() -> Seeds {
    Seeds { program: env!("CARGO_BIN_EXE_simulator").into() }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..6 {
        assert_eq!(seeds().run(seed, None), seeds().run(seed, None), "seed {seed}");
    }
}

#[test]
fn seeds_to_500() {
    seeds().run_all(0..500);
}

#[test]
fn seeds_to_1000() {
    seeds().run_all(500..1000);
}

/// Seeds that have found something once: 20009 a hash backup that waited where nothing may wait,
/// 20074 a gap that was found while the disk was full and was not healed after that.
/// The scenario has grown since then, and what these seeds do has changed with it.
#[test]
fn seeds_that_found_something() {
    seeds().run_all([20_009, 20_074].into_iter());
}

/// `cargo long-test` only.
#[test]
#[ignore = "long"]
fn long_seeds() {
    seeds().run_all(1000..20_000);
}
