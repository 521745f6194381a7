//! The `walb-device` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use device_server::{EndOverwriteArgs, ServeArgs, end_overwrite, serve};

/// What one thread allocates another one frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Take the half-replaced content of a volume as it is: ends an interrupted restore to it with
    /// a new log, so that every backup of it starts anew
    EndOverwrite(EndOverwriteArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => {
            server_kit::role::run_main(args.log_json, |shutdown| serve(args, shutdown))
        }
        Command::EndOverwrite(args) => server_kit::role::run_main(false, |_| end_overwrite(args)),
    }
}
