//! The simulator finds what it shall find: each lie of a seam is noticed within a few seeds.
#![allow(missing_docs, reason = "the names say it")]

use simulator::{Canary, Defect, Seeds};

/// Seeds that are tried for each lie.
const SEEDS: u64 = 60;

fn is_found(defect: Defect, host: char) {
    let seeds = Seeds { program: env!("CARGO_BIN_EXE_simulator").into() };
    let canary = Canary { defect, host };
    assert!(seeds.finds(canary, 0..SEEDS).is_some(), "{canary}: not found by {SEEDS} seeds");
}

/// I1, I2: a flush of the log that is none loses what was acknowledged after it.
#[test]
fn a_log_device_that_ignores_flushes() {
    is_found(Defect::NoLogFlush, 'd');
}

/// I1: a checkpoint after a flush of the data device that is none makes redo begin too late.
#[test]
fn a_data_device_that_ignores_flushes() {
    is_found(Defect::NoDataFlush, 'd');
}

/// I4, I11: logs that are released before they are shipped are a gap.
#[test]
fn logs_that_are_released_early() {
    is_found(Defect::EarlyRelease, 's');
}

/// I5: what a proxy acknowledged and what an archive acknowledged is durable.
#[test]
fn wdiffs_of_a_proxy_that_are_not_synced() {
    is_found(Defect::NoFileSync, 'p');
}

#[test]
fn wdiffs_of_an_archive_that_are_not_synced() {
    is_found(Defect::NoFileSync, 'a');
}

#[test]
fn names_at_a_proxy_that_are_not_synced() {
    is_found(Defect::NoDirectorySync, 'p');
}

#[test]
fn names_at_an_archive_that_are_not_synced() {
    is_found(Defect::NoDirectorySync, 'a');
}

/// I6: gids that are told before they are durable.
#[test]
fn names_at_the_storage_server_that_are_not_synced() {
    is_found(Defect::NoDirectorySync, 's');
}

#[test]
fn records_of_the_storage_server_that_are_not_synced() {
    is_found(Defect::NoFileSync, 's');
}

/// I7: an apply that says that it has ended before the image is durable.
#[test]
fn an_image_that_ignores_flushes() {
    is_found(Defect::NoImageFlush, 'a');
}

/// I11: lost logs that nobody tells of.
#[test]
fn an_overflow_that_the_device_hides() {
    is_found(Defect::HiddenOverflow, 's');
}

/// I12: a wdiff that somebody deletes though it is needed.
#[test]
fn wdiffs_that_are_deleted_when_they_are_read() {
    is_found(Defect::GoneAfterReading, 'a');
}

/// I7, I8: an image that is not what was written to it.
#[test]
fn an_image_that_loses_writes() {
    is_found(Defect::LostImageWrite, 'a');
}
