//! Faults on request: the n-th operation fails, is late, or hangs until it is released.

use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::device::Operation;

/// What happens to an operation.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It fails. A failed write may have reached the medium in part, but is not seen by reads.
    Error(Errno),
    /// It takes this long (tokio time).
    Delay(Duration),
    /// It waits until the gate is opened.
    Hang(Gate),
}

/// Which operations a fault hits, counted from its injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// The n-th from now only; 0 is the next.
    Nth(u64),
    /// The n-th from now and all after it, until the faults are cleared.
    From(u64),
}

/// Holds operations until it is opened, for good. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    closed: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { closed: Arc::new(Semaphore::new(0)) }
    }
}

impl Gate {
    /// A closed gate.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everybody pass, now and later.
    pub fn open(&self) {
        self.closed.close();
    }

    pub(super) async fn pass(&self) {
        // There are no permits: this ends when the semaphore is closed.
        let _opened = self.closed.acquire().await;
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    rules: Mutex<Vec<Rule>>,
}

#[derive(Debug)]
struct Rule {
    operation: Operation,
    countdown: u64,
    for_ever: bool,
    fault: Fault,
}

impl Faults {
    pub(super) fn inject(&self, operation: Operation, when: When, fault: Fault) {
        let (countdown, for_ever) = match when {
            When::Nth(n) => (n, false),
            When::From(n) => (n, true),
        };
        self.rules.lock().push(Rule { operation, countdown, for_ever, fault });
    }

    pub(super) fn clear(&self) {
        self.rules.lock().clear();
    }

    /// Counts one operation; the faults that hit it.
    fn count(&self, operation: Operation) -> Vec<Fault> {
        let mut hits = Vec::new();
        self.rules.lock().retain_mut(|rule| {
            if rule.operation != operation {
                return true;
            }
            if rule.countdown > 0 {
                rule.countdown -= 1;
                return true;
            }
            hits.push(rule.fault.clone());
            rule.for_ever
        });
        hits
    }

    /// Suffers what was injected for the next `operation`, in the order of injection.
    pub(super) async fn suffer(&self, operation: Operation) -> Result<(), Errno> {
        for fault in self.count(operation) {
            match fault {
                Fault::Error(errno) => return Err(errno),
                Fault::Delay(time) => tokio::time::sleep(time).await,
                Fault::Hang(gate) => gate.pass().await,
            }
        }
        Ok(())
    }
}
