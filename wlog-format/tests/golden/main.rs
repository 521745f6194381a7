//! Real files of the original programs, and what they must give (`golden/README.md`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]

mod corrupt;
mod data;
mod ldev;
mod wlog;
