//! Seeds that always run, in portions, and the directed plans.
#![allow(missing_docs, reason = "the names say it")]

use simulator::{Case, Seeds, Story};

fn seeds() -> Seeds {
    Seeds { program: env!("CARGO_BIN_EXE_simulator").into() }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for case in (0..6).map(Case::seed) {
        assert_eq!(seeds().run(case), seeds().run(case), "seed {}", case.seed);
    }
}

#[test]
fn seeds_to_500() {
    seeds().run_all((0..500).map(Case::seed));
}

#[test]
fn seeds_to_1000() {
    seeds().run_all((500..1000).map(Case::seed));
}

/// Each reaches its state from any seed, or fails.
#[test]
fn stories() {
    let cases = (0..5)
        .flat_map(|seed| Story::ALL.map(|story| Case { story: Some(story), ..Case::seed(seed) }));
    seeds().run_all(cases);
}

/// `cargo long-test` only.
#[test]
#[ignore = "long"]
fn long_seeds() {
    seeds().run_all((1000..20_000).map(Case::seed));
}
