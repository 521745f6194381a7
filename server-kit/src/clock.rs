//! The wall clock, for labels only: timestamps of snapshots and of events that people read. Never
//! used to measure time or to order events; that is `tokio::time`, which tests can stop.
use crate::simulation::Simulation;
use std::time::{SystemTime, UNIX_EPOCH};

/// Unix seconds now; 0 when the clock is before 1970.
#[must_use]
pub fn unix_seconds() -> u64 {
    if let Some(simulation) = Simulation::current() {
        return simulation.unix_seconds();
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
