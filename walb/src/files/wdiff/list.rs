//! A wdiff as text and JSON.
//!
//! The text has the lines of the original's `wdiff-show`, for the scripts that read them. The keys
//! of the JSON are a contract: they are only added to.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use wdiff_format::compression::CompressionKind;
use wdiff_format::header::{FileHeader, FileType};
use wdiff_format::open::WdiffReader;
use wdiff_format::record::{DiffRecord, Entry, RecordKind};
use wdiff_format::stat::DiffStat;

/// The file header.
#[derive(Debug, Serialize)]
pub(super) struct HeaderView {
    version: u16,
    r#type: String,
    uuid: String,
    checksum: u32,
}

impl From<FileHeader> for HeaderView {
    fn from(header: FileHeader) -> Self {
        Self {
            version: 2,
            r#type: header.file_type.to_string(),
            uuid: header.uuid.to_string(),
            checksum: header.encode().first_chunk().map_or(0, |sum| u32::from_le_bytes(*sum)),
        }
    }
}

impl HeaderView {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "wdiff_h:\n  checksum: {:08x}\n  version: {}", self.checksum, self.version)?;
        writeln!(out, "  type: {}\n  uuid: {}", self.r#type, self.uuid)
    }
}

#[derive(Debug, Serialize)]
struct RecordView {
    address: u64,
    blocks: u32,
    kind: &'static str,
    compression: &'static str,
    data_offset: u64,
    data_size: u32,
    checksum: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    orig_blocks: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    io_offset: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rec_checksum: Option<u32>,
}

impl RecordView {
    fn new(record: &DiffRecord, entry: &Entry) -> Self {
        Self {
            address: record.address.0,
            blocks: record.blocks,
            kind: match record.kind() {
                RecordKind::Normal => "normal",
                RecordKind::AllZero => "allzero",
                RecordKind::Discard => "discard",
            },
            compression: entry.compression.name(),
            data_offset: entry.data_offset,
            data_size: entry.data_size,
            checksum: entry.checksum,
            orig_blocks: entry.piece.map(|piece| piece.orig_blocks),
            io_offset: entry.piece.map(|piece| piece.io_offset),
            rec_checksum: entry.piece.map(|piece| piece.rec_checksum),
        }
    }
}

fn write_record(out: &mut dyn Write, record: &DiffRecord, entry: &Entry) -> io::Result<()> {
    let (address, blocks) = (record.address, record.blocks);
    let Entry { compression, data_size, data_offset, checksum, piece } = entry;
    let flags = match record.kind() {
        RecordKind::Normal => "--",
        RecordKind::AllZero => "Z-",
        RecordKind::Discard => "-D",
    };
    let name = if piece.is_some() { "indexed" } else { "sorted" };
    write!(
        out,
        "wdiff_{name}_rec:\t{address}\t{blocks}\t{compression}\t{data_offset}\t{data_size}"
    )?;
    match piece {
        None => writeln!(out, "\t{checksum:08x}\t{flags}"),
        Some(piece) => {
            let (orig, offset, sum) = (piece.orig_blocks, piece.io_offset, piece.rec_checksum);
            writeln!(out, "\t{orig}\t{offset}\t{checksum:08x}\t{sum:08x}\t{flags}")
        }
    }
}

/// What the records add up to.
#[derive(Debug, Serialize)]
pub(super) struct StatView {
    records: u64,
    normal: u64,
    normal_lb: u64,
    allzero: u64,
    allzero_lb: u64,
    discard: u64,
    discard_lb: u64,
    min_address: Option<u64>,
    max_end_address: u64,
    max_io_lb: u32,
    compression: BTreeMap<&'static str, u64>,
    /// Bytes of stored data, in an indexed file with what is no longer referred to.
    data_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    packs: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_data: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index_offset: Option<u64>,
}

impl StatView {
    pub(super) fn new(stat: &DiffStat, reader: &WdiffReader) -> Self {
        let kinds = CompressionKind::ALL.iter().map(|kind| kind.name()).zip(stat.compression);
        let (packs, index) = match reader {
            WdiffReader::Sorted(reader) => (Some(reader.packs()), None),
            WdiffReader::Indexed(reader) => (None, Some(reader.index())),
        };
        let header_bytes = FileHeader::BYTES as u64;
        Self {
            records: stat.records,
            normal: stat.normal.0,
            normal_lb: stat.normal.1,
            allzero: stat.all_zero.0,
            allzero_lb: stat.all_zero.1,
            discard: stat.discard.0,
            discard_lb: stat.discard.1,
            min_address: stat.min_address,
            max_end_address: stat.max_end_address,
            max_io_lb: stat.max_io_blocks,
            compression: kinds.filter(|(_, count)| *count > 0).collect(),
            data_size: index.map_or(stat.stored_bytes, |i| i.index_offset - header_bytes),
            packs,
            n_data: index.map(|i| i.n_data),
            index_offset: index.map(|i| i.index_offset),
        }
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let indexed = u8::from(self.index_offset.is_some());
        writeln!(out, "wdiff_stat: wdiffNr {indexed}")?;
        writeln!(out, "wdiff_stat: normalNr {}", self.normal)?;
        writeln!(out, "wdiff_stat: allZeroNr {}", self.allzero)?;
        writeln!(out, "wdiff_stat: discardNr {}", self.discard)?;
        writeln!(out, "wdiff_stat: normalLb {}", self.normal_lb)?;
        writeln!(out, "wdiff_stat: allZeroLb {}", self.allzero_lb)?;
        writeln!(out, "wdiff_stat: discardLb {}", self.discard_lb)?;
        writeln!(out, "wdiff_stat: dataSize {}", self.data_size)
    }

    pub(super) const fn records(&self) -> u64 {
        self.records
    }
}

/// Writes `{"header", "records": [...], "stat", "error"}`, or the text, piece by piece.
pub(super) struct ListWriter<W> {
    out: W,
    json: bool,
    records: u64,
}

impl<W: Write> ListWriter<W> {
    pub(super) fn new(mut out: W, json: bool, header: FileHeader) -> io::Result<Self> {
        let view = HeaderView::from(header);
        if json {
            write!(out, "{{\"header\":")?;
            serde_json::to_writer(&mut out, &view)?;
            write!(out, ",\n\"records\":[")?;
        } else {
            view.write(&mut out)?;
        }
        Ok(Self { out, json, records: 0 })
    }

    pub(super) fn record(&mut self, record: &DiffRecord, entry: &Entry) -> io::Result<()> {
        if !self.json {
            return write_record(&mut self.out, record, entry);
        }
        let comma = if self.records > 0 { "," } else { "" };
        self.records += 1;
        writeln!(self.out, "{comma}")?;
        Ok(serde_json::to_writer(&mut self.out, &RecordView::new(record, entry))?)
    }

    /// Ends the list; `error` is what stopped it early.
    pub(super) fn finish(mut self, stat: &StatView, error: Option<&str>) -> io::Result<()> {
        if self.json {
            write!(self.out, "],\n\"stat\":")?;
            serde_json::to_writer(&mut self.out, stat)?;
            write!(self.out, ",\n\"error\":")?;
            serde_json::to_writer(&mut self.out, &error)?;
            writeln!(self.out, "}}")?;
        } else {
            stat.write(&mut self.out)?;
        }
        self.out.flush()
    }
}

/// "sorted wdiff" or "indexed wdiff".
pub(super) const fn kind_name(header: FileHeader) -> &'static str {
    match header.file_type {
        FileType::Sorted => "sorted wdiff",
        FileType::Indexed => "indexed wdiff",
    }
}
