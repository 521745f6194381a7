//! A full backup whose messages are handed in one by one, and how far it is durable.
#![allow(dead_code, reason = "each test file uses its part")]

use super::{Client, bulk};
use proto::v1::{FullSyncReply, FullSyncRequest};

/// A full backup whose messages are handed in one by one.
pub fn slowly(
    client: &Client,
) -> (
    tokio::sync::mpsc::Sender<FullSyncRequest>,
    tokio::task::JoinHandle<super::Answer<FullSyncReply>>,
) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut archive = client.archive.clone();
    let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let reply = async move { Ok(archive.full_sync(stream).await?.into_inner()) };
    (sender, tokio::spawn(reply))
}

pub const PIECE: usize = 64 << 10;

pub async fn send_up_to(
    sender: &tokio::sync::mpsc::Sender<FullSyncRequest>,
    image: &[u8],
    from: usize,
    to: usize,
) {
    for at in (from..to).step_by(PIECE) {
        sender.send(bulk(at, &image[at..at + PIECE])).await.unwrap();
    }
}

pub fn progress(dir: &tempfile::TempDir) -> Option<u64> {
    let text = std::fs::read_to_string(dir.path().join("a0/vol0/full-sync")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("durable_bytes = "))?;
    line.parse().ok()
}
