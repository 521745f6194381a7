//! The `walb-proxy` program.
#![forbid(unsafe_code)]

fn main() {}
