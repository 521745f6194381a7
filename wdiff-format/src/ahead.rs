//! Records read ahead by a thread of their own, so that reading and checking them runs beside what
//! is done with them.
//!
//! What comes out is what the input gives, in its order. What waits is bounded in records and
//! bytes. When the reader is dropped early, its thread ends with the batch that it is at.

use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::WdiffError;
use crate::record::DiffRecord;

/// A batch is closed at so many records, or bytes of uncompressed data.
const BATCH_RECORDS: usize = 128;
const BATCH_BYTES: usize = 512 << 10;
/// Batches that wait; each has [`BATCH_BYTES`] and one record more at most.
const BATCHES: usize = 8;

type Item = Result<DiffRecord, WdiffError>;

/// An iterator over the records of another one, which a thread reads ahead.
pub struct Ahead {
    batches: Option<Receiver<Vec<Item>>>,
    current: std::vec::IntoIter<Item>,
    thread: Option<JoinHandle<()>>,
}

impl Ahead {
    /// Reads `records` ahead; they must not wait for anything that async code does.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn new(records: impl Iterator<Item = Item> + Send + 'static) -> std::io::Result<Self> {
        let (sender, batches) = bounded(BATCHES);
        let thread = std::thread::Builder::new()
            .name("wdiff-ahead".into())
            .spawn(move || read(records, &sender))?;
        let current = Vec::new().into_iter();
        Ok(Self { batches: Some(batches), current, thread: Some(thread) })
    }
}

fn read(mut records: impl Iterator<Item = Item>, sender: &Sender<Vec<Item>>) {
    loop {
        let (mut batch, mut bytes) = (Vec::with_capacity(BATCH_RECORDS), 0);
        while batch.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
            let Some(item) = records.next() else { break };
            bytes += item.as_ref().map_or(0, DiffRecord::raw_bytes);
            batch.push(item);
        }
        // An error of sending: nobody wants more.
        if batch.is_empty() || sender.send(batch).is_err() {
            return;
        }
    }
}

impl Iterator for Ahead {
    type Item = Item;

    fn next(&mut self) -> Option<Item> {
        loop {
            if let Some(item) = self.current.next() {
                return Some(item);
            }
            match self.batches.as_ref()?.recv() {
                Ok(batch) => self.current = batch.into_iter(),
                Err(_) => {
                    self.batches = None;
                    // The end, or the reader panicked: then the records are not all there.
                    let died = self.thread.take().is_some_and(|thread| thread.join().is_err());
                    return died.then_some(Err(WdiffError::WorkerDied));
                }
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it harms nobody: its records are not wanted any more.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use wlog_format::units::Lb;

    use super::*;

    fn record(i: u64) -> DiffRecord {
        DiffRecord::from_raw(Lb(i * 8), Bytes::from(vec![1; 4096])).unwrap()
    }

    #[test]
    fn all_records_come_in_their_order_and_an_error_in_its_place() {
        let fail = || Err(WdiffError::Log("it is cut".into()));
        let records = (0..1000).map(move |i| if i == 700 { fail() } else { Ok(record(i)) });
        let got: Vec<_> = Ahead::new(records).unwrap().collect();
        assert_eq!(got.len(), 1000);
        for (i, item) in (0..).zip(&got) {
            match item {
                Ok(record) => assert_eq!(record.address, Lb(i * 8)),
                Err(error) => assert!(i == 700 && matches!(error, WdiffError::Log(_)), "{error}"),
            }
        }
    }

    #[test]
    fn a_reader_that_is_dropped_stops_reading() {
        let (tell, told) = bounded::<()>(1);
        let endless = (0..).map(move |i| {
            let _alive = &tell;
            Ok(record(i))
        });
        let mut ahead = Ahead::new(endless).unwrap();
        assert!(ahead.next().is_some());
        drop(ahead);
        assert!(told.recv().is_err(), "the input was dropped with its reader");
    }

    #[test]
    fn a_reader_that_dies_is_no_end() {
        let records = (0..300).map(|i| if i < 299 { Ok(record(i)) } else { panic!("on purpose") });
        let got: Vec<_> = Ahead::new(records).unwrap().collect();
        assert!(matches!(got.last(), Some(Err(WdiffError::WorkerDied))));
    }
}
