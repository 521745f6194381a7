//! Everything at once, under load: two archives receive, thin out, merge, apply, restore, mount,
//! drill and replicate for a while, on real files and real gRPC. Whatever is read meanwhile is what
//! the device held then; in the end both archives have nothing that they do not need.
//!
//! What may be refused is refused because something else runs, or because a snapshot went between
//! its listing and its use. That everything happens, often and beside the rest, is counted.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    unreachable_pub,
    missing_docs,
    reason = "a test may panic"
)]

mod common;
#[path = "soak/load.rs"]
mod load;
#[path = "soak/readers.rs"]
mod readers;

use archive_server::{Settings, World};
use common::{Archive, Client, same, until};
use load::{Load, Site};
use proto::v1::OperationStatus;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Open files that tokio and the archives may still have when all is quiet again.
const FDS_SLACK: usize = 24;

fn start(load: &Arc<Load>, dir: &tempfile::TempDir) -> Archive {
    let clock = load.clone();
    let now = Arc::new(move || clock.now_s.load(Ordering::SeqCst));
    let pause = Duration::from_millis(50);
    let settings = Settings { max_open: 4, index_batch: 8, ..common::settings() };
    let settings = Settings { upkeep_pause: pause, grace: Duration::from_secs(1), ..settings };
    Archive::within(dir, settings, World { now, ..World::real() })
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

const LOOK: Duration = Duration::from_millis(100);
/// A busy machine may take so much longer until everything has happened often enough.
const PATIENCE: Duration = Duration::from_secs(120);

/// For so long at least; each activity must have been done so often at each archive.
async fn soak(time: Duration, times: u64) {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let load = Arc::new(Load::new(71));
    let archives = [start(&load, &dirs[0]), start(&load, &dirs[1])];
    let [first, second] = [0, 1].map(|n: usize| Site { n, client: archives[n].client() });
    load.fill(&first, &archives[1]).await;
    let before = open_files();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(load::receives(load.clone(), first.clone()));
    tasks.spawn(load::replicates(load.clone(), first.clone(), archives[1].socket.clone()));
    for site in [&first, &second] {
        tasks.spawn(load::merges(load.clone(), site.clone()));
        tasks.spawn(load::applies(load.clone(), site.clone()));
        tasks.spawn(load::thins(load.clone(), site.clone()));
        tasks.spawn(load::keeps(load.clone(), site.clone()));
        tasks.spawn(readers::restores(load.clone(), site.clone()));
        tasks.spawn(readers::drills(load.clone(), site.clone()));
        tasks.spawn(readers::mounts(load.clone(), site.clone()));
        tasks.spawn(readers::mounts(load.clone(), site.clone()));
    }
    let begun = Instant::now();
    loop {
        tokio::select! {
            // None ends before it is told to.
            ended = tasks.join_next() => ended.unwrap().unwrap(),
            () = tokio::time::sleep(LOOK) => {}
        }
        let missing = load.missing(times);
        if begun.elapsed() >= time && missing.is_none() {
            break;
        }
        assert!(begun.elapsed() < time + PATIENCE, "{missing:?}");
    }
    load.ends.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    load.tell();
    calm(&load, &archives, [first, second]).await;
    let after = open_files();
    assert!(after <= before + FDS_SLACK, "{after} open files, {before} when it began");
}

/// Both have the same, all of it right, and nothing else.
async fn calm(load: &Load, archives: &[Archive; 2], sites: [Site; 2]) {
    let mut lists = Vec::new();
    for site in &sites {
        let mut client = site.client.clone();
        load::set_policy(&mut client, None).await;
        until("the end of all operations", || idle(client.clone())).await;
    }
    load::replicate_now(&sites[0], &archives[1].socket).await;
    for (archive, Site { client, .. }) in archives.iter().zip(&sites) {
        let mut client = client.clone();
        let verified = load::verify(&mut client).await;
        assert_eq!(verified.status(), OperationStatus::Done, "{verified:?}");
        assert_eq!(client.get().await.error, "");
        let list = load::listed(&mut client).await;
        for (n, gid) in list.iter().enumerate() {
            let (image, what) = (load.image(*gid).unwrap(), format!("in the end: {gid}"));
            same(&readers::mounted(&mut client, *gid).await, &image, &what);
            if n % 10 == 0 {
                same(&client.restored(*gid).await, &image, &what);
            }
        }
        lists.push(list);
        until("only needed files", || tidy(archive, client.clone())).await;
    }
    assert_eq!(lists[0].last(), lists[1].last());
    // With no lease left an apply leaves no wdiff.
    for (archive, Site { client, .. }) in archives.iter().zip(&sites) {
        let (mut client, latest) = (client.clone(), *lists[0].last().unwrap());
        let applied = client.apply(latest).await.unwrap();
        assert_eq!(applied.status(), OperationStatus::Done, "{applied:?}");
        same(&client.restored(latest).await, &load.image(latest).unwrap(), "all applied");
        until("no wdiffs", || async { archive.files(".wdiff").is_empty().then_some(()) }).await;
        until("only needed files", || tidy(archive, client.clone())).await;
    }
}

async fn idle(mut client: Client) -> Option<()> {
    client.get().await.running.is_empty().then_some(())
}

/// Nothing but what the catalogue lists: no half-made files, sockets, restored images.
async fn tidy(archive: &Archive, mut client: Client) -> Option<()> {
    let listed: BTreeSet<String> = client.diffs().await.into_iter().map(|d| d.file).collect();
    let is_content = |name: &String| {
        name.contains(".wdiff") || name.ends_with(".tmp") || name.ends_with(".sock")
    };
    let found: BTreeSet<String> = archive.files("").into_iter().filter(is_content).collect();
    let restored = common::files(&archive.volume_dir().join("restored"), "");
    (found == listed && restored.is_empty()).then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_at_once_reads_right_and_leaves_nothing() {
    soak(Duration::from_secs(4), 3).await;
}

/// `cargo long-test` only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten minutes"]
async fn ten_minutes_of_everything_at_once() {
    soak(Duration::from_secs(600), 10).await;
}
