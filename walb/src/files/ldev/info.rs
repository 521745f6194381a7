//! `walb ldev info`.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::device::LogDevice;
use crate::files::print_result;

/// Show the super sector of a log device.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// The log device
    ldev: PathBuf,
    /// One JSON document, with the keys of the text in snake case
    #[arg(long)]
    json: bool,
}

/// The keys are a contract.
#[derive(Debug, Serialize)]
pub(super) struct SuperView {
    sector_type: u16,
    version: u16,
    checksum: u32,
    lbs: u64,
    pbs: u32,
    metadata_size: u32,
    salt: u32,
    uuid: String,
    name: String,
    ring_buffer_size: u64,
    ring_buffer_offset: u64,
    oldest_lsid: u64,
    written_lsid: u64,
    device_size_lb: u64,
}

impl SuperView {
    pub(super) fn of(device: &LogDevice) -> Self {
        let super_block = device.super_block();
        let encoded = super_block.encode();
        let checksum = encoded.get(4..8).and_then(|field| field.try_into().ok());
        Self {
            sector_type: 1,
            version: 2,
            checksum: u32::from_le_bytes(checksum.unwrap_or_default()),
            lbs: 512,
            pbs: super_block.block_size.bytes(),
            metadata_size: super_block.metadata_blocks,
            salt: super_block.salt.0,
            uuid: super_block.uuid.to_string(),
            name: super_block.name.to_string(),
            ring_buffer_size: super_block.ring_size.0,
            ring_buffer_offset: device.ring().offset().0,
            oldest_lsid: super_block.oldest.0,
            written_lsid: super_block.written.0,
            device_size_lb: super_block.device_size.0,
        }
    }
}

pub(super) fn run(args: &InfoArgs) -> anyhow::Result<()> {
    let device = LogDevice::open(&args.ldev)?;
    print(args.json, &SuperView::of(&device))
}

/// The text has the lines of the original's `wldev-info`.
pub(super) fn print(json: bool, view: &SuperView) -> anyhow::Result<()> {
    print_result(json, view, |out| {
        writeln!(out, "sectorType: {}", view.sector_type)?;
        writeln!(out, "version: {}", view.version)?;
        writeln!(out, "checksum: {}", view.checksum)?;
        writeln!(out, "lbs: {}", view.lbs)?;
        writeln!(out, "pbs: {}", view.pbs)?;
        writeln!(out, "metadataSize: {}", view.metadata_size)?;
        writeln!(out, "salt: {}", view.salt)?;
        writeln!(out, "name: {}", view.name)?;
        writeln!(out, "ringBufferSize: {}", view.ring_buffer_size)?;
        writeln!(out, "oldestLsid: {}", view.oldest_lsid)?;
        writeln!(out, "writtenLsid: {}", view.written_lsid)?;
        writeln!(out, "deviceSize: {}", view.device_size_lb)?;
        writeln!(out, "ringBufferOffset: {}", view.ring_buffer_offset)?;
        writeln!(out, "uuid: {}", view.uuid)
    })
}
