//! The command line `walbc`: arguments, tables, JSON, progress, exit codes. No decisions.

pub mod args;
pub mod doctor;
pub mod mount;
pub mod output;
mod progress;
pub mod upkeep;
pub mod values;
mod verbs;
mod verify;

use clap::Parser;

use crate::client::Controller;
use crate::error::Exit;
use crate::group::Group;
use args::{Cli, Verb};

/// Runs one command line; errors go to stderr.
pub async fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done };
        }
    };
    if let Verb::Completions { shell } = &cli.verb {
        let mut command = <Cli as clap::CommandFactory>::command();
        clap_complete::generate(*shell, &mut command, "walbc", &mut std::io::stdout());
        return Exit::Done;
    }
    let ctl = match Group::load(&cli.config) {
        Ok(group) => Controller::new(group),
        Err(error) => {
            eprintln!("walbc: {error}");
            return Exit::Usage;
        }
    };
    match verbs::run(&ctl, &cli.verb, cli.json).await {
        Ok((report, exit)) => {
            report.print(cli.json);
            exit
        }
        Err(error) => {
            eprintln!("walbc: {}", crate::words::said(ctl.group(), &error));
            error.exit()
        }
    }
}
