//! `walbc doctor`: looks at every server, names what is wrong in the words of the recovery manual
//! (docs/operating/recovering.md), and prints or runs the documented steps.
//!
//! ```text
//!  look ---> view::Look ---> rules::diagnose ---> diagnosis::Diagnosis ---> runner (--fix)
//!  (asks)    (plain data)    (pure)               (facts, steps)            (runs the same steps)
//! ```
//! Invariants: what is printed is what is run, word by word; a failure is named only when two looks
//! in a row find it, so that a passing moment is none; a server that does not answer is named as
//! such and proves nothing else.

pub mod diagnosis;
mod look;
pub mod rules;
pub mod runner;
pub mod view;

use std::time::Duration;

use tokio::time::sleep;

use crate::client::Controller;
use crate::error::Exit;
use diagnosis::Diagnosis;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(700);
/// Looks that may differ before the last two are taken as they are.
const LOOKS_MAX: usize = 5;

/// Looks until two looks in a row find the same failures; those that both found.
pub async fn examine(ctl: &Controller, only: Option<&str>) -> Vec<Diagnosis> {
    let mut before = rules::diagnose(&look::look(ctl, only).await);
    for _ in 1..LOOKS_MAX {
        if is_well(&before) {
            return before;
        }
        sleep(PAUSE).await;
        let now = rules::diagnose(&look::look(ctl, only).await);
        let total = now.len();
        let both = confirmed(&before, now.clone());
        if both.len() == total {
            return both;
        }
        before = now;
    }
    let now = rules::diagnose(&look::look(ctl, only).await);
    confirmed(&before, now)
}

/// Those that were there before, too.
fn confirmed(before: &[Diagnosis], mut now: Vec<Diagnosis>) -> Vec<Diagnosis> {
    now.retain(|diagnosis| before.iter().any(|old| old.is_same(diagnosis)));
    now
}

/// Whether nothing is wrong (any more).
#[must_use]
pub fn is_well(found: &[Diagnosis]) -> bool {
    found.iter().all(Diagnosis::is_over)
}

/// Exit code: 0 nothing is wrong, 3 something is, 4 nothing but that servers do not answer.
#[must_use]
pub fn exit(found: &[Diagnosis]) -> Exit {
    if is_well(found) {
        return Exit::Done;
    }
    let silent = found.iter().all(|d| d.is_silence() || d.is_over());
    if silent { Exit::Unreachable } else { Exit::No }
}
