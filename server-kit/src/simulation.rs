//! Whether this thread belongs to a simulation, in which nothing happens by chance: blocking work
//! never runs beside other code, one thread does what several would, and the wall clock is that of
//! the simulation.
//!
//! Invariant: this is a property of a thread and of what it starts, never of the process: servers
//! that are not simulated never see it.
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

thread_local! {
    static CURRENT: RefCell<Option<Simulation>> = const { RefCell::new(None) };
}

/// What the threads of one simulation share.
#[derive(Debug, Clone, Default)]
pub struct Simulation {
    unix_s: Arc<AtomicU64>,
}

/// The thread belongs to the simulation until this is dropped.
#[derive(Debug)]
pub struct Entered(Option<Simulation>);

impl Simulation {
    /// The simulation that this thread belongs to.
    #[must_use]
    pub fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Makes this thread part of the simulation.
    #[must_use]
    pub fn enter(&self) -> Entered {
        Entered(CURRENT.with_borrow_mut(|current| current.replace(self.clone())))
    }

    /// Sets the wall clock.
    pub fn set_unix_seconds(&self, seconds: u64) {
        self.unix_s.store(seconds, Ordering::Relaxed);
    }

    /// The wall clock.
    #[must_use]
    pub fn unix_seconds(&self) -> u64 {
        self.unix_s.load(Ordering::Relaxed)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = self.0.take();
        // Not there any more when the thread ends: then nobody asks either.
        let _ = CURRENT.try_with(|current| *current.borrow_mut() = before);
    }
}
