//! The records of a wdiff in the order in which their data lies in the file, for somebody to whom
//! the order of their addresses does not matter.
//!
//! An index is read batch by batch, and a batch is put in order; its data is then read in runs of
//! what lies close together, by whoever works on it. So an indexed file is read from its start to
//! its end, as often as its index has batches, and each image is checked and decompressed once for
//! each batch that has pieces of it. Invariants: what [`Runs::load`] gives was checked as a reader
//! of the whole file would; memory is bounded by the batch and by what a run may hold, whatever the
//! index claims.

use std::iter::Peekable;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use wlog_format::units::{Lb, to_usize};

use crate::codec::Codec;
use crate::compression::CompressionKind;
use crate::error::WdiffError;
use crate::indexed_reader::IndexedReader;
use crate::io_at::ReadAt;
use crate::locate::{Location, Locations, StoredImage};
use crate::record::RecordKind;
use crate::redo::{Content, DecodedRecord};
use crate::room::{Raw, Room};

/// How much is put in order, and read, at once.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Records of a batch.
    batch_records: usize,
    /// Records that are worth a thread.
    part_records: usize,
    /// Bytes of the file that a run has, unless one image is larger.
    run_bytes: u64,
    /// Bytes of uncompressed data in a run, unless one image is larger.
    run_raw_bytes: usize,
    /// Records without data in a run.
    run_empty_records: usize,
    /// Bytes without wanted data that are read rather than passed over.
    gap_bytes: u64,
}

const SIZES: Sizes = Sizes {
    batch_records: 512 << 10,
    part_records: 16 << 10,
    run_bytes: 1 << 20,
    run_raw_bytes: 1 << 20,
    run_empty_records: 128,
    gap_bytes: 32 << 10,
};

/// The runs of an indexed file: an iterator that ends after the first error.
pub(crate) struct Runs<R> {
    reader: IndexedReader<R>,
    sizes: Sizes,
    threads: usize,
    /// The last record of the batch before, which the next one may continue.
    last: Option<Location>,
    batch: Batch,
    finished: bool,
}

/// Records in the order of their data, in parts of which each is in that order.
#[derive(Default)]
struct Batch {
    parts: Vec<std::vec::IntoIter<Location>>,
}

impl Batch {
    /// The part with the next record.
    fn part(&mut self) -> Option<&mut std::vec::IntoIter<Location>> {
        let parts = self.parts.iter_mut().filter(|part| !part.as_slice().is_empty());
        parts.min_by_key(|part| part.as_slice().first().map(place_of))
    }

    fn next_if(&mut self, wanted: impl FnOnce(&Location) -> bool) -> Option<Location> {
        let part = self.part()?;
        if part.as_slice().first().is_some_and(wanted) { part.next() } else { None }
    }

    fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.as_slice().is_empty())
    }
}

/// What decides the order: where the data of a record begins (0 when it has none), its address.
fn place_of(record: &Location) -> (u64, Lb) {
    let begins = if record.kind == RecordKind::Normal { record.image.offset } else { 0 };
    (begins, record.address)
}

/// The records of a part of an index. Pieces that follow each other are one record again.
fn read_part<R: ReadAt>(mut reader: IndexedReader<R>) -> Result<Vec<Location>, WdiffError> {
    // Its room at once: to grow there, it would be cleared and copied several times.
    let mut records: Vec<Location> = Vec::with_capacity(reader.left());
    while let Some(next) = reader.next_location()? {
        if !records.last_mut().is_some_and(|last| last.join(&next)) {
            records.push(next);
        }
    }
    Ok(records)
}

/// Records whose data lies close together, in the order of it.
pub(crate) struct Run {
    /// Where the data lies; empty when there is none.
    bytes: Range<u64>,
    /// Bytes of it when uncompressed.
    raw_bytes: usize,
    records: Vec<Location>,
}

impl<R: ReadAt + Clone + Send> Runs<R> {
    /// Reads the index by `threads` threads.
    pub(crate) fn new(reader: IndexedReader<R>, threads: usize) -> Self {
        Self::of_sizes(reader, SIZES, threads)
    }

    fn of_sizes(reader: IndexedReader<R>, sizes: Sizes, threads: usize) -> Self {
        Self { reader, sizes, threads, last: None, batch: Batch::default(), finished: false }
    }

    /// The next records of the index, in the order of their data.
    fn read_batch(&mut self) -> Result<(), WdiffError> {
        let wanted = self.reader.left().min(self.sizes.batch_records);
        let threads = self.threads.min(wanted / self.sizes.part_records).max(1);
        let mut parts = Vec::with_capacity(threads);
        while parts.len() < threads {
            parts.push(self.reader.part(wanted.div_ceil(threads))?);
        }
        let read = |part| {
            let mut records = read_part(part)?;
            // The parts beside it may continue these.
            let ends = (records.pop(), (!records.is_empty()).then(|| records.swap_remove(0)));
            records.sort_unstable_by_key(place_of);
            Ok((ends, records))
        };
        let mut ends: Vec<_> = self.last.take().into_iter().collect();
        self.batch.parts.clear();
        for ((last, first), records) in by_all(parts, read)? {
            for end in first.into_iter().chain(last) {
                if !ends.last_mut().is_some_and(|before: &mut Location| before.join(&end)) {
                    ends.push(end);
                }
            }
            self.batch.parts.push(records.into_iter());
        }
        if self.reader.left() > 0 {
            self.last = ends.pop();
        }
        ends.sort_unstable_by_key(place_of);
        self.batch.parts.push(ends.into_iter());
        Ok(())
    }

    fn next_run(&mut self) -> Result<Option<Run>, WdiffError> {
        while self.batch.is_empty() && (self.reader.left() > 0 || self.last.is_some()) {
            self.read_batch()?;
        }
        let mut run = Run::new();
        while let Some(next) = self.batch.next_if(|next| run.fits(next, &self.sizes)) {
            run.records.push(next);
        }
        Ok((!run.records.is_empty()).then_some(run))
    }
}

impl<R: ReadAt + Clone + Send> Iterator for Runs<R> {
    type Item = Result<Run, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.next_run().transpose();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}

/// The runs of a sorted file, whose data lies in the order of the addresses: an iterator that ends
/// after the first error.
pub(crate) struct SortedRuns<R: ReadAt> {
    records: Peekable<Locations<R>>,
    sizes: Sizes,
}

impl<R: ReadAt> SortedRuns<R> {
    pub(crate) fn new(records: Locations<R>) -> Self {
        Self { records: records.peekable(), sizes: SIZES }
    }
}

impl<R: ReadAt> Iterator for SortedRuns<R> {
    type Item = Result<Run, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut run = Run::new();
        let fits = |run: &mut Run, next: &Result<Location, _>| {
            next.as_ref().is_ok_and(|next| run.fits(next, &self.sizes))
        };
        while let Some(Ok(next)) = self.records.next_if(|next| fits(&mut run, next)) {
            run.records.push(next);
        }
        if run.records.is_empty() {
            // An error, or the end.
            return self.records.next()?.err().map(Err);
        }
        Some(Ok(run))
    }
}

impl Run {
    const fn new() -> Self {
        Self { bytes: 0..0, raw_bytes: 0, records: Vec::new() }
    }

    /// Does `next` belong to it, which is the next record by data? If so, its data is counted.
    fn fits(&mut self, next: &Location, sizes: &Sizes) -> bool {
        let last = self.records.last();
        if next.kind != RecordKind::Normal {
            return self.records.len() < sizes.run_empty_records;
        }
        let image = &next.image;
        if last.is_some_and(|last| last.kind == next.kind && last.image == *image) {
            return true;
        }
        let end = self.bytes.end.max(image.end());
        let raw_bytes = self.raw_bytes + image.raw_bytes();
        if self.bytes.is_empty() {
            self.bytes.start = image.offset;
        } else if end - self.bytes.start > sizes.run_bytes
            || raw_bytes > sizes.run_raw_bytes
            || image.offset > self.bytes.end.saturating_add(sizes.gap_bytes)
        {
            return false;
        }
        (self.bytes.end, self.raw_bytes) = (end, raw_bytes);
        true
    }

    /// The records with their data, by address. `file` is the name that errors use.
    pub(crate) fn load(
        &self,
        input: &impl ReadAt,
        file: &Arc<str>,
        codec: &mut Codec,
    ) -> Result<Vec<DecodedRecord>, WdiffError> {
        let data = self.read(input, codec);
        let groups = || self.records.chunk_by(|a, b| a.kind == b.kind && a.image == b.image);
        let mut room = Room::new(codec, self.raw_bytes);
        let mut raws = Vec::with_capacity(self.records.len());
        for record in groups().filter_map(|group| group.first()) {
            let Location { kind, image, .. } = record;
            raws.push(match (kind, self.part(&data, image)) {
                (RecordKind::AllZero | RecordKind::Discard, _) => Raw::Apart(Bytes::new()),
                // Nothing could be read: this tells where.
                (_, None) => Raw::Apart(image.read(input, file, codec)?),
                (_, Some(stored)) if image.compression == CompressionKind::None => {
                    Raw::Apart(image.decode(&stored, file, codec)?)
                }
                (_, Some(stored)) => {
                    room.add(image.raw_bytes(), |raw| image.decode_into(&stored, file, codec, raw))?
                }
            });
        }
        let room = room.done(codec);
        codec.memory().put(data);
        let mut all = Vec::with_capacity(self.records.len());
        for (group, raw) in groups().zip(raws) {
            let raw = raw.of(&room);
            all.extend(group.iter().map(|record| decoded(record, &raw)));
        }
        all.sort_unstable_by_key(|record| record.address);
        Ok(all)
    }

    /// All of its data; nothing when some of it cannot be read.
    fn read(&self, input: &impl ReadAt, codec: &mut Codec) -> Bytes {
        let len = to_usize(self.bytes.end - self.bytes.start);
        let mut data = codec.memory().take(len);
        let (part, _) = data.split_at_mut(len);
        match input.read_exact_at(part, self.bytes.start) {
            Ok(()) => data.freeze(),
            Err(_) => Bytes::new(),
        }
    }

    /// Where `image` is in the `data` of this run.
    fn part(&self, data: &Bytes, image: &StoredImage) -> Option<Bytes> {
        let from = to_usize(image.offset.checked_sub(self.bytes.start)?);
        let to = from + to_usize(image.size.into());
        let read = to_usize(self.bytes.end - self.bytes.start).min(data.len());
        (to <= read).then(|| data.slice(from..to))
    }
}

/// The results of `work` on each of `items`, in their order, by as many threads.
fn by_all<T: Send, O: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> Result<O, WdiffError> + Sync,
) -> Result<Vec<O>, WdiffError> {
    let others = items.len().saturating_sub(1);
    let queue = Mutex::new(items.into_iter().enumerate());
    let run = || {
        let mut done = Vec::new();
        loop {
            let Some((number, item)) = queue.lock().ok().and_then(|mut q| q.next()) else {
                return done;
            };
            done.push((number, work(item)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let named = || std::thread::Builder::new().name("wdiff-index".into());
        // Should no thread be had, the caller's does it all.
        let running: Vec<_> =
            (0..others).filter_map(|_| named().spawn_scoped(scope, run).ok()).collect();
        let mut done = run();
        for thread in running {
            done.extend(thread.join().map_err(|_| WdiffError::WorkerDied)?);
        }
        Ok::<_, WdiffError>(done)
    })?;
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, done)| done).collect()
}

/// `record` with its part of `raw`.
fn decoded(record: &Location, raw: &Bytes) -> DecodedRecord {
    let content = match record.kind {
        RecordKind::AllZero => Content::AllZero,
        RecordKind::Discard => Content::Discard,
        RecordKind::Normal => Content::Data(raw.slice(record.part())),
    };
    DecodedRecord { address: record.address, blocks: record.blocks, content }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "small numbers of a test")]
mod tests {
    use wlog_format::units::LogUuid;

    use super::*;
    use crate::compression::Compression;
    use crate::indexed_writer::IndexedWriter;
    use crate::layout::INDEX_RECORD_BYTES;
    use crate::record::{DiffRecord, Payload};
    use crate::split::MaxIo;

    const IMAGE_BYTES: usize = 1 << 20;

    /// A file whose data lies anywhere, and the image that its writes make of zeros: 600 I/Os of up
    /// to 150 blocks over each other, the later ones further down.
    fn file() -> (Bytes, Vec<u8>) {
        let mut codec = Codec::new(Compression::SNAPPY);
        let mut writer = IndexedWriter::new(Vec::new(), LogUuid::ZERO, MaxIo::default()).unwrap();
        let mut image = vec![0; IMAGE_BYTES];
        for number in 0..600_usize {
            let blocks = 1 + number * 7 % if number % 10 == 0 { 150 } else { 9 };
            let block = (2048 - blocks) * (600 - number) / 600 + number * 37 % 100;
            let block = block.min(2048 - blocks);
            let raw: Vec<u8> = (0..blocks * 512).map(|i| (number + i / 37 % 5) as u8).collect();
            let into = &mut image[block * 512..(block + blocks) * 512];
            let address = Lb(block as u64);
            let record = if number % 23 == 0 {
                into.fill(0);
                DiffRecord { address, blocks: blocks as u32, payload: Payload::AllZero }
            } else {
                into.copy_from_slice(&raw);
                DiffRecord::from_raw(address, Bytes::from(raw)).unwrap()
            };
            writer.add(&record.encode(&mut codec).unwrap()).unwrap();
        }
        (Bytes::from(writer.finish().unwrap()), image)
    }

    fn runs(file: &Bytes, sizes: Sizes) -> Vec<Run> {
        let reader = IndexedReader::new(file.clone(), "f").unwrap();
        Runs::of_sizes(reader, sizes, 3).collect::<Result<_, _>>().unwrap()
    }

    /// Runs of some 1 KiB, batches of 100 records.
    const SMALL: Sizes = Sizes {
        batch_records: 100,
        part_records: 10,
        run_bytes: 1 << 10,
        run_raw_bytes: 64 << 10,
        run_empty_records: 2,
        gap_bytes: 128,
    };

    #[test]
    fn the_image_does_not_depend_on_what_is_read_at_once() {
        let (file, expected) = file();
        let one_batch = Sizes { batch_records: 10_000, ..SMALL };
        for sizes in [SMALL, one_batch, Sizes { batch_records: 1, ..SMALL }, SIZES] {
            let mut image = vec![0; IMAGE_BYTES];
            let mut codec = Codec::new(Compression::NONE);
            for run in runs(&file, sizes) {
                let records = run.load(&file, &"f".into(), &mut codec).unwrap();
                assert!(records.is_sorted_by_key(|record| record.address));
                for record in records {
                    let at = to_usize(record.address.bytes())..to_usize(record.end().bytes());
                    match record.content {
                        Content::Data(data) => image[at].copy_from_slice(&data),
                        Content::AllZero | Content::Discard => image[at].fill(0),
                    }
                }
            }
            assert!(image == expected, "{sizes:?}");
        }
    }

    #[test]
    fn pieces_are_one_record_again_wherever_the_index_is_cut() {
        let (file, _) = file();
        let records = |sizes, threads| {
            let reader = IndexedReader::new(file.clone(), "f").unwrap();
            let runs = Runs::of_sizes(reader, sizes, threads).map(Result::unwrap);
            let mut records: Vec<_> = runs.flat_map(|run| run.records).collect();
            records.sort_unstable_by_key(|record| record.address);
            records
        };
        let whole = records(SIZES, 1);
        assert!(whole.iter().any(|record| !record.blocks.is_power_of_two()), "pieces were joined");
        for batch_records in [1, 2, 7, 100] {
            for (threads, part_records) in [(1, 1), (2, 1), (5, 1), (5, 10)] {
                let cut = Sizes { batch_records, part_records, ..SMALL };
                assert!(records(cut, threads) == whole, "{cut:?} {threads}");
            }
        }
    }

    #[test]
    fn an_index_out_of_order_is_refused_wherever_it_is_cut() {
        let (file, _) = file();
        let index = IndexedReader::new(file.clone(), "f").unwrap().index();
        let (begin, count) = (to_usize(index.index_offset), index.n_records as usize);
        for number in 0..count - 1 {
            let mut swapped = file.to_vec();
            let at = begin + number * INDEX_RECORD_BYTES;
            swapped[at..at + 2 * INDEX_RECORD_BYTES].rotate_left(INDEX_RECORD_BYTES);
            let reader = IndexedReader::new(Bytes::from(swapped), "f").unwrap();
            let read = Runs::of_sizes(reader, SMALL, 3).find_map(Result::err);
            let error = read.map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains("before block"), "{number} of {count}: {error}");
        }
    }

    #[test]
    fn a_batch_is_read_from_the_start_of_the_file_to_its_end() {
        let (file, _) = file();
        let one_batch = Sizes { batch_records: 10_000, ..SMALL };
        let read: Vec<_> = runs(&file, one_batch).iter().map(|run| run.bytes.clone()).collect();
        let read: Vec<_> = read.into_iter().filter(|bytes| !bytes.is_empty()).collect();
        assert!(read.len() > 50, "{} runs", read.len());
        assert!(read.windows(2).all(|two| two[0].end <= two[1].start), "{read:?}");
        // The records go up and down: their addresses are in another order than their data.
        let runs = runs(&file, one_batch);
        let addresses = runs.iter().flat_map(|run| &run.records).map(|record| record.address);
        assert!(!addresses.is_sorted());
    }

    #[test]
    fn what_is_held_is_bounded_by_the_sizes() {
        let (file, _) = file();
        for run in runs(&file, SMALL) {
            let images: Vec<_> = run.records.chunk_by(|a, b| a.image == b.image).collect();
            if images.len() > SMALL.run_empty_records + 1 {
                assert!(run.bytes.end - run.bytes.start <= SMALL.run_bytes);
                assert!(run.raw_bytes <= SMALL.run_raw_bytes);
            }
        }
    }

    #[test]
    fn damage_is_told_with_its_place_and_a_shorter_file_too() {
        let (file, _) = file();
        let runs = runs(&file, SIZES);
        let run = &runs[runs.len() / 2];
        let image = run.records[run.records.len() / 2].image;
        let mut codec = Codec::new(Compression::NONE);
        let mut load = |file: Bytes| run.load(&file, &"f".into(), &mut codec).unwrap_err();
        let mut damaged = file.to_vec();
        damaged[to_usize(image.offset)] ^= 1;
        let error = load(Bytes::from(damaged)).to_string();
        let place = format!("f: at byte {}: ", image.offset);
        assert!(error.starts_with(&place) && error.contains("contradicts"), "{error}");
        let error = load(file.slice(..to_usize(image.offset) + 1)).to_string();
        assert!(error.starts_with(&place) && error.contains("ends inside"), "{error}");
    }
}
