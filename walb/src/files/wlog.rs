//! `walb wlog`: tools for log streams.

mod generate;
mod redo;
mod show;
mod to_wdiff;
mod verify;

pub(crate) use generate::parse_block_size;

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Subcommand;
use wlog_format::stream::WlogReader;

/// `walb wlog ...`
#[derive(Debug, Subcommand)]
pub(crate) enum WlogCommand {
    /// Make a wlog of random writes and discards
    Gen(generate::GenArgs),
    /// Write a log onto an image
    Redo(redo::RedoArgs),
    /// List the packs and records of a wlog
    Show(show::ShowArgs),
    /// Convert a wlog into a wdiff
    ToWdiff(to_wdiff::ToWdiffArgs),
    /// Check everything in a wlog
    Verify(verify::VerifyArgs),
}

impl WlogCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Gen(args) => generate::run(&args),
            Self::Redo(args) => redo::run(&args),
            Self::Show(args) => show::run(&args),
            Self::ToWdiff(args) => to_wdiff::run(&args),
            Self::Verify(args) => verify::run(&args),
        }
    }
}

/// The wlog that a command reads.
#[derive(Debug, clap::Args)]
pub(crate) struct WlogInput {
    /// The wlog, or several ones in a row; `-` is stdin
    #[arg(value_name = "WLOG")]
    path: PathBuf,
}

impl WlogInput {
    pub(crate) fn open(&self) -> anyhow::Result<WlogReader<Box<dyn Read + Send>>> {
        let input = super::open_input(&self.path)?;
        WlogReader::new(input).with_context(|| self.what_failed())
    }

    pub(crate) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The first half of an error message.
    pub(crate) fn what_failed(&self) -> String {
        format!("cannot read wlog {}", self.path.display())
    }
}
