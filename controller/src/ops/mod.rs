//! The operations of the recovery manual, one async function each (semantics.md §6).
//!
//! Each takes names of the group file, leaves nothing behind that has to be undone, and may be
//! called again after a failure.

pub mod archive;
pub mod backup;
pub mod device;
mod drain;
pub mod hash;
pub mod health;
pub mod look;
mod lost;
pub mod mount;
pub mod peers;
mod prepare;
pub mod recover;
pub mod replicate;
pub mod resize;
pub mod run;
pub mod setup;
pub mod sync;
pub mod upkeep;
pub mod verify;

use std::time::Duration;

use proto::v1;
use server_kit::retry::Backoff;
use tokio::time::{Instant, sleep};

use crate::error::ControlError;

/// What an operation tells while it works.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// How a long job of a server stands.
    Progress(&'a v1::Operation),
    /// What whoever asked should know or do later.
    Note(&'a str),
}

/// Who is told. `&mut |_| {}` is nobody.
pub type Watch<'a> = &'a mut (dyn FnMut(Event<'_>) + Send);

/// Pause between two looks at a server's state.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The first pause; each is twice as long as the one before, up to the other. What is nearly there
/// is not waited for long.
const FIRST_INTERVAL: Duration = Duration::from_millis(5);

/// Polls until `look` gives a value; an error ends it at once.
pub(crate) async fn wait_for<T, F, Fut>(
    what: &str,
    next_step: &str,
    limit: Duration,
    mut look: F,
) -> Result<T, ControlError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<Option<T>, ControlError>>,
{
    let start = Instant::now();
    let mut pause = Backoff::new(FIRST_INTERVAL, POLL_INTERVAL);
    loop {
        if let Some(value) = look().await? {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            return Err(ControlError::Timeout {
                message: format!("{what} did not happen"),
                waited: limit,
                next_step: next_step.to_owned(),
            });
        }
        sleep(pause.next_delay()).await;
    }
}
