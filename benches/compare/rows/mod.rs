//! The rows, one file each.

mod archive;
mod devices;
mod files;
mod group;
mod limits;
mod load;
mod lying;
mod many;
mod p1;
mod p10;
mod p11;
mod p12;
mod p13;
mod p14;
mod p15;
mod p16;
mod p17;
mod p2;
mod p3;
mod p4;
mod p5;
mod p6;
mod p7;
mod p8;
mod p9;
mod programs;

use crate::bench::Row;

/// All rows, in the order of the table.
pub(crate) fn all() -> Vec<Box<dyn Row>> {
    vec![
        Box::new(p1::ToWdiff),
        Box::new(p2::Merge),
        Box::new(p3::Redo),
        Box::new(p4::ReadLog),
        Box::new(p5::Writes),
        Box::new(p6::Flushes),
        Box::new(p7::Reads),
        Box::new(p8::FullBackup),
        Box::new(p9::HashBackup),
        Box::new(p10::Lag),
        Box::new(p11::FirstRead),
        Box::new(p12::Idle),
        Box::new(p13::LongHistory),
        Box::new(p14::Pipeline),
        Box::new(p15::MountReads),
        Box::new(p16::ApplyMerge),
        Box::new(p17::Restore),
    ]
}
