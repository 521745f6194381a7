//! Work that blocks (file system, codecs) called from async code.
use crate::error::{Reason, RoleError};
use std::num::NonZeroUsize;

/// Runs `work` on a thread that may block, and waits for it. A panic in it is an error here, so
/// that one bad volume does not take the server down.
///
/// # Errors
/// What `work` answers.
pub async fn run<T, E, F>(work: F) -> Result<T, RoleError>
where
    F: FnOnce() -> Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Into<RoleError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(error) => Err(RoleError::new(Reason::Io, "a worker thread failed").with_source(error)),
    }
}

/// How many threads a piece of blocking work may use for itself.
#[must_use]
pub fn parallelism() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn results_come_back_and_a_panic_is_an_error() {
        assert_eq!(run(|| Ok::<_, RoleError>(5)).await.unwrap(), 5);
        let refused = run(|| Err::<(), _>(RoleError::bad_request("no"))).await.unwrap_err();
        assert_eq!(refused.reason(), Reason::BadRequest);
        let error = run(|| -> Result<(), RoleError> { panic!("boom") }).await.unwrap_err();
        assert_eq!(error.reason(), Reason::Io);
    }
}
