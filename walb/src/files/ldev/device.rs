//! An open log device: its super sector, its ring, and the packs in it.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use wlog_format::pack::is_header_at;
use wlog_format::redo::{Step, step};
use wlog_format::ring::{Ring, Segment};
use wlog_format::stream::{PackDecoder, WlogHeader};
use wlog_format::superblock::{SUPER_OFFSET_BYTES, SuperBlock};
use wlog_format::units::{Lsid, Pb, to_usize};

/// How much of the ring is read at once.
const CHUNK_BYTES: u64 = 1 << 20;

/// An open log device.
#[derive(Debug)]
pub(super) struct LogDevice {
    path: PathBuf,
    file: File,
    super_block: SuperBlock,
    ring: Ring,
}

impl LogDevice {
    /// Opens it to read, and reads its super sector.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        Self::open_as(path, File::options().read(true))
    }

    /// Opens it to read and write.
    pub(super) fn open_to_write(path: &Path) -> anyhow::Result<Self> {
        Self::open_as(path, File::options().read(true).write(true))
    }

    fn open_as(path: &Path, options: &std::fs::OpenOptions) -> anyhow::Result<Self> {
        let file = options.open(path);
        let mut file =
            file.with_context(|| format!("cannot open log device {}", path.display()))?;
        let (super_block, ring) = read_super(&mut file)
            .with_context(|| format!("cannot use log device {}", path.display()))?;
        Ok(Self { path: path.to_path_buf(), file, super_block, ring })
    }

    pub(super) const fn super_block(&self) -> &SuperBlock {
        &self.super_block
    }

    pub(super) const fn ring(&self) -> &Ring {
        &self.ring
    }

    pub(super) fn path(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// The header of a wlog that is cut from here.
    pub(super) fn wlog_header(&self, begin: Lsid, end: Lsid) -> WlogHeader {
        let SuperBlock { block_size, salt, uuid, .. } = self.super_block;
        WlogHeader { block_size, salt, uuid, begin, end }
    }

    /// The packs from `begin` on.
    pub(super) fn packs(&self, begin: Lsid) -> PackReader<'_> {
        let SuperBlock { block_size, salt, .. } = self.super_block;
        let decoder = PackDecoder::new(block_size, salt, begin);
        PackReader { device: self, decoder, read_to: begin }
    }

    /// Blocks that lie in one piece.
    fn read(&self, segment: Segment) -> anyhow::Result<Vec<u8>> {
        let len = to_usize(self.ring.block_size().bytes_of(segment.blocks));
        let mut bytes = vec![0; len];
        self.file
            .read_exact_at(&mut bytes, segment.byte_offset)
            .with_context(|| self.failed("read", segment.byte_offset))?;
        Ok(bytes)
    }

    /// Writes log blocks, cut where the ring wraps.
    pub(super) fn write(&self, lsid: Lsid, mut blocks: &[u8]) -> anyhow::Result<()> {
        let count = Pb(blocks.len() as u64 / u64::from(self.ring.block_size().bytes()));
        for segment in self.ring.segments(lsid, count) {
            let len = to_usize(self.ring.block_size().bytes_of(segment.blocks));
            let (part, rest) = blocks.split_at_checked(len).unwrap_or((blocks, &[]));
            self.file
                .write_all_at(part, segment.byte_offset)
                .with_context(|| self.failed("write", segment.byte_offset))?;
            blocks = rest;
        }
        Ok(())
    }

    /// Replaces the super sector, durably, after all else is durable.
    pub(super) fn store_super(&mut self, super_block: SuperBlock) -> anyhow::Result<()> {
        let failed = || self.failed("write", SUPER_OFFSET_BYTES);
        self.file.sync_data().with_context(failed)?;
        self.file.write_all_at(&super_block.encode(), SUPER_OFFSET_BYTES).with_context(failed)?;
        self.file.sync_data().with_context(failed)?;
        self.super_block = super_block;
        Ok(())
    }

    /// Makes all writes durable.
    pub(super) fn sync(&self) -> anyhow::Result<()> {
        self.file.sync_data().with_context(|| format!("cannot make {} durable", self.path()))
    }

    /// Blocks in `span` from `end` on that could be taken for headers of a log of this salt.
    pub(super) fn stale_headers(&self, end: Lsid, span: Pb) -> anyhow::Result<Vec<Lsid>> {
        let block_size = self.ring.block_size();
        let span = span.min(Lsid::MAX.distance_from(end));
        let mut found = Vec::new();
        for segment in self.ring.segments(end, span) {
            let chunk = Pb(CHUNK_BYTES / u64::from(block_size.bytes()));
            for at in (0..segment.blocks.0).step_by(to_usize(chunk.0)) {
                let blocks = chunk.min(Pb(segment.blocks.0 - at));
                let byte_offset = segment.byte_offset + block_size.bytes_of(Pb(at));
                let lsid = segment.lsid + Pb(at);
                let bytes = self.read(Segment { byte_offset, lsid, blocks })?;
                for (n, block) in (0..).zip(bytes.chunks_exact(block_size.as_usize())) {
                    if is_header_at(block, block_size, self.super_block.salt, lsid + Pb(n)) {
                        found.push(lsid + Pb(n));
                    }
                }
            }
        }
        Ok(found)
    }

    fn failed(&self, what: &str, at: u64) -> String {
        format!("cannot {what} log device {} at byte {at}", self.path())
    }
}

fn read_super(file: &mut File) -> anyhow::Result<(SuperBlock, Ring)> {
    let size = file.seek(SeekFrom::End(0))?;
    let mut bytes = [0; 4096];
    read_or_zeros(file, &mut bytes, SUPER_OFFSET_BYTES)?;
    let super_block = SuperBlock::decode(&bytes)?;
    let ring = super_block.ring(size)?;
    Ok((super_block, ring))
}

/// Like `read_exact_at`, but what lies beyond the end reads as zeros.
fn read_or_zeros(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
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

/// Reads the log pack by pack. Holds one pack and one chunk in memory.
#[derive(Debug)]
pub(super) struct PackReader<'a> {
    device: &'a LogDevice,
    decoder: PackDecoder,
    read_to: Lsid,
}

impl PackReader<'_> {
    /// The next step of a redo. After one that is not `Whole` nothing follows.
    pub(super) fn next(&mut self) -> anyhow::Result<Step> {
        loop {
            if let Some(step) = step(&mut self.decoder) {
                return Ok(step);
            }
            self.fill()?;
        }
    }

    /// The blocks that come next: what the decoder waits for, in one piece if possible.
    fn fill(&mut self) -> anyhow::Result<()> {
        let ring = self.device.ring();
        let wanted = (self.decoder.missing_bytes() as u64).max(CHUNK_BYTES);
        let blocks = Pb(wanted.div_ceil(u64::from(ring.block_size().bytes())));
        let segment = ring.segments(self.read_to, blocks).next();
        let next = segment.and_then(|s| Some((s, s.lsid.checked_add(s.blocks)?)));
        let (segment, read_to) = next.context("the log has used up all lsids")?;
        let bytes = self.device.read(segment)?;
        self.decoder.push(bytes.into());
        self.read_to = read_to;
        Ok(())
    }
}
