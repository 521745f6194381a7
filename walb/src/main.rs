//! The `walb` program: file tools for logs and diffs, and all roles in one process (`cli.md`).
//!
//! Exit codes: 0 done, 1 failed, 2 usage (clap's). Data goes to stdout, all else to stderr.
#![forbid(unsafe_code)]

mod demo;
mod files;
mod place;
mod roles;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use server_kit::role::run_main;

/// What one thread allocates another one frees.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Continuous backup of block devices.
#[derive(Debug, Parser)]
#[command(name = "walb", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See it work: a device is written, backed up, attacked, and restored bit for bit
    Demo(demo::DemoArgs),
    /// All roles in one process, for good, state below one directory
    Up(up::UpArgs),
    #[command(flatten)]
    Role(roles::RoleCommand),
    /// Log device tools: format, look at, extract, restore, redo
    #[command(subcommand)]
    Ldev(files::ldev::LdevCommand),
    /// Log stream (wlog) tools: generate, look at, verify, redo
    #[command(subcommand)]
    Wlog(files::wlog::WlogCommand),
    /// Diff (wdiff) tools: look at, verify, merge, redo, make of an image, read as an image
    #[command(subcommand)]
    Wdiff(files::wdiff::WdiffCommand),
}

impl Command {
    fn run(self) -> ExitCode {
        let result = match self {
            Self::Role(role) => return role.run(),
            Self::Up(args) => return run_main(false, |shutdown| up::run(args, shutdown)),
            Self::Demo(args) => demo::run(&args),
            Self::Ldev(command) => command.run(),
            Self::Wlog(command) => command.run(),
            Self::Wdiff(command) => command.run(),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) if files::is_closed_pipe(&error) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("walb: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
}

fn main() -> ExitCode {
    Cli::parse().command.run()
}
