//! Lists of any length over gRPC: a stream of messages, none of which is larger than a client takes
//! (4 MiB). A short list is one message, so who knows the call as one that answers once hears the
//! same.

use futures::stream;
use tonic::codegen::BoxStream;
use tonic::{Status, Streaming};

/// Entries of one message; an entry has less than 1 KiB.
const ENTRIES_MAX: usize = 4096;

/// The messages of a list, in its order; one at least.
pub fn pages<T, M: Send + 'static>(
    list: impl IntoIterator<Item = T>,
    mut message: impl FnMut(Vec<T>) -> M,
) -> BoxStream<M> {
    let mut list = list.into_iter();
    let mut page = || list.by_ref().take(ENTRIES_MAX).collect::<Vec<T>>();
    let mut messages = vec![Ok(message(page()))];
    let mut next = page();
    while !next.is_empty() {
        messages.push(Ok(message(next)));
        next = page();
    }
    Box::pin(stream::iter(messages))
}

/// All messages of a list.
///
/// # Errors
/// The stream breaks.
pub async fn all<M>(mut pages: Streaming<M>) -> Result<Vec<M>, Status> {
    let mut all = Vec::new();
    while let Some(message) = pages.message().await? {
        all.push(message);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;

    #[tokio::test]
    async fn a_list_of_any_length_comes_whole_in_messages_that_are_not_too_long() {
        for (len, messages) in [(0, 1), (1, 1), (4096, 1), (4097, 2), (10_000, 3)] {
            let pages: Vec<Vec<usize>> =
                pages(0..len, |page| page).map(Result::unwrap).collect().await;
            assert_eq!(pages.len(), messages, "{len} entries");
            assert!(pages.iter().all(|page| page.len() <= 4096));
            assert_eq!(pages.concat(), (0..len).collect::<Vec<_>>());
        }
    }
}
