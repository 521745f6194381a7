//! wdiff-format: see ARCHITECTURE.md.
#![forbid(unsafe_code)]

pub mod diff_set;
pub mod gid;
pub mod name;
