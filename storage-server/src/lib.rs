//! The storage role: follows log devices, ships wlogs to proxies, runs backups (`design.md` §5).
#![forbid(unsafe_code)]

pub mod book;
pub mod budget;
pub mod device;
pub mod log;
pub mod marks;
pub mod plan;
pub mod reader;
pub mod state;
