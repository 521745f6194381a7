//! Apply and restore of one volume at the same time: neither spoils the other (semantics.md §9.2
//! #10).
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

use archive_server::Settings;
use common::hooked::{Access, Hooked};
use common::{Archive, Device, VOLUME, filled, same, until};
use proto::v1::restore_request::Point;
use proto::v1::{OperationStatus, RestoreRequest};
use std::sync::{Arc, Once};
use tokio::sync::Semaphore;

fn device() -> Device {
    let mut device = Device::new(4096, 11);
    (0..6).for_each(|_| device.write(40));
    device
}

/// Closes the gate without taking anybody's turn for good.
const OPEN: usize = 1 << 20;

fn close(gate: &Semaphore) {
    gate.forget_permits(OPEN);
}

async fn pass(gate: Arc<Semaphore>) -> std::io::Result<()> {
    drop(gate.acquire().await.map_err(std::io::Error::other)?);
    Ok(())
}

fn restore(gid: u64) -> RestoreRequest {
    let point = Some(Point::Gid(gid));
    RestoreRequest { volume: VOLUME.into(), point, ..RestoreRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apply_begins_to_write_only_after_the_base_image_was_copied() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let gate = Arc::new(Semaphore::new(OPEN));
    let seen = gate.clone();
    let images = Hooked::images(move |access, path| {
        let copying = access == Access::Read && path.ends_with("base.img");
        let gate = seen.clone();
        Box::pin(async move { if copying { pass(gate).await } else { Ok(()) } })
    });
    let archive = Archive::with(&dir, common::settings(), images);
    let mut client = filled(&archive, &device).await;
    close(&gate);
    let plan = client.archive.restore(restore(2)).await.unwrap().into_inner();
    let method = plan.plan.unwrap().method;
    let applied = client.archive.apply(common::apply_to(5)).await.unwrap().into_inner();
    // Enough turns of the runtime for an apply that does not wait to be seen.
    for _ in 0..20 {
        let status = client.get().await;
        if method == "copy" {
            assert_eq!(status.base.unwrap().end, None, "the apply did not wait");
            assert_eq!(status.running, ["restore", "apply"]);
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    gate.add_permits(OPEN);
    let restored = client.finish(&plan.operation.unwrap().id).await;
    assert_eq!(restored.status(), OperationStatus::Done, "{restored:?}");
    same(&std::fs::read(&restored.path).unwrap(), &device.history[2], "the restored image");
    assert_eq!(client.finish(&applied.id).await.status(), OperationStatus::Done);
    same(&client.restored(6).await, &device.history[6], "after the apply");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wdiffs_that_a_restore_still_needs_outlive_the_apply() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    // What the base image is read for passes, to the flush behind it.
    let gate = Arc::new(Semaphore::new(OPEN));
    let (seen, first) = (gate.clone(), Once::new());
    let images = Hooked::images(move |access, path| {
        let mine = path.to_string_lossy().ends_with("3.img.tmp");
        if mine && access == Access::Flush {
            first.call_once(|| close(&seen));
        }
        let waits = mine && access == Access::Write;
        let gate = seen.clone();
        Box::pin(async move { if waits { pass(gate).await } else { Ok(()) } })
    });
    let settings = Settings { max_open: 1, ..common::settings() };
    let archive = Archive::with(&dir, settings, images);
    let mut client = filled(&archive, &device).await;
    let restored = client.archive.restore(restore(3)).await.unwrap().into_inner();
    let id = restored.operation.unwrap().id;
    let applied = client.apply(6).await.unwrap();
    assert_eq!(applied.status(), OperationStatus::Done, "{applied:?}");
    assert_eq!(client.get().await.diffs, 0);
    until("the others to go", || async { (archive.marked().len() == 3).then_some(()) }).await;
    gate.add_permits(OPEN);
    let restored = client.finish(&id).await;
    assert_eq!(restored.status(), OperationStatus::Done, "{restored:?}");
    same(&std::fs::read(&restored.path).unwrap(), &device.history[3], "the restored image");
    assert!(archive.files(".wdiff").is_empty());
    archive.all_deleted().await;
}
