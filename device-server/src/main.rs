//! The `walb-device` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use device_server::{ServeArgs, serve};

/// The logging block device of walb: every write goes to a log first, from which it is backed up.
#[derive(Debug, Parser)]
#[command(name = "walb-device", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve volumes
    Serve(ServeArgs),
}

fn main() -> ExitCode {
    let Command::Serve(args) = Cli::parse().command;
    server_kit::role::run_main(args.log_json, |shutdown| serve(args, shutdown))
}
