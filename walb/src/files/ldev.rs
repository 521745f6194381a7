//! `walb ldev`: tools for log devices.

mod info;

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use wlog_format::ring::Ring;
use wlog_format::superblock::{SUPER_OFFSET_BYTES, SuperBlock};

/// `walb ldev ...`
#[derive(Debug, Subcommand)]
pub(crate) enum LdevCommand {
    /// Show the super sector of a log device
    Info(info::InfoArgs),
}

impl LdevCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Info(args) => info::run(&args),
        }
    }
}

/// An open log device.
#[derive(Debug)]
pub(crate) struct LogDevice {
    path: PathBuf,
    file: File,
    super_block: SuperBlock,
    ring: Ring,
}

impl LogDevice {
    /// Opens it and reads its super sector.
    pub(crate) fn open(path: &Path, write: bool) -> anyhow::Result<Self> {
        let file = File::options().read(true).write(write).open(path);
        let mut file =
            file.with_context(|| format!("cannot open log device {}", path.display()))?;
        let (super_block, ring) = read_super(&mut file)
            .with_context(|| format!("cannot use log device {}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file, super_block, ring })
    }
}

fn read_super(file: &mut File) -> anyhow::Result<(SuperBlock, Ring)> {
    let size = file.seek(SeekFrom::End(0))?;
    let mut bytes = [0; 4096];
    read_full_at(file, &mut bytes, SUPER_OFFSET_BYTES)?;
    let super_block = SuperBlock::decode(&bytes)?;
    let ring = super_block.ring(size)?;
    Ok((super_block, ring))
}

/// Like `read_exact_at`, but what lies beyond the end reads as zeros.
fn read_full_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    bytes.fill(0);
    while !bytes.is_empty() {
        let n = match file.read_at(bytes, offset) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        bytes = bytes.get_mut(n..).unwrap_or_default();
        offset += n as u64;
    }
    Ok(())
}
