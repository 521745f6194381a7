//! What can go wrong with a wdiff: which file, where in it, what, and what to do next.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::codec::CodecError;

/// Where something lies: a file and a byte in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The name that the file was opened under.
    pub file: Arc<str>,
    /// Bytes from its start.
    pub offset: u64,
}

impl Place {
    pub(crate) const fn fails(self, problem: Problem) -> InputError {
        InputError { place: self, problem }
    }

    pub(crate) fn damaged(self, what: impl Into<String>) -> WdiffError {
        self.fails(Problem::Damaged(what.into())).into()
    }
}

/// Reading an input failed.
#[derive(Debug)]
pub struct InputError {
    /// Which file, and where in it.
    pub place: Place,
    /// What is wrong there.
    pub problem: Problem,
}

impl fmt::Display for InputError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place: Place { file, offset }, problem } = self;
        if let Problem::Open(_) = problem {
            return write!(f, "{file} {problem}");
        }
        write!(f, "{file}: at byte {offset}: {problem}")
    }
}

impl std::error::Error for InputError {
    /// What is behind the problem: the problem itself was told above.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.problem.source()
    }
}

/// What is wrong with an input.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file is not there, or is not for us.
    #[error("cannot be opened")]
    Open(#[source] io::Error),
    /// The operating system says so.
    #[error("reading failed")]
    Io(#[source] io::Error),
    /// The bytes contradict their checksum or the format.
    #[error("{0}; fetch the file again from where it came, or from another archive")]
    Damaged(String),
    /// All records that are there are sound, but the end pack is missing: some may be lost.
    #[error(
        "the file ends without its end pack: records may be missing; fetch it again from where it \
         came"
    )]
    Truncated,
    /// The bytes are as they were written, but no codec can have written them.
    #[error("under a right checksum {0}; it was written wrongly, fetch it from another archive")]
    Undecodable(CodecError),
}

/// Any failure of this crate's readers, writers and pipelines.
#[derive(Debug, thiserror::Error)]
pub enum WdiffError {
    /// An input cannot be read or is damaged.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The output cannot be written.
    #[error("writing at byte {offset} of the output failed")]
    Output {
        /// Bytes from the start of the output.
        offset: u64,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// A compressor failed; it must not on any input.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Records were given to a writer in an order that no file can have, or beyond its limits.
    #[error("cannot write the record at block {address}: {what}")]
    Unwritable {
        /// Its first logical block.
        address: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A record lies beyond the end of the image that it should go to.
    #[error(
        "the record at blocks {address} to {end} lies beyond the end of the image, which has \
         {image_blocks} blocks; grow the image first"
    )]
    BeyondEnd {
        /// Its first logical block.
        address: u64,
        /// The block after its last.
        end: u64,
        /// Logical blocks of the image.
        image_blocks: u64,
    },
    /// The log that is converted cannot be read.
    #[error("the log is not sound")]
    Log(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A worker thread died: a bug of ours.
    #[error("a codec thread died; please report this with the log above")]
    WorkerDied,
}
