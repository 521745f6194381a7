//! A volume of a hundred thousand wdiffs: every list of them arrives, and all of them are deleted.
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

use common::{Archive, VOLUME, volume};
use proto::v1::PlanRetentionRequest;

const DIFFS: u64 = 100_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_a_hundred_thousand_wdiffs_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    client.init().await;
    client.full_sync(&[1; 4096], 0).await.unwrap();
    let volume_dir = archive.volume_dir();
    archive.kill();
    // The catalogue is their names: nobody reads them here.
    let name = |gid: u64| format!("20260101000000-M--{}-{gid}.wdiff", gid - 1);
    for gid in 1..=DIFFS {
        std::fs::File::create(volume_dir.join(name(gid))).unwrap();
    }
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    assert_eq!(client.get().await.diffs, DIFFS);
    let diffs = client.diffs().await;
    assert_eq!(diffs.len() as u64, DIFFS);
    for (gid, diff) in (1..).zip(&diffs) {
        assert_eq!(diff.file, name(gid));
    }
    let snapshots: Vec<u64> = client.restorable(true).await.into_iter().map(|s| s.gid).collect();
    assert_eq!(snapshots, (0..=DIFFS).collect::<Vec<_>>());
    let plan = PlanRetentionRequest { volume: VOLUME.into(), policy: "all 1s".into() };
    let plan = client.archive.plan_retention(plan).await.unwrap().into_inner();
    let plan = server_kit::pages::all(plan).await.unwrap();
    let dropped = plan.iter().flat_map(|page| &page.dropped).map(|dropped| dropped.gid);
    assert_eq!(dropped.collect::<Vec<_>>(), (0..DIFFS).collect::<Vec<_>>());
    assert_eq!((plan[0].apply, plan[0].policy.as_str()), (Some(DIFFS), "keep all 1s"));
    archive.kill();
    // Without its first one, all lie behind a gap.
    std::fs::remove_file(volume_dir.join(name(1))).unwrap();
    let archive = Archive::start(&dir);
    let mut client = archive.client();
    let removed = client.gc().await;
    assert_eq!(removed, (2..=DIFFS).map(name).collect::<Vec<_>>());
    archive.all_deleted().await;
    assert_eq!(client.archive.get(volume()).await.unwrap().into_inner().diffs, 0);
}
