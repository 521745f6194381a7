//! Who may hold how much payload memory: a server-wide pool, and a small reserve of its own for
//! every connection.
//!
//! Invariants:
//! - All payloads in the hands of a server are within `server_bytes` plus `reserve_bytes` for each
//!   connection; those of one connection within `connection_bytes`.
//! - A request that fits into the reserve never waits for another connection, so a peer that does
//!   not take its replies blocks nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use super::protocol::MAX_PAYLOAD_BYTES;

/// Memory is counted in pages: payloads lie in page-aligned buffers.
const PAGE_BYTES: usize = 4096;

/// The memory that all connections of a server share.
pub(super) struct Pool {
    pages: Arc<Semaphore>,
    /// Connections that wait for pages.
    waiting: AtomicUsize,
}

impl Pool {
    /// A pool of `bytes`, but at least one payload of full length.
    pub(super) fn new(bytes: usize) -> Arc<Self> {
        let pages = pages(bytes).max(pages_of(MAX_PAYLOAD_BYTES)).min(Semaphore::MAX_PERMITS);
        Arc::new(Self { pages: Arc::new(Semaphore::new(pages)), waiting: AtomicUsize::new(0) })
    }

    /// True while somebody waits for memory that others hold.
    pub(super) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Memory that a request may use, given back through [`Ledger::release`].
#[must_use]
#[derive(Debug)]
pub(super) struct Charge {
    pages: usize,
    /// `None`: from the reserve.
    shared: Option<OwnedSemaphorePermit>,
}

/// What one connection holds.
pub(super) struct Ledger {
    pool: Arc<Pool>,
    reserve_pages: usize,
    held_pages: usize,
    shared_pages: usize,
    max_pages: usize,
    waiting: Option<Waiting>,
}

impl Ledger {
    /// A connection may hold `connection_bytes` (at least one payload of full length), of which
    /// `reserve_bytes` are its own.
    pub(super) fn new(pool: Arc<Pool>, connection_bytes: usize, reserve_bytes: usize) -> Self {
        let max_pages = pages(connection_bytes).max(pages_of(MAX_PAYLOAD_BYTES));
        let reserve_pages = pages(reserve_bytes);
        Self { pool, reserve_pages, held_pages: 0, shared_pages: 0, max_pages, waiting: None }
    }

    /// Takes memory for `bytes`. While pending, ask again with the same `bytes`.
    pub(super) fn poll_charge(&mut self, cx: &mut Context<'_>, bytes: u32) -> Poll<Charge> {
        let pages = pages_of(bytes);
        if self.held_pages + pages > self.max_pages {
            // The connection itself gives memory back, and then asks again.
            return Poll::Pending;
        }
        if pages <= self.reserve_pages {
            self.reserve_pages -= pages;
            self.held_pages += pages;
            self.waiting = None;
            return Poll::Ready(Charge { pages, shared: None });
        }
        let permit = std::task::ready!(self.poll_pool(cx, pages));
        self.waiting = None;
        self.held_pages += pages;
        self.shared_pages += pages;
        Poll::Ready(Charge { pages, shared: Some(permit) })
    }

    fn poll_pool(&mut self, cx: &mut Context<'_>, pages: usize) -> Poll<OwnedSemaphorePermit> {
        let wanted = u32::try_from(pages).unwrap_or(u32::MAX);
        if self.waiting.is_none()
            && let Ok(permit) = Arc::clone(&self.pool.pages).try_acquire_many_owned(wanted)
        {
            return Poll::Ready(permit);
        }
        let pool = &self.pool;
        let waiting = self.waiting.get_or_insert_with(|| Waiting::new(Arc::clone(pool), wanted));
        match std::task::ready!(waiting.permit.as_mut().poll(cx)) {
            Ok(permit) => Poll::Ready(permit),
            // Only a closed semaphore fails, and nobody closes it.
            Err(_) => Poll::Pending,
        }
    }

    /// Leaves the queue for memory: whoever stays there without asking holds up all others.
    pub(super) fn stop_waiting(&mut self) {
        self.waiting = None;
    }

    /// Gives memory back.
    pub(super) fn release(&mut self, charge: Charge) {
        self.held_pages -= charge.pages;
        match charge.shared {
            None => self.reserve_pages += charge.pages,
            Some(_) => self.shared_pages -= charge.pages,
        }
    }

    /// True if others wait for memory that this connection holds.
    pub(super) fn is_in_the_way(&self) -> bool {
        self.shared_pages > 0 && self.pool.is_short()
    }

    /// True if the connection holds memory of the pool.
    pub(super) fn holds_shared(&self) -> bool {
        self.shared_pages > 0
    }
}

/// A place in the queue for pages of the pool.
struct Waiting {
    pool: Arc<Pool>,
    permit: BoxFuture<'static, Result<OwnedSemaphorePermit, AcquireError>>,
}

impl Waiting {
    fn new(pool: Arc<Pool>, pages: u32) -> Self {
        let permit = Box::pin(Arc::clone(&pool.pages).acquire_many_owned(pages));
        pool.waiting.fetch_add(1, Ordering::Relaxed);
        Self { pool, permit }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.pool.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn pages(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES)
}

/// Pages of a payload: buffers are reused by size, in powers of two.
fn pages_of(bytes: u32) -> usize {
    pages(usize::try_from(bytes).unwrap_or(usize::MAX)).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use futures::future::poll_fn;
    use futures::task::noop_waker;

    use super::*;

    const FULL: u32 = MAX_PAYLOAD_BYTES;

    fn charge(ledger: &mut Ledger, bytes: u32) -> Option<Charge> {
        match ledger.poll_charge(&mut Context::from_waker(&noop_waker()), bytes) {
            Poll::Ready(charge) => Some(charge),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_connection_has_its_reserve_when_the_pool_is_empty() {
        let pool = Pool::new(0);
        let mut greedy = Ledger::new(Arc::clone(&pool), 0, 8192);
        let mut modest = Ledger::new(Arc::clone(&pool), 0, 8192);
        let all = charge(&mut greedy, FULL).unwrap();
        assert!(!greedy.is_in_the_way());
        let small = charge(&mut modest, 8192).unwrap();
        assert!(charge(&mut modest, 512).is_none(), "beyond the reserve");
        assert!(greedy.is_in_the_way() && !modest.is_in_the_way());
        modest.release(small);
        let small = charge(&mut modest, 512).unwrap();
        assert!(!greedy.is_in_the_way(), "nobody waits any more");
        modest.release(small);
        greedy.release(all);
        assert!(charge(&mut modest, FULL).is_some());
    }

    #[test]
    fn a_connection_stays_within_its_own_limit() {
        let mut ledger = Ledger::new(Pool::new(1 << 30), 40 << 20, 0);
        let first = charge(&mut ledger, FULL).unwrap();
        assert!(charge(&mut ledger, 16 << 20).is_none());
        let second = charge(&mut ledger, 8 << 20).unwrap();
        assert!(charge(&mut ledger, 512).is_none());
        ledger.release(first);
        assert!(charge(&mut ledger, FULL).is_some());
        ledger.release(second);
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_who_gives_back() {
        let pool = Pool::new(0);
        let mut first = Ledger::new(Arc::clone(&pool), 0, 0);
        let mut second = Ledger::new(pool, 0, 0);
        let all = charge(&mut first, FULL).unwrap();
        let waiter =
            tokio::spawn(async move { drop(poll_fn(|cx| second.poll_charge(cx, 1)).await) });
        while !first.is_in_the_way() {
            tokio::task::yield_now().await;
        }
        first.release(all);
        waiter.await.unwrap();
    }
}
