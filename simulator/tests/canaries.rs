//! The simulator finds what it shall find: each lie of a seam is noticed within a few seeds, by
//! random plans, or by a directed one where the lie has an effect in one state only.
#![allow(missing_docs, reason = "the names say it")]

use simulator::{Canary, Case, Defect, Seeds, Story};

/// Seeds that are tried for each lie.
const SEEDS: u64 = 60;

/// The lie is found, and what the simulator says then has one of these words.
fn is_told(defect: Defect, host: char, story: Option<Story>, words: &[&str]) {
    let seeds = Seeds { program: env!("CARGO_BIN_EXE_simulator").into() };
    let canary = Canary { defect, host };
    let cases = (0..SEEDS).map(|seed| Case { seed, story, canary: Some(canary) });
    let Some((case, why)) = seeds.finds(cases) else {
        panic!("{canary}: not found by {SEEDS} seeds");
    };
    let told = words.is_empty() || words.iter().any(|word| why.contains(word));
    assert!(told, "{canary}: seed {} says something else: {why}", case.seed);
}

fn is_found(defect: Defect, host: char) {
    is_told(defect, host, None, &[]);
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

/// I3: what was acknowledged is not read, and an older write comes to lie over a newer one.
#[test]
fn data_writes_that_are_done_late_and_out_of_order() {
    is_told(Defect::LateDataWrites, 'd', None, &["is read as"]);
}

/// I4, I11: logs that are released before they are shipped are a gap.
#[test]
fn logs_that_are_released_early() {
    is_found(Defect::EarlyRelease, 's');
}

/// I5, I9: what a proxy acknowledged and what an archive acknowledged is durable.
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

/// I6: a gid that was told means something else after a restart.
#[test]
fn a_record_that_forgets_its_last_gid() {
    is_told(
        Defect::OldRecords,
        's',
        Some(Story::ToldSnapshot),
        &["is used again", "must be batch"],
    );
}

/// I7: an apply that says that it has ended before the image is durable.
#[test]
fn an_image_that_ignores_flushes() {
    is_found(Defect::NoImageFlush, 'a');
}

/// I7: an image that is not what was written to it.
#[test]
fn an_image_that_loses_writes() {
    is_found(Defect::LostImageWrite, 'a');
}

/// I8: damage behind the last check.
#[test]
fn damage_that_is_not_checked() {
    is_told(Defect::DamagedImage, 'a', None, &["is torn"]);
}

/// I10: full, and what came was lost.
#[test]
fn a_full_disk_of_a_proxy_that_takes_everything() {
    is_found(Defect::FullSwallows, 'p');
}

#[test]
fn a_full_disk_of_an_archive_that_takes_everything() {
    is_found(Defect::FullSwallows, 'a');
}

/// I10: full, and that has no end.
#[test]
fn a_disk_that_stays_full() {
    is_told(Defect::FullForEver, 'p', None, &["stuck"]);
}

/// I11: lost logs that nobody tells of.
#[test]
fn an_overflow_that_the_device_hides() {
    is_found(Defect::HiddenOverflow, 's');
}

/// I12: the archive's own deletion of needless wdiffs, by one who knows of no lease.
#[test]
fn a_second_owner_of_deletion() {
    let story = Some(Story::ReadersBesideApply);
    is_told(Defect::SecondOwner, 'a', story, &["cannot be opened: entity not found"]);
}

/// I13: equal gids of different logs are taken as equal.
#[test]
fn two_logs_of_one_name() {
    is_told(Defect::SameLog, 'a', Some(Story::ForkedHistory), &["must be batch", "is no state"]);
}
