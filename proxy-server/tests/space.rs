//! A full disk is said before and during a transfer, loses nothing, and ends by itself (I10).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]
mod common;
use common::archive::Archive;
use common::log::Device;
use common::{Place, Proxy, error, names, started, until};
use server_kit::error::Reason;
use server_kit::units::Size;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system, unmounted at the end.
struct Small(PathBuf);

impl Small {
    /// `None` where it cannot be had: not root.
    fn mount(at: &Path, bytes: u64) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let size = format!("size={bytes}");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "none"]).arg(at);
        let mounted = mount.output().is_ok_and(|o| o.status.success());
        mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: a worker thread may still be closing its file.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_wlog_that_may_not_fit_is_refused_before_it_is_sent() {
    let place = Place::new();
    let mut settings = place.settings();
    settings.keep_free = Some(Size(u64::MAX / 2));
    let proxy = Proxy::start_with(&place, settings).await;
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(4, 64);
    let piece = device.write(&ios);
    // Only the start message: the refusal does not wait for data.
    let (messages, stream) = tokio::sync::mpsc::channel(1);
    messages.send(piece.start_message()).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut client = proxy.client.clone();
    let refused = common::soon("the refusal", client.wlog_transfer(stream)).await.unwrap_err();
    assert_eq!(error(&refused).reason(), Reason::NoSpace);
    assert!(!error(&refused).detail().next_step.is_empty());
    assert_eq!(proxy.state().await, "Started");
    assert!(proxy.volume().await.error.contains("bytes are free"), "shown in the status");
    proxy.kill().await;
    let proxy = Proxy::start(&place).await;
    proxy.send(piece.messages()).await.unwrap();
    assert!(proxy.volume().await.error.is_empty());
    proxy.kill().await;
}

#[tokio::test]
async fn a_disk_that_fills_up_during_a_transfer_loses_nothing_and_recovers_by_itself() {
    let place = Place::new();
    let Some(_small) = Small::mount(&place.base(), 12 << 20) else {
        eprintln!("skipped: cannot mount a small file system (not root?)");
        return;
    };
    let proxy = Proxy::start(&place).await;
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(4, 64);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    let ios = device.random_ios(60, 256);
    let piece = device.write(&ios);
    let (messages, stream) = tokio::sync::mpsc::channel(100);
    let mut all = piece.messages().into_iter();
    for message in all.by_ref().take(3) {
        messages.send(message).await.unwrap();
    }
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut client = proxy.client.clone();
    let call = tokio::spawn(async move { client.wlog_transfer(stream).await });
    until("a wlog", || async { proxy.state().await == "WlogRecv" }).await;
    let received = place.volume_dir().join("received");
    until("a half-made file", || async { names(&received).len() == 1 }).await;
    let filler = place.base().join("filler");
    // Fails when the disk is full, which is what it is for.
    assert!(std::fs::write(&filler, vec![1; 12 << 20]).is_err());
    for message in all {
        let _ = messages.send(message).await;
    }
    let refused = common::soon("the refusal", call).await.unwrap().unwrap_err();
    assert_eq!(error(&refused).reason(), Reason::NoSpace, "{}", error(&refused));
    assert!(names(&received).is_empty(), "the half-made file is gone");
    assert_eq!(proxy.state().await, "Started");
    assert!(!proxy.volume().await.error.is_empty());
    assert_eq!(place.staged("a0").len(), 1, "what was acknowledged is there");
    let again = proxy.send(piece.messages()).await.unwrap_err();
    assert_eq!(error(&again).reason(), Reason::NoSpace);
    std::fs::remove_file(&filler).unwrap();
    proxy.send(piece.messages()).await.unwrap();
    let archive = Archive::start(&place.socket("a0")).await;
    proxy.empty("a0").await;
    assert!(archive.image() == device.image);
    proxy.kill().await;
}
