//! The `walb-archive` program.
#![forbid(unsafe_code)]

fn main() {}
