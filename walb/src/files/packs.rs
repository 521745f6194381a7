//! Log packs as text and JSON, and what they add up to: shared by `wlog` and `ldev`.
//!
//! The text has the lines of the original's `wlog-show`, for the scripts that read them. The keys
//! of the JSON are a contract: they are only added to.

use std::io::{self, Write};

use serde::Serialize;
use wlog_format::pack::{PackHeader, Record, RecordKind};
use wlog_format::stream::{Pack, WlogHeader};
use wlog_format::units::Lsid;

/// The header of a wlog, or of what would be one if it were cut from a log device.
#[derive(Debug, Serialize)]
pub(crate) struct HeaderView {
    version: u16,
    pbs: u32,
    salt: u32,
    uuid: String,
    begin_lsid: u64,
    end_lsid: u64,
}

impl From<&WlogHeader> for HeaderView {
    fn from(header: &WlogHeader) -> Self {
        Self {
            version: 2,
            pbs: header.block_size.bytes(),
            salt: header.salt.0,
            uuid: header.uuid.to_string(),
            begin_lsid: header.begin.0,
            end_lsid: header.end.0,
        }
    }
}

/// The line of a wlog header.
pub(crate) fn write_header(out: &mut dyn Write, header: &WlogHeader) -> io::Result<()> {
    let (pbs, salt, uuid) = (header.block_size.bytes(), header.salt.0, header.uuid);
    let (begin, end) = (header.begin, header.end);
    writeln!(out, "wlog_h: ver {:3} pbs {pbs:4} salt {salt:08x} uuid {uuid} lsid {begin} {end}", 2)
}

#[derive(Debug, Serialize)]
struct RecordView {
    kind: &'static str,
    address: u64,
    blocks: u32,
    lsid: u64,
    checksum: u32,
}

impl From<&Record> for RecordView {
    fn from(record: &Record) -> Self {
        Self {
            kind: match record.kind {
                RecordKind::Normal => "normal",
                RecordKind::Padding => "padding",
                RecordKind::Discard => "discard",
            },
            address: record.address.0,
            blocks: record.blocks,
            lsid: record.lsid.0,
            checksum: record.checksum,
        }
    }
}

/// A pack with its records.
#[derive(Debug, Serialize)]
pub(crate) struct PackView {
    lsid: u64,
    total_io_pb: u64,
    checksum: u32,
    records: Vec<RecordView>,
}

impl From<&PackHeader> for PackView {
    fn from(header: &PackHeader) -> Self {
        Self {
            lsid: header.lsid().0,
            total_io_pb: header.total_io().0,
            checksum: stored_checksum(header),
            records: header.records().iter().map(RecordView::from).collect(),
        }
    }
}

/// The first field of the header block.
fn stored_checksum(header: &PackHeader) -> u32 {
    header.encode().first_chunk().map_or(0, |field| u32::from_le_bytes(*field))
}

/// The lines of a pack and its records.
pub(crate) fn write_pack(out: &mut dyn Write, header: &PackHeader) -> io::Result<()> {
    let records = header.records();
    let paddings = records.iter().filter(|r| r.kind == RecordKind::Padding).count();
    writeln!(
        out,
        "wlog_p: lsid {:10} total {:4} n_rec {:2} n_pad {paddings:2} csum {:08x}",
        header.lsid().0,
        header.total_io().0,
        records.len(),
        stored_checksum(header)
    )?;
    records.iter().try_for_each(|record| write_record(out, header.lsid(), record))
}

fn write_record(out: &mut dyn Write, pack: Lsid, record: &Record) -> io::Result<()> {
    let flags = match record.kind {
        RecordKind::Normal => "E--",
        RecordKind::Padding => "EP-",
        RecordKind::Discard => "E-D",
    };
    writeln!(
        out,
        "wlog_r: lsid {:10} {:4} io {:10} {:4} flags {flags} csum {:08x}",
        record.lsid.0,
        record.lsid.distance_from(pack).0,
        record.address.0,
        record.blocks,
        record.checksum
    )
}

/// What a run of packs adds up to.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Stat {
    pub(crate) packs: u64,
    pub(crate) records: u64,
    pub(crate) normal: u64,
    pub(crate) allzero: u64,
    pub(crate) discard: u64,
    pub(crate) padding: u64,
    pub(crate) normal_lb: u64,
    pub(crate) allzero_lb: u64,
    pub(crate) discard_lb: u64,
    pub(crate) padding_pb: u64,
    pub(crate) min_address: Option<u64>,
    pub(crate) max_end_address: u64,
    pub(crate) begin_lsid: u64,
    pub(crate) end_lsid: u64,
}

impl Stat {
    /// Nothing yet, from `begin` on.
    pub(crate) fn new(begin: Lsid) -> Self {
        Self { begin_lsid: begin.0, end_lsid: begin.0, ..Self::default() }
    }

    /// Counts one more pack.
    pub(crate) fn add(&mut self, pack: &Pack) {
        self.packs += 1;
        self.end_lsid = pack.header.next_lsid().0;
        for (record, blocks) in pack.header.records().iter().zip(&pack.blocks) {
            let payload = blocks.get(..record.payload_bytes()).unwrap_or_default();
            self.add_record(record, payload, pack.header.block_size().pb(record.len()).0);
        }
    }

    fn add_record(&mut self, record: &Record, payload: &[u8], size_pb: u64) {
        self.records += 1;
        let size_lb = record.len().0;
        let (count, size) = match record.kind {
            RecordKind::Padding => {
                self.padding += 1;
                self.padding_pb += size_pb;
                return;
            }
            RecordKind::Discard => (&mut self.discard, &mut self.discard_lb),
            RecordKind::Normal if is_zero(payload) => (&mut self.allzero, &mut self.allzero_lb),
            RecordKind::Normal => (&mut self.normal, &mut self.normal_lb),
        };
        *count += 1;
        *size += size_lb;
        let address = record.address.0;
        self.min_address = Some(self.min_address.map_or(address, |min| min.min(address)));
        self.max_end_address = self.max_end_address.max(record.end().0);
    }

    /// The lines at the end of `wlog-show`.
    pub(crate) fn write(&self, out: &mut dyn Write, declared_end: Lsid) -> io::Result<()> {
        writeln!(out, "bgnLsid {}", self.begin_lsid)?;
        writeln!(out, "endLsid {declared_end}")?;
        writeln!(out, "reallyEndLsid {}", self.end_lsid)?;
        writeln!(out, "nrPacks {}", self.packs)?;
        writeln!(out, "normalLb {}", self.normal_lb + self.allzero_lb)?;
        writeln!(out, "discardLb {}", self.discard_lb)?;
        writeln!(out, "paddingPb {}", self.padding_pb)
    }
}

/// Nothing but zeros?
pub(crate) fn is_zero(data: &[u8]) -> bool {
    // Chunks, so that the compiler compares vectors and still stops early.
    data.chunks(256).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Writes `{"wlogs": [{"header", "packs": [...], "stat"}, ...], "error"}` piece by piece.
#[derive(Debug)]
pub(crate) struct ListWriter<W> {
    out: W,
    json: bool,
    headers: u64,
    packs: u64,
}

impl<W: Write> ListWriter<W> {
    /// Starts the listing, as JSON or as text.
    pub(crate) fn new(mut out: W, json: bool) -> io::Result<Self> {
        if json {
            write!(out, "{{\"wlogs\":[")?;
        }
        Ok(Self { out, json, headers: 0, packs: 0 })
    }

    /// Starts a wlog.
    pub(crate) fn header(&mut self, header: &WlogHeader) -> io::Result<()> {
        self.packs = 0;
        self.headers += 1;
        if !self.json {
            return write_header(&mut self.out, header);
        }
        let comma = if self.headers > 1 { "," } else { "" };
        write!(self.out, "{comma}\n{{\"header\":")?;
        serde_json::to_writer(&mut self.out, &HeaderView::from(header))?;
        write!(self.out, ",\n\"packs\":[")
    }

    /// The next pack of that wlog.
    pub(crate) fn pack(&mut self, header: &PackHeader) -> io::Result<()> {
        self.packs += 1;
        if !self.json {
            return write_pack(&mut self.out, header);
        }
        let comma = if self.packs > 1 { "," } else { "" };
        writeln!(self.out, "{comma}")?;
        Ok(serde_json::to_writer(&mut self.out, &PackView::from(header))?)
    }

    /// Ends that wlog.
    pub(crate) fn stat(&mut self, stat: &Stat, declared_end: Lsid) -> io::Result<()> {
        if !self.json {
            return stat.write(&mut self.out, declared_end);
        }
        write!(self.out, "],\n\"stat\":")?;
        serde_json::to_writer(&mut self.out, stat)?;
        write!(self.out, "}}")
    }

    /// Ends the listing; `error` is what stopped it early.
    pub(crate) fn finish(mut self, error: Option<&str>) -> io::Result<()> {
        if self.json {
            write!(self.out, "],\n\"error\":")?;
            serde_json::to_writer(&mut self.out, &error)?;
            writeln!(self.out, "}}")?;
        }
        self.out.flush()
    }
}
