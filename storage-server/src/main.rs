//! The `walb-storage` program.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use server_kit::role::run_main;
use storage_server::serve::{ServeArgs, serve};

/// What one thread allocates another one frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The storage role of walb: follows log devices, ships logs to proxies, runs backups
#[derive(Parser)]
#[command(name = "walb-storage", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves until it is told to stop
    Serve(Box<ServeArgs>),
}

fn main() -> ExitCode {
    let Command::Serve(args) = Cli::parse().command;
    run_main(args.log_json(), |shutdown| serve(*args, shutdown))
}
