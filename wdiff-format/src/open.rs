//! Opening a wdiff of either kind.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Place, Problem, WdiffError};
use crate::header::{FileHeader, FileType};
use crate::indexed_reader::IndexedReader;
use crate::io_at::{ReadObject, Sequential};
use crate::record::{DiffRecord, Entry};
use crate::sorted_reader::{SortedReader, short};

/// Records of one diff, ascending and disjoint.
pub type Records = Box<dyn Iterator<Item = Result<DiffRecord, WdiffError>> + Send>;

/// An open wdiff: an iterator over its records.
pub enum WdiffReader {
    /// A sorted file or stream.
    Sorted(SortedReader<Box<dyn Read + Send>>),
    /// An indexed file.
    Indexed(IndexedReader<ReadObject>),
}

impl WdiffReader {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, or is no wdiff.
    pub fn open(path: &Path) -> Result<Self, WdiffError> {
        let file: Arc<str> = path.display().to_string().into();
        Self::from_opened(File::open(path).map(|file| Arc::new(file) as ReadObject), file)
    }

    /// [`WdiffReader::from_file`] with what came of opening it.
    ///
    /// # Errors
    /// It could not be opened or cannot be read, or is no wdiff.
    pub fn from_opened(
        opened: io::Result<ReadObject>,
        name: impl Into<Arc<str>>,
    ) -> Result<Self, WdiffError> {
        let name = name.into();
        let place = Place { file: name.clone(), offset: 0 };
        Self::from_file(opened.map_err(|e| place.fails(Problem::Open(e)))?, name)
    }

    /// Reads a file that is open already, from its start. `name` is what errors call it.
    ///
    /// # Errors
    /// It cannot be read, or is no wdiff.
    pub fn from_file(file: ReadObject, name: impl Into<Arc<str>>) -> Result<Self, WdiffError> {
        let name = name.into();
        let place = Place { file: name.clone(), offset: 0 };
        let io = |e: io::Error| place.clone().fails(Problem::Io(e));
        let mut input = Sequential::new(file.clone()).map_err(io)?;
        let mut bytes = [0; FileHeader::BYTES];
        input.read_exact(&mut bytes).map_err(|e| short(&place, e, "the file header is cut"))?;
        let header =
            FileHeader::decode(&bytes).map_err(|e| place.clone().damaged(e.to_string()))?;
        match header.file_type {
            FileType::Sorted => {
                let input: Box<dyn Read + Send> = Box::new(input);
                Ok(Self::Sorted(SortedReader::after_header(input, name, header)))
            }
            FileType::Indexed => Ok(Self::Indexed(IndexedReader::new(file, name)?)),
        }
    }

    /// Reads a sorted wdiff from a stream. `name` is what errors call it.
    ///
    /// # Errors
    /// It cannot be read, or is no sorted wdiff.
    pub fn from_stream(
        input: Box<dyn Read + Send>,
        name: impl Into<Arc<str>>,
    ) -> Result<Self, WdiffError> {
        SortedReader::new(input, name).map(Self::Sorted)
    }

    /// How the record that was handed out last lies in the file.
    #[must_use]
    pub const fn entry(&self) -> Option<Entry> {
        match self {
            Self::Sorted(reader) => reader.entry(),
            Self::Indexed(reader) => reader.entry(),
        }
    }

    /// The file header.
    #[must_use]
    pub const fn header(&self) -> FileHeader {
        match self {
            Self::Sorted(reader) => reader.header(),
            Self::Indexed(reader) => reader.header(),
        }
    }
}

impl Iterator for WdiffReader {
    type Item = Result<DiffRecord, WdiffError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Sorted(reader) => reader.next(),
            Self::Indexed(reader) => reader.next(),
        }
    }
}
