//! The `walbc` program.
#![forbid(unsafe_code)]

fn main() {}
