//! The acceptance scenarios of the original (semantics.md §8), each under its id, on the real
//! binaries as separate processes. `cargo nextest run -E 'test(scenario)'` runs them.
//!
//! | id | module |
//! |---|---|
//! | n1-n14 | [`normal`], [`archives`] (n7-n11, n14) |
//! | m1-m3 | [`misoperation`] |
//! | e1-e17 | [`errors`], [`cuts`] (a fault proxy between the roles) |
//! | r1-r4 | [`replacement`] |
//! | c1-c6 | [`concurrent`] |
//! | §8.7, §9.3 | [`additional`] |
//!
//! Where the original waits for a time ("10 s, then g is not restorable") the tests wait for the
//! sign that a delivery was tried and failed. Where our product differs on purpose, the test's
//! comment says how.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]
#![forbid(unsafe_code)]

mod additional;
mod archives;
mod concurrent;
mod cuts;
mod errors;
mod misoperation;
mod normal;
mod replacement;

use anyhow::Result;
use tests::cluster::{Cluster, Layout};
use tests::skip::have_programs;

/// Whether the programs that every scenario drives the product with are there.
fn can_run(test: &str) -> bool {
    have_programs(test, &["qemu-io", "nbdcopy", "sha256sum"])
}

/// A fresh cluster in the base state T (semantics.md §8.1).
fn base_state(layout: Layout) -> Result<Cluster> {
    let cluster = Cluster::start(layout)?;
    cluster.vol().base_state()?;
    Ok(cluster)
}

/// A test with its scenario's id in its name; the body gets to know whether it can run.
macro_rules! scenario {
    ($(#[$attr:meta])* $name:ident, $body:block) => {
        $(#[$attr])*
        #[test]
        fn $name() -> anyhow::Result<()> {
            if !crate::can_run(stringify!($name)) {
                return Ok(());
            }
            $body
            Ok(())
        }
    };
}
pub(crate) use scenario;
