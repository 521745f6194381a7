//! Redo: after a stop of whatever kind, brings the data device up to the end of the log, and makes
//! sure that the log ends there.
//!
//! ```text
//!             written_lsid                    end
//!   ring:  ........|pack|pack|pack|pack|pack~torn|....|stale pack|......
//!                   \__ applied to the data __/ cut    \ made unreadable
//! ```
//!
//! Packs are applied from `written_lsid` on, until the first that is not sound; of a torn pack, the
//! records before the damage stay (`formats.md` §4.6). All of it can be repeated: nothing but the
//! super block says that it was done, and that is written last.
//!
//! **Stale packs.** Several log writes are in flight at once, so after a power cut a pack *behind*
//! the torn one may be whole. It must never be replayed: if later packs happened to end exactly at
//! its lsid, and the next crash came then, redo would take it for their continuation. So its header
//! is overwritten before the first new pack is accepted. Where can such headers be? A pack that
//! redo could take must lie at its own lsid, between `end` and the largest `latest` before the
//! crash. Everything permanent is sound, so `end >= permanent`; and no pack was ever admitted more
//! than `MAX_UNFLUSHED_BYTES` behind `permanent`. So a window of fixed size is enough. Live logs of
//! the lap before are safe: their headers carry other lsids.

use std::io;
use std::sync::Arc;

use block_io::buffer::AlignedBuf;
use block_io::device::BlockDevice;
use wlog_format::pack::{PackHeader, RecordKind, encode_terminator, is_header_at};
use wlog_format::redo::{Step, step};
use wlog_format::ring::Ring;
use wlog_format::stream::{Pack, PackDecoder};
use wlog_format::superblock::{SUPER_OFFSET_BYTES, SuperBlock};
use wlog_format::units::{BlockSize, Lsid, Pb, Salt};

use crate::checkpoint::write_super;
use crate::data_writer::{Collected, apply};
use crate::error::OpenError;
use crate::log_reader::LogReader;
use crate::options::STALE_WINDOW_BYTES;
use crate::overlay::Payload;
use crate::regions::{RegionKeeper, Regions};

/// How far behind the end stale packs are looked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StaleSearch {
    /// As far as this program, or the original driver with its default limits, may have left some.
    #[default]
    Window,
    /// All of the ring that holds no live log: for a log of unknown origin.
    WholeRing,
}

/// How to redo.
#[derive(Clone, Copy, Debug)]
pub struct RedoOptions {
    /// Discarded blocks become zeros, as an archive restores them; otherwise they are left as they
    /// are.
    pub zero_discards: bool,
    /// Where to look for stale packs.
    pub stale: StaleSearch,
}

impl Default for RedoOptions {
    fn default() -> Self {
        Self { zero_discards: true, stale: StaleSearch::Window }
    }
}

/// What a redo did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedoReport {
    /// Where it started: written_lsid.
    pub begin: Lsid,
    /// The new end of the log, and new written_lsid.
    pub end: Lsid,
    /// Packs applied, a torn one included if something of it was.
    pub packs: u64,
    /// Writes applied.
    pub writes: u64,
    /// Discards in the log.
    pub discards: u64,
    /// Records of the torn pack that were cut off.
    pub cut_records: usize,
    /// Headers behind the end that were made unreadable.
    pub stale_packs: usize,
    /// Logs that were not released are lost.
    pub overflow: bool,
}

/// Reads and checks the super block of a log device.
///
/// # Errors
/// When it cannot be read, holds no walb log, or its log does not fit the device.
pub async fn read_super_block(
    log: &Arc<dyn BlockDevice>,
    data_hint: &str,
) -> Result<(SuperBlock, Ring), OpenError> {
    let block = log.read(SUPER_OFFSET_BYTES, 4096).await;
    let block = block.map_err(OpenError::io("reading the super block"))?;
    let not_formatted =
        |found| OpenError::NotFormatted { log: log.path_hint(), data: data_hint.to_owned(), found };
    let super_block = SuperBlock::decode(&block).map_err(not_formatted)?;
    let ring = super_block.ring(log.size_bytes()).map_err(not_formatted)?;
    Ok((super_block, ring))
}

/// Does all of it. The data device holds everything that was logged afterwards, durably, and the
/// super block says so.
///
/// # Errors
/// When a device fails. Redo can then be tried again from the start.
pub async fn redo(
    log: &Arc<dyn BlockDevice>,
    data: &Arc<dyn BlockDevice>,
    options: RedoOptions,
) -> Result<(SuperBlock, RedoReport), OpenError> {
    let redone = redo_with_map(log, data, options, None).await?;
    Ok((redone.super_block, redone.report))
}

/// A log that was redone.
pub(crate) struct Redone {
    pub(crate) super_block: SuperBlock,
    pub(crate) report: RedoReport,
    /// The map of written regions, when one is kept.
    pub(crate) regions: Option<Regions>,
}

/// [`redo`] that marks in the map what it finds, and stores the map before the super block.
pub(crate) async fn redo_with_map(
    log: &Arc<dyn BlockDevice>,
    data: &Arc<dyn BlockDevice>,
    options: RedoOptions,
    keeper: Option<&RegionKeeper>,
) -> Result<Redone, OpenError> {
    let (mut super_block, ring) = read_super_block(log, &data.path_hint()).await?;
    let resumed = match keeper {
        Some(keeper) => Some(keeper.resume(&super_block).await),
        None => None,
    };
    let regions = resumed.as_ref().map(|resumed| resumed.regions.clone());
    let mut redo = Redo::new(log, data, ring, &super_block, options, regions);
    redo.replay().await?;
    data.flush().await.map_err(OpenError::io("flushing the data device after redo"))?;
    redo.report.overflow = redo.has_overflowed(super_block.oldest).await?;
    redo.clear_stale_packs().await?;
    super_block.written = redo.report.end;
    let regions = match (keeper, resumed) {
        (Some(keeper), Some(resumed)) => Some(keeper.settle(resumed, &super_block).await),
        _ => None,
    };
    let stored = write_super(log, &super_block).await;
    stored.map_err(OpenError::io("writing the super block after redo"))?;
    Ok(Redone { super_block, report: redo.report, regions })
}

struct Redo<'a> {
    log: &'a Arc<dyn BlockDevice>,
    data: &'a Arc<dyn BlockDevice>,
    ring: Ring,
    salt: Salt,
    options: RedoOptions,
    regions: Option<Regions>,
    collected: Collected,
    report: RedoReport,
}

impl<'a> Redo<'a> {
    fn new(
        log: &'a Arc<dyn BlockDevice>,
        data: &'a Arc<dyn BlockDevice>,
        ring: Ring,
        super_block: &SuperBlock,
        options: RedoOptions,
        regions: Option<Regions>,
    ) -> Self {
        let report = RedoReport {
            begin: super_block.written,
            end: super_block.written,
            packs: 0,
            writes: 0,
            discards: 0,
            cut_records: 0,
            stale_packs: 0,
            overflow: false,
        };
        let (salt, collected) = (super_block.salt, Collected::default());
        Self { log, data, ring, salt, options, regions, collected, report }
    }

    fn block_size(&self) -> BlockSize {
        self.ring.block_size()
    }

    /// `blocks` behind `lsid`, but no more than a lap.
    fn limit(&self, lsid: Lsid, blocks: Pb) -> Lsid {
        lsid.checked_add(blocks.min(self.ring.size())).unwrap_or(Lsid::MAX)
    }

    /// Applies what is sound, and cuts a torn pack.
    async fn replay(&mut self) -> Result<(), OpenError> {
        let begin = self.report.begin;
        let limit = self.limit(begin, self.ring.size());
        let mut reader = LogReader::new(Arc::clone(self.log), self.ring, begin, limit);
        let mut decoder = PackDecoder::new(self.block_size(), self.salt, begin);
        loop {
            let pack = match step(&mut decoder) {
                Some(Step::Whole(pack)) => pack,
                Some(Step::Shrunk { pack, lost }) => {
                    self.report.cut_records = lost;
                    self.add(&pack);
                    self.overwrite(pack.header.lsid(), &pack.header.encode()).await?;
                    break;
                }
                Some(Step::End { .. }) => break,
                None => {
                    let more = reader.next().await.map_err(OpenError::io("reading the log"))?;
                    let Some(more) = more else { break };
                    decoder.push(more);
                    continue;
                }
            };
            self.add(&pack);
            if self.collected.is_full() {
                self.apply_collected().await?;
            }
        }
        self.apply_collected().await
    }

    fn add(&mut self, pack: &Pack) {
        let end = pack.header.next_lsid();
        for (record, payload) in pack.ios() {
            if let Some(regions) = &self.regions {
                regions.mark(record.address, record.len(), end);
            }
            if record.kind == RecordKind::Normal {
                self.report.writes += 1;
                self.collected.add(record.address, record.len(), Payload::Data(payload));
                continue;
            }
            self.report.discards += 1;
            if self.options.zero_discards {
                self.collected.add(record.address, record.len(), Payload::Zero);
            }
        }
        self.report.packs += 1;
        self.report.end = end;
    }

    async fn apply_collected(&mut self) -> Result<(), OpenError> {
        let collected = std::mem::take(&mut self.collected);
        let applied = apply(self.data, collected.overlay).await;
        applied.map_err(OpenError::io("writing logged data to the data device"))
    }

    /// Overwrites one block of the log, durably.
    async fn overwrite(&self, lsid: Lsid, block: &[u8]) -> Result<(), OpenError> {
        let write = async {
            let block = AlignedBuf::copy_of(block).freeze();
            self.log.write(self.ring.byte_offset(lsid), vec![block]).await?;
            self.log.flush().await
        };
        write.await.map_err(OpenError::io("cutting the torn end of the log"))
    }

    /// Are there logs that were not released, and are no more?
    async fn has_overflowed(&self, oldest: Lsid) -> Result<bool, OpenError> {
        let end = self.report.end;
        if end.distance_from(oldest) > self.ring.size() {
            return Ok(true);
        }
        if end == oldest {
            return Ok(false);
        }
        let len = self.block_size().as_usize();
        let block = self.log.read(self.ring.byte_offset(oldest), len).await;
        let block = block.map_err(OpenError::io("reading the oldest pack"))?;
        Ok(PackHeader::decode(&block, self.block_size(), self.salt, oldest).is_err())
    }

    /// See the module: no pack behind the end may ever be taken for its continuation.
    async fn clear_stale_packs(&mut self) -> Result<(), OpenError> {
        let window = match self.options.stale {
            StaleSearch::WholeRing => self.ring.size(),
            StaleSearch::Window => Pb(STALE_WINDOW_BYTES / u64::from(self.block_size().bytes())),
        };
        let stale = self.find_stale(window).await.map_err(OpenError::io("reading the log"))?;
        let terminator = encode_terminator(self.block_size(), self.salt);
        for lsid in &stale {
            self.overwrite(*lsid, &terminator).await?;
        }
        self.report.stale_packs = stale.len();
        Ok(())
    }

    /// Headers that redo would take if the log grew up to them.
    async fn find_stale(&self, window: Pb) -> io::Result<Vec<Lsid>> {
        let mut at = self.report.end;
        let limit = self.limit(at, window);
        let mut reader = LogReader::new(Arc::clone(self.log), self.ring, at, limit);
        let mut stale = Vec::new();
        while let Some(blocks) = reader.next().await? {
            for block in blocks.chunks_exact(self.block_size().as_usize()) {
                if is_header_at(block, self.block_size(), self.salt, at) {
                    stale.push(at);
                }
                at = at + Pb(1);
            }
        }
        Ok(stale)
    }
}
