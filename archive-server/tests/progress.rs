//! A full backup keeps its progress beside what arrives: never over a write that has not ended, and
//! not without a flush.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;

use archive_server::{Images, Settings};
use common::hooked::{Access, Hooked};
use common::slow::{PIECE, progress, send_up_to, slowly};
use common::{Archive, Client, UUID, full, full_end, full_start, same, until};
use proto::v1::full_sync_request::Step;
use proto::v1::{FullSyncReply, FullSyncRequest};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// A keeping is begun after so many bytes.
const KEPT: usize = 8 * PIECE;

/// What happens to the held access to the base image.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Wait,
    Fail,
}

/// Of one kind of access to the base image, number `only` is held until the gate lets it.
struct Held {
    images: Arc<dyn Images>,
    flushes: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
}

fn held(held: Access, only: usize, then: Then) -> Held {
    let (flushes, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let (counted, closed, seen) = (flushes.clone(), gate.clone(), AtomicUsize::new(0));
    let images = Hooked::images(move |access, path| {
        let base = path.ends_with("base.img");
        if base && access == Access::Flush {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        let held = base && access == held && seen.fetch_add(1, Ordering::SeqCst) == only;
        let gate = closed.clone();
        Box::pin(async move {
            match then {
                _ if !held => Ok(()),
                Then::Wait => gate.acquire().await.map(drop).map_err(io::Error::other),
                Then::Fail => Err(io::Error::from_raw_os_error(5)),
            }
        })
    });
    Held { images, flushes, gate }
}

struct Backup {
    dir: tempfile::TempDir,
    _archive: Archive,
    client: Client,
    sender: tokio::sync::mpsc::Sender<FullSyncRequest>,
    reply: JoinHandle<common::Answer<FullSyncReply>>,
}

impl Backup {
    /// Begun, with so many bytes sent.
    async fn begun(images: &Arc<dyn Images>, image: &[u8], sent: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { flush_bytes: KEPT as u64, ..common::settings() };
        let archive = Archive::with(&dir, settings, images.clone());
        let mut client = archive.client();
        client.init().await;
        let (session, _) = client.prepare(image.len() as u64 / 512, &UUID.0).await.unwrap();
        let (sender, reply) = slowly(&client);
        sender.send(full(Step::Start(full_start(session)))).await.unwrap();
        send_up_to(&sender, image, 0, sent).await;
        Self { dir, _archive: archive, client, sender, reply }
    }

    /// Waits until these bytes have reached the image.
    async fn written(&self, image: &[u8], range: std::ops::Range<usize>) {
        let path = self.dir.path().join("a0/vol0/base.img");
        until("the writes", || async {
            // There is no file before the session begins.
            let now = std::fs::read(&path).ok()?;
            (now.get(range.clone())? == &image[range.clone()]).then_some(())
        })
        .await;
    }

    async fn end(mut self, image: &[u8], from: usize) {
        send_up_to(&self.sender, image, from, image.len()).await;
        self.sender.send(full(full_end(0, 0))).await.unwrap();
        drop(self.sender);
        self.reply.await.unwrap().unwrap();
        same(&self.client.restored(0).await, image, "the backup");
    }
}

/// Of which no block is zero.
fn image() -> Vec<u8> {
    (0..=u8::MAX).skip(1).cycle().take(32 * PIECE).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_arrives_is_written_while_a_flush_is_under_way() {
    let (image, held) = (image(), held(Access::Flush, 0, Then::Wait));
    let backup = Backup::begun(&held.images, &image, 15 * PIECE).await;
    backup.written(&image, 0..15 * PIECE).await;
    assert_eq!(progress(&backup.dir), Some(0), "nothing counts before the flush has ended");
    held.gate.add_permits(1);
    until("progress", || async { (progress(&backup.dir) == Some(KEPT as u64)).then_some(()) })
        .await;
    backup.end(&image, 15 * PIECE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_progress_is_kept_over_a_write_that_has_not_ended() {
    let (image, held) = (image(), held(Access::Write, 2, Then::Wait));
    let backup = Backup::begun(&held.images, &image, 15 * PIECE).await;
    backup.written(&image, 3 * PIECE..15 * PIECE).await;
    assert_eq!(held.flushes.load(Ordering::SeqCst), 0, "a flush of what is not written yet");
    assert_eq!(progress(&backup.dir), Some(0));
    held.gate.add_permits(1);
    until("progress", || async { (progress(&backup.dir) == Some(KEPT as u64)).then_some(()) })
        .await;
    backup.end(&image, 15 * PIECE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flush_or_a_write_that_fails_ends_the_backup_though_more_arrives() {
    let image = image();
    for (access, number) in [(Access::Flush, 0), (Access::Write, 7)] {
        let held = held(access, number, Then::Fail);
        let backup = Backup::begun(&held.images, &image, 9 * PIECE).await;
        let limit = tokio::time::timeout(common::LIMIT, backup.reply);
        let refused = limit.await.unwrap().unwrap().unwrap_err();
        assert!(refused.message().contains("base.img"), "{access:?}: {refused}");
        assert_eq!(progress(&backup.dir), Some(0), "{access:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_counts_only_when_its_last_bytes_are_flushed() {
    let image: Vec<u8> = image().into_iter().take(9 * PIECE).collect();
    // The first flush is of the progress.
    let held = held(Access::Flush, 1, Then::Wait);
    let mut backup = Backup::begun(&held.images, &image, image.len()).await;
    backup.sender.send(full(full_end(0, 0))).await.unwrap();
    let flushes = held.flushes.clone();
    until("the last flush", || async { (flushes.load(Ordering::SeqCst) == 2).then_some(()) }).await;
    assert!(!backup.reply.is_finished(), "it counts before its flush has ended");
    held.gate.add_permits(1);
    backup.reply.await.unwrap().unwrap();
    same(&backup.client.restored(0).await, &image, "the backup");
}
