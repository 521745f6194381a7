//! The role programs inside `walb`: `walb device serve ...` is `walb-device serve ...`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use server_kit::role::run_main;

/// A role and its command line.
#[derive(Debug, Subcommand)]
pub(crate) enum RoleCommand {
    /// The device role: the logging block device
    #[command(subcommand)]
    Device(Verb<device_server::ServeArgs>),
    /// The storage role: follows log devices and ships wlogs
    #[command(subcommand)]
    Storage(Verb<storage_server::serve::ServeArgs>),
    /// The proxy role: turns wlogs into wdiffs and sends them on
    #[command(subcommand)]
    Proxy(Verb<proxy_server::ServeArgs>),
    /// The archive role: keeps base images and wdiffs
    #[command(subcommand)]
    Archive(Verb<archive_server::ServeArgs>),
}

/// What a role's program can do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb<A: Args> {
    /// Serve until SIGTERM
    Serve(Box<A>),
}

impl RoleCommand {
    /// Runs the role until it is told to stop.
    pub(crate) fn run(self) -> ExitCode {
        match self {
            Self::Device(Verb::Serve(args)) => {
                run_main(args.log_json, |shutdown| device_server::serve(*args, shutdown))
            }
            Self::Storage(Verb::Serve(args)) => {
                run_main(args.log_json(), |shutdown| storage_server::serve::serve(*args, shutdown))
            }
            Self::Proxy(Verb::Serve(args)) => {
                run_main(args.log_json(), |shutdown| proxy_server::serve(*args, shutdown))
            }
            Self::Archive(Verb::Serve(args)) => {
                run_main(args.log_json, |shutdown| archive_server::serve(*args, shutdown))
            }
        }
    }
}
