//! Writing a diff onto an image.

use crate::codec::Codec;
use crate::compression::Compression;
use crate::error::WdiffError;
use crate::indexed_reader::IndexedReader;
use crate::io_at::{ReadAt, WriteAt};
use crate::locate::locate;
use crate::placed::{Run, Runs, SortedRuns};
use crate::pool::CodecPool;
use crate::record::{DiffRecord, RecordKind};
use crate::room::{Raw, Room};
use bytes::Bytes;
use std::io::IoSlice;
use std::sync::{Arc, Mutex};
use std::thread::ScopedJoinHandle;
use wlog_format::units::Lb;

/// What a thread of [`redo`] takes at once: so many records, or bytes of uncompressed data.
const PORTION_RECORDS: usize = 1024;
const PORTION_BYTES: usize = 1 << 20;

/// A record whose data is uncompressed.
#[derive(Clone, Debug)]
pub struct DecodedRecord {
    /// First logical block.
    pub address: Lb,
    /// Logical blocks.
    pub blocks: u32,
    /// What they hold.
    pub content: Content,
}

/// What the blocks of a [`DecodedRecord`] hold.
#[derive(Clone, Debug)]
pub enum Content {
    /// This.
    Data(Bytes),
    /// Zeros that were written.
    AllZero,
    /// Discarded.
    Discard,
}

impl DecodedRecord {
    /// The block after the last one.
    #[must_use]
    pub const fn end(&self) -> Lb {
        Lb(self.address.0 + self.blocks as u64)
    }

    fn of(codec: &mut Codec, record: &DiffRecord) -> Result<Self, WdiffError> {
        Ok(Self::new(record, record.raw(codec)?))
    }

    /// `record` with its data, which only a normal one has.
    fn new(record: &DiffRecord, data: Option<Bytes>) -> Self {
        let content = match (record.kind(), data) {
            (RecordKind::Discard, _) => Content::Discard,
            (RecordKind::Normal, Some(data)) => Content::Data(data),
            (RecordKind::Normal | RecordKind::AllZero, _) => Content::AllZero,
        };
        Self { address: record.address, blocks: record.blocks, content }
    }
}

/// Decompresses `records` on `threads` threads, in order.
pub fn decode<I>(records: I, threads: usize) -> CodecPool<I, DecodedRecord>
where
    I: Iterator<Item = Result<DiffRecord, WdiffError>>,
{
    CodecPool::new(records, DecodedRecord::of, Compression::NONE, threads)
}

/// What becomes of blocks that a diff discards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discards {
    /// They keep what they hold.
    Ignore,
    /// They become zeros: what the volume's history says of them.
    Zero,
}

/// What becomes of records that reach beyond the end of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeyondEnd {
    /// The whole record is dropped, and counted.
    Drop,
    /// It is an error.
    Fail,
}

/// How [`redo`] writes.
#[derive(Clone, Copy, Debug)]
pub struct RedoOptions {
    /// Discarded blocks.
    pub discards: Discards,
    /// Records beyond the end.
    pub beyond_end: BeyondEnd,
    /// Whole logical blocks of the image.
    pub image_blocks: Lb,
    /// Threads that decompress and write.
    pub threads: usize,
}

/// What [`redo`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RedoStat {
    /// Records with data written.
    pub written: u64,
    /// Blocks of data written.
    pub written_blocks: u64,
    /// Records of zeros written.
    pub zeroed: u64,
    /// Discards that became zeros, or were ignored.
    pub discards: u64,
    /// Records dropped since they reach beyond the end.
    pub dropped: u64,
}

impl RedoStat {
    fn plus(self, other: Self) -> Self {
        Self {
            written: self.written + other.written,
            written_blocks: self.written_blocks + other.written_blocks,
            zeroed: self.zeroed + other.zeroed,
            discards: self.discards + other.discards,
            dropped: self.dropped + other.dropped,
        }
    }
}

/// Writes `records`, which are disjoint, onto `image`. Does not flush it.
///
/// Each thread takes a portion of them, decompresses it and writes it while it is in the cache. One
/// writes at a time: the kernel lets one into a file, and waiting there for each record costs more
/// than waiting here for each portion.
///
/// # Errors
/// A record cannot be read, or the image cannot be written; of what comes before and soon after it
/// some is written then. Doing it again from the start is safe.
pub fn redo(
    records: impl Iterator<Item = Result<DiffRecord, WdiffError>> + Send,
    image: &(impl WriteAt + Sync),
    options: &RedoOptions,
) -> Result<RedoStat, WdiffError> {
    let portions = Portions { records: records.fuse() };
    let decode = |portion: Vec<DiffRecord>, codec: &mut Codec| decode_portion(&portion, codec);
    redo_portions(portions, decode, image, options)
}

fn decode_portion(
    portion: &[DiffRecord],
    codec: &mut Codec,
) -> Result<Vec<DecodedRecord>, WdiffError> {
    let mut room = Room::new(codec, portion.iter().map(DiffRecord::raw_bytes).sum());
    let raws: Vec<_> =
        portion.iter().map(|record| record.raw_to(&mut room, codec)).collect::<Result<_, _>>()?;
    let room = room.done(codec);
    let with_data =
        |(record, raw): (_, Option<Raw>)| DecodedRecord::new(record, raw.map(|raw| raw.of(&room)));
    Ok(portion.iter().zip(raws).map(with_data).collect())
}

/// [`redo`] of one wdiff of either kind, whose data is read in the order in which it lies in the
/// file, by the threads themselves. `file` is the name that errors use.
///
/// # Errors
/// See [`redo`].
pub fn redo_file<R: ReadAt + Clone + Send + Sync>(
    input: R,
    file: impl Into<Arc<str>>,
    image: &(impl WriteAt + Sync),
    options: &RedoOptions,
) -> Result<RedoStat, WdiffError> {
    let file = file.into();
    let records = locate(input.clone(), file.clone())?;
    let load = |run: Run, codec: &mut Codec| run.load(&input, &file, codec);
    if !records.is_indexed() {
        return redo_portions(SortedRuns::new(records), load, image, options);
    }
    let reader = IndexedReader::new(input.clone(), file.clone())?;
    redo_portions(Runs::new(reader, options.threads), load, image, options)
}

fn redo_portions<P>(
    portions: impl Iterator<Item = Result<P, WdiffError>> + Send,
    decode: impl Fn(P, &mut Codec) -> Result<Vec<DecodedRecord>, WdiffError> + Sync,
    image: &(impl WriteAt + Sync),
    options: &RedoOptions,
) -> Result<RedoStat, WdiffError> {
    let source = Mutex::new(Source { portions, stopped: false });
    let image = Mutex::new(image);
    let work = || {
        let mut codec = Codec::new(Compression::NONE);
        let mut stat = RedoStat::default();
        let done = Source::each(&source, |portion| {
            stat = stat.plus(write_portion(&decode(portion, &mut codec)?, &image, options)?);
            Ok(())
        });
        done.map(|()| stat)
    };
    let others = options.threads.saturating_sub(1);
    let results: Vec<_> = std::thread::scope(|scope| {
        let named = || std::thread::Builder::new().name("wdiff-redo".into());
        // Should no thread be had, the caller's does it all.
        let running: Vec<_> =
            (0..others).filter_map(|_| named().spawn_scoped(scope, work).ok()).collect();
        let own = std::iter::once(work());
        let join =
            |thread: ScopedJoinHandle<'_, _>| thread.join().unwrap_or(Err(WdiffError::WorkerDied));
        own.chain(running.into_iter().map(join)).collect()
    });
    results.into_iter().try_fold(RedoStat::default(), |all, stat| Ok(all.plus(stat?)))
}

/// What several threads take portions of, until one of them fails.
struct Source<I> {
    portions: I,
    stopped: bool,
}

impl<P, I: Iterator<Item = Result<P, WdiffError>>> Source<I> {
    /// Does `work` on portions until there are none left.
    fn each(
        source: &Mutex<Self>,
        mut work: impl FnMut(P) -> Result<(), WdiffError>,
    ) -> Result<(), WdiffError> {
        let poisoned = |_| WdiffError::WorkerDied;
        loop {
            let Some(portion) = source.lock().map_err(poisoned)?.next() else { return Ok(()) };
            if let Err(error) = portion.and_then(&mut work) {
                source.lock().map_err(poisoned)?.stopped = true;
                return Err(error);
            }
        }
    }

    fn next(&mut self) -> Option<I::Item> {
        let next = if self.stopped { None } else { self.portions.next() };
        self.stopped |= matches!(next, Some(Err(_)));
        next
    }
}

/// Records, in portions.
struct Portions<I> {
    records: I,
}

impl<I: Iterator<Item = Result<DiffRecord, WdiffError>>> Iterator for Portions<I> {
    type Item = Result<Vec<DiffRecord>, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        let (mut portion, mut bytes) = (Vec::with_capacity(PORTION_RECORDS), 0);
        while portion.len() < PORTION_RECORDS && bytes < PORTION_BYTES {
            match self.records.next() {
                None => break,
                Some(Ok(record)) => {
                    bytes += record.raw_bytes();
                    portion.push(record);
                }
                Some(Err(error)) => return Some(Err(error)),
            }
        }
        (!portion.is_empty()).then_some(Ok(portion))
    }
}

/// Writes a portion when it is this thread's turn.
fn write_portion(
    portion: &[DecodedRecord],
    image: &Mutex<&impl WriteAt>,
    options: &RedoOptions,
) -> Result<RedoStat, WdiffError> {
    let mut stat = RedoStat::default();
    let image = image.lock().map_err(|_| WdiffError::WorkerDied)?;
    let is_data = |record: &DecodedRecord| matches!(record.content, Content::Data(_));
    let goes_on = |a: &DecodedRecord, b: &DecodedRecord| {
        is_data(a) && is_data(b) && a.end() == b.address && b.end() <= options.image_blocks
    };
    for records in portion.chunk_by(goes_on) {
        if records.len() > 1 && write_at_once(records, *image, &mut stat).is_ok() {
            continue;
        }
        // Of several it shows which one fails.
        records.iter().try_for_each(|record| write_one(record, *image, options, &mut stat))?;
    }
    Ok(stat)
}

/// Writes data that lies side by side.
fn write_at_once(
    records: &[DecodedRecord],
    image: &impl WriteAt,
    stat: &mut RedoStat,
) -> std::io::Result<()> {
    let mut pieces = Vec::with_capacity(records.len());
    for record in records {
        if let Content::Data(data) = &record.content {
            pieces.push(IoSlice::new(data));
        }
    }
    let offset = records.first().map_or(0, |first| first.address.bytes());
    image.write_all_vectored_at(&mut pieces, offset)?;
    stat.written += records.len() as u64;
    stat.written_blocks += records.iter().map(|record| u64::from(record.blocks)).sum::<u64>();
    Ok(())
}

fn write_one(
    record: &DecodedRecord,
    image: &impl WriteAt,
    options: &RedoOptions,
    stat: &mut RedoStat,
) -> Result<(), WdiffError> {
    if record.end() > options.image_blocks {
        if options.beyond_end == BeyondEnd::Fail {
            return Err(beyond_end(record, options.image_blocks));
        }
        stat.dropped += 1;
        return Ok(());
    }
    redo_one(record, image, options.discards, stat)
        .map_err(|source| WdiffError::Output { offset: record.address.bytes(), source })
}

pub(crate) fn beyond_end(record: &DecodedRecord, image_blocks: Lb) -> WdiffError {
    WdiffError::BeyondEnd {
        address: record.address.0,
        end: record.end().0,
        image_blocks: image_blocks.0,
    }
}

fn redo_one(
    record: &DecodedRecord,
    image: &impl WriteAt,
    discards: Discards,
    stat: &mut RedoStat,
) -> std::io::Result<()> {
    let offset = record.address.bytes();
    let len = Lb(record.blocks.into()).bytes();
    match &record.content {
        Content::Data(data) => {
            stat.written += 1;
            stat.written_blocks += u64::from(record.blocks);
            image.write_all_at(data, offset)
        }
        Content::AllZero => {
            stat.zeroed += 1;
            image.write_zeros_at(offset, len)
        }
        Content::Discard => {
            stat.discards += 1;
            match discards {
                Discards::Ignore => Ok(()),
                Discards::Zero => image.write_zeros_at(offset, len),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Takes everything but what lies at one offset.
    struct Broken {
        at: u64,
        written: AtomicU64,
    }

    impl WriteAt for Broken {
        fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
            if offset == self.at {
                return Err(io::Error::other("on purpose"));
            }
            self.written.fetch_add(data.len() as u64, Ordering::Relaxed);
            Ok(())
        }
    }

    fn options(threads: usize) -> RedoOptions {
        let (discards, beyond_end) = (Discards::Zero, BeyondEnd::Fail);
        RedoOptions { discards, beyond_end, image_blocks: Lb(u64::MAX / 512), threads }
    }

    fn record(i: u64) -> Result<DiffRecord, WdiffError> {
        Ok(DiffRecord::from_raw(Lb(i * 8), Bytes::from(vec![1; 4096])).unwrap())
    }

    #[test]
    fn an_image_that_cannot_be_written_ends_it_soon() {
        for threads in [1, 2, 5] {
            let image = Broken { at: 1000 * 4096, written: AtomicU64::new(0) };
            // Without an end: somebody has to stop it.
            match redo((0..).map(record), &image, &options(threads)) {
                Err(WdiffError::Output { offset, .. }) => assert_eq!(offset, 1000 * 4096),
                other => panic!("{other:?} with {threads} threads"),
            }
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_ends_it_with_its_error() {
        for threads in [1, 2, 5] {
            let image = Broken { at: u64::MAX, written: AtomicU64::new(0) };
            let cut = || Err(WdiffError::Log("it is cut".into()));
            let records = (0..).map(|i| if i == 700 { cut() } else { record(i) });
            let done = redo(records, &image, &options(threads));
            assert!(matches!(done, Err(WdiffError::Log(_))), "{done:?}");
            assert!(image.written.into_inner() <= 700 * 4096);
        }
    }

    /// Counts how often it is written to.
    #[derive(Default)]
    struct Counting {
        content: Mutex<Vec<u8>>,
        writes: AtomicU64,
    }

    impl WriteAt for Counting {
        fn write_all_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
            self.write_all_vectored_at(&mut [IoSlice::new(data)], offset)
        }

        fn write_all_vectored_at(&self, data: &mut [IoSlice<'_>], offset: u64) -> io::Result<()> {
            self.writes.fetch_add(1, Ordering::Relaxed);
            let data: Vec<u8> = data.iter().flat_map(|piece| piece.to_vec()).collect();
            let mut content = self.content.lock().unwrap();
            let at = usize::try_from(offset).unwrap();
            let len = content.len().max(at + data.len());
            content.resize(len, 0);
            content[at..at + data.len()].copy_from_slice(&data);
            Ok(())
        }
    }

    #[test]
    fn what_lies_side_by_side_is_written_at_once_up_to_the_end_of_the_image() {
        let image = Counting::default();
        // 10 to 19 are missing, 40 is a discard, 60 and on are behind the end.
        let records = (0..70_u8).filter(|i| !(10..20).contains(i)).map(|i| {
            let address = Lb(u64::from(i) * 8);
            let raw = DiffRecord::from_raw(address, Bytes::from(vec![i + 1; 4096])).unwrap();
            let payload = crate::record::Payload::Discard;
            Ok(if i == 40 { DiffRecord { payload, ..raw } } else { raw })
        });
        let beyond_end = BeyondEnd::Drop;
        let options = RedoOptions { beyond_end, image_blocks: Lb(60 * 8), ..options(1) };
        let stat = redo(records, &image, &options).unwrap();
        let expected =
            RedoStat { written: 49, written_blocks: 49 * 8, zeroed: 0, discards: 1, dropped: 10 };
        assert_eq!(stat, expected);
        assert_eq!(image.writes.into_inner(), 4, "three runs and the discard");
        let content = image.content.into_inner().unwrap();
        let block = |i: u8| if (10..20).contains(&i) || i == 40 { 0 } else { i + 1 };
        assert!(content.iter().copied().eq((0..60).flat_map(|i| [block(i); 4096])));
    }

    #[test]
    fn threads_count_together() {
        for threads in [0, 1, 3] {
            let image = Broken { at: u64::MAX, written: AtomicU64::new(0) };
            let stat = redo((0..5000).map(record), &image, &options(threads)).unwrap();
            assert_eq!((stat.written, stat.written_blocks), (5000, 40_000));
            assert_eq!(image.written.into_inner(), 5000 * 4096);
        }
    }
}
