//! The `walb` program.
#![forbid(unsafe_code)]

fn main() {}
