//! The storage role: follows log devices, ships wlogs to proxies, runs backups (`design.md` §5).
#![forbid(unsafe_code)]

pub mod backup;
pub mod book;
pub mod budget;
pub mod chunk;
pub mod device;
pub mod discard;
pub mod follower;
pub mod log;
pub mod marks;
pub mod plan;
pub mod progress;
pub mod proxies;
pub mod reader;
pub mod registry;
pub mod scan;
pub mod serve;
pub mod service;
pub mod shared;
pub mod ship;
pub mod state;
pub mod transfer;
pub mod volume;
