//! Where the data lies that a limit works on: the writes of a log, what is visible of wdiffs.

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::path::{Path, PathBuf};

use wdiff_format::locate::{Location, StoredImage, locate};
use wdiff_format::merge::Pieces;
use wdiff_format::record::RecordKind;
use wlog_format::pack;
use wlog_format::stream::{HEADER_BYTES, WlogReader};
use wlog_format::units::{Lb, Salt, to_usize};

use super::limits::Placed;

/// A part of some data, and where it belongs.
pub(super) struct Cut {
    pub(super) address: Lb,
    skip: u32,
    blocks: u32,
}

impl Cut {
    /// Where it is in the uncompressed data.
    pub(super) fn bytes(&self) -> Range<usize> {
        let at = |blocks: u32| to_usize(Lb(blocks.into()).bytes());
        at(self.skip)..at(self.skip + self.blocks)
    }
}

/// The data of an I/O, of which something is visible.
pub(super) struct Visible {
    pub(super) image: StoredImage,
    pub(super) cuts: Vec<Cut>,
}

impl Visible {
    /// Is all of it one record?
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.cuts.as_slice(), [cut] if cut.blocks == self.image.blocks)
    }
}

/// The writes of a log with their checksums, and the salt of those.
pub(super) fn log_writes(log: &Path) -> anyhow::Result<(Salt, Vec<Placed<u32>>)> {
    let mut reader = WlogReader::new(BufReader::new(File::open(log)?))?;
    let (block_size, salt) = (reader.header().block_size, reader.header().salt);
    let (mut writes, mut at) = (Vec::new(), HEADER_BYTES as u64);
    while let Some(pack) = reader.next_pack()? {
        at += block_size.as_usize() as u64;
        for record in pack.header.records() {
            if record.kind == pack::RecordKind::Normal {
                let bytes = at..at + record.len().bytes();
                writes.push(Placed { file: 0, bytes, what: record.checksum });
            }
            at += block_size.bytes_of(record.log_blocks(block_size));
        }
    }
    Ok((salt, writes))
}

/// What is visible of wdiffs, oldest first, in the order in which it lies in them.
pub(super) fn visible(wdiffs: &[PathBuf], pieces: Pieces) -> anyhow::Result<Vec<Placed<Visible>>> {
    let mut hidden = Vec::new();
    let mut found = Vec::new();
    for (file, wdiff) in wdiffs.iter().enumerate().rev() {
        let records = locate(File::open(wdiff)?, wdiff.display().to_string())?;
        let mut cuts = Vec::new();
        for record in records {
            let record = record?;
            let shown = shown(&record, &mut hidden);
            if record.kind == RecordKind::Normal {
                cuts.extend(shown.into_iter().map(|cut| (record.image, cut)));
            }
        }
        cuts.sort_by_key(|(image, cut)| (image.offset, cut.address));
        found.extend(images(file, cuts, pieces));
    }
    Ok(found)
}

/// What of a record none of the later ones hides, which are `hidden` together, block by block.
fn shown(record: &Location, hidden: &mut Vec<bool>) -> Vec<Cut> {
    let (start, end) = (to_usize(record.address.0), to_usize(record.end().0));
    if hidden.len() < end {
        hidden.resize(end, false);
    }
    let blocks = hidden.get_mut(start..end).unwrap_or_default();
    let (mut shown, mut before) = (Vec::new(), 0);
    for run in blocks.chunk_by(|a, b| a == b) {
        let blocks = u32::try_from(run.len()).unwrap_or(u32::MAX);
        if run.first() == Some(&false) {
            let address = record.address + Lb(before.into());
            shown.push(Cut { address, skip: record.skip + before, blocks });
        }
        before += blocks;
    }
    blocks.fill(true);
    shown
}

/// The images of a file with their cuts, both ascending; `pieces` is what becomes of cuts that
/// follow each other.
fn images(file: usize, cuts: Vec<(StoredImage, Cut)>, pieces: Pieces) -> Vec<Placed<Visible>> {
    let mut images: Vec<Placed<Visible>> = Vec::new();
    for (image, cut) in cuts {
        match images.last_mut().filter(|last| last.what.image == image) {
            None => {
                let bytes = image.offset..image.offset + u64::from(image.size);
                images.push(Placed { file, bytes, what: Visible { image, cuts: vec![cut] } });
            }
            Some(Placed { what: Visible { cuts, .. }, .. }) => {
                let continues = |last: &&mut Cut| {
                    pieces == Pieces::Joined
                        && last.skip + last.blocks == cut.skip
                        && last.address + Lb(last.blocks.into()) == cut.address
                };
                match cuts.last_mut().filter(continues) {
                    Some(last) => last.blocks += cut.blocks,
                    None => cuts.push(cut),
                }
            }
        }
    }
    images
}
