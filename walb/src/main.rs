//! The `walb` program: file tools for logs and diffs, and all roles in one process (`cli.md`).
//!
//! Exit codes: 0 done, 1 failed, 2 usage (clap's). Data goes to stdout, all else to stderr.
#![forbid(unsafe_code)]

mod files;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Continuous backup of block devices.
#[derive(Debug, Parser)]
#[command(name = "walb", version, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
    fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Ldev(command) => command.run(),
            Self::Wlog(command) => command.run(),
            Self::Wdiff(command) => command.run(),
        }
    }
}

fn main() -> ExitCode {
    match Cli::parse().command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if files::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("walb: {error:#}");
            ExitCode::FAILURE
        }
    }
}
