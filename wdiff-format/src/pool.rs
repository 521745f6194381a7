//! Work on records by all cores, with the results in the order of the input.
//!
//! An iterator of records goes in, an iterator of results comes out; what comes out does not
//! depend on the number of threads. Records travel in batches, since handing over a small one
//! costs more than working on it. What is under way is bounded in records and bytes.

use std::collections::VecDeque;
use std::iter::Fuse;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

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

/// What is done with the batches.
enum Workers<O> {
    /// By the caller's thread.
    Inline(Box<Codec>),
    /// By threads of our own, as long as the sender lives.
    Threads { jobs: Sender<Job<O>>, threads: Vec<JoinHandle<()>> },
}

/// The results of some work on records, in the order of the records. Ends after the first error
/// of the input or of the work.
pub struct CodecPool<I: Iterator, O> {
    input: Fuse<I>,
    /// An error of the input waits here until the results before it were handed out.
    input_error: Option<WdiffError>,
    work: Work<O>,
    workers: Option<Workers<O>>,
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
    /// Does `work` on each record of `input`, on `threads` threads (0 and 1: on the caller's).
    /// Each has a codec that compresses in this way.
    pub fn new(input: I, work: Work<O>, compression: Compression, threads: usize) -> Self {
        Self {
            input: input.fuse(),
            input_error: None,
            work,
            workers: Some(start(work, compression, threads)),
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

    /// Hands batches to the threads until enough are under way.
    fn fill(&mut self) {
        let Some(Workers::Threads { threads, .. }) = &self.workers else { return };
        let batches_max = threads.len() * IN_FLIGHT_BATCHES_PER_THREAD;
        while self.in_flight.len() < batches_max && self.in_flight_bytes < IN_FLIGHT_BYTES {
            let (records, bytes) = self.next_batch();
            let Some(Workers::Threads { jobs, .. }) = &self.workers else { return };
            if records.is_empty() {
                return;
            }
            let (reply, outcome) = bounded(1);
            // When all threads died the reply's sender is dropped here, which shows below.
            let _ = jobs.send(Job { records, reply });
            self.in_flight.push_back((outcome, bytes));
            self.in_flight_bytes += bytes;
        }
    }

    /// The results of the next batch; `None` when there is none.
    fn next_outcome(&mut self) -> Option<Outcome<O>> {
        self.fill();
        if let Some(Workers::Inline(_)) = &self.workers {
            let (records, _) = self.next_batch();
            let Some(Workers::Inline(codec)) = &mut self.workers else { return None };
            let outcome: Outcome<O> = records.iter().map(|r| (self.work)(codec, r)).collect();
            return (!outcome.is_empty()).then_some(outcome);
        }
        let (outcome, bytes) = self.in_flight.pop_front()?;
        self.in_flight_bytes -= bytes;
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

fn start<O: Send + 'static>(work: Work<O>, compression: Compression, n: usize) -> Workers<O> {
    let (jobs, queue) = bounded::<Job<O>>(n * IN_FLIGHT_BATCHES_PER_THREAD);
    let worker = |queue: Receiver<Job<O>>| {
        move || {
            let mut codec = Codec::new(compression);
            for Job { records, reply } in queue {
                let outcome = records.iter().map(|r| work(&mut codec, r)).collect();
                // Nobody waits any more: the pool was dropped.
                let _ = reply.send(outcome);
            }
        }
    };
    let spawn = |_| {
        std::thread::Builder::new().name("wdiff-codec".into()).spawn(worker(queue.clone())).ok()
    };
    let threads: Vec<_> = (0..if n > 1 { n } else { 0 }).filter_map(spawn).collect();
    if threads.is_empty() {
        // One thread was asked for, or none can be had.
        return Workers::Inline(Box::new(Codec::new(compression)));
    }
    Workers::Threads { jobs, threads }
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

impl<I: Iterator, O> Drop for CodecPool<I, O> {
    fn drop(&mut self) {
        self.in_flight.clear();
        if let Some(Workers::Threads { jobs, threads }) = self.workers.take() {
            drop(jobs);
            for thread in threads {
                // A panic in it was reported as `WorkerDied`.
                let _ = thread.join();
            }
        }
    }
}
