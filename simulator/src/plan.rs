//! What a run may do, drawn before it begins; directed plans ([`Story`]) know it beforehand.

use rand::RngExt;
use rand::rngs::StdRng;
use std::fmt;
use std::str::FromStr;

/// A directed plan: it reaches its state whatever the seed, which draws the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Story {
    /// A second archive has gids of a log that the first one never saw, and that were given again.
    ForkedHistory,
    /// A restore reads wdiffs that an apply and a merge have made needless.
    ReadersBesideApply,
    /// Lost logs are noticed while the storage server's disk is full.
    GapWhileFull,
    /// Snapshots are lost with a proxy, and new ones are taken after that.
    LostSnapshots,
    /// The storage server dies when it has told a snapshot and nobody else knows of it.
    ToldSnapshot,
    /// The end of a hash backup and of a resync is waited for, on a slow network.
    SlowComparison,
}

impl Story {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::ForkedHistory,
        Self::ReadersBesideApply,
        Self::GapWhileFull,
        Self::LostSnapshots,
        Self::ToldSnapshot,
        Self::SlowComparison,
    ];
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl FromStr for Story {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|story| story.to_string() == text);
        found.ok_or_else(|| format!("{text} is no story"))
    }
}

/// What may be done to the history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) archives: &'static [&'static str],
    pub(crate) proxies: &'static [&'static str],
    /// The ring is small, and is written over.
    pub(crate) overflows: bool,
    /// A proxy loses all that it has.
    pub(crate) loses_proxies: bool,
    /// The storage server loses all that it has.
    pub(crate) loses_storage: bool,
    /// A person stops the volume and makes hash backups.
    pub(crate) by_hand: bool,
    /// Gaps heal by themselves.
    pub(crate) heals: bool,
    /// The volume grows.
    pub(crate) grows: bool,
}

impl Plan {
    pub(crate) fn draw(rng: &mut StdRng) -> Self {
        let by_hand = rng.random_ratio(1, 5);
        let overflows = rng.random_ratio(1, 4);
        let loses_proxies = rng.random_ratio(1, 5);
        Self {
            archives: if rng.random() { &["a0", "a1"] } else { &["a0"] },
            proxies: if rng.random_ratio(1, 3) { &["p0", "p1"] } else { &["p0"] },
            overflows,
            loses_proxies,
            loses_storage: rng.random_ratio(1, 10),
            by_hand,
            heals: (overflows || loses_proxies) && !(by_hand && rng.random()),
            grows: rng.random_ratio(1, 3),
        }
    }

    pub(crate) fn of(story: Story) -> Self {
        let calm = Self {
            archives: &["a0"],
            proxies: &["p0"],
            overflows: false,
            loses_proxies: false,
            loses_storage: false,
            by_hand: false,
            heals: false,
            grows: false,
        };
        let two = Self { archives: &["a0", "a1"], ..calm };
        match story {
            Story::ForkedHistory => Self { loses_proxies: true, loses_storage: true, ..two },
            Story::ReadersBesideApply | Story::ToldSnapshot => calm,
            Story::LostSnapshots => Self { loses_proxies: true, heals: true, ..calm },
            Story::GapWhileFull => Self { overflows: true, heals: true, ..calm },
            Story::SlowComparison => Self { by_hand: true, ..two },
        }
    }

    /// Whether logs can be lost.
    pub(crate) fn has_gaps(self) -> bool {
        self.overflows || self.loses_proxies || self.loses_storage || self.by_hand
    }

    /// Whether a person has to make a hash backup where it needs one.
    pub(crate) fn needs_hand(self) -> bool {
        self.by_hand || self.loses_storage || !self.heals
    }
}

/// What was done so far, that a person has to do something about in the end.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Past {
    /// The second archive was filled, or tried to be.
    pub(crate) replicated: bool,
    /// How large the volume shall be.
    pub(crate) grown_to: Option<u64>,
    /// A proxy has lost what it had, its lists, too.
    pub(crate) lost_proxy: bool,
    /// The storage server has lost what it had.
    pub(crate) lost_storage: bool,
}
