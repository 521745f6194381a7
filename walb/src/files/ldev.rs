//! `walb ldev`: tools for log devices.

mod cat;
mod device;
mod format;
mod info;
mod redo;
mod restore;
mod show;
mod verify;

use clap::Subcommand;

/// `walb ldev ...`
#[derive(Debug, Subcommand)]
pub(crate) enum LdevCommand {
    /// Make a log device for a data device
    Format(format::FormatArgs),
    /// Show the super sector of a log device
    Info(info::InfoArgs),
    /// List the packs and records of a log device
    Show(show::ShowArgs),
    /// Check everything on a log device
    Verify(verify::VerifyArgs),
    /// Extract a wlog from a log device
    Cat(cat::CatArgs),
    /// Write a wlog into the ring of a log device
    Restore(restore::RestoreArgs),
    /// Bring a data device up to the end of the log
    Redo(redo::RedoArgs),
}

impl LdevCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Format(args) => format::run(&args),
            Self::Info(args) => info::run(&args),
            Self::Show(args) => show::run(&args),
            Self::Verify(args) => verify::run(&args),
            Self::Cat(args) => cat::run(&args),
            Self::Restore(args) => restore::run(&args),
            Self::Redo(args) => redo::run(&args),
        }
    }
}
