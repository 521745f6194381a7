//! A thousand volumes: quick to load, none of them costs a thread.
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

use common::{Archive, Device, VOLUME, filled, same};
use std::time::{Duration, Instant};

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_volumes_load_at_once_and_rest_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::start(&dir);
    let mut device = Device::new(64, 3);
    (0..5).for_each(|_| device.write(2));
    filled(&archive, &device).await;
    archive.kill();
    let base = dir.path().join("a0");
    for n in 0..1000 {
        let copy = base.join(format!("copy-{n}"));
        std::fs::create_dir(&copy).unwrap();
        for file in common::files(&base.join(VOLUME), "") {
            std::fs::copy(base.join(VOLUME).join(&file), copy.join(&file)).unwrap();
        }
    }
    let start = Instant::now();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    let listed = client.archive.list(proto::v1::Empty {}).await.unwrap().into_inner().volumes;
    let took = start.elapsed();
    assert_eq!(listed.len(), 1001);
    assert!(listed.iter().all(|v| v.newest_restorable_gid == 5 && v.error.is_empty()));
    // About 0.1 s; a sync of each directory, or a thread each, would show.
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert!(threads() < 100, "{} threads", threads());
    same(&client.restored(5).await, device.now(), "one of them");
}
