//! Logs: to stderr, text for people or JSON for machines, filtered by `RUST_LOG` (default `info`).
//!
//! An event is logged once, where it is handled; errors that travel to the caller are not logged.
use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Sets up logging for this process. A second call changes nothing.
pub fn init(json: bool) {
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Colours are for people: a log file or journal gets plain text.
        .with_ansi(std::io::stderr().is_terminal());
    // An error here means that a subscriber is set already (tests, `walb up`): that one stays.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}
