//! A whole image as a diff: what a full backup is, as a file.

use std::io::Read;

use bytes::Bytes;
use wlog_format::units::Lb;

use crate::error::{Place, Problem, WdiffError};
use crate::record::{DATA_BLOCKS_MAX, DiffRecord};

/// The records of an image, front to back, all of them normal ones, as the original writes them.
pub struct ImageRecords<R> {
    image: R,
    file: std::sync::Arc<str>,
    io_bytes: u64,
    position: u64,
    finished: bool,
}

impl<R: Read> ImageRecords<R> {
    /// Reads `image` (named `file` in errors) to its end, in records of `io_blocks` blocks, at most
    /// [`DATA_BLOCKS_MAX`].
    pub fn new(image: R, file: impl Into<std::sync::Arc<str>>, io_blocks: u32) -> Self {
        let io_blocks = io_blocks.clamp(1, DATA_BLOCKS_MAX);
        let io_bytes = Lb(io_blocks.into()).bytes();
        Self { image, file: file.into(), io_bytes, position: 0, finished: false }
    }

    fn next_record(&mut self) -> Result<Option<DiffRecord>, WdiffError> {
        let place = Place { file: self.file.clone(), offset: self.position };
        let mut data = Vec::with_capacity(wlog_format::units::to_usize(self.io_bytes));
        let mut part = self.image.by_ref().take(self.io_bytes);
        part.read_to_end(&mut data).map_err(|e| place.clone().fails(Problem::Io(e)))?;
        if data.is_empty() {
            return Ok(None);
        }
        let address = Lb::from_bytes(self.position);
        self.position += data.len() as u64;
        match DiffRecord::from_raw(address, Bytes::from(data)) {
            Some(record) => Ok(Some(record)),
            None => Err(place.damaged("the image does not end at a multiple of 512 bytes")),
        }
    }
}

impl<R: Read> Iterator for ImageRecords<R> {
    type Item = Result<DiffRecord, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.next_record().transpose();
        self.finished = !matches!(next, Some(Ok(_)));
        next
    }
}
