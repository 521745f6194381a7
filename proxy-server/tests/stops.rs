//! Stop modes (semantics.md §4.7 without its defects 9.2 #1 and #2): a stop answers when the volume
//! has stopped, has no time limit, can be given up, and can be overtaken by a more urgent one.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    missing_docs,
    reason = "a test may panic"
)]
mod common;
use common::archive::{Archive, Order};
use common::log::Device;
use common::{Place, Proxy, soon, started, until};
use proto::v1::{StopMode, WdiffResult};
use server_kit::error::Reason;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tonic::Status;

/// A volume with one wdiff whose transfer the archive holds.
async fn sending(place: &Place) -> (Archive, Arc<Proxy>, Device) {
    let archive = Archive::start(&place.socket("a0")).await;
    let proxy = Proxy::start(place).await;
    archive.order(&[Order::Hold]);
    started(place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(40, 64);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    archive.holds_one().await;
    (archive, Arc::new(proxy), device)
}

fn stop(proxy: &Arc<Proxy>, mode: StopMode) -> JoinHandle<Result<(), Status>> {
    let proxy = Arc::clone(proxy);
    tokio::spawn(async move { proxy.stop_volume(mode).await })
}

async fn state(proxy: &Proxy, wanted: &str) {
    until(wanted, || async { proxy.state().await == wanted }).await;
}

#[tokio::test]
async fn a_graceful_stop_lets_a_transfer_end_and_begins_no_other() {
    let place = Place::new();
    let (archive, proxy, mut device) = sending(&place).await;
    let ios = device.random_ios(4, 64);
    proxy.send(device.write_as(&ios, false).messages()).await.unwrap();
    let stopping = stop(&proxy, StopMode::Graceful);
    state(&proxy, "Stop").await;
    let ios = device.random_ios(4, 64);
    let refused = proxy.send(device.write(&ios).messages()).await.unwrap_err();
    assert_eq!(common::error(&refused).reason(), Reason::Stopping);
    assert!(!stopping.is_finished());
    archive.release();
    soon("the stop", stopping).await.unwrap().unwrap();
    assert_eq!(proxy.state().await, "Stopped");
    assert_eq!(archive.stored().len(), 1, "the transfer was not aborted");
    assert_eq!(proxy.queue("a0").await.wdiffs, 1, "and the next one did not begin");
    let refused = proxy.kick().await.unwrap_err();
    assert_eq!(common::error(&refused).reason(), Reason::WrongState);
    proxy.start_volume().await.unwrap();
    proxy.empty("a0").await;
}

#[tokio::test]
async fn a_forced_stop_breaks_a_transfer_off_and_keeps_the_wdiff() {
    let place = Place::new();
    let (archive, proxy, device) = sending(&place).await;
    soon("the stop", proxy.stop_volume(StopMode::Force)).await.unwrap();
    assert_eq!(proxy.state().await, "Stopped");
    assert_eq!(place.staged("a0").len(), 1);
    assert!(archive.stored().is_empty());
    proxy.start_volume().await.unwrap();
    proxy.empty("a0").await;
    assert!(archive.image() == device.image);
}

#[tokio::test]
async fn a_forced_stop_breaks_off_a_wlog_that_arrives() {
    let place = Place::new();
    let proxy = Proxy::start(&place).await;
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(4, 64);
    let piece = device.write(&ios);
    let (messages, stream) = tokio::sync::mpsc::channel(10);
    messages.send(piece.start_message()).await.unwrap();
    let mut client = proxy.client.clone();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let call = tokio::spawn(async move { client.wlog_transfer(stream).await });
    state(&proxy, "WlogRecv").await;
    soon("the stop", proxy.stop_volume(StopMode::Force)).await.unwrap();
    let broken = soon("the answer", call).await.unwrap().unwrap_err();
    assert_eq!(common::error(&broken).reason(), Reason::Cancelled);
    assert_eq!(proxy.state().await, "Stopped");
    assert!(place.staged("a0").is_empty());
}

#[tokio::test]
async fn a_graceful_stop_waits_for_a_wlog_that_arrives() {
    let place = Place::new();
    let proxy = Arc::new(Proxy::start(&place).await);
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(4, 64);
    let piece = device.write(&ios);
    let (messages, stream) = tokio::sync::mpsc::channel(10);
    messages.send(piece.start_message()).await.unwrap();
    let mut client = proxy.client.clone();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let call = tokio::spawn(async move { client.wlog_transfer(stream).await });
    state(&proxy, "WlogRecv").await;
    let stopping = stop(&proxy, StopMode::Graceful);
    for message in piece.chunk_messages() {
        messages.send(message).await.unwrap();
    }
    assert!(!stopping.is_finished());
    messages.send(piece.end_message()).await.unwrap();
    soon("the answer", call).await.unwrap().unwrap();
    soon("the stop", stopping).await.unwrap().unwrap();
    assert_eq!(proxy.state().await, "Stopped");
    assert_eq!(place.staged("a0").len(), 1, "acknowledged and kept");
}

#[tokio::test]
async fn a_stop_when_empty_sends_everything_first() {
    let place = Place::new();
    let (archive, proxy, mut device) = sending(&place).await;
    let ios = device.random_ios(4, 64);
    proxy.send(device.write_as(&ios, false).messages()).await.unwrap();
    let stopping = stop(&proxy, StopMode::Empty);
    state(&proxy, "WaitForEmpty").await;
    assert_eq!(proxy.kick().await.unwrap(), ["v0/a0"], "a kick is welcome now");
    archive.release();
    soon("the stop", stopping).await.unwrap().unwrap();
    assert_eq!(proxy.state().await, "Stopped");
    assert_eq!(archive.stored().len(), 2);
    assert!(place.staged("a0").is_empty());
    assert!(archive.image() == device.image);
}

#[tokio::test]
async fn a_stop_when_empty_waits_as_long_as_the_archive_does_not_take_it() {
    let place = Place::new();
    let archive = Archive::start(&place.socket("a0")).await;
    archive.always(Some(Order::Answer(WdiffResult::TooNew)));
    let proxy = Arc::new(Proxy::start(&place).await);
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(4, 64);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    let stopping = stop(&proxy, StopMode::Empty);
    state(&proxy, "WaitForEmpty").await;
    archive.attempted(archive.attempts().len() + 4).await;
    assert_eq!(proxy.state().await, "WaitForEmpty");
    assert!(!stopping.is_finished());
    archive.always(None);
    soon("the stop", stopping).await.unwrap().unwrap();
    assert!(archive.image() == device.image);
}

#[tokio::test]
async fn a_shutdown_ends_a_stop_that_waits_for_a_dead_archive() {
    let place = Place::new();
    let proxy = Arc::new(Proxy::start(&place).await);
    started(&place, &proxy).await;
    let mut device = Device::new();
    let ios = device.random_ios(4, 64);
    proxy.send(device.write(&ios).messages()).await.unwrap();
    let stopping = stop(&proxy, StopMode::Empty);
    state(&proxy, "WaitForEmpty").await;
    proxy.shutdown.request(StopMode::Graceful);
    let given_up = soon("the stop", stopping).await.unwrap().unwrap_err();
    assert_eq!(common::error(&given_up).reason(), Reason::Cancelled);
    Arc::into_inner(proxy).unwrap().end(StopMode::Graceful).await;
    let proxy = Proxy::start(&place).await;
    assert_eq!(proxy.state().await, "Started", "it never stopped");
    proxy.kill().await;
}

#[tokio::test]
async fn a_caller_who_gives_up_a_stop_gets_the_volume_back() {
    for mode in [StopMode::Graceful, StopMode::Empty] {
        let place = Place::new();
        let (archive, proxy, mut device) = sending(&place).await;
        let stopping = stop(&proxy, mode);
        until("a stop", || async { proxy.state().await != "Started" }).await;
        stopping.abort();
        state(&proxy, "Started").await;
        let ios = device.random_ios(4, 64);
        proxy.send(device.write(&ios).messages()).await.unwrap();
        archive.release();
        proxy.empty("a0").await;
        assert!(archive.image() == device.image);
    }
}

#[tokio::test]
async fn a_more_urgent_stop_overtakes_and_an_equal_one_is_refused() {
    let place = Place::new();
    let (_archive, proxy, _device) = sending(&place).await;
    let empty = stop(&proxy, StopMode::Empty);
    state(&proxy, "WaitForEmpty").await;
    let again = proxy.stop_volume(StopMode::Empty).await.unwrap_err();
    assert_eq!(common::error(&again).reason(), Reason::Stopping);
    let graceful = stop(&proxy, StopMode::Graceful);
    state(&proxy, "Stop").await;
    let overtaken = soon("the first stop", empty).await.unwrap().unwrap_err();
    assert_eq!(common::error(&overtaken).reason(), Reason::Cancelled);
    soon("the forced stop", proxy.stop_volume(StopMode::Force)).await.unwrap();
    soon("the graceful stop", graceful).await.unwrap().unwrap();
    assert_eq!(proxy.state().await, "Stopped");
    assert_eq!(place.staged("a0").len(), 1);
}

#[tokio::test]
async fn a_shutdown_of_the_process_lets_a_transfer_end() {
    let place = Place::new();
    let (archive, proxy, _device) = sending(&place).await;
    let proxy = Arc::into_inner(proxy).unwrap();
    let ending = tokio::spawn(proxy.end(StopMode::Graceful));
    // The end may come only after the release; that it does come is what is waited for.
    assert!(!ending.is_finished());
    archive.release();
    soon("the end", ending).await.unwrap();
    assert_eq!(archive.stored().len(), 1);
    assert!(place.staged("a0").is_empty(), "what was acknowledged was dropped before the end");
}
