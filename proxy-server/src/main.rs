//! The `walb-proxy` program.
#![forbid(unsafe_code)]

use clap::{Parser, Subcommand};
use proxy_server::{ServeArgs, serve};
use std::process::ExitCode;

/// What one thread allocates another one frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The proxy role of walb: turns wlogs into wdiffs, stages them, fans them out to archives.
#[derive(Parser)]
#[command(name = "walb-proxy", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM.
    Serve(Box<ServeArgs>),
}

fn main() -> ExitCode {
    let Command::Serve(args) = Cli::parse().command;
    server_kit::role::run_main(args.log_json(), |shutdown| serve(*args, shutdown))
}
