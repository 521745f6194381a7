//! The `walb-storage` program.
#![forbid(unsafe_code)]

fn main() {}
