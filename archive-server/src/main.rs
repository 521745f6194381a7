//! The `walb-archive` program.
#![forbid(unsafe_code)]

use archive_server::{ServeArgs, serve};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// What one thread allocates another one frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The archive role of walb: keeps base images and wdiffs, restores any snapshot
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM
    Serve(ServeArgs),
}

fn main() -> ExitCode {
    let Command::Serve(args) = Cli::parse().command;
    server_kit::role::run_main(args.log_json, |shutdown| serve(args, shutdown))
}
