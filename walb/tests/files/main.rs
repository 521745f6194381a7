//! The file tools through the built program, on real files of the original and on our own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod checker;
mod corrupt;
mod golden;
mod ldev;
mod ldev_redo;
mod own;
mod run;
mod wlog;
