//! What a diff holds, in numbers.

use crate::compression::CompressionKind;
use crate::record::{DiffRecord, RecordKind};

/// Counts over the records of a diff.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiffStat {
    /// Records.
    pub records: u64,
    /// Records with data, and their logical blocks.
    pub normal: (u64, u64),
    /// Records of zeros, and their logical blocks.
    pub all_zero: (u64, u64),
    /// Discards, and their logical blocks.
    pub discard: (u64, u64),
    /// First block of the first record; `None` for an empty diff.
    pub min_address: Option<u64>,
    /// The block after the last record.
    pub max_end_address: u64,
    /// Logical blocks of the longest record.
    pub max_io_blocks: u32,
    /// Bytes of stored data, where each record has its own: in sorted files.
    pub stored_bytes: u64,
    /// Records with data by how it is stored, in the order of the codes.
    pub compression: [u64; CompressionKind::ALL.len()],
}

impl DiffStat {
    /// Counts one record.
    pub fn add(&mut self, record: &DiffRecord) {
        self.records += 1;
        let (count, blocks) = match record.kind() {
            RecordKind::Normal => &mut self.normal,
            RecordKind::AllZero => &mut self.all_zero,
            RecordKind::Discard => &mut self.discard,
        };
        *count += 1;
        *blocks += u64::from(record.blocks);
        self.min_address.get_or_insert(record.address.0);
        self.max_end_address = self.max_end_address.max(record.end().0);
        self.max_io_blocks = self.max_io_blocks.max(record.blocks);
        self.stored_bytes += record.stored().map_or(0, |stored| stored.bytes.len() as u64);
        if let Some(kind) = record.stored_kind()
            && let Some(count) = self.compression.get_mut(usize::from(kind.code()))
        {
            *count += 1;
        }
    }
}
