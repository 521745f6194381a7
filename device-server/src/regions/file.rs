//! The map as a file, little endian:
//!
//! ```text
//!  offset size
//!       0    8  "WALBREGN"
//!       8    4  version, 1
//!      12    4  n: length of the name of the volume in bytes
//!      16    8  size of the volume in logical blocks
//!      24    8  covered: every write before this position is in the map
//!      32    8  floor: what was written before this position is not known
//!      40    4  e: logs, 1 to 16
//!      44    4  r: regions; their size follows from the size of the volume
//!      48    n  name of the volume
//!            24e uuid of a log (16), position of its lsid 0 (8); oldest first, last the present
//!             8r position behind the last write to each region, 0 for never
//!              4 CRC32 of all before
//! ```
//!
//! Invariant: what [`decode`] gives is what [`encode`] was given; anything else is an error.

use wlog_format::units::{Lb, LogUuid};

use super::history::{Epoch, History, MAX_EPOCHS};
use super::map::RegionMap;
use super::{Position, Regions};

const MAGIC: &[u8; 8] = b"WALBREGN";
const VERSION: u32 = 1;

/// What a file says.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) map: RegionMap,
    pub(super) history: History,
    pub(super) covered: Position,
}

pub(super) fn encode(name: &str, regions: &Regions, covered: Position) -> Vec<u8> {
    let Regions { map, history } = regions;
    let marks = map.marks();
    let mut bytes = Vec::with_capacity(512 + name.len() + marks.len() * 8);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&count(name.len()));
    for number in [map.size().0, covered.0, history.floor().0] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&count(history.epochs().count()));
    bytes.extend_from_slice(&count(marks.len()));
    bytes.extend_from_slice(name.as_bytes());
    for epoch in history.epochs() {
        bytes.extend_from_slice(&epoch.uuid.0);
        bytes.extend_from_slice(&epoch.base.0.to_le_bytes());
    }
    for mark in marks {
        bytes.extend_from_slice(&mark.to_le_bytes());
    }
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// Reads a file of the volume `name`.
///
/// # Errors
/// What is wrong with it.
pub(super) fn decode(name: &str, bytes: &[u8]) -> Result<Stored, String> {
    let short = || "it is cut short".to_owned();
    let (body, sum) = bytes.split_last_chunk::<4>().ok_or_else(short)?;
    let mut input = Input(body);
    if input.bytes(8) != Some(MAGIC) {
        return Err("it is no map of written regions".to_owned());
    }
    let version = input.u32().ok_or_else(short)?;
    if version != VERSION {
        return Err(format!("it has version {version}, this program knows {VERSION}"));
    }
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return Err("its checksum is wrong".to_owned());
    }
    let (owner, stored) = input.rest().ok_or_else(|| "its content makes no sense".to_owned())?;
    if owner != name.as_bytes() {
        return Err(format!("it is that of volume {}", String::from_utf8_lossy(owner)));
    }
    Ok(stored)
}

/// What was not read yet.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    fn count(&mut self) -> Option<usize> {
        usize::try_from(self.u32()?).ok()
    }

    /// Everything after magic and version: the name of the volume, and the rest.
    fn rest(&mut self) -> Option<(&'a [u8], Stored)> {
        let name_len = self.count()?;
        let size = Lb(self.u64()?);
        let covered = Position(self.u64()?);
        let floor = Position(self.u64()?);
        let (epochs, regions) = (self.count()?, self.count()?);
        let name = self.bytes(name_len)?;
        if epochs > MAX_EPOCHS || self.0.len() != epochs * 24 + regions.checked_mul(8)? {
            return None;
        }
        let epochs = (0..epochs).map(|_| {
            let uuid = LogUuid::from_slice(self.bytes(16)?)?;
            Some(Epoch { uuid, base: Position(self.u64()?) })
        });
        let history = History::stored(epochs.collect::<Option<_>>()?, floor)?;
        let marks: Vec<u64> = (0..regions).map(|_| self.u64()).collect::<Option<_>>()?;
        let map = RegionMap::from_marks(size, &marks)?;
        Some((name, Stored { map, history, covered }))
    }
}
