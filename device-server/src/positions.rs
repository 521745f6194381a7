//! The seven log positions of a volume (`semantics.md` §1.5) and what always holds between them:
//! `oldest <= prev_written <= written <= permanent <= flush <= completed <= latest`.
//!
//! Every change goes through [`Positions::set`], which asserts that invariant: a position that
//! overtakes its neighbour would sooner or later cost somebody's data, so we rather stop.

use wlog_format::units::{Lsid, Pb};

/// Where the log of a volume stands, all in physical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// Released: the ring may be written over everything below (I4).
    pub oldest: Lsid,
    /// What the super block on the log device says: redo starts here.
    pub prev_written: Lsid,
    /// Everything below has been written to the data device.
    pub written: Lsid,
    /// Everything below is durable on the log device.
    pub permanent: Lsid,
    /// Everything below is covered by the last flush that was issued.
    pub flush: Lsid,
    /// Everything below has been written to the log device.
    pub completed: Lsid,
    /// Where the next pack begins.
    pub latest: Lsid,
}

impl Positions {
    /// A log in which everything up to `end` is done and durable.
    #[must_use]
    pub fn settled(oldest: Lsid, end: Lsid) -> Self {
        let positions = Self {
            oldest,
            prev_written: end,
            written: end,
            permanent: end,
            flush: end,
            completed: end,
            latest: end,
        };
        positions.check();
        positions
    }

    /// Changes some positions and asserts that they are still in order and that none went back.
    pub fn set(&mut self, change: impl FnOnce(&mut Self)) {
        let before = *self;
        change(self);
        self.check();
        let forward = self.oldest >= before.oldest
            && self.prev_written >= before.prev_written
            && self.written >= before.written
            && self.permanent >= before.permanent
            && self.flush >= before.flush
            && self.completed >= before.completed
            && self.latest >= before.latest;
        assert!(forward, "a log position went back: {before:?} -> {self:?}");
    }

    fn check(&self) {
        let in_order = self.oldest <= self.prev_written
            && self.prev_written <= self.written
            && self.written <= self.permanent
            && self.permanent <= self.flush
            && self.flush <= self.completed
            && self.completed <= self.latest
            && self.latest <= Lsid::MAX;
        assert!(in_order, "log positions out of order: {self:?}");
    }

    /// Log that is not released yet.
    #[must_use]
    pub const fn usage(&self) -> Pb {
        self.latest.distance_from(self.oldest)
    }

    /// Is everything that was ever accepted on the data device?
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.written == self.latest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "out of order")]
    fn data_cannot_be_written_before_its_log_is_permanent() {
        let mut positions = Positions::settled(Lsid(0), Lsid(10));
        positions.set(|p| p.latest = Lsid(20));
        positions.set(|p| p.written = Lsid(20));
    }

    #[test]
    #[should_panic(expected = "went back")]
    fn positions_do_not_go_back() {
        let mut positions = Positions::settled(Lsid(5), Lsid(10));
        positions.set(|p| p.oldest = Lsid(4));
    }

    #[test]
    fn usage_counts_what_is_not_released() {
        assert_eq!(Positions::settled(Lsid(4), Lsid(10)).usage(), Pb(6));
    }
}
