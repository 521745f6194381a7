//! A fixed number of operations on one archive against the model, and the lies of its seams that
//! must be noticed. A million: `cargo run --release -p simulator --bin archive-model`.
#![allow(missing_docs, reason = "the names say it")]

use simulator::{Canary, Defect, Portion, Portions};

fn portions() -> Portions {
    Portions { program: env!("CARGO_BIN_EXE_archive-model").into() }
}

fn portion(seed: u64, operations: u64) -> Portion {
    Portion { seed, operations, canary: None }
}

#[test]
fn the_same_seed_is_the_same_portion() {
    for seed in [0, 1] {
        let run = || portions().run(portion(seed, 400)).expect("all is well");
        assert_eq!(run(), run(), "seed {seed}");
    }
}

/// Also those that have failed once: 3, of which an apply met a mount from before a growth.
#[test]
fn ten_thousand_operations_against_the_model() {
    let list: Vec<Portion> = (0..10).map(|seed| portion(seed, 1000)).collect();
    let counts = portions().run_all(&list, 2).unwrap_or_else(|why| panic!("{why}"));
    let count = |what: &str| counts.get(what).copied().unwrap_or(0);
    for what in ["receive", "merge", "apply", "retention", "restore", "mount", "gc", "verify"] {
        assert!(count(what) > 50, "{what}: {counts:?}");
    }
    for what in ["hash backup", "set explicit", "drill", "resize", "killed in the middle"] {
        assert!(count(what) > 50, "{what}: {counts:?}");
    }
    assert!(count("(images compared)") > 30_000, "{counts:?}");
}

fn is_found(defect: Defect) {
    let canary = Some(Canary { defect, host: 'a' });
    let found =
        (0..5).any(|seed| portions().run(Portion { seed, operations: 1000, canary }).is_err());
    assert!(found, "{defect:?} is not found");
}

#[test]
fn names_that_are_not_synced() {
    is_found(Defect::NoDirectorySync);
}

#[test]
fn files_that_are_not_synced() {
    is_found(Defect::NoFileSync);
}

#[test]
fn an_image_that_ignores_flushes() {
    is_found(Defect::NoImageFlush);
}

#[test]
fn an_image_that_loses_writes() {
    is_found(Defect::LostImageWrite);
}

#[test]
fn an_image_that_is_damaged() {
    is_found(Defect::DamagedImage);
}
