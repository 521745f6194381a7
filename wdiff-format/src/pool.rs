//! Work on records by all cores, with the results in the order of the input.
//!
//! An iterator of records goes in, an iterator of results comes out; what comes out does not
//! depend on the number of threads. Records travel in batches, since handing over a small one
//! costs more than working on it. What is under way is bounded in records and bytes.
//!
//! The caller's thread is one of the workers: it works whenever it would have to wait. With as many
//! threads as cores it never stands in the way of another one, and no core waits for it.

use std::collections::VecDeque;
use std::iter::Fuse;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use crate::codec::Codec;
use crate::compression::Compression;
use crate::error::WdiffError;
use crate::record::DiffRecord;

/// A batch is closed at so many records, or bytes of uncompressed data.
const BATCH_RECORDS: usize = 128;
const BATCH_BYTES: usize = 512 << 10;
/// No new batch is begun while so many bytes of uncompressed data are under way.
const IN_FLIGHT_BYTES: usize = 16 << 20;
const IN_FLIGHT_BATCHES_PER_THREAD: usize = 4;

type Work<O> = fn(&mut Codec, &DiffRecord) -> Result<O, WdiffError>;
type Outcome<O> = Vec<Result<O, WdiffError>>;

struct Job<O> {
    records: Vec<DiffRecord>,
    reply: Sender<Outcome<O>>,
}

impl<O> Job<O> {
    fn run(self, work: Work<O>, codec: &mut Codec) {
        let outcome = self.records.iter().map(|r| work(codec, r)).collect();
        // Nobody waits any more: the pool was dropped.
        let _ = self.reply.send(outcome);
    }
}

/// Who works on the batches.
struct Workers<O> {
    /// Of the caller's thread.
    codec: Codec,
    queue: Receiver<Job<O>>,
    jobs: Sender<Job<O>>,
    /// The others; they work as long as `jobs` lives.
    threads: Vec<JoinHandle<()>>,
}

/// The results of some work on records, in the order of the records. Ends after the first error
/// of the input or of the work.
pub struct CodecPool<I: Iterator, O> {
    input: Fuse<I>,
    /// An error of the input waits here until the results before it were handed out.
    input_error: Option<WdiffError>,
    work: Work<O>,
    workers: Workers<O>,
    in_flight: VecDeque<(Receiver<Outcome<O>>, usize)>,
    in_flight_bytes: usize,
    ready: std::vec::IntoIter<Result<O, WdiffError>>,
    finished: bool,
}

impl<I, O> CodecPool<I, O>
where
    I: Iterator<Item = Result<DiffRecord, WdiffError>>,
    O: Send + 'static,
{
    /// Does `work` on each record of `input`, on `threads` threads, of which the caller's is one (0
    /// is 1). Each has a codec that compresses in this way.
    pub fn new(input: I, work: Work<O>, compression: Compression, threads: usize) -> Self {
        Self {
            input: input.fuse(),
            input_error: None,
            work,
            workers: Workers::start(work, compression, threads),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            ready: Vec::new().into_iter(),
            finished: false,
        }
    }

    /// The next records of the input, and the bytes of data in them.
    fn next_batch(&mut self) -> (Vec<DiffRecord>, usize) {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES && self.input_error.is_none() {
            match self.input.next() {
                None => break,
                Some(Ok(record)) => {
                    bytes += record.raw_bytes();
                    batch.push(record);
                }
                Some(Err(error)) => self.input_error = Some(error),
            }
        }
        (batch, bytes)
    }

    /// Queues batches until enough are under way.
    fn fill(&mut self) {
        let batches_max = self.workers.count() * IN_FLIGHT_BATCHES_PER_THREAD;
        while self.in_flight.len() < batches_max && self.in_flight_bytes < IN_FLIGHT_BYTES {
            let (records, bytes) = self.next_batch();
            if records.is_empty() {
                return;
            }
            let (reply, outcome) = bounded(1);
            // The queue is ours, too: it takes everything.
            let _ = self.workers.jobs.send(Job { records, reply });
            self.in_flight.push_back((outcome, bytes));
            self.in_flight_bytes += bytes;
        }
    }

    /// The results of the next batch; `None` when there is none.
    fn next_outcome(&mut self) -> Option<Outcome<O>> {
        self.fill();
        let (outcome, bytes) = self.in_flight.pop_front()?;
        self.in_flight_bytes -= bytes;
        while outcome.is_empty() {
            let Ok(job) = self.workers.queue.try_recv() else { break };
            job.run(self.work, &mut self.workers.codec);
        }
        Some(outcome.recv().unwrap_or_else(|_| vec![Err(WdiffError::WorkerDied)]))
    }

    fn next_result(&mut self) -> Option<Result<O, WdiffError>> {
        loop {
            if let Some(result) = self.ready.next() {
                return Some(result);
            }
            match self.next_outcome() {
                Some(outcome) => self.ready = outcome.into_iter(),
                None => return self.input_error.take().map(Err),
            }
        }
    }
}

impl<O: Send + 'static> Workers<O> {
    fn start(work: Work<O>, compression: Compression, threads: usize) -> Self {
        let (jobs, queue) = unbounded::<Job<O>>();
        let worker = |queue: Receiver<Job<O>>| {
            move || {
                let mut codec = Codec::new(compression);
                queue.into_iter().for_each(|job| job.run(work, &mut codec));
            }
        };
        let spawn = |_| {
            let thread = std::thread::Builder::new().name("wdiff-codec".into());
            // One that cannot be had is done without.
            thread.spawn(worker(queue.clone())).ok()
        };
        let threads = (1..threads).filter_map(spawn).collect();
        Self { codec: Codec::new(compression), queue, jobs, threads }
    }

    /// How many work, the caller's thread among them.
    fn count(&self) -> usize {
        self.threads.len() + 1
    }
}

impl<I, O> Iterator for CodecPool<I, O>
where
    I: Iterator<Item = Result<DiffRecord, WdiffError>>,
    O: Send + 'static,
{
    type Item = Result<O, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.next_result();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}

impl<O> Drop for Workers<O> {
    fn drop(&mut self) {
        // What nobody began is not wanted any more; without `jobs` the threads end.
        while self.queue.try_recv().is_ok() {}
        self.jobs = bounded(0).0;
        for thread in self.threads.drain(..) {
            // A panic in it was reported as `WorkerDied`.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread::ThreadId;

    use bytes::Bytes;
    use wlog_format::units::Lb;

    use super::*;

    fn records(count: u64) -> impl Iterator<Item = Result<DiffRecord, WdiffError>> {
        (0..count).map(|i| Ok(DiffRecord::from_raw(Lb(i * 8), Bytes::from(vec![1; 4096])).unwrap()))
    }

    /// Where a record is, and who worked on it.
    fn worker(_: &mut Codec, record: &DiffRecord) -> Result<(Lb, ThreadId), WdiffError> {
        Ok((record.address, std::thread::current().id()))
    }

    #[test]
    fn the_callers_thread_is_one_of_those_that_work() {
        for threads in [0, 1, 3] {
            let pool = CodecPool::new(records(10_000), worker, Compression::NONE, threads);
            let done: Vec<_> = pool.collect::<Result<_, _>>().unwrap();
            assert!((0..10_000).eq(done.iter().map(|(address, _)| address.0 / 8)));
            let mut workers: Vec<_> = done.iter().map(|(_, thread)| *thread).collect();
            workers.sort_by_key(|thread| format!("{thread:?}"));
            workers.dedup();
            assert!(workers.len() <= threads.max(1), "{workers:?} of {threads}");
        }
    }

    #[test]
    fn an_error_comes_in_its_place_and_is_the_last() {
        let fail = |_: &mut Codec, record: &DiffRecord| match record.address.0 {
            5600 => Err(WdiffError::WorkerDied),
            address => Ok(address),
        };
        for threads in [1, 3] {
            let done: Vec<_> =
                CodecPool::new(records(10_000), fail, Compression::NONE, threads).collect();
            assert_eq!(done.len(), 701);
            assert!(done.iter().take(700).all(Result::is_ok) && done[700].is_err());
        }
    }
}
