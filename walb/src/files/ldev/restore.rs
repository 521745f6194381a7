//! `walb ldev restore`.
//!
//! The log is re-numbered by a fixed distance, and no pack straddles the end of the ring: before
//! one that would, packs of nothing but padding fill the ring up, as the original does at blocks of
//! 512 bytes. (At 4096 it mixes up the units of the padding; here both are right.)

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;
use wlog_format::pack::{PackBuilder, PackHeader};
use wlog_format::redo::stale_span;
use wlog_format::stream::{Pack, WlogHeader, WlogReader};
use wlog_format::units::{BlockSize, Lsid, Pb, Salt};

use super::device::LogDevice;
use crate::files::print_result;
use crate::files::wlog::WlogInput;

/// Write a wlog into the ring of a log device.
///
/// The log device must be formatted with the block size of the wlog. It takes over uuid and salt of
/// the wlog; what it held before is lost. oldest_lsid and written_lsid become the begin of the log.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The log device
    ldev: PathBuf,
    #[command(flatten)]
    input: WlogInput,
    /// Move the log by this many lsids (may be negative)
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    lsid_diff: i64,
    /// One JSON document: {"packs", "padding_packs", "begin_lsid", "end_lsid"}
    #[arg(long)]
    json: bool,
}

/// The keys are a contract.
#[derive(Debug, Default, Serialize)]
struct Restored {
    packs: u64,
    /// Packs that were added to fill up the ring.
    padding_packs: u64,
    begin_lsid: u64,
    end_lsid: u64,
}

pub(super) fn run(args: &RestoreArgs) -> anyhow::Result<()> {
    let reader = args.input.open()?;
    let header = reader.header().clone();
    let mut device = LogDevice::open_to_write(&args.ldev)?;
    check_block_size(&device, header.block_size)?;
    let begin = header.begin.0.checked_add_signed(args.lsid_diff).map(Lsid);
    let begin = begin.filter(|lsid| *lsid <= Lsid::MAX).with_context(|| {
        format!("--lsid-diff {} moves lsid {} out of all bounds", args.lsid_diff, header.begin)
    })?;
    let mut ring = RingWriter { device: &device, salt: header.salt, begin, next: begin, padded: 0 };
    let packs = restore_all(reader, &mut ring).with_context(|| {
        let (wlog, ldev) = (args.input.path(), args.ldev.display());
        format!("cannot restore {wlog} to {ldev}, whose ring may be partly overwritten now")
    })?;
    let (padding_packs, end) = (ring.padded, ring.next);
    take_over(&mut device, &header, begin, end)?;
    let done = Restored { packs, padding_packs, begin_lsid: begin.0, end_lsid: end.0 };
    print_result(args.json, &done, |out| {
        writeln!(out, "{packs} packs, {padding_packs} of padding, lsid {begin} to {end}")
    })
}

/// Counts the packs of the wlog.
fn restore_all<R: Read>(
    mut reader: WlogReader<R>,
    ring: &mut RingWriter<'_>,
) -> anyhow::Result<u64> {
    let mut packs = 0;
    loop {
        while let Some(pack) = reader.next_pack()? {
            if pack.header.salt() != ring.salt {
                bail!("the wlogs in a row differ in salt: restore them one by one");
            }
            ring.restore(&pack)?;
            packs += 1;
        }
        if !reader.next_wlog()? {
            return Ok(packs);
        }
        check_block_size(ring.device, reader.header().block_size)?;
    }
}

fn check_block_size(device: &LogDevice, wlog: BlockSize) -> anyhow::Result<()> {
    let own = device.super_block().block_size;
    if own != wlog {
        bail!(
            "log device {} has blocks of {} bytes, the wlog of {}: format it with --block-size {}",
            device.path(),
            own.bytes(),
            wlog.bytes(),
            wlog.bytes()
        );
    }
    Ok(())
}

/// Makes the restored log the log of this device.
fn take_over(
    device: &mut LogDevice,
    header: &WlogHeader,
    begin: Lsid,
    end: Lsid,
) -> anyhow::Result<()> {
    let mut super_block = device.super_block().clone();
    super_block.salt = header.salt;
    super_block.uuid = header.uuid;
    super_block.oldest = begin;
    super_block.written = begin;
    device.store_super(super_block)?;
    // An earlier restore of the same log may have left packs that would continue this one.
    let zeros = vec![0; header.block_size.as_usize()];
    for lsid in device.stale_headers(end, stale_span(device.ring(), begin, end))? {
        device.write(lsid, &zeros)?;
    }
    device.sync()
}

struct RingWriter<'a> {
    device: &'a LogDevice,
    salt: Salt,
    begin: Lsid,
    next: Lsid,
    padded: u64,
}

impl RingWriter<'_> {
    fn restore(&mut self, pack: &Pack) -> anyhow::Result<()> {
        let size = Pb(1) + pack.header.total_io();
        if size > self.device.ring().size() {
            bail!("a pack of {size} blocks does not fit the ring: use a larger log device");
        }
        while self.device.ring().contiguous(self.next) < size {
            self.fill_up()?;
        }
        let header = pack.header.moved_to(self.next).context("the lsids end here")?;
        self.place(&header)?;
        let mut at = header.lsid() + Pb(1);
        for (record, blocks) in header.records().iter().zip(&pack.blocks) {
            self.device.write(at, blocks)?;
            at = at + record.log_blocks(header.block_size());
        }
        Ok(())
    }

    /// One pack of nothing but padding, as long as the ring end and the record allow.
    fn fill_up(&mut self) -> anyhow::Result<()> {
        let ring = *self.device.ring();
        let room = Pb(ring.contiguous(self.next).0 - 1);
        let size = room.min(PackBuilder::max_padding(ring.block_size()));
        let mut builder = PackBuilder::new(self.next, ring, self.salt, room);
        let _ = builder.try_add_padding(size);
        let header = builder.finish().context("a padding pack cannot be made")?;
        self.padded += 1;
        self.place(&header)
    }

    /// Writes a header, if its pack does not overwrite the begin of the log.
    fn place(&mut self, header: &PackHeader) -> anyhow::Result<()> {
        let end = header.next_lsid();
        let ring = self.device.ring().size();
        if end.distance_from(self.begin) > ring {
            bail!("the log is longer than the ring of {ring} blocks: use a larger log device");
        }
        self.device.write(self.next, &header.encode())?;
        self.next = end;
        Ok(())
    }
}
