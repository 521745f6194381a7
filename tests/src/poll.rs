//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long a condition may take on a busy machine of two cores.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Looks again and again until `look` gives a value; fails with `what` after `deadline`.
///
/// # Errors
/// The deadline has passed; what `look` gives.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("not within {deadline:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
