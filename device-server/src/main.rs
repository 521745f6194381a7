//! The `walb-device` program.
#![forbid(unsafe_code)]

fn main() {}
