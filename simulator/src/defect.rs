//! Deliberate defects: lies of the seams, to see that the simulator finds what it shall find.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// An fsync of a directory does nothing.
    NoDirectorySync,
    /// An fsync of a file does nothing.
    NoFileSync,
    /// A flush of the log device does nothing.
    NoLogFlush,
    /// A flush of the data device does nothing.
    NoDataFlush,
    /// Every release of logs releases all that redo does not need, shipped or not.
    EarlyRelease,
    /// An image loses a write now and then.
    LostImageWrite,
    /// A flush of an image does nothing.
    NoImageFlush,
    /// The device does not say that logs were overwritten.
    HiddenOverflow,
    /// The data device acknowledges a write and does it behind the next one.
    LateDataWrites,
    /// A record that is read is the one before the last.
    OldRecords,
    /// A byte of what goes into an image is another one now and then.
    DamagedImage,
    /// A disk that is full takes everything, and keeps nothing of it.
    FullSwallows,
    /// A disk that was full stays full.
    FullForEver,
    /// Whoever asks which log the second archive's snapshot is of, hears the name of the newest.
    SameLog,
    /// Another one deletes wdiffs of the archive, too, who knows nothing of the leases there.
    SecondOwner,
}

/// Which lie is told, and to whom: the first letter of a host (`d`, `s`, `p`, `a`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The lie.
    pub defect: Defect,
    /// Whose seam it is.
    pub host: char,
}

impl fmt::Display for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.defect, self.host)
    }
}

impl FromStr for Canary {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let known = |(defect, host): (&str, char)| {
            let defect = Defect::ALL.into_iter().find(|d| format!("{d:?}") == defect)?;
            Some(Self { defect, host })
        };
        let parts = text.split_once(':').and_then(|(d, h)| Some((d, h.chars().next()?)));
        parts.and_then(known).ok_or_else(|| format!("{text} is no canary"))
    }
}

impl Defect {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::NoDirectorySync,
        Self::NoFileSync,
        Self::NoLogFlush,
        Self::NoDataFlush,
        Self::EarlyRelease,
        Self::LostImageWrite,
        Self::NoImageFlush,
        Self::HiddenOverflow,
        Self::LateDataWrites,
        Self::OldRecords,
        Self::DamagedImage,
        Self::FullSwallows,
        Self::FullForEver,
        Self::SameLog,
        Self::SecondOwner,
    ];
}

/// The defect that a process meets, once the set-up is over and durable: so that it reaches the
/// data, and not only what a server writes down once.
#[derive(Clone, Default)]
pub(crate) struct Defects {
    defect: Option<Defect>,
    armed: Arc<AtomicBool>,
}

impl Defects {
    pub(crate) fn of(canary: Option<Canary>, host: &str, armed: &Arc<AtomicBool>) -> Self {
        let defect = canary.filter(|c| host.starts_with(c.host)).map(|c| c.defect);
        Self { defect, armed: armed.clone() }
    }

    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.defect == Some(defect) && self.armed.load(Ordering::Relaxed)
    }
}
