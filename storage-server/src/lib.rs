//! The storage role: follows log devices, ships wlogs to proxies, runs backups (`design.md` §5).
#![forbid(unsafe_code)]

pub mod marks;
pub mod plan;
